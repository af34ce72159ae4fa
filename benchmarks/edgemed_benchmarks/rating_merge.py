"""Filled rating sheets put together: who agrees with whom, and only then which model was better."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Literal, NamedTuple

from edgemed_benchmarks.agreement import krippendorff_alpha, weighted_kappa
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.paired_stats import differences, holm, paired_difference, sign_flip_test
from edgemed_benchmarks.rating_format import (
    ACTS,
    AXES,
    LEAST,
    MOST,
    FilledSheet,
    KeyEntry,
    RatedArm,
    RatingKey,
    read_filled,
    read_key,
    sheet_id,
)
from edgemed_benchmarks.stats import Estimate, mean_estimate, wilson

_SURE_ALPHA = 0.667
"""Below, Krippendorff advises against conclusions (Content Analysis, 2004, page 241)."""
_ACT = "act"
_CHANCE = 0.05


class ArmRating(NamedTuple):
    """What one model's answers got on one axis."""

    arm: int
    points: Estimate
    """Mean over answers of the mean over people; interval over questions. For `act`, the share of yes."""


class Difference(NamedTuple):
    """One model against another on the same questions."""

    arm: int
    other: int
    points: Estimate
    """`other` less `arm`."""
    p: float
    """That so much comes by chance, corrected for all differences of the sheet (Holm)."""


class Kappa(NamedTuple):
    """How far two people agree."""

    rater: str
    other: str
    kappa: Estimate


class AxisResult(NamedTuple):
    """All about one axis; `act` is one of them."""

    key: str
    question: str
    higher_is_better: bool
    alpha: Estimate
    kappas: list[Kappa]
    arms: list[ArmRating]
    differences: list[Difference]


class RatingResult(NamedTuple):
    """What the sheets say together."""

    schema: Literal["edgemed.rating_result/1"]
    sheet: str
    key_sha256: str
    raters: list[str]
    answers: int
    questions: int
    arms: list[RatedArm]
    axes: list[AxisResult]
    comments: dict[str, list[str]]
    """By answer's code."""


def merge_sheets(key_path: Path, paths: Sequence[Path], *, partial: bool = False) -> RatingResult:
    """Put filled sheets together; the key is opened only when all of them are whole and fit it.

    Args:
        key_path: the key file of the sheet.
        paths: what the sheets saved, one a person.
        partial: take sheets on which answers are not rated yet.

    Raises:
        RecordError: a file cannot be read, is of another sheet, not finished, or a person is there twice.
    """
    if not paths:
        raise RecordError("No filled sheet was given.", hint="Give the files that the sheet saved.")
    sheets = [(path, read_filled(path)) for path in paths]
    key, key_sha256 = read_key(key_path)
    codes = {entry.code for entry in key.entries}
    seen: dict[str, Path] = {}
    for path, sheet in sheets:
        _check(path, sheet, key_path, key_sha256, codes, partial=partial)
        rater = sheet.rater.strip().casefold()
        if rater in seen:
            raise RecordError(
                f"{seen[rater]} and {path} are both of the person {sheet.rater!r}.",
                hint="Give each person's last file only.",
            )
        seen[rater] = path
    return _merged(key, key_sha256, [sheet for _path, sheet in sheets])


def rating_lines(result: RatingResult) -> Iterator[str]:
    """Yield the result as lines for a terminal."""
    people = len(result.raters)
    yield (
        f"Sheet {result.sheet}: {result.answers} answers to {result.questions} questions, rated by {people} "
        f"{'person' if people == 1 else 'people'}"
    )
    for axis in result.axes:
        points = "share of yes" if axis.key == _ACT else f"{LEAST} to {MOST}"
        better = "more" if axis.higher_is_better else "less"
        yield f"{axis.question} ({points}; {better} is better)"
        for one in axis.arms:
            yield f"  {_name(result.arms, one.arm)}: {_text(one.points)}"
        for difference in axis.differences:
            pair = f"{_name(result.arms, difference.other)} less {_name(result.arms, difference.arm)}"
            yield f"  {pair}: {_text(difference.points)}{_seen(difference)}"
        yield f"  agreement (Krippendorff's alpha): {_text(axis.alpha)}{_sure(axis.alpha)}"


def _check(
    path: Path, sheet: FilledSheet, key_path: Path, key_sha256: str, codes: set[str], *, partial: bool
) -> None:
    if sheet.key_sha256 != key_sha256:
        raise RecordError(
            f"{path} belongs to the sheet {sheet_id(sheet.key_sha256)}, and {key_path} is the key of "
            f"{sheet_id(key_sha256)}, or it was changed: the SHA-256 differ.",
            hint="Give the key file that was written together with the sheet.",
        )
    if unknown := sorted(set(sheet.ratings) - codes):
        raise RecordError(f"{path} rates an answer {unknown[0]} that is not on the sheet.")
    missing = len(codes) - len(sheet.ratings)
    if missing and not partial:
        raise RecordError(
            f"{path}: {missing} of {len(codes)} answers are not rated yet, so nothing is unsealed.",
            hint="Finish the sheet first; --partial takes it as it is.",
        )
    if not sheet.ratings:
        raise RecordError(f"{path} rates no answer.", hint="Finish the sheet first.")


def _merged(key: RatingKey, key_sha256: str, sheets: Sequence[FilledSheet]) -> RatingResult:
    questions = [(axis.key, axis.question, axis.higher_is_better) for axis in AXES]
    questions.append((_ACT, "Would act on the answer", True))
    rated = [entry for entry in key.entries if any(entry.code in sheet.ratings for sheet in sheets)]
    return RatingResult(
        schema="edgemed.rating_result/1",
        sheet=sheet_id(key_sha256),
        key_sha256=key_sha256,
        raters=[sheet.rater for sheet in sheets],
        answers=len(rated),
        questions=len({entry.item_id for entry in rated}),
        arms=key.arms,
        axes=_corrected([_axis(*each, rated, sheets, len(key.arms)) for each in questions]),
        comments={
            entry.code: found
            for entry in rated
            if (
                found := [
                    sheet.ratings[entry.code].comment
                    for sheet in sheets
                    if entry.code in sheet.ratings and sheet.ratings[entry.code].comment
                ]
            )
        },
    )


def _axis(
    axis: str,
    question: str,
    higher_is_better: bool,
    entries: Sequence[KeyEntry],
    sheets: Sequence[FilledSheet],
    arms: int,
) -> AxisResult:
    values = [_values(axis, entry.code, sheets) for entry in entries]
    groups = [entry.group for entry in entries]
    of_arm = [_means(axis, arm, entries, sheets) for arm in range(arms)]
    return AxisResult(
        key=axis,
        question=question,
        higher_is_better=higher_is_better,
        alpha=krippendorff_alpha([list(each.values()) for each in values], groups=groups),
        kappas=[
            _kappa_of(first, second, values, groups) for first, second in itertools.combinations(sheets, 2)
        ],
        arms=[ArmRating(arm, _mean_of(found.values())) for arm, found in enumerate(of_arm)],
        differences=[
            _difference(arm, other, of_arm[arm], of_arm[other])
            for arm, other in itertools.combinations(range(arms), 2)
        ],
    )


def _values(axis: str, code: str, sheets: Sequence[FilledSheet]) -> dict[str, int]:
    """Return what each person gave an answer; of `act`, the place among its words."""
    acts = list(reversed(ACTS))
    return {
        sheet.rater: acts.index(sheet.ratings[code].act) if axis == _ACT else sheet.ratings[code].points[axis]
        for sheet in sheets
        if code in sheet.ratings
    }


def _means(
    axis: str, arm: int, entries: Sequence[KeyEntry], sheets: Sequence[FilledSheet]
) -> dict[str, tuple[float, str]]:
    """Return by item id the mean over people of one arm's answer, and the item's group."""
    yes = len(ACTS) - 1
    found = {}
    for entry in entries:
        values = _values(axis, entry.code, sheets).values()
        if arm in entry.arms and values:
            told = [float(value == yes) for value in values] if axis == _ACT else list(map(float, values))
            found[entry.item_id] = (mean(told), entry.group)
    return found


def _mean_of(found: Iterable[tuple[float, str]]) -> Estimate:
    pairs = list(found)
    alone = len({group for _value, group in pairs}) == len(pairs)
    if alone and all(value in (0.0, 1.0) for value, _group in pairs):
        return wilson(round(sum(value for value, _group in pairs)), len(pairs))
    return mean_estimate([value for value, _ in pairs], groups=[group for _, group in pairs])


def _difference(
    arm: int, other: int, before: dict[str, tuple[float, str]], after: dict[str, tuple[float, str]]
) -> Difference:
    common = [item for item in before if item in after]
    estimate = paired_difference(
        [before[item][0] for item in common],
        [after[item][0] for item in common],
        groups=[before[item][1] for item in common],
    )
    p = sign_flip_test(
        differences([before[item][0] for item in common], [after[item][0] for item in common]),
        groups=[before[item][1] for item in common],
    )
    return Difference(arm, other, estimate, p)


def _corrected(axes: Sequence[AxisResult]) -> list[AxisResult]:
    p_values = iter(holm([difference.p for axis in axes for difference in axis.differences]))
    return [
        axis._replace(differences=[each._replace(p=next(p_values)) for each in axis.differences])
        for axis in axes
    ]


def _kappa_of(
    first: FilledSheet, second: FilledSheet, values: Sequence[dict[str, int]], groups: Sequence[str]
) -> Kappa:
    both = [
        (each, group)
        for each, group in zip(values, groups, strict=True)
        if first.rater in each and second.rater in each
    ]
    return Kappa(
        first.rater,
        second.rater,
        weighted_kappa(
            [each[first.rater] for each, _ in both],
            [each[second.rater] for each, _ in both],
            groups=[group for _, group in both],
        ),
    )


def _name(arms: Sequence[RatedArm], arm: int) -> str:
    return arms[arm].label


def _text(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"– ({estimate.reason})"
    interval = "" if estimate.low is None else f" ({estimate.low:.2f} to {estimate.high:.2f})"
    return f"{estimate.value:.2f}{interval}"


def _seen(difference: Difference) -> str:
    return f"; p = {difference.p:.2g}" if difference.p < _CHANCE else "; may be chance"


def _sure(alpha: Estimate) -> str:
    if alpha.value is None or alpha.value >= _SURE_ALPHA:
        return ""
    return "; too little to conclude much"
