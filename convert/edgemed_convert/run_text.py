"""A run for people: what it will do, and the table of what it made; 80 columns. Called by `cli.py`."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from edgemed.terminal_text import clean
from edgemed_convert.output import readable_bytes
from edgemed_convert.quantize import QuantizedFile
from edgemed_convert.run import RunFile, RunReport

_WIDTH = 80
_LABEL_WIDTH = 9
_MOST_LISTED = 10
_HEADER = ("TYPE", "REALLY PRESENT", "BITS", "SIZE", "KL", "CHECK")


def plan_text(rows: Iterable[tuple[str, str]]) -> str:
    """Return labels and texts as lines."""
    lines: list[str] = []
    indent = " " * _LABEL_WIDTH
    for label, text in rows:
        lines += textwrap.wrap(
            f"{label:<{_LABEL_WIDTH}}{_one_line(text)}",
            _WIDTH,
            subsequent_indent=indent,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join(lines)


def run_table(report: RunReport) -> str:
    """Return where the files are and the table of them; a line for each, or two where lines are long."""
    table = _table([_HEADER, *(_row(file) for file in report.files)])
    return f"{_one_line(str(report.folder / report.name))}-TYPE.gguf\n{table}"


def quantized_table(files: Sequence[QuantizedFile]) -> str:
    """Return where the files are and the table of them; they are not checked yet."""
    lines = [_one_line(str(file.path)) for file in files]
    rows = [
        (
            file.type_name,
            _listed(file.tensor_types),
            f"{file.bits_per_weight:.2f}",
            readable_bytes(file.size_bytes),
        )
        for file in files
    ]
    return "\n".join([*lines, _table([_HEADER[:4], *rows])])


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    folds = sum(widths) + 2 * (len(widths) - 1) > _WIDTH
    lines = []
    for row in rows:
        cells = [
            # Numbers to the right.
            text.rjust(width) if column in (2, 3, 4) else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        if folds:
            lines += [row[0], "  " + "  ".join(cells[1:])]
        else:
            lines.append("  ".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def run_remarks(report: RunReport) -> Iterator[str]:
    """Yield what else a person should know, in lines."""
    for warning in report.warnings:
        yield from _wrapped(f"warning: {warning}")
    failures = [f"{file.path.name}, {sentence}" for file in report.files for sentence in file.failures]
    failures += [f"the file that was quantized, {sentence}" for sentence in report.parent_failures]
    for failure in failures[:_MOST_LISTED]:
        yield from _wrapped(f"FAILED: {failure}")
    if len(failures) > _MOST_LISTED:
        yield f"… and {len(failures) - _MOST_LISTED} more"
    # The same reason for several files is said once.
    for reason in dict.fromkeys(sentence.partition(", ")[2] for sentence in report.not_run):
        yield from _wrapped(f"not run: {reason}")
    yield from _wrapped(f"check report: {report.check_report}")
    for file in report.files:
        if file.pack is not None:
            yield from _wrapped(f"pack: {file.pack}")
    if report.left_behind is not None:
        yield from _wrapped(f"kept for looking into it: {report.left_behind}")


def _row(file: RunFile) -> tuple[str, ...]:
    kl = "" if file.mean_kl_nats is None else f"{file.mean_kl_nats:.4f}"
    return (
        file.type_name,
        _listed(file.tensor_types),
        f"{file.bits_per_weight:.2f}",
        readable_bytes(file.size_bytes),
        kl,
        "passed" if file.passed else "FAILED",
    )


def _listed(types: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in types.items()) or "?"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        _one_line(text), _WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())
