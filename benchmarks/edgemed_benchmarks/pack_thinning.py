"""How records become small: times rounded, token times averaged, what says least left out first.

What verdicts, rates and comparisons are made from stays: each answer's first words and end to four digits,
the number of its tokens and the sum of their times.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from edgemed.records import Counters, Load, Record, RunEvent, Sample, Telemetry, Times
from edgemed_benchmarks.pack_format import PACKED_EVENT

TIME_DIGITS = 4
TOKEN_DIGITS = 3
COUNTER_DIGITS = 2
MOMENT_NS = 1_000_000_000
"""When a line was written is rounded to this."""
LOG_PROBABILITY_PLACES = 3
_SCORED = ("quality", "safety")

S = TypeVar("S", bound=msgspec.Struct)
N = TypeVar("N", int, float)


class Thinning(NamedTuple):
    """How much is left out."""

    tokens_averaged: int
    """So many token times in turn become their mean, written so many times; 0: all of an answer."""
    telemetry_lines: int
    """Of a run, at most, evenly spread."""
    endurance_samples: int
    """Of an arm, at most, evenly spread: the trend stays."""
    text_hashes: bool
    """Whether the SHA-256 of each answer stays."""
    counters: bool
    """Whether counters of samples that are ok stay."""
    roughly: bool = False
    """Whether samples of the quality and safety suites have fewer digits."""
    scored_samples: bool = True
    """Whether samples of the quality and safety suites stay; their scores always do."""

    @property
    def sentence(self) -> str:
        """What was done, for the record."""
        many = self.tokens_averaged
        groups = "of each answer" if many == 0 else f"in groups of {many}"
        parts = [f"tokens averaged {groups}"] if many != 1 else []
        parts.append(f"telemetry {self.telemetry_lines} lines")
        parts.append(f"endurance {self.endurance_samples} answers")
        if not self.counters:
            parts.append("counters left out")
        if not self.scored_samples:
            parts.append("quality and safety samples left out")
        elif self.roughly:
            parts.append("quality and safety samples with fewer digits")
        return ", ".join(parts)


LEVELS = (
    Thinning(1, 300, 600, text_hashes=True, counters=True),
    Thinning(4, 150, 450, text_hashes=True, counters=True),
    Thinning(16, 60, 300, text_hashes=False, counters=True),
    Thinning(0, 30, 180, text_hashes=False, counters=False),
    Thinning(0, 0, 90, text_hashes=False, counters=False, roughly=True),
    Thinning(0, 0, 90, text_hashes=False, counters=False, scored_samples=False),
)
"""Tried in turn until the pack is small enough."""


def thin(records: Sequence[Record], thinning: Thinning) -> list[Record]:
    """Return what is left of a run's records, in their order, and an event at its end that says so."""
    telemetry = [record for record in records if isinstance(record, Telemetry)]
    left_out = _ids_of_others(telemetry, thinning.telemetry_lines)
    by_arm: dict[int, list[Sample]] = {}
    for record in records:
        if isinstance(record, Sample) and record.suite == "endurance":
            by_arm.setdefault(record.arm, []).append(record)
    for samples in by_arm.values():
        left_out |= _ids_of_others(samples, thinning.endurance_samples)
    thinned = [
        _thinned(record, thinning)
        for record in records
        if not _left_out(record, thinning) and id(record) not in left_out
    ]
    last = records[-1]
    event = RunEvent(
        seq=last.seq + 1,
        chain=last.chain,
        at_ns=_moment(last.at_ns),
        utc=last.utc,
        kind=PACKED_EVENT,
        detail=thinning.sentence,
    )
    return [*thinned, event]


def _left_out(record: Record, thinning: Thinning) -> bool:
    if not isinstance(record, Sample):
        return False
    return record.warm_up or (record.suite in _SCORED and not thinning.scored_samples)


def _thinned(record: Record, thinning: Thinning) -> Record:
    record = msgspec.structs.replace(record, at_ns=_moment(record.at_ns))
    if isinstance(record, Sample):
        return _thinned_sample(record, thinning)
    if isinstance(record, Telemetry):
        return _rounded(record, COUNTER_DIGITS, but=("seq", "at_ns"))
    if isinstance(record, Load):
        return _rounded(record, TIME_DIGITS, but=("seq", "at_ns", "arm"))
    return record


def _thinned_sample(sample: Sample, thinning: Thinning) -> Sample:
    validity, choice, peak = sample.validity, sample.choice, sample.peak_rss_bytes
    rough = thinning.roughly and sample.suite in _SCORED
    places = LOG_PROBABILITY_PLACES - rough
    bare = validity.verdict == "ok" and not thinning.counters
    counters = Counters() if bare else _rounded(validity.counters, COUNTER_DIGITS)
    if choice is not None:
        options = [
            msgspec.structs.replace(option, log_probability=round(option.log_probability, places))
            for option in choice.options
        ]
        choice = msgspec.structs.replace(choice, options=options)
    return msgspec.structs.replace(
        sample,
        times=_thinned_times(sample.times, thinning, TIME_DIGITS - 2 * rough),
        validity=msgspec.structs.replace(validity, counters=counters),
        choice=choice,
        text_sha256=sample.text_sha256 if thinning.text_hashes else None,
        peak_rss_bytes=None if peak is None or rough else _significant(peak, COUNTER_DIGITS + 1),
    )


def _thinned_times(times: Times, thinning: Thinning, digits: int) -> Times:
    rounded = _rounded(times, digits)
    return msgspec.structs.replace(
        rounded, token_ns=list(_averaged(times.token_ns, thinning.tokens_averaged))
    )


def _averaged(token_ns: Sequence[int], many: int) -> Iterator[int]:
    """Yield as many times with about the same sum; equal neighbours cost nearly nothing in gzip."""
    many = many or len(token_ns) or 1
    for first in range(0, len(token_ns), many):
        group = token_ns[first : first + many]
        # The mean of a whole answer stands for many tokens: more digits.
        digits = TOKEN_DIGITS if many == 1 else TIME_DIGITS
        yield from [_significant(round(sum(group) / len(group)), digits)] * len(group)


def _rounded(struct: S, digits: int, *, but: Sequence[str] = ()) -> S:
    """Return a struct with its numbers rounded; lists and texts stay."""
    changes = {
        name: _significant(value, digits)
        for name in struct.__struct_fields__
        if name not in but
        and isinstance(value := getattr(struct, name), int | float)
        and not isinstance(value, bool)
    }
    return msgspec.structs.replace(struct, **changes)


def _significant(value: N, digits: int) -> N:
    """Round to so many significant digits."""
    if not value:
        return value
    if isinstance(value, int):
        return round(value, min(0, digits - len(str(abs(value)))))
    return float(f"{value:.{digits}g}")


def _moment(at_ns: int) -> int:
    return at_ns // MOMENT_NS * MOMENT_NS


def _ids_of_others(records: Sequence[Record], most: int) -> set[int]:
    """Return the ids of all but so many, which are evenly spread; the first and the last are among these."""
    if len(records) <= most:
        return set()
    kept = {place * (len(records) - 1) // max(1, most - 1) for place in range(most)}
    return {id(record) for place, record in enumerate(records) if place not in kept}
