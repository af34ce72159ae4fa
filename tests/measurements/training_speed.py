"""Training against TRL and Unsloth on one GPU: real tokens a second, memory, share of the FLOP ceiling, loss.

    python -m tests.measurements.training_speed --work DIR --size 1b 8b [--unsloth-python PYTHON] [--rounds 3]
    python -m tests.measurements.training_speed --work DIR --size tiny --arms ours-padded ours-packed

Writes random models in the shapes of Llama 3 (8b: 16 GB) and rows of tokens as long as those of the study, or
those of a prepared data set (--data, --tokenizer). Every arm and round is a fresh process; rounds alternate, and
medians count. An arm that fails is named with its reason. DIR/results.md and DIR/results.json hold what is
printed. docs/experiments.md has the commands that install what is compared.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

from tests.measurements.training_arms import ARMS, SHAPES, Job
from tests.measurements.training_tables import Measured, as_markdown, as_result

ROOT = Path(__file__).parents[2]
LENGTHS = (
    (0, 40),
    (0.1, 80),
    (0.25, 112),
    (0.5, 160),
    (0.75, 275),
    (0.9, 458),
    (0.95, 595),
    (0.99, 1402),
    (1, 2048),
)
"""Quantiles of the study's 2,000 pairs in tokens of Llama 3: share of the pairs → length."""
PROMPT_SHARE = 0.22
_FIRST_ID = 5  # control tokens stand below
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write both files."""
    options = _options(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    results = []
    for size in options.size:
        results.append(measure(options, size))
        # What is there is on the disk, should a later size fail.
        (options.work / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (options.work / "results.md").write_text("\n".join(map(as_markdown, results)), encoding="utf-8")
    sys.stdout.write((options.work / "results.md").read_text(encoding="utf-8"))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="a folder; 25 GB free for 1b and 8b")
    parser.add_argument("--size", nargs="+", choices=list(SHAPES), default=["1b", "8b"])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000, help="training examples")
    parser.add_argument("--heldout", type=int, default=100)
    parser.add_argument("--data", type=Path, help="a prepared data set in place of random tokens")
    parser.add_argument("--tokenizer", type=Path, help="with --data: a Llama 3 model's folder")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument(
        "--packed-rows", type=int, default=4, help="in a micro-step; 4 rows of 2048 are 8k tokens"
    )
    parser.add_argument("--padded-examples", type=int, default=8, help="in a micro-step: TRL's default")
    parser.add_argument(
        "--accumulation", type=int, default=4, help="micro-steps of the padded arms in a step"
    )
    parser.add_argument(
        "--warmup-steps", type=int, default=10, help="optimizer steps before the clock starts"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--peak-tflops", type=float, help="of the card in bf16; else a large product is timed"
    )
    parser.add_argument("--unsloth-python", default=sys.executable, help="of an environment that has Unsloth")
    parser.add_argument("--trl-python", default=sys.executable, help="of an environment that has TRL")
    parser.add_argument("--timeout-minutes", type=float, default=30, help="of one arm in one round")
    options = parser.parse_args(arguments)
    if (options.data is None) != (options.tokenizer is None):
        parser.error("--data and --tokenizer go together")
    return options


# The rows.


def random_rows(count: int, vocabulary: int, max_length: int, seed: int) -> list[list[Any]]:
    """Return examples of random tokens, some frequent and many rare (1/rank), so that there is something to learn."""
    generator = random.Random(seed)
    weights = list(accumulate(1 / rank for rank in range(1, vocabulary - _FIRST_ID + 1)))
    ids = range(_FIRST_ID, vocabulary)
    rows = []
    for _ in range(count):
        length = min(_length(generator.random()), max_length)
        rows.append(
            [generator.choices(ids, cum_weights=weights, k=length), max(1, int(length * PROMPT_SHARE))]
        )
    return rows


def _length(share: float) -> int:
    last = next(index for index, (high, _length) in enumerate(LENGTHS) if index and share <= high)
    (low, shorter), (high, longer) = LENGTHS[last - 1 : last + 1]
    return int(shorter + (longer - shorter) * (share - low) / (high - low))


def _encoded_rows(data: Path, tokenizer: Path, max_length: int) -> dict[str, list[list[Any]]]:
    """Encode a prepared data set as training does, by the chat template of the tokenizer's folder."""
    from edgemed_training import qlora
    from edgemed_training.base_model import BaseModel
    from edgemed_training.chat_format import ChatFormat
    from edgemed_training.encoding import IGNORED, encode_pairs
    from edgemed_training.libraries import prepare_libraries
    from edgemed_training.recipe import Recipe
    from edgemed_training.records import HELDOUT_NAME, TRAIN_NAME, read_pairs

    prepare_libraries()
    chat_format = ChatFormat(qlora.load_tokenizer(BaseModel.read(tokenizer, weights=False)), Recipe())
    rows: dict[str, list[list[Any]]] = {}
    for part, name in (("train", TRAIN_NAME), ("heldout", HELDOUT_NAME)):
        found = encode_pairs(
            read_pairs(data / name), chat_format, max_length=max_length, drop_long_prompts=True, source=name
        )
        rows[part] = [[e.input_ids, e.labels.count(IGNORED)] for e in found.examples]
    return rows


# Measuring.


def measure(options: argparse.Namespace, size: str) -> dict[str, Any]:
    """Run all arms of one size, alternating, and return what was found."""
    folder = (options.work / size).resolve()
    folder.mkdir(exist_ok=True)
    job_path = _write_job(options, size, folder)
    device = _child(sys.executable, "prepare", job_path, folder / "device.json", options)
    if isinstance(device, str):
        raise SystemExit(f"{size}: the model could not be made: {device}; see {folder / 'device.log'}")
    measured = {name: Measured() for name in options.arms}
    for number in range(1, options.rounds + 1):
        for name in options.arms if number % 2 else reversed(options.arms):
            if measured[name].failure is None:
                _say(f"{size}, round {number}: {name}")
                _measure_once(options, job_path, folder / name / f"round-{number}", name, measured[name])
    _add_losses(options, job_path, folder, measured)
    return as_result(vars(options), size, device, measured)


def _write_job(options: argparse.Namespace, size: str, folder: Path) -> Path:
    vocabulary = SHAPES[size].vocabulary
    if options.data:
        rows = _encoded_rows(options.data, options.tokenizer, options.max_length)
        largest = max(max(ids) for part in rows.values() for ids, _prompt in part)
        if largest >= vocabulary:
            raise SystemExit(f"{options.tokenizer} has ids up to {largest}, the model {vocabulary} tokens")
    else:
        found = random_rows(options.rows + options.heldout, vocabulary, options.max_length, options.seed)
        rows = {"train": found[: options.rows], "heldout": found[options.rows :]}
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    job = Job(
        size=size,
        base=str(folder / "base"),
        rows=str(folder / "rows.json"),
        max_length=options.max_length,
        packed_rows=options.packed_rows,
        padded_examples=options.padded_examples,
        accumulation=options.accumulation,
        warmup_steps=options.warmup_steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    path = folder / "job.json"
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")
    return path


def _measure_once(
    options: argparse.Namespace, job_path: Path, out: Path, name: str, measured: Measured
) -> None:
    pythons = {"trl": options.trl_python, "unsloth": options.unsloth_python}
    python = pythons.get(ARMS[name].library, sys.executable)
    found = _child(python, name, job_path, out.with_suffix(".json"), options)
    if isinstance(found, str):
        measured.failure = found
        _say(f"  {found}")
    else:
        measured.rounds.append(found)
        _say(f"  {found['tokens_per_second']:,.0f} real tokens/s")


def _add_losses(
    options: argparse.Namespace, job_path: Path, folder: Path, measured: dict[str, Measured]
) -> None:
    adapters = {
        str(folder / name / "round-1" / "adapter"): name for name in measured if measured[name].rounds
    }
    found = _child(sys.executable, "evaluate", job_path, folder / "losses.json", options, *adapters)
    if isinstance(found, str):
        _say(f"no evaluation: {found}")
        return
    for adapter, name in adapters.items():
        measured[name].heldout_loss = found[adapter]
    measured[""] = Measured(heldout_loss=found[""])


def _child(
    python: str, what: str, job_path: Path, answer: Path, options: argparse.Namespace, *rest: str
) -> dict[str, Any] | str:
    """Run one process; return its answer, or in one line why there is none. Its output is beside the answer."""
    answer.parent.mkdir(parents=True, exist_ok=True)
    answer.unlink(missing_ok=True)
    log = answer.with_suffix(".log")
    paths = [ROOT, *(ROOT / tool for tool in ("convert", "training", "benchmarks"))]
    environment = os.environ | _OFFLINE | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [python, "-m", "tests.measurements.training_child", what, str(job_path), str(answer), *rest]
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=answer.parent,
                timeout=60 * options.timeout_minutes,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"not done after {options.timeout_minutes:g} minutes"
    if code == 0 and answer.is_file():
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found
    return _reason(code, log.read_text(encoding="utf-8", errors="replace"))


def _reason(code: int, output: str) -> str:
    if "OutOfMemoryError" in output or "CUDA out of memory" in output:
        return "out of memory"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {code} without a word"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
