"""How fast the answers were: which samples count, and what they say of one arm.

Terms are those of AIPerf (TTFT, inter-token times) and llama-bench (prefill, decode). A rate is the sum of
tokens ÷ the sum of seconds.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from edgemed.records import Arm, Load, Machine, RunStart, Sample
from edgemed_benchmarks.journal import Run
from edgemed_benchmarks.measures import Measure, known, unknown
from edgemed_benchmarks.queueing import questions_per_hour
from edgemed_benchmarks.stats import Estimate, early_stopping, median, quantile, rate

SECOND_NS = 1e9
LIMIT_SHARE = 0.9
"""Of all answers that must stay within a limit."""
LIMIT_CONFIDENCE = 0.95
_QUEUE_SAMPLES = 20
"""Fewer answer times say nothing of a queue's slowest twentieth."""
_NOT_AS_USED = ("busy", "cold", "no_prefix", "forced")


class LimitVerdict(NamedTuple):
    """Whether 9 of 10 answers stay within one limit, at 95 % confidence."""

    kind: Literal["first_words", "full_answer"]
    limit_seconds: float
    verdict: Literal["yes", "no", "undecided"]
    samples: int
    misses: int
    more: int


class ConditionRow(NamedTuple):
    """Times under one condition of the latency suite."""

    condition: str
    first_text: Estimate
    whole_answer: Estimate | None
    """None: the answers were of a forced length."""
    decode_rate: float | None
    samples: int


def counts_for_times(sample: Sample) -> bool:
    """Whether a sample's times enter statistics: neither warm-up nor invalid."""
    return not sample.warm_up and sample.validity.verdict != "invalid"


def has_word(sample: Sample, *words: str) -> bool:
    """Whether a sample's condition has one of these words: `busy` finds `busy:1`."""
    return any(part.partition(":")[0] in words for part in sample.condition.split())


def as_used(samples: Iterable[Sample]) -> list[Sample]:
    """Return the latency suite's samples that are as a health worker has them: free length, saved prefix."""
    return [
        sample
        for sample in samples
        if sample.suite == "latency" and not sample.forced_length and not has_word(sample, *_NOT_AS_USED)
    ]


def limit_verdicts(start: RunStart, samples: Sequence[Sample]) -> list[LimitVerdict]:
    """Return the verdicts on the first words and on the whole answer.

    One value a question, its first valid one: the same question again is no independent sample. An answer
    that the engine's death ended came never, and counts as a miss.

    Args:
        start: has the limits.
        samples: of one arm.
    """
    first_of: dict[str, Sample] = {}
    for sample in as_used(samples):
        if counts_for_times(sample) or (_died(sample) and not sample.warm_up):
            first_of.setdefault(sample.item_id, sample)
    chosen = list(first_of.values())
    return [
        _limit_verdict("first_words", start.first_words_limit_seconds, map(_first_text_seconds, chosen)),
        _limit_verdict("full_answer", start.full_answer_limit_seconds, map(_end_seconds, chosen)),
    ]


def overall(limits: Sequence[LimitVerdict]) -> Literal["yes", "no", "undecided"]:
    """Return no if any limit is missed, yes if all are kept, else undecided."""
    found = {limit.verdict for limit in limits}
    if "no" in found:
        return "no"
    return "yes" if found == {"yes"} else "undecided"


def speed(run: Run, samples: Sequence[Sample], loads: Sequence[Load], arm: Arm) -> list[Measure]:
    """Return what is known of one arm's speed and memory.

    Args:
        run: for the machine and the limits.
        samples: of this arm.
        loads: of this arm.
        arm: whose size stands for the bytes read for each token.
    """
    valid = [sample for sample in samples if counts_for_times(sample)]
    free = as_used(valid)
    undisturbed = [s for s in valid if s.suite == "latency" and not has_word(s, "busy", "cold")]
    forced = [sample for sample in undisturbed if sample.forced_length and not has_word(sample, "no_prefix")]
    decode = decode_rate(forced or free)
    ends = [sample.times.end_ns / SECOND_NS for sample in free]
    cut = sum(sample.stop_reason == "cancelled" for sample in free)
    measures = [
        _waiting("first_text_seconds", "First words", free, _first_text_or_none),
        _waiting("first_token_seconds", "First token (TTFT)", free, _first_token_or_none),
        _waiting("answer_seconds", "Whole answer", free, _end_seconds)._replace(
            note=f"{cut} answers were cut when they had missed the limit: they take longer than shown"
            if cut
            else ""
        ),
        Measure(
            "inter_token_seconds",
            "From token to token",
            "seconds",
            median(_per_item(free, _median_token_seconds)),
        ),
        Measure("decode_rate", "Writing (decode rate)", "tokens/s", decode),
        Measure("prefill_rate", "Reading (prefill rate)", "tokens/s", _prefill_rate(undisturbed)),
        Measure(
            "bandwidth_share", "Memory bandwidth used", "share", _bandwidth_share(decode, arm, run.machines)
        ),
        Measure("load_seconds", "Loading the model", "seconds", _load_seconds(loads)),
        Measure("peak_rss_bytes", "Peak memory of the engine", "bytes", _peak_rss(samples, loads)),
        Measure("questions_per_hour", "Questions an hour", "questions/h", _queue(ends, run.start)),
    ]
    return [_without_samples(measure) for measure in measures]


def decode_rate(samples: Sequence[Sample]) -> Estimate:
    """Return generated tokens after the first ÷ the seconds they took, over all samples."""
    return rate(*_totals(samples, _written))


def conditions(samples: Sequence[Sample]) -> list[ConditionRow]:
    """Return a row for each condition of the latency suite, in the order of first appearance."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.suite == "latency" and counts_for_times(sample):
            found.setdefault(sample.condition, []).append(sample)
    return [
        ConditionRow(
            condition,
            median(_per_item(taken, _first_text_or_none)),
            None if taken[0].forced_length else median(_per_item(taken, _end_seconds)),
            _ratio(*_totals(taken, _written)),
            len(taken),
        )
        for condition, taken in found.items()
    ]


def _limit_verdict(
    kind: Literal["first_words", "full_answer"], limit_seconds: float, values: Iterable[float]
) -> LimitVerdict:
    found = early_stopping(values, limit_seconds, share=LIMIT_SHARE, confidence=LIMIT_CONFIDENCE)
    return LimitVerdict(kind, limit_seconds, found.verdict, found.samples, found.misses, found.more)


def _died(sample: Sample) -> bool:
    return sample.stop_reason == "engine_died" or "engine_died" in sample.validity.reasons


def _first_text_or_none(sample: Sample) -> float | None:
    nanoseconds = sample.times.first_text_ns
    return None if nanoseconds is None else nanoseconds / SECOND_NS


def _first_token_or_none(sample: Sample) -> float | None:
    nanoseconds = sample.times.first_token_ns
    return None if nanoseconds is None else nanoseconds / SECOND_NS


def _first_text_seconds(sample: Sample) -> float:
    found = None if _died(sample) else _first_text_or_none(sample)
    return float("inf") if found is None else found


def _end_seconds(sample: Sample) -> float:
    return float("inf") if _died(sample) else sample.times.end_ns / SECOND_NS


def _median_token_seconds(sample: Sample) -> float | None:
    return statistics.median(sample.times.token_ns) / SECOND_NS if sample.times.token_ns else None


def _per_item(samples: Sequence[Sample], value_of: Callable[[Sample], float | None]) -> list[float]:
    """Return one value a question, the median of its repetitions: those are not independent."""
    values: dict[str, list[float]] = {}
    for sample in samples:
        if (value := value_of(sample)) is not None:
            values.setdefault(sample.item_id, []).append(value)
    return [statistics.median(repeated) for repeated in values.values()]


def _waiting(
    key: str, title: str, samples: Sequence[Sample], value_of: Callable[[Sample], float | None]
) -> Measure:
    values = _per_item(samples, value_of)
    return Measure(key, title, "seconds", median(values), quantile(values, 0.9))


def _without_samples(measure: Measure) -> Measure:
    """Say it in the reader's words where there is no valid sample at all."""
    found = measure.estimate
    if found.value is not None or found.samples or found.reason.startswith("not known"):
        return measure
    return measure._replace(estimate=unknown("no valid sample"))


def _prefill_rate(samples: Sequence[Sample]) -> Estimate:
    return rate(*_totals(samples, _read))


def _written(sample: Sample) -> tuple[int, int]:
    return len(sample.times.token_ns), sum(sample.times.token_ns)


def _read(sample: Sample) -> tuple[int, int]:
    return sample.prompt_tokens - sample.reused_tokens, sample.times.prefill_ns


def _totals(
    samples: Sequence[Sample], amounts_of: Callable[[Sample], tuple[int, int]]
) -> tuple[list[int], list[float]]:
    """Return tokens and seconds of each question: its repetitions are one, for they are not independent."""
    totals: dict[str, tuple[int, int]] = {}
    for sample in samples:
        tokens, nanoseconds = amounts_of(sample)
        if tokens > 0 and nanoseconds > 0:
            before = totals.get(sample.item_id, (0, 0))
            totals[sample.item_id] = before[0] + tokens, before[1] + nanoseconds
    return (
        [tokens for tokens, _nanoseconds in totals.values()],
        [nanoseconds / SECOND_NS for _tokens, nanoseconds in totals.values()],
    )


def _ratio(tokens: Sequence[int], seconds: Sequence[float]) -> float | None:
    return sum(tokens) / sum(seconds) if tokens else None


def _bandwidth_share(decode: Estimate, arm: Arm, machines: Sequence[Machine]) -> Estimate:
    bandwidths = [
        machine.memory_bandwidth_bytes_per_second
        for machine in machines
        if machine.memory_bandwidth_bytes_per_second
    ]
    if not bandwidths:
        return unknown("not known: the memory bandwidth was not measured")
    factor = arm.size_bytes / max(bandwidths)
    value, low, high = (None if end is None else end * factor for end in decode[:3])
    return Estimate(value, low, high, decode.samples, decode.reason)


def _load_seconds(loads: Sequence[Load]) -> Estimate:
    return median([load.load_ns / SECOND_NS for load in loads])


def _peak_rss(samples: Sequence[Sample], loads: Sequence[Load]) -> Estimate:
    peaks = [sample.peak_rss_bytes for sample in samples] + [load.peak_rss_bytes for load in loads]
    found = [peak for peak in peaks if peak is not None]
    return known(max(found), len(found)) if found else unknown("not known on this system")


def _queue(end_seconds: Sequence[float], start: RunStart) -> Estimate:
    if len(end_seconds) < _QUEUE_SAMPLES:
        return unknown(f"not enough data: {len(end_seconds)} of {_QUEUE_SAMPLES} answers", len(end_seconds))
    return known(questions_per_hour(end_seconds, start.full_answer_limit_seconds), len(end_seconds))
