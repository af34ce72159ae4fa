"""The check report as text for people: 80 columns, readable without colour. For `cli.py` and `pack.py`."""

import textwrap
from collections.abc import Iterator

from edgemed.check_report import CheckedFile, CheckReport, CheckResult, QuantizationLoss

_WIDTH = 80
_MARKS = {"passed": "ok", "failed": "FAILED", "not_run": "not run"}
_MARK_WIDTH = 9
_NAME_WIDTH = 21


def report_text(report: CheckReport) -> str:
    """Return the whole report; failed checks with their first differences."""
    lines = [*_head(report)]
    named = {file.name for file in report.files}
    for file in report.files:
        lines += ["", *_file_lines(file), *_results(report, file.name)]
    # What could not even be opened stands in no list of files.
    for name in dict.fromkeys(result.file for result in report.results if result.file not in named):
        lines += ["", name, *_results(report, name)]
    lines += _loss_table(report)
    lines += ["", _verdict(report)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _head(report: CheckReport) -> Iterator[str]:
    adapters = "".join(
        f" + {one.name}" + (f" x {one.weight:g}" if one.weight != 1 else "") for one in report.adapters
    )
    yield from textwrap.wrap(f"Checked against {report.model}{adapters}", _WIDTH)


def _file_lines(file: CheckedFile) -> Iterator[str]:
    size = f"({file.size_bytes / 1e6:,.1f} MB, {file.bits_per_weight:.2f} bits a weight)"
    yield from textwrap.wrap(f"{file.name}  {size}", _WIDTH, break_on_hyphens=False)


def _results(report: CheckReport, name: str) -> Iterator[str]:
    for result in report.results:
        if result.file == name:
            yield from _result(result)


def _result(result: CheckResult) -> Iterator[str]:
    head = f"  {_MARKS[result.status]:<{_MARK_WIDTH}}{result.name.replace('_', ' '):<{_NAME_WIDTH}}"
    yield from textwrap.wrap(
        head + result.sentence,
        _WIDTH,
        subsequent_indent=" " * len(head),
        break_long_words=True,
        drop_whitespace=True,
    )
    if result.status != "failed":
        return
    indent = " " * (2 + _MARK_WIDTH)
    if result.limit:
        yield from textwrap.wrap(
            f"limit: {result.limit}", _WIDTH, initial_indent=indent, subsequent_indent=indent + "  "
        )
    for detail in result.details[:5]:
        yield from textwrap.wrap(
            f"- {detail}", _WIDTH, initial_indent=indent, subsequent_indent=indent + "  "
        )


def _loss_table(report: CheckReport) -> Iterator[str]:
    for text in dict.fromkeys(loss.text for loss in report.quantization_losses):
        losses = [loss for loss in report.quantization_losses if loss.text == text]
        head = (
            f"What each type loses: {text}, {losses[0].scored_tokens:,} positions, against {losses[0].parent}"
        )
        yield ""
        yield from textwrap.wrap(head, _WIDTH)
        yield "  type         MB  bits     mean KL (nats)    99%  worst  same 1st  perplexity"
        for loss in losses:
            yield _loss_line(loss)


def _loss_line(loss: QuantizationLoss) -> str:
    return (
        f"  {loss.quantization_type:<8}{loss.size_bytes / 1e6:>7,.0f}{loss.bits_per_weight:>6.2f}"
        f"{loss.mean_kl_nats:>9.5f} ± {loss.mean_kl_uncertainty_nats:.5f}{loss.percentile_99_kl_nats:>7.3f}"
        f"{loss.highest_kl_nats:>7.2f}{loss.top1_share:>10.1%}{loss.perplexity:>12,.1f}"
    )


def _verdict(report: CheckReport) -> str:
    failed, not_run = len(report.failures()), len(report.not_run)
    if failed:
        files = {result.file for result in report.failures()}
        return f"FAILED: {failed} checks in {len(files)} of the files. Do not use what failed."
    if not_run:
        return f"Passed what could run here; {not_run} checks did not run, and what they prove is not proved."
    return "Passed."
