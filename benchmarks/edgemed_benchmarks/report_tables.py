"""The tables of a report as plain cells: what stands where. The page and the terminal draw them."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from edgemed.records import Suite
from edgemed_benchmarks.measures import Measure, Unit, interval_text, value_text
from edgemed_benchmarks.paired_stats import paired_detectable_difference
from edgemed_benchmarks.score_format import Score
from edgemed_benchmarks.stats import Estimate
from edgemed_benchmarks.summary import ArmSummary, RunSummary
from edgemed_benchmarks.verdict_text import left_out, time_sentence

Cell = tuple[str, str]
"""What stands in a cell, and what stands small below it."""

VERDICTS = {"yes": "yes", "no": "no", "undecided": "not known yet"}
WORDS = {
    "n": "How many questions (or loads, or runs) a number rests on. A question that was asked more than once "
    "counts once, by its median.",
    "95 % interval": "Where the true value lies unless we are unlucky in 1 of 20 cases. Medians: order "
    "statistics; rates and scores: bootstrap; shares: Wilson.",
    "9 of 10": "9 of 10 answers take no longer. Not given below 29 questions.",
    "first words": "From the question until the first characters that are not white space.",
    "TTFT": "Until the first generated token, with template, tokenizing and prefill.",
    "decode, prefill": "Sum of tokens ÷ sum of seconds, never a mean of rates. Decode leaves out the first "
    "token.",
    "bandwidth used": "Decode rate × size of the model ÷ measured memory bandwidth. Near 100 % only a smaller"
    " model is faster; over 100 % the processor's caches help.",
    "questions an hour": "So many may come, by chance, that 95 % of the askers have the whole answer within "
    "the limit, their wait in the queue included (simulated from the measured answers).",
    "invalid": "The machine was disturbed during the sample: its times are kept in the record and left out "
    "here. Suspect samples are counted.",
}
SCORED_SUITES: dict[Suite, str] = {"quality": "Quality", "safety": "Safety"}
"""Suites with scores, and their tables' titles."""
_PLAIN_METRICS = ("brier",)
"""Not shares, though they are near 0 to 1: no percent sign."""
_METRICS = {
    "token_f1": "Token F1",
    "bleu": "BLEU",
    "brier": "Brier score",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "squad_exact_match": "Exact match as SQuAD has it",
    "unigram_precision": "1-gram precision",
}
_CHANGED_ANSWERS = 0.08
"""Share of answers that change between two quantizations of a model, for the least difference that shows."""


class Cells(NamedTuple):
    """One row; `group` is a heading over rows, `indented` a row below it."""

    kind: Literal["head", "group", "row", "indented"]
    cells: list[Cell]


def facts(summary: RunSummary) -> dict[str, str]:
    """Return what was measured, on what, and how long it took."""
    start, machine = summary.run.start, summary.machine
    found = {}
    if machine:
        memory = value_text(machine.total_memory_bytes, "bytes")
        found["machine"] = (
            f"{machine.cpu_model}, {machine.physical_cores} cores, {memory} memory, {machine.system}; "
            f"id {machine.machine_id}"
        )
        state = [
            f"{machine.power_source} power" if machine.power_source else "",
            f"governor {machine.governor}" if machine.governor else "",
            f"{value_text(machine.memory_bandwidth_bytes_per_second, 'bytes')}/s memory bandwidth"
            if machine.memory_bandwidth_bytes_per_second
            else "",
        ]
        found["state"] = ", ".join(filter(None, state)) or "not known"
        # The build's list of processor features stays in the record.
        build = machine.llama_cpp_build.partition(" | ")[0] or "of unknown build"
        found["engine"] = f"llama.cpp {build}, {machine.kernels or '?'} kernels"
    for one in start.arms:
        size = value_text(one.size_bytes, "bytes")
        threads = f"{one.threads} threads" if one.threads else "threads by the app's rule"
        found[f"model {one.label}"] = (
            f"{one.model_name}, {one.quantization_type or 'quantization type not known'}, {size}, {threads}; "
            f"SHA-256 {one.model_sha256}"
        )
    found["run"] = f"{start.profile}, begun {start.utc}, edgemed {start.edgemed_version}, id {start.run_id}"
    found["it took"] = time_sentence(
        summary.predicted_seconds, summary.actual_seconds, finished=summary.finished
    )
    if skipped := left_out(summary.run):
        found["left out"] = skipped
    found["question sets"] = (
        "; ".join(f"{one.name}, {one.items} (SHA-256 {one.sha256[:16]}…)" for one in start.item_files)
        or "none"
    )
    return found


def used_suites(summary: RunSummary) -> set[str]:
    """Return the suites that gave any sample."""
    return {sample.suite for arm in summary.arms for sample in arm.samples}


def measure_table(arms: Sequence[ArmSummary], measures: Sequence[Sequence[Measure]]) -> Iterator[Cells]:
    """Return a row for each measure and arm, with interval, p90 and n.

    Args:
        arms: those that are shown.
        measures: of each of them.
    """
    with_p90 = any(measure.p90 for found in measures for measure in found)
    head: list[Cell] = [("", ""), ("median or rate", ""), *([("9 of 10", "")] if with_p90 else []), ("n", "")]
    yield Cells("head", head)
    every = {measure.key: measure.title for found in measures for measure in found}
    for key, title in every.items():
        found = [
            (arm, measure)
            for arm, of_arm in zip(arms, measures, strict=True)
            for measure in of_arm
            if measure.key == key
        ]
        if len(arms) == 1:
            yield _measure_row("row", title, found[0][1], with_p90=with_p90, note=found[0][1].note)
            continue
        yield Cells("group", [(title, next((measure.note for _arm, measure in found if measure.note), ""))])
        for arm, measure in found:
            yield _measure_row("indented", arm.arm.label, measure, with_p90=with_p90)


def condition_table(arms: Sequence[ArmSummary]) -> Iterator[Cells]:
    """Return a row for each condition of the latency suite and arm."""
    yield Cells(
        "head", [("", ""), ("first words", ""), ("whole answer", ""), ("tokens a second", ""), ("n", "")]
    )
    for condition in dict.fromkeys(row.condition for arm in arms for row in arm.conditions):
        if len(arms) > 1:
            yield Cells("group", [(condition_text(condition), "")])
        for arm in arms:
            for row in arm.conditions:
                if row.condition == condition:
                    several = len(arms) > 1
                    name = arm.arm.label if several else condition_text(condition)
                    whole = row.whole_answer or Estimate(None, None, None, row.samples)
                    cells = [(name, ""), _shown(row.first_text, "seconds"), _shown(whole, "seconds")]
                    cells.append((value_text(row.decode_rate, "answers"), ""))
                    yield Cells("indented" if several else "row", [*cells, (str(row.samples), "")])


def score_table(arms: Sequence[ArmSummary], suite: Suite) -> Iterator[Cells]:
    """Return a row for each score of one suite and arm, with its definition."""
    yield Cells("head", [("", ""), ("value", ""), ("n", "")])
    keys = dict.fromkeys(
        (s.suite, s.metric, s.item_set) for arm in arms for s in arm.scores if s.suite == suite
    )
    for key in keys:
        found = [(arm, s) for arm in arms for s in arm.scores if (s.suite, s.metric, s.item_set) == key]
        first = found[0][1]
        title = score_title(first) + (f", {first.item_set}" if first.item_set else "")
        small = f"{first.definition[:1].upper()}{first.definition[1:]}{_better(first)}"
        if len(arms) == 1:
            note = f"{small}. {first.note}" if first.note else small
            yield _score_row("row", (title, note), first)
            continue
        yield Cells("group", [(title, small)])
        for arm, score in found:
            yield _score_row("indented", (arm.arm.label, score.note), score)


def difference_line(arms: Sequence[ArmSummary]) -> str:
    """Return what differences between arms such a run can show at all, or "" for a single arm."""
    samples = max((s.n for arm in arms for s in arm.scores if s.unit == "share"), default=0)
    if len(arms) < 2 or not samples:
        return ""
    least = paired_detectable_difference(samples, _CHANGED_ANSWERS)
    unseen = (
        f"differences under {100 * least:.1f} points do not show"
        if least is not None
        else "no difference between models shows"
    )
    changed = f"where {100 * _CHANGED_ANSWERS:.0f} % of the answers change, in 80 % of runs"
    return (
        f"With {samples} questions {unseen} ({changed}). Whether models differ is tested, question by "
        "question, by: edgemed-bench compare."
    )


def score_title(score: Score) -> str:
    """Return a metric's name as people write it."""
    return _METRICS.get(score.metric, score.metric.replace("_", " ").capitalize())


def overview_rows(summaries: Sequence[RunSummary]) -> Iterator[Cells]:
    """Return a row for each arm of each run: verdict, first words, writing."""
    heads = ("", "fast enough", "first words", "whole answer", "n")
    yield Cells("head", [(head, "") for head in heads])
    for summary in summaries:
        machine = summary.machine.cpu_model if summary.machine else "machine not known"
        yield Cells("group", [(summary.name, machine)])
        for arm in summary.arms:
            times = [arm.measure(key) for key in ("first_text_seconds", "answer_seconds")]
            shown = [(value_text(one.estimate.value, one.unit) if one else "–", "") for one in times]
            name = (arm.arm.label, f"SHA-256 {arm.arm.model_sha256[:12]}…")
            count = (str(arm.limits[0].samples), "")
            yield Cells("indented", [name, (VERDICTS[arm.verdict], ""), *shown, count])


def condition_text(condition: str) -> str:
    """Return a sample's condition in words: `saved_prefix length:short` is `as used, short`."""
    words = {"saved_prefix": "as used", "no_prefix": "nothing reused", "cold": "cold: first after loading"}
    lengths = {"short": "short questions", "history": "within a talk", "passages": "with passages to read"}
    texts = []
    for word in condition.split():
        name, _separator, value = word.partition(":")
        if name == "length":
            texts.append(lengths.get(value, value))
        elif name == "forced":
            texts.append(f"{value} tokens forced")
        elif name == "busy":
            texts.append(f"{value} core kept busy")
        else:
            texts.append(words.get(word, word))
    return ", ".join(texts) or "as used"


def _measure_row(
    kind: Literal["row", "indented"], name: str, measure: Measure, *, with_p90: bool, note: str = ""
) -> Cells:
    cells = [(name, note), _shown(measure.estimate, measure.unit)]
    if with_p90:
        cells.append(("" if measure.p90 is None else value_text(measure.p90.value, measure.unit), ""))
    return Cells(kind, [*cells, (str(measure.estimate.samples), "")])


def _score_row(kind: Literal["row", "indented"], name: Cell, score: Score) -> Cells:
    estimate = Estimate(score.value, score.low, score.high, score.n)
    unit: Unit = "plain" if score.metric in _PLAIN_METRICS else score.unit
    return Cells(kind, [name, _shown(estimate, unit), (str(score.n), "")])


def _shown(estimate: Estimate, unit: Unit) -> Cell:
    return value_text(estimate.value, unit), interval_text(estimate, unit) or estimate.reason


def _better(score: Score) -> str:
    if score.higher_is_better is None:
        return ""
    return "; more is better" if score.higher_is_better else "; less is better"
