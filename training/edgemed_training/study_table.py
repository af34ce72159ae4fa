"""The study's Table 4 with our values beside its own: for the page, for the terminal and for machines.

Used by `report_html`, `terminal_report` and the command line.
"""

import textwrap
from collections.abc import Iterator, Sequence

import msgspec

from edgemed import metrics
from edgemed_training.evaluate import AnswerLine
from edgemed_training.recipe import load_recipe
from edgemed_training.report_data import EvaluationFolder
from edgemed_training.scoring import Score
from edgemed_training.study_values import MEASURES, MODELS, Measure

NOT_RUN = "not run: needs weights"
NOT_RECORDED = "not recorded here"
_WIDTH = 80
_MODEL_WIDTH, _STUDY_WIDTH = 13, 27


class StudyRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model and one measure of the table."""

    model: str
    measure: Measure
    title: str
    """Of the measure, with its unit."""
    study_value: str | None
    """As the study gives it; None: not recorded here."""
    ours: Score | None = None
    """In the title's unit, with its 95 % interval; None: not run, or a median of seconds."""
    ours_largest: float | None = None
    """Of one answer, as the study counts."""
    ours_seconds: float | None = None
    not_run: str | None = None
    """Why there is nothing of ours."""
    definition: str
    """Of ours."""
    remark: str
    """On the study's."""


def study_rows(evaluations: Sequence[EvaluationFolder]) -> list[StudyRow]:
    """Return the table's rows, measure by measure; of several evaluations of one base model the last counts.

    Args:
        evaluations: those of an adapter on one of the study's base models fill the table.
    """
    ours = {folder.evaluation.base_model: folder for folder in evaluations if folder.main_system == "adapter"}
    found = {preset: ours.get(load_recipe(preset).base.name) for preset in MODELS}
    return [_row(measure, preset, found[preset]) for measure in MEASURES for preset in MODELS]


def ours_text(row: StudyRow) -> str:
    """Return what stands in the column of our values."""
    if row.not_run:
        return row.not_run
    if row.ours is None:
        return "–" if row.ours_seconds is None else f"{row.ours_seconds:.2f}"
    digits = {"exact_match": 1, "bleu": 2}.get(row.measure, 3)
    score, unit = row.ours, "%" if row.measure == "exact_match" else ""
    text = f"{score.value:.{digits}f}{unit} [{score.low:.{digits}f}, {score.high:.{digits}f}]"
    return text if row.ours_largest is None else f"{text} (largest {row.ours_largest:.3g})"


def study_lines(rows: Sequence[StudyRow]) -> Iterator[str]:
    """Yield the table for a terminal of 80 columns."""
    yield "The study's Table 4. Ours: means over all answers with their 95 % intervals."
    shown = ""
    for row in rows:
        if row.title != shown:
            shown = row.title
            yield ""
            yield row.title
            text = f"Definition (ours): {row.definition}. {row.remark}"
            yield from textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="  ")
            yield f"  {'model':<{_MODEL_WIDTH}}{'study value':<{_STUDY_WIDTH}}ours"
        study = row.study_value or NOT_RECORDED
        yield f"  {row.model:<{_MODEL_WIDTH}}{study:<{_STUDY_WIDTH}}{ours_text(row)}"


def _row(measure: Measure, preset: str, folder: EvaluationFolder | None) -> StudyRow:
    facts = MEASURES[measure]
    row = StudyRow(
        model=MODELS[preset],
        measure=measure,
        title=facts.title,
        study_value=facts.values.get(preset),
        not_run=NOT_RUN if folder is None else None,
        definition=facts.definition,
        remark=facts.remark,
    )
    return row if folder is None else _with_ours(row, folder)


def _with_ours(row: StudyRow, folder: EvaluationFolder) -> StudyRow:
    system = next(s for s in folder.evaluation.systems if s.system == folder.main_system)
    if row.measure == "seconds":
        return msgspec.structs.replace(row, ours_seconds=system.seconds_per_answer)
    score = system.scores.get("rouge_l" if row.measure == "rouge" else row.measure)
    if row.measure == "exact_match":
        return msgspec.structs.replace(row, ours=_in_percent(score) if score else None)
    mine = [line for line in folder.answers if line.system == folder.main_system]
    largest = max((_of_one_answer(row.measure, line) for line in mine), default=None)
    return msgspec.structs.replace(row, ours=score, ours_largest=largest)


def _in_percent(score: Score) -> Score:
    return Score(value=100 * score.value, low=100 * score.low, high=100 * score.high)


def _of_one_answer(measure: Measure, line: AnswerLine) -> float:
    if measure == "bleu":
        return metrics.sentence_bleu(line.answer, line.reference)
    return metrics.rouge(line.answer, line.reference)[2] if measure == "rouge" else line.token_f1
