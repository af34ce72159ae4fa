"""The command `export`: runs in the shapes of other tools."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from edgemed.errors import StorageError, UsageError
from edgemed.operating_system import write_atomically
from edgemed_benchmarks.csv_report import samples_csv, summary_csv
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.export_llama_bench import llama_bench_tests
from edgemed_benchmarks.export_lm_eval import lm_eval_files
from edgemed_benchmarks.journal import Run
from edgemed_benchmarks.pack_format import read_runs
from edgemed_benchmarks.run_items import items_of_runs
from edgemed_benchmarks.score import score_run
from edgemed_benchmarks.score_format import Scores
from edgemed_benchmarks.summary import summarise

Format = Literal["lm-eval", "llama-bench", "csv"]
FORMATS: tuple[Format, ...] = ("lm-eval", "llama-bench", "csv")


def export_files(files: Sequence[Path], form: Format, out: Path) -> list[Path]:
    """Write runs in another tool's shape; return the files.

    Args:
        files: record files and packs.
        form: `lm-eval` writes a folder for each arm below `out`; `llama-bench` one JSON file; `csv` two files
            whose names begin with `out`.
        out: a folder, a file, or the beginning of names. Nothing that is there is replaced.

    Raises:
        RecordError: a file cannot be read, or has nothing of this kind.
        UsageError: a file of this name is there already.
        StorageError: a file cannot be written.
    """
    runs = [each for file in files for each in read_runs(file)]
    contents = _CONTENTS[form](runs, out)
    if not contents:
        raise RecordError(
            f"Nothing in {', '.join(map(str, files))} can be exported as {form}.",
            hint="lm-eval needs the quality or safety suite, llama-bench valid samples of the latency suite.",
        )
    for path in contents:
        if path.exists():
            raise UsageError(f"{path} is there already.", hint="Choose another --out.")
    for path, text in contents.items():
        _write(path, text)
    return list(contents)


def _lm_eval(runs: Sequence[tuple[Run, Scores | None]], out: Path) -> dict[Path, str]:
    contents: dict[Path, str] = {}
    for run, scores in runs:
        folder = out if len(runs) == 1 else out / run.start.run_id
        for arm in lm_eval_files(run, items_of_runs([run]), scores or score_run(run)):
            contents |= {folder / arm.folder / name: text for name, text in arm.files.items()}
    return contents


def _llama_bench(runs: Sequence[tuple[Run, Scores | None]], out: Path) -> dict[Path, str]:
    tests: list[dict[str, Any]] = [test for run, _scores in runs for test in llama_bench_tests(run)]
    path = out if out.suffix == ".json" else out.with_name(out.name + ".json")
    return {path: json.dumps(tests, indent=2, ensure_ascii=False) + "\n"} if tests else {}


def _csv(runs: Sequence[tuple[Run, Scores | None]], out: Path) -> dict[Path, str]:
    summaries = [summarise(run, scores or score_run(run)) for run, scores in runs]
    stem = out.name.removesuffix(".csv")
    return {
        out.with_name(f"{stem}.summary.csv"): summary_csv(summaries),
        out.with_name(f"{stem}.samples.csv"): samples_csv(summaries),
    }


_CONTENTS = {"lm-eval": _lm_eval, "llama-bench": _llama_bench, "csv": _csv}


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", hint="Check the folder and the disk."
        ) from error
