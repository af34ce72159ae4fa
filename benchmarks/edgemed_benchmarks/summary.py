"""All that one run says, in numbers and sentences: what every report is made from.

The HTML page, the terminal's table and the CSV file show parts of one `RunSummary`: they never differ.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from edgemed.records import Arm, Machine, Sample
from edgemed_benchmarks import answer_times, long_run, verdict_text
from edgemed_benchmarks.answer_times import ConditionRow, LimitVerdict
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.journal import Run
from edgemed_benchmarks.long_run import Energy, Fidelity
from edgemed_benchmarks.measures import Measure
from edgemed_benchmarks.score_format import ReliabilityBin, Score, Scores


class ValidityCounts(NamedTuple):
    """How many samples may be trusted; warm-up is left out."""

    ok: int
    suspect: int
    invalid: int
    reasons: dict[str, int]
    """Of the samples that are not ok, most frequent first; one sample may have several."""

    @property
    def samples(self) -> int:
        """All of them."""
        return self.ok + self.suspect + self.invalid


class ArmSummary(NamedTuple):
    """What is known of one arm."""

    number: int
    """What `Sample.arm` says."""
    arm: Arm
    samples: list[Sample]
    """Of this arm, warm-up left out, in time order."""
    verdict: Literal["yes", "no", "undecided"]
    headline: str
    """The verdict in one sentence for a reader who knows no statistics."""
    details: list[str]
    """What stands behind it, in sentences."""
    limits: list[LimitVerdict]
    validity: ValidityCounts
    speed: list[Measure]
    conditions: list[ConditionRow]
    energy: Energy | None
    endurance: list[Measure]
    fidelity: Fidelity | None
    scores: list[Score]
    bins: list[ReliabilityBin]

    def measure(self, key: str) -> Measure | None:
        """Return one of this arm's measures, or None."""
        every = [*self.speed, *(self.energy.measures if self.energy else []), *self.endurance]
        return next((one for one in every if one.key == key), None)


class RunSummary(NamedTuple):
    """What one record file says."""

    run: Run
    name: str
    """Short, from the file's name: tells the runs of one report apart."""
    machine: Machine | None
    """As it was at the start."""
    arms: list[ArmSummary]
    validity: ValidityCounts
    answers_per_charge: Measure
    predicted_seconds: float
    actual_seconds: float
    """Up to the last line of the file."""
    finished: bool
    notes: list[str]
    """What must be known before a number is believed, in sentences."""


def summarise(run: Run, scores: Scores | None = None, *, wh_per_day: float | None = None) -> RunSummary:
    """Return all that a run says.

    Args:
        run: as `journal.read_run` read it.
        scores: of the same run, from `score`; None: no quality is shown.
        wh_per_day: energy that the clinic has for answers in a day.

    Raises:
        RecordError: the scores are of another run.
    """
    if scores is not None and scores.run_id != run.start.run_id:
        raise RecordError(
            f"The scores are of run {scores.run_id}, and {run.path} holds run {run.start.run_id}.",
            hint=f"Make them anew with: edgemed-bench score {run.path}",
        )
    samples = [sample for sample in run.samples if not sample.warm_up]
    validity = count_validity(samples)
    return RunSummary(
        run=run,
        name=run.path.stem,
        machine=run.machines[0] if run.machines else None,
        arms=[_arm_summary(run, index, samples, scores, wh_per_day) for index in range(len(run.arms))],
        validity=validity,
        answers_per_charge=long_run.answers_per_charge(run),
        predicted_seconds=run.start.estimated_seconds,
        actual_seconds=run.end.actual_seconds if run.end else run.records[-1].at_ns / answer_times.SECOND_NS,
        finished=run.end is not None and run.end.finished,
        notes=verdict_text.notes(run, validity.samples, validity.invalid),
    )


def count_validity(samples: Sequence[Sample]) -> ValidityCounts:
    """Count verdicts and reasons."""
    verdicts = Counter(sample.validity.verdict for sample in samples)
    reasons = Counter(
        reason
        for sample in samples
        if sample.validity.verdict != "ok"
        for reason in dict.fromkeys(sample.validity.reasons)
    )
    return ValidityCounts(
        verdicts["ok"], verdicts["suspect"], verdicts["invalid"], dict(reasons.most_common())
    )


def _arm_summary(
    run: Run, index: int, samples: Sequence[Sample], scores: Scores | None, wh_per_day: float | None
) -> ArmSummary:
    arm = run.arms[index]
    mine = [sample for sample in samples if sample.arm == index]
    loads = [load for load in run.loads if load.arm == index]
    limits = answer_times.limit_verdicts(run.start, mine)
    speed = answer_times.speed(run, mine, loads, arm)
    verdict = answer_times.overall(limits)
    return ArmSummary(
        number=index,
        arm=arm,
        samples=mine,
        verdict=verdict,
        headline=verdict_text.headline(limits),
        details=[*map(verdict_text.limit_sentence, limits), *verdict_text.typical_sentences(speed)],
        limits=limits,
        validity=count_validity(mine),
        speed=speed,
        conditions=answer_times.conditions(mine),
        energy=long_run.energy(mine, wh_per_day=wh_per_day),
        endurance=long_run.endurance(mine),
        fidelity=long_run.fidelity(mine),
        scores=[score for score in scores.scores if score.arm == index] if scores else [],
        bins=[one for one in scores.bins if one.arm == index] if scores else [],
    )
