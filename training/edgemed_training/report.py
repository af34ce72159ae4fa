"""`report`: runs and evaluations as one HTML page with the study's Table 4 and Figure 3 in honest columns."""

import re
from collections.abc import Sequence
from pathlib import Path

from edgemed.errors import StorageError
from edgemed.operating_system import write_atomically
from edgemed_training.plots import Line, line_chart, standalone
from edgemed_training.report_data import LogLine, RunFolder, read_folders
from edgemed_training.report_html import page

_FIGURE_3 = {
    "eval_bleu": ("BLEU / 100", 0.01),
    "eval_rouge_1": ("ROUGE-1", 1.0),
    "eval_rouge_2": ("ROUGE-2", 1.0),
    "eval_rouge_l": ("ROUGE-L", 1.0),
    "eval_token_f1": ("token F1", 1.0),
    "eval_exact_match": ("exact match", 1.0),
    "eval_token_accuracy": ("token accuracy", 1.0),
}
_NO_TOKEN_ACCURACY = "token accuracy was not recorded"
_NOT_IN_A_FILE_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    plots: Path | None = None,
    note: str = "",
    with_answers: bool = True,
) -> list[Path]:
    """Read the folders, write the page and return every file that was written.

    Args:
        folders: of `run` and of `eval`, in any order.
        out: the HTML file.
        plots: a folder for the charts alone, as SVG.
        note: a sentence to stand on top.
        with_answers: show the worst answers, with the references out of the data.

    Raises:
        DataError: a folder is missing or damaged.
        StorageError: the disk.
    """
    runs, evaluations = read_folders(folders)
    charts = {run.name: run_charts(run) for run in runs}
    files = {out: page(runs, evaluations, charts, note=note, with_answers=with_answers)}
    if plots is not None:
        for name, drawn in charts.items():
            for kind, (_caption, svg) in zip(("loss", "scores"), drawn, strict=False):
                files[plots / f"{_NOT_IN_A_FILE_NAME.sub('-', name)}-{kind}.svg"] = standalone(svg)
    for path, text in files.items():
        _write(path, text)
    return list(files)


def run_charts(run: RunFolder) -> list[tuple[str, str]]:
    """Return captions and SVG elements: the loss of each step, the scores of each epoch if there are any."""
    steps = Line("training loss", _points(run.log, "step", "loss"))
    heldout = Line("held-out loss", _points(run.log, "step", "eval_loss"), has_marks=True)
    charts = [("Loss, nats a token", line_chart("Loss of each step", "step", [steps, heldout]))]
    lines = [
        Line(name, [(x, y * factor if y is not None else None) for x, y in points], has_marks=True)
        for key, (name, factor) in _FIGURE_3.items()
        if (points := _points(run.log, "epoch", key))
    ]
    if lines:
        caption = "Scores of generated answers at the end of each epoch (the study’s Figure 3)"
        if all("eval_token_accuracy" not in line for line in run.log):
            caption += f"; {_NO_TOKEN_ACCURACY}"
        charts.append((caption, line_chart("Scores of each epoch", "epoch", lines, from_zero=True)))
    return charts


def _points(log: Sequence[LogLine], x: str, y: str) -> list[tuple[float, float | None]]:
    return [(place, line[y]) for line in log if y in line and (place := line[x]) is not None]


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.", hint="Name another place."
        ) from error
