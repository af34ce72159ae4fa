"""What single answers do not show: energy, endurance, and fidelity to the engineers' reference."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgemed.records import Sample
from edgemed.reference_logits import MEAN_KL_LIMIT_NATS
from edgemed_benchmarks.answer_times import SECOND_NS, counts_for_times, decode_rate
from edgemed_benchmarks.journal import Run
from edgemed_benchmarks.measures import Measure, known, unknown
from edgemed_benchmarks.stats import Estimate, rate

LEAST_BATTERY_POINTS = 10
"""A battery counts in whole percent: one point is a tenth of this, and no fall below it is believed."""
GRADES = {
    "A": "counted by the hardware",
    "B": "by the battery's own energy counter",
    "C": "by the battery's percent: rough",
    "D": "read off a meter by a person",
}
_ENDURANCE_SAMPLES = 9
_PARTS = 3


class Fidelity(NamedTuple):
    """How near this installation is to the engineers' reference."""

    texts: int
    texts_with_other_tokens: int
    positions: int
    mean_kl_nats: float | None
    max_kl_nats: float | None
    same_top_share: float | None

    @property
    def is_the_tested_model(self) -> bool | None:
        """Whether tokens and distributions are the engineers'; None: nothing could be compared."""
        if self.texts_with_other_tokens:
            return False
        return None if self.mean_kl_nats is None else self.mean_kl_nats <= MEAN_KL_LIMIT_NATS


class Energy(NamedTuple):
    """What answers cost in energy, from the best source of the run."""

    grade: str
    source: str
    measures: list[Measure]


def energy(samples: Sequence[Sample], *, wh_per_day: float | None = None) -> Energy | None:
    """Return the energy of one arm's answers; None when no sample has any.

    Only the best grade counts: a counter's joules are not mixed with a battery's percent. A window of energy
    may hold several answers; then all that ended in it share it.

    Args:
        samples: of one arm, in time order.
        wh_per_day: what the clinic's sun or generator gives for this in a day.
    """
    measured = [s for s in samples if s.energy and counts_for_times(s) and s.energy.joules >= 0]
    if not measured:
        return None
    best = min(sample.energy.grade for sample in measured if sample.energy)
    windows, answers, seconds, above_idle = [], [], [], []
    for sample in measured:
        found = sample.energy
        if found is None or found.grade != best:
            continue
        windows.append(found.joules / 3600)
        seconds.append(found.window_ns / SECOND_NS)
        answers.append(_answers_within(sample, samples))
        if found.idle_joules is not None:
            above_idle.append((found.joules - found.idle_joules) / 3600)
    whole = rate(windows, answers)
    watts = rate([wh * 3600 for wh in windows], seconds)
    extra = (
        rate(above_idle, answers)
        if len(above_idle) == len(answers)
        else unknown("the idle machine's use is not known")
    )
    measures = [
        Measure("wh_per_answer", "Energy an answer", "Wh", whole),
        Measure("wh_per_answer_above_idle", "… of it above idle", "Wh", extra),
        Measure("watts", "Power while answering", "watts", watts),
    ]
    if wh_per_day is not None:
        measures.append(
            Measure(
                "answers_per_day", f"Answers from {wh_per_day:g} Wh", "answers", _inverse(whole, wh_per_day)
            )
        )
    source = next(s.energy.source for s in measured if s.energy and s.energy.grade == best)
    return Energy(best, source, measures)


def answers_per_charge(run: Run) -> Measure:
    """Return how many answers a full battery gives, from its percent's fall over the whole run.

    Refused below a fall of 10 points, when the power source changed, or after a resume: the time between is
    not known.
    """

    def measure(estimate: Estimate) -> Measure:
        return Measure("answers_per_charge", "Answers a charge", "answers", estimate)

    if any(machine.power_source != "battery" for machine in run.machines) or not run.machines:
        return measure(unknown("the machine did not run on its battery"))
    if len(run.machines) > 1 or any(event.kind == "power_source_changed" for event in run.events):
        return measure(unknown("the power source changed, or the run was interrupted"))
    percents = [
        (line.at_ns, line.battery_percent) for line in run.telemetry if line.battery_percent is not None
    ]
    if len(percents) < 2 or percents[0][1] - percents[-1][1] < LEAST_BATTERY_POINTS:
        return measure(unknown(f"the battery fell by less than {LEAST_BATTERY_POINTS} points"))
    (begun, first), (ended, last) = percents[0], percents[-1]
    answers = sum(begun <= sample.at_ns <= ended and sample.generated_tokens > 0 for sample in run.samples)
    fall = first - last
    # Both ends are rounded to whole points: the fall may be one point more or less.
    return measure(
        Estimate(100 * answers / fall, 100 * answers / (fall + 1), 100 * answers / (fall - 1), answers)
    )


def endurance(samples: Sequence[Sample]) -> list[Measure]:
    """Return how the decode rate and the engine's memory changed from the first to the last third.

    Suspect samples stay in: a hot machine's are what is looked for. Empty without the endurance suite.
    """
    taken = [s for s in samples if s.suite == "endurance" and not s.warm_up and s.times.token_ns]
    taken = [s for s in taken if s.validity.verdict != "invalid" or s.validity.reasons == ["throttled"]]
    if not taken:
        return []
    if len(taken) < _ENDURANCE_SAMPLES:
        reason = f"not enough data: {len(taken)} of {_ENDURANCE_SAMPLES} answers"
        return [Measure("endurance_change", "Change of decode rate", "share", unknown(reason, len(taken)))]
    part = len(taken) // _PARTS
    first, last = decode_rate(taken[:part]), decode_rate(taken[-part:])
    return [
        Measure("endurance_first_rate", "Decode rate, first third", "tokens/s", first),
        Measure("endurance_last_rate", "Decode rate, last third", "tokens/s", last),
        Measure("endurance_change", "Change", "share", _change(first, last)),
        Measure("endurance_memory_growth", "Growth of the engine's memory", "bytes", _growth(taken)),
        Measure("endurance_seconds", "Time without a pause", "seconds", _length(taken)),
    ]


def fidelity(samples: Sequence[Sample]) -> Fidelity | None:
    """Return the reference texts' comparison of one arm; None without the fidelity suite."""
    found = [sample.fidelity for sample in samples if sample.fidelity and not sample.warm_up]
    if not found:
        return None
    compared = [one for one in found if one.mean_kl_nats is not None and one.positions]
    positions = sum(one.positions for one in compared)
    largest = [one.max_kl_nats for one in compared if one.max_kl_nats is not None]
    return Fidelity(
        len(found),
        sum(not one.tokens_equal for one in found),
        positions,
        _weighted([(one.mean_kl_nats, one.positions) for one in compared]),
        max(largest) if largest else None,
        _weighted([(one.same_top_share, one.positions) for one in compared]),
    )


def _answers_within(sample: Sample, samples: Sequence[Sample]) -> int:
    """Return how many answers of the arm have their middle within this sample's energy window."""
    assert sample.energy is not None
    begun = sample.at_ns - sample.energy.window_ns
    middles = [
        one.at_ns - one.times.end_ns / 2 for one in samples if one.generated_tokens or one.choice is not None
    ]
    return max(1, sum(begun <= middle <= sample.at_ns for middle in middles))


def _inverse(whole: Estimate, amount: float) -> Estimate:
    value, low, high = (amount / end if end else None for end in (whole.value, whole.high, whole.low))
    return Estimate(value, low, high, whole.samples, whole.reason)


def _change(first: Estimate, last: Estimate) -> Estimate:
    if not first.value or last.value is None:
        return unknown("no rate")
    low = last.low / first.high - 1 if last.low is not None and first.high else None
    high = last.high / first.low - 1 if last.high is not None and first.low else None
    return Estimate(last.value / first.value - 1, low, high, first.samples + last.samples)


def _growth(samples: Sequence[Sample]) -> Estimate:
    peaks = [sample.peak_rss_bytes for sample in samples if sample.peak_rss_bytes is not None]
    if len(peaks) < 2:
        return unknown("not known on this system")
    return known(peaks[-1] - peaks[0], len(peaks), "peak after the last answer, less that after the first")


def _length(samples: Sequence[Sample]) -> Estimate:
    spent = samples[-1].at_ns - samples[0].at_ns + samples[0].times.end_ns
    return known(spent / SECOND_NS, len(samples))


def _weighted(pairs: Sequence[tuple[float | None, int]]) -> float | None:
    known_pairs = [(value, weight) for value, weight in pairs if value is not None]
    total = sum(weight for _value, weight in known_pairs)
    return math.fsum(value * weight for value, weight in known_pairs) / total if total else None
