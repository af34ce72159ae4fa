"""What an arm of one record file got on each item, in the form in which arms are compared.

Speeds come from the samples themselves, qualities from the scores that `score` made of the same file.
"""

import hashlib
import math
from collections.abc import Iterable
from statistics import median
from typing import Literal, NamedTuple

import msgspec

from edgemed.records import Arm, Machine, Sample, Suite
from edgemed_benchmarks.answer_times import counts_for_times
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.journal import Run
from edgemed_benchmarks.score_format import Scores

Scale = Literal["difference", "ratio"]
"""Qualities are compared by their difference, times and rates by their ratio."""


class Metric(NamedTuple):
    """One thing that is compared."""

    suite: Suite
    name: str
    item_set: str = ""


class ItemValue(NamedTuple):
    """What one arm got on one item."""

    value: float
    group: str = ""
    """Items of one group are not independent; "" stands alone."""
    prompts: str = ""
    """Tells whether two arms were asked the same; "" where the file does not say."""
    seconds: float = 1.0
    """Over which a rate was measured; 1 for all else."""


class MetricValues(msgspec.Struct, frozen=True, kw_only=True):
    """All items of one metric."""

    scale: Scale
    higher_is_better: bool | None
    unit: str
    items: dict[str, ItemValue]


class ComparedArm(msgspec.Struct, frozen=True, kw_only=True):
    """One arm of one file: what it is and how its samples were."""

    file: str
    """Its name without folder."""
    run_id: str
    edgemed_version: str
    arm: Arm
    machine: Machine
    item_files: dict[str, str]
    """SHA-256 by name."""
    ok: int
    suspect: int
    invalid: int
    cut: int
    """Answers that were ended because they were late: longer than their time says."""
    finished: bool


class ArmValues(ComparedArm, frozen=True, kw_only=True):
    """An arm with all it got on each item."""

    metrics: dict[Metric, MetricValues]


class _Speed(NamedTuple):
    unit: str
    higher_is_better: bool


_SPEEDS = {
    "first_text": _Speed("seconds", False),
    "answer": _Speed("seconds", False),
    "decode_rate": _Speed("tokens/s", True),
    "prefill_rate": _Speed("tokens/s", True),
}
# What each condition of the latency suite is there for; the questions of the quality suite have none. The few
# cold answers are too few to compare.
_SPEEDS_OF = {
    "saved_prefix": ("first_text", "answer", "decode_rate"),
    "no_prefix": ("prefill_rate",),
    "busy:1": ("first_text", "answer", "decode_rate"),
    "": ("first_text", "answer", "decode_rate"),
}


def run_arms(run: Run, scores: Scores | None = None, *, name: str = "") -> list[ArmValues]:
    """Return the arms of one run.

    Args:
        run: of a record file or a pack.
        scores: of the same run; None leaves the qualities out.
        name: of its file for the reader; "" takes the file's own.

    Raises:
        RecordError: the run says nothing of its machine: it was cut before it began.
    """
    if not run.machines:
        raise RecordError(
            f"{run.path} was cut before anything was measured.", hint="Leave it out, or run it again."
        )
    return [_run_arm(run, scores, place, name or run.path.name) for place in range(len(run.arms))]


def _run_arm(run: Run, scores: Scores | None, place: int, name: str) -> ArmValues:
    samples = [sample for sample in run.samples if sample.arm == place and not sample.warm_up]
    verdicts = [sample.validity.verdict for sample in samples]
    return ArmValues(
        file=name,
        run_id=run.start.run_id,
        edgemed_version=run.start.edgemed_version,
        arm=run.arms[place],
        machine=run.machines[0],
        item_files={file.name: file.sha256 for file in run.start.item_files},
        ok=verdicts.count("ok"),
        suspect=verdicts.count("suspect"),
        invalid=verdicts.count("invalid"),
        cut=sum(sample.stop_reason == "cancelled" for sample in samples),
        finished=run.end is not None and run.end.finished,
        metrics=_speeds(samples) | (_qualities(scores, place, samples) if scores else {}),
    )


def _speeds(samples: Iterable[Sample]) -> dict[Metric, MetricValues]:
    """Return the times and rates of each item under each condition, over its repetitions."""
    asked: dict[tuple[Suite, str, str], list[Sample]] = {}
    for sample in samples:
        answered = sample.generated_tokens > 0 and sample.choice is None
        answered &= sample.stop_reason != "engine_died"
        condition = _condition(sample)
        if (
            answered
            and condition is not None
            and sample.suite in ("latency", "quality")
            and counts_for_times(sample)
        ):
            asked.setdefault((sample.suite, condition, sample.item_id), []).append(sample)
    found: dict[Metric, MetricValues] = {}
    for (suite, condition, item_id), repetitions in asked.items():
        for name in _SPEEDS_OF[condition]:
            value = _speed(name, repetitions)
            if value is None or value <= 0:
                continue
            speed = _SPEEDS[name]
            values = found.setdefault(
                Metric(suite, name, condition),
                MetricValues(
                    scale="ratio", higher_is_better=speed.higher_is_better, unit=speed.unit, items={}
                ),
            )
            values.items[item_id] = ItemValue(
                value, prompts=_prompts(repetitions), seconds=_measured_seconds(name, repetitions)
            )
    return found


def _condition(sample: Sample) -> str | None:
    """Return the condition under which speeds are compared; None: this one is not."""
    words = sample.condition.split()
    named = [word for word in words if word in _SPEEDS_OF]
    if named:
        return named[0]
    return None if sample.suite == "latency" else ""


def _speed(name: str, repetitions: list[Sample]) -> float | None:
    times = [sample.times for sample in repetitions]
    if name == "answer":
        # How long an answer at a forced length takes says nothing about the wait for a real one.
        ends = [sample.times.end_ns for sample in repetitions if not sample.forced_length]
        return median(ends) / 1e9 if ends else None
    if name == "first_text":
        firsts = [time.first_text_ns for time in times if time.first_text_ns is not None]
        return median(firsts) / 1e9 if firsts else None
    if name == "decode_rate":
        return _rate(sum(len(time.token_ns) for time in times), sum(sum(time.token_ns) for time in times))
    read = sum(max(0, sample.prompt_tokens - sample.reused_tokens) for sample in repetitions)
    return _rate(read, sum(time.prefill_ns for time in times))


def _measured_seconds(name: str, repetitions: list[Sample]) -> float:
    if name == "decode_rate":
        return sum(sum(sample.times.token_ns) for sample in repetitions) / 1e9
    if name == "prefill_rate":
        return sum(sample.times.prefill_ns for sample in repetitions) / 1e9
    return 1.0


def _rate(tokens: int, nanoseconds: int) -> float | None:
    return tokens / nanoseconds * 1e9 if tokens and nanoseconds else None


def _qualities(scores: Scores, place: int, samples: Iterable[Sample]) -> dict[Metric, MetricValues]:
    better = {(score.suite, score.metric): score.higher_is_better for score in scores.scores}
    units = {(score.suite, score.metric): score.unit for score in scores.scores}
    asked: dict[tuple[Suite, str], list[Sample]] = {}
    for sample in samples:
        asked.setdefault((sample.suite, sample.item_id), []).append(sample)
    found: dict[Metric, MetricValues] = {}
    for item in scores.items:
        if item.arm != place or not math.isfinite(item.value):
            continue
        key = (item.suite, item.metric)
        values = found.setdefault(
            Metric(item.suite, item.metric, item.item_set),
            MetricValues(
                scale="difference",
                higher_is_better=better.get(key),
                unit=str(units.get(key, "share")),
                items={},
            ),
        )
        prompts = _prompts(asked.get((item.suite, item.item_id), []))
        values.items[item.item_id] = ItemValue(item.value, item.group, prompts)
    return found


def _prompts(samples: Iterable[Sample]) -> str:
    # A pack has no more than these digits.
    distinct = sorted({sample.prompt_sha256[:16] for sample in samples})
    return hashlib.sha256(" ".join(distinct).encode("ascii")).hexdigest() if distinct else ""
