"""A run's verdict in sentences that a clinic's director understands, in English as the record is."""

from collections.abc import Mapping, Sequence

from edgemed.reference_logits import MEAN_KL_LIMIT_NATS
from edgemed_benchmarks.answer_times import LimitVerdict, overall
from edgemed_benchmarks.journal import Run
from edgemed_benchmarks.long_run import Fidelity
from edgemed_benchmarks.measures import Measure, duration_text, limit_text, value_text

REASONS = {
    "cpu_busy": "other programs kept the processor busy",
    "stolen": "the host of this virtual machine took processor time away",
    "throttled": "the processor slowed down because it was hot or short of power",
    "undervoltage": "the power supply was too weak",
    "swapping": "memory was moved to the disk and back",
    "memory_pressure": "memory ran short",
    "suspended": "the machine slept, or the program was stopped",
    "clock_step": "the machine's clock was set",
    "slow_canary": "the machine was slower than at the start",
    "engine_died": "the engine ended by itself",
    "low_cpu_efficiency": "the engine did not get the processor time that it asked for",
}
_THING = {"first_words": "the first words", "full_answer": "the whole answer"}
_MANY_INVALID = 0.2
_EVENTS = {
    "interrupted": "The run was interrupted",
    "resumed": "The run was resumed",
    "model_changed": "The model's file was changed during the run",
    "engine_died": "The engine ended by itself",
    "clock_step": "The machine's clock was set during the run",
    "suspended": "The machine slept during the run",
    "stopped_early": "The run was ended before its plan was done",
    "power_source_changed": "The power source changed during the run",
}


def headline(limits: Sequence[LimitVerdict]) -> str:
    """Return the verdict over all limits in one or two sentences."""
    if not any(limit.samples for limit in limits):
        return "No verdict: no question of the latency suite has times that may be trusted."
    verdict = overall(limits)
    kept = " and ".join(f"{_THING[limit.kind]} within {limit_text(limit.limit_seconds)}" for limit in limits)
    if verdict == "yes":
        return f"Yes, fast enough: at least 9 of 10 questions get {kept}."
    if verdict == "no":
        missed = " and ".join(
            f"more than {limit_text(limit.limit_seconds)} for {_THING[limit.kind]}"
            for limit in limits
            if limit.verdict == "no"
        )
        return f"No, too slow: more than 1 in 10 questions take {missed}."
    more = max(limit.more for limit in limits if limit.verdict == "undecided")
    return (
        f"Not known yet whether 9 of 10 questions get {kept}. "
        f"{_count(more, 'more question')} without a slow one would settle it."
    )


def limit_sentence(limit: LimitVerdict) -> str:
    """Return one limit's verdict with what it rests on."""
    within = (
        f"{_THING[limit.kind].removeprefix('the ').capitalize()} within {limit_text(limit.limit_seconds)}"
    )
    words = {"yes": "yes", "no": "no", "undecided": "not known yet"}[limit.verdict]
    slower = "none slower" if limit.misses == 0 else f"{limit.misses} slower"
    sure = "" if limit.verdict == "undecided" else ", 95 % confidence"
    return f"{within}: {words} ({_count(limit.samples, 'question')}, {slower}{sure})."


def typical_sentences(speed: Sequence[Measure]) -> list[str]:
    """Return how long one usually waits, where it is known."""
    by_key = {measure.key: measure.estimate for measure in speed}
    first, whole = by_key["first_text_seconds"], by_key["answer_seconds"]
    if first.value is None or whole.value is None:
        return []
    waits = value_text(first.value, "seconds"), value_text(whole.value, "seconds")
    medians = f"medians of {_count(first.samples, 'question')}"
    return [f"Usually the first words come after {waits[0]}, the whole answer after {waits[1]} ({medians})."]


def validity_sentence(samples: int, suspect: int, invalid: int, reasons: Mapping[str, int]) -> str:
    """Return how many samples were left out of all times, and why."""
    if not samples:
        return "Nothing was measured."
    if not suspect and not invalid:
        return f"All {samples} samples are valid." if samples > 1 else "The one sample is valid."
    left_out = f"{invalid} of {samples} samples are invalid and left out of all times" if invalid else ""
    doubtful = f"{suspect} of {samples} samples are suspect and still counted" if suspect else ""
    why = "; ".join(f"{REASONS.get(reason, reason)} ({count}×)" for reason, count in reasons.items())
    text = "; ".join(filter(None, (left_out, doubtful)))
    return f"{text[0].upper()}{text[1:]}. Why: {why or 'no reason was written'}."


def time_sentence(predicted_seconds: float, actual_seconds: float, *, finished: bool) -> str:
    """Return how long the run took beside what was foretold."""
    took = duration_text(actual_seconds)
    if not finished:
        return f"Not finished: {took} of a planned {duration_text(predicted_seconds)}."
    if predicted_seconds <= 0:
        return took
    return (
        f"{took}; {duration_text(predicted_seconds)} were estimated "
        f"({actual_seconds / predicted_seconds - 1:+.0%})."
    )


def fidelity_sentence(found: Fidelity) -> str:
    """Return whether this is the model that the engineers tested, in words."""
    texts = _count(found.texts, "reference text")
    if found.is_the_tested_model is None:
        return f"Not known whether this is the model that was tested: {texts}, none could be compared."
    if found.texts_with_other_tokens:
        return (
            f"No, this is not what was tested: {found.texts_with_other_tokens} of {texts} become other "
            "tokens here. The template or the tokenizer differs."
        )
    kl = f"KL divergence {found.mean_kl_nats:.2g} nats, limit {MEAN_KL_LIMIT_NATS:g}"
    if found.is_the_tested_model:
        return f"Yes, this is the model that was tested: it behaves the same ({texts}, mean {kl})."
    return f"No, it behaves otherwise than the model that was tested ({texts}, mean {kl})."


def notes(run: Run, samples: int, invalid: int) -> list[str]:
    """Return what must be known before a number is believed."""
    found = []
    if run.torn_bytes:
        found.append(f"The file's last line was cut in the middle ({run.torn_bytes} bytes) and is not used.")
    if run.end is None:
        found.append("The file has no end: the run was cut off, or still goes on.")
    if samples and invalid / samples > _MANY_INVALID:
        found.append(
            f"{100 * invalid / samples:.0f} % of the samples are invalid: run it again on a quiet machine."
        )
    found += [f"Started in spite of a warning: {warning}" for warning in run.start.forced]
    found += [
        f"{arm.label}: the model was installed without a check of its bytes."
        for arm in run.arms
        if arm.unchecked
    ]
    if any(machine.virtual_machine for machine in run.machines):
        found.append("This is a virtual machine: others on the same host can slow it down unseen.")
    found += [
        f"{_EVENTS[event.kind]}{f': {event.detail}' if event.detail else ''} ({event.utc})."
        for event in run.events
        if event.kind in _EVENTS
    ]
    return found


def left_out(run: Run) -> str:
    """Return the suites that were left out and why, or ""."""
    return "; ".join(event.detail for event in run.events if event.kind == "skipped_suite")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
