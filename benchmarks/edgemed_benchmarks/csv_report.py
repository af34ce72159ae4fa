"""A run as CSV files for spreadsheets: one row a number, or one row a sample. Never an answer's text."""

import csv
import io
from collections.abc import Iterable, Sequence

from edgemed.records import Sample
from edgemed_benchmarks.answer_times import ConditionRow
from edgemed_benchmarks.measures import Measure
from edgemed_benchmarks.score_format import Score
from edgemed_benchmarks.summary import ArmSummary, RunSummary

Value = str | int | float | None

SUMMARY_COLUMNS = (
    "run_id",
    "machine_id",
    "arm",
    "model_sha256",
    "quantization_type",
    "group",
    "name",
    "unit",
    "value",
    "low",
    "high",
    "p90",
    "n",
    "note",
)
SAMPLE_COLUMNS = (
    "run_id",
    "machine_id",
    "seq",
    "arm",
    "suite",
    "item_id",
    "condition",
    "block",
    "repetition",
    "warm_up",
    "verdict",
    "reasons",
    "prompt_tokens",
    "reused_tokens",
    "generated_tokens",
    "stop_reason",
    "first_token_seconds",
    "first_text_seconds",
    "end_seconds",
    "prefill_seconds",
    "decode_seconds",
    "cpu_seconds",
    "joules",
    "energy_grade",
    "peak_rss_bytes",
    "temperature_celsius",
)
_SECOND_NS = 1e9
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def summary_csv(summaries: Iterable[RunSummary]) -> str:
    """Return one row for each number of each arm; what is not known is empty, with the reason in `note`."""
    rows = []
    for summary in summaries:
        for arm in summary.arms:
            rows += [[*_identity(summary, arm), *row] for row in _rows_of(summary, arm)]
    return _written(SUMMARY_COLUMNS, rows)


def samples_csv(summaries: Iterable[RunSummary]) -> str:
    """Return one row for each sample, warm-up and invalid ones too."""
    rows = []
    for summary in summaries:
        run_id, machine_id = summary.run.start.run_id, _machine_id(summary)
        for sample in summary.run.samples:
            label = summary.run.arm_of(sample).label
            rows.append([run_id, machine_id, sample.seq, label, *_sample_cells(sample)])
    return _written(SAMPLE_COLUMNS, rows)


def _identity(summary: RunSummary, arm: ArmSummary) -> list[Value]:
    return [
        summary.run.start.run_id,
        _machine_id(summary),
        arm.arm.label,
        arm.arm.model_sha256,
        arm.arm.quantization_type,
    ]


def _machine_id(summary: RunSummary) -> str:
    return summary.machine.machine_id if summary.machine else ""


def _rows_of(summary: RunSummary, arm: ArmSummary) -> list[list[Value]]:
    rows: list[list[Value]] = [_verdict_row(arm)]
    rows += [_measure_row("speed", measure) for measure in arm.speed]
    for condition in arm.conditions:
        rows += _condition_rows(condition)
    rows += [_measure_row("energy", measure) for measure in (arm.energy.measures if arm.energy else [])]
    rows.append(_measure_row("energy", summary.answers_per_charge))
    rows += [_measure_row("endurance", measure) for measure in arm.endurance]
    rows += [_score_row(score) for score in arm.scores]
    counts = arm.validity
    for name, count in (("ok", counts.ok), ("suspect", counts.suspect), ("invalid", counts.invalid)):
        rows.append(["validity", name, "samples", count, None, None, None, counts.samples, ""])
    if (fidelity := arm.fidelity) is not None:
        for name, unit, value in (
            ("mean_kl", "nats", fidelity.mean_kl_nats),
            ("same_top", "share", fidelity.same_top_share),
        ):
            rows.append(["fidelity", name, unit, value, None, None, None, fidelity.positions, ""])
    return rows


def _condition_rows(row: ConditionRow) -> list[list[Value]]:
    def named(name: str) -> str:
        return f"{name} {row.condition}".strip()

    rows: list[list[Value]] = [
        [
            "condition",
            named(name),
            "seconds",
            found.value,
            found.low,
            found.high,
            None,
            found.samples,
            found.reason,
        ]
        for name, found in (("first_text_seconds", row.first_text), ("answer_seconds", row.whole_answer))
        if found is not None
    ]
    rate = ["condition", named("decode_rate"), "tokens/s", row.decode_rate, None, None, None, row.samples, ""]
    return [*rows, rate]


def _verdict_row(arm: ArmSummary) -> list[Value]:
    samples = arm.limits[0].samples
    return ["verdict", "fast_enough", "", arm.verdict, None, None, None, samples, arm.headline]


def _measure_row(group: str, measure: Measure) -> list[Value]:
    found = measure.estimate
    p90 = measure.p90.value if measure.p90 else None
    note = "; ".join(filter(None, (found.reason, measure.note)))
    return [group, measure.key, measure.unit, found.value, found.low, found.high, p90, found.samples, note]


def _score_row(score: Score) -> list[Value]:
    name = f"{score.metric}:{score.item_set}" if score.item_set else score.metric
    note = "; ".join(filter(None, (score.definition, score.note)))
    return [score.suite, name, score.unit, score.value, score.low, score.high, None, score.n, note]


def _sample_cells(sample: Sample) -> list[Value]:
    times = sample.times
    return [
        sample.suite,
        sample.item_id,
        sample.condition,
        sample.block,
        sample.repetition,
        int(sample.warm_up),
        sample.validity.verdict,
        " ".join(sample.validity.reasons),
        sample.prompt_tokens,
        sample.reused_tokens,
        sample.generated_tokens,
        sample.stop_reason,
        _seconds(times.first_token_ns),
        _seconds(times.first_text_ns),
        _seconds(times.end_ns),
        _seconds(times.prefill_ns),
        _seconds(sum(times.token_ns) if times.token_ns else None),
        _seconds(times.cpu_ns),
        sample.energy.joules if sample.energy else None,
        sample.energy.grade if sample.energy else None,
        sample.peak_rss_bytes,
        sample.validity.counters.temperature_celsius,
    ]


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / _SECOND_NS


def _written(columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: Value) -> Value:
    """Keep a spreadsheet from running text out of a record as a formula."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
