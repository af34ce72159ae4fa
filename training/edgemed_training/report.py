"""`report`: runs and evaluations as one HTML page with the study's Table 4 and Figure 3 in honest columns."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemed.errors import StorageError
from edgemed.operating_system import write_atomically
from edgemed_training.plots import Line, line_chart, png, standalone
from edgemed_training.report_data import LogLine, RunFolder, read_folders
from edgemed_training.report_html import page
from edgemed_training.scoring import TOKEN_ACCURACY
from edgemed_training.study_table import StudyRow, study_rows

_FIGURE_3 = {
    "eval_bleu": ("BLEU / 100", 0.01),
    "eval_rouge_1": ("ROUGE-1", 1.0),
    "eval_rouge_2": ("ROUGE-2", 1.0),
    "eval_rouge_l": ("ROUGE-L", 1.0),
    "eval_token_f1": ("token F1", 1.0),
    "eval_exact_match": ("exact match", 1.0),
    "eval_token_accuracy": ("token accuracy", 1.0),
}
_NO_TOKEN_ACCURACY = "Token accuracy was not recorded."
_NOT_IN_A_FILE_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Report:
    """What `report` wrote and found."""

    files: list[Path]
    table_4: list[StudyRow]
    """The study's, with our values beside."""


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    plots: Path | None = None,
    note: str = "",
    with_answers: bool = True,
) -> Report:
    """Read the folders and write the page.

    Args:
        folders: of `run` and of `eval`, in any order.
        out: the HTML file.
        plots: a folder for the charts alone, each as SVG and as PNG.
        note: a sentence to stand on top.
        with_answers: show the worst answers, with the references out of the data.

    Raises:
        DataError: a folder is missing or damaged.
        StorageError: the disk.
        MissingExtra: what draws PNG is not installed; the page and the charts as SVG are written.
        TrainingError: PNG cannot be drawn for want of a font; the others are written.
    """
    runs, evaluations = read_folders(folders)
    charts = {run.name: run_charts(run) for run in runs}
    table_4 = study_rows(evaluations)
    text = page(runs, evaluations, charts, table_4, note=note, with_answers=with_answers)
    files = [_write(out, text.encode())]
    if plots is not None:
        named = list(_named(plots, charts))
        files += [_write(path.with_suffix(".svg"), standalone(svg).encode()) for path, svg in named]
        # After all else: it can fail for want of a font.
        files += [_write(path.with_suffix(".png"), png(svg)) for path, svg in named]
    return Report(files, table_4)


def _named(plots: Path, charts: Mapping[str, list[tuple[str, str]]]) -> Iterator[tuple[Path, str]]:
    for name, drawn in charts.items():
        for kind, (_caption, svg) in zip(("loss", "scores"), drawn, strict=False):
            # The ending is replaced: a run's name may hold a point.
            yield plots / f"{_NOT_IN_A_FILE_NAME.sub('-', name)}-{kind}.chart", svg


def run_charts(run: RunFolder) -> list[tuple[str, str]]:
    """Return captions and SVG elements: the loss of each step, the scores of each epoch if there are any."""
    steps = Line("training loss, nats", _points(run.log, "step", "loss"))
    heldout = Line("held-out loss, nats", _points(run.log, "step", "eval_loss"), has_marks=True)
    charts = [("Loss, nats a token", line_chart("Loss of each step", "step", [steps, heldout]))]
    lines = [
        Line(name, [(x, y * factor if y is not None else None) for x, y in points], has_marks=True)
        for key, (name, factor) in _FIGURE_3.items()
        if (points := _points(run.log, "epoch", key))
    ]
    if lines:
        has_accuracy = any("eval_token_accuracy" in line for line in run.log)
        accuracy = f"Token accuracy: {TOKEN_ACCURACY}." if has_accuracy else _NO_TOKEN_ACCURACY
        caption = f"Scores at the end of each epoch (the study’s Figure 3), of written answers. {accuracy}"
        charts.append((caption, line_chart("Scores of each epoch", "epoch", lines, from_zero=True)))
    return charts


def _points(log: Sequence[LogLine], x: str, y: str) -> list[tuple[float, float | None]]:
    return [(place, line[y]) for line in log if y in line and (place := line[x]) is not None]


def _write(path: Path, data: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.", hint="Name another place."
        ) from error
    return path
