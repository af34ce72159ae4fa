"""Multiple choice by edgemed's engine against lm-evaluation-harness, question by question, on the same GGUF.

    python -m tests.measurements.lm_eval_check --lm-eval PYTHON --tokenizer FOLDER --questions FILE [FILE …]
        [--unpacked] [--items N] [--threads N] [--work FOLDER] MODEL.gguf [MODEL.gguf …]

`PYTHON` is the interpreter of another environment with lm_eval, torch, transformers, accelerate and gguf:
transformers unpacks the GGUF to float32 and computes with torch, so nothing of llama.cpp is in it. `FOLDER` is
the model's Hugging Face folder (its tokenizer is read). A question file is JSON Lines, plain or .xz, with
`question`, `options` (a list, or an object by letter) and `answer_idx` (a letter); of a file with `question` and
`answer` alone, each question gets the first sentence of its own answer and of three others. No network is used.

Two tasks: `letters` shows the options and scores " A", " B" …; `words` shows none and scores each option's
words. Decisions: the most probable option, and the most probable per character (`acc` and `acc_norm`).

llama.cpp multiplies quantized weights with activations that it rounds to 8 bits; transformers does not. With
`--unpacked` our engine also reads the same weights from an F32 file, so that only our own part is compared.
"""

import argparse
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgemed.engine.client import ChildEngine
from edgemed.session import open_session

LETTERS = "ABCD"
TASKS = {"letters": '["A", "B", "C", "D"]', "words": "{{options}}"}
MOST_CHARACTERS = 2500
"""Of a question with its options: longer ones could be cut to the context length, each side in its own way."""

MOST_OPTION_CHARACTERS = 160
PAIRS_APART = 7
"""So many rows of a file of pairs lie between two questions."""


class Difference(NamedTuple):
    """How far one task of one model differs."""

    items: int
    same_choice: int
    same_choice_by_length: int
    greedy: int
    same_greedy: int
    largest_log_probability: float
    largest_tie: float
    """Where the choices differ: how far apart our best two options are at most, in nats."""
    accuracy: tuple[float, float]
    """Theirs, ours."""

    @property
    def line(self) -> str:
        """One row of the table."""
        return (
            f"{self.items:6} {self.same_choice / self.items:12.2%} "
            f"{self.same_choice_by_length / self.items:12.2%} "
            f"{self.same_greedy / self.greedy:9.2%} {self.largest_log_probability:9.4f} "
            f"{self.largest_tie:9.4f} {self.accuracy[0]:8.4f} {self.accuracy[1]:8.4f}"
        )


def compare(model: Path, arguments: argparse.Namespace) -> dict[str, Difference]:
    """Run both on one model; return the difference by task, and by `task unpacked` where that was asked for."""
    theirs = run_lm_eval(model, arguments)
    found = _ours(model, theirs, arguments.threads)
    if arguments.unpacked:
        of_unpacked = _ours(unpack(model, arguments.work), theirs, arguments.threads)
        found |= {f"{task} unpacked": difference for task, difference in of_unpacked.items()}
    return found


def unpack(model: Path, work: Path) -> Path:
    """Write the same weights as F32; return the file."""
    out = work / f"unpacked-{model.stem}"
    command = [sys.executable, "-m", "edgemed_convert.cli", "quantize", str(model), "--types", "F32"]
    subprocess.run(
        [*command, "--allow-requantize", "--overwrite", "--out", str(out)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    [file] = out.glob("*.gguf")
    return file


def _ours(model: Path, theirs: dict[str, list[dict[str, Any]]], threads: int) -> dict[str, Difference]:
    session = open_session(str(model), threads=threads)
    try:
        return {task: _difference(session.engine, theirs[task]) for task in TASKS}
    finally:
        session.engine.close()


def write_questions(paths: Sequence[Path], most: int, out: Path) -> int:
    """Write the first questions of each file as the tasks read them; return their number."""
    count = 0
    with out.open("w", encoding="utf-8") as file:
        for path in paths:
            for number, row in enumerate(_questions(path)):
                if number == most:
                    break
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    return count


def write_tasks(folder: Path, questions: Path) -> None:
    """Write the two tasks in lm-evaluation-harness's form."""
    for task, choices in TASKS.items():
        shown = "{{shown}}\\n" if task == "letters" else ""
        (folder / f"edgemed_{task}.yaml").write_text(
            f"task: edgemed_{task}\n"
            "dataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(questions))}}}}}\n"
            "output_type: multiple_choice\n"
            "test_split: test\n"
            f'doc_to_text: "Question: {{{{question}}}}\\n{shown}Answer:"\n'
            "doc_to_target: answer\n"
            f"doc_to_choice: {json.dumps(choices) if choices.startswith('{') else choices}\n"
            "metric_list:\n"
            "  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
            "  - {metric: acc_norm, aggregation: mean, higher_is_better: true}\n"
            "metadata: {version: 1.0}\n",
            encoding="utf-8",
        )


def run_lm_eval(model: Path, arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return what lm-evaluation-harness logged of each question, by task."""
    out = arguments.work / f"out-{model.stem}"
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
    environment = os.environ | dict.fromkeys(offline, "1") | {"OMP_NUM_THREADS": str(arguments.threads)}
    # What this process imports is not for the other environment.
    environment.pop("PYTHONPATH", None)
    subprocess.run(
        [
            *(str(arguments.lm_eval), "-m", "lm_eval", "run", "--model", "hf", "--model_args"),
            f"pretrained={model.parent},gguf_file={model.name},tokenizer={arguments.tokenizer},dtype=float32",
            *("--tasks", ",".join(f"edgemed_{task}" for task in TASKS)),
            *("--include_path", str(arguments.work), "--device", "cpu", "--batch_size", "8"),
            *("--output_path", str(out), "--log_samples"),
        ],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    found = {}
    for task in TASKS:
        newest = max(out.rglob(f"samples_edgemed_{task}_*.jsonl"), key=lambda path: path.stat().st_mtime)
        with newest.open(encoding="utf-8") as lines:
            found[task] = [json.loads(line) for line in lines]
    return found


def _difference(engine: ChildEngine, theirs: Sequence[dict[str, Any]]) -> Difference:
    same, same_by_length, same_greedy, greedy = 0, 0, 0, 0
    largest = tie = 0.0
    right = [0.0, 0.0]
    for sample in theirs:
        requests = [sample["arguments"][f"gen_args_{place}"] for place in range(len(sample["resps"]))]
        continuations = [request["arg_1"] for request in requests]
        ours = engine.score(continuations, text=requests[0]["arg_0"]).continuations
        # ("-1.25", "False") as text.
        their_sums = [float(response[0][0]) for response in sample["resps"]]
        their_greedy = [response[0][1] == "True" for response in sample["resps"]]
        our_sums = [score.log_probability for score in ours]
        largest = max(largest, *(abs(a - b) for a, b in zip(their_sums, our_sums, strict=True)))
        if _best(their_sums) == _best(our_sums):
            same += 1
        else:
            best, second = sorted(our_sums, reverse=True)[:2]
            tie = max(tie, best - second)
        # acc_norm divides by the choice's own length, without the space before it.
        lengths = [len(continuation) - 1 for continuation in continuations]
        same_by_length += _best(_per(their_sums, lengths)) == _best(_per(our_sums, lengths))
        greedy += len(ours)
        same_greedy += sum(score.greedy == flag for score, flag in zip(ours, their_greedy, strict=True))
        right[0] += _best(their_sums) == int(sample["target"])
        right[1] += _best(our_sums) == int(sample["target"])
    items = len(theirs)
    accuracy = (right[0] / items, right[1] / items)
    return Difference(items, same, same_by_length, greedy, same_greedy, largest, tie, accuracy)


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _per(sums: Sequence[float], lengths: Sequence[int]) -> list[float]:
    return [value / length for value, length in zip(sums, lengths, strict=True)]


def _questions(path: Path) -> Iterator[dict[str, Any]]:
    for row in _rows(path):
        given = row["options"]
        options = [given[letter] for letter in LETTERS] if isinstance(given, dict) else given
        options = [str(option).strip() for option in options]
        shown = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=True))
        if all(options) and len(row["question"]) + len(shown) <= MOST_CHARACTERS:
            yield {
                "question": row["question"].strip(),
                "options": options,
                "shown": shown,
                "answer": LETTERS.index(row["answer_idx"]),
            }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows = (json.loads(line) for line in lines)
        first = next(rows)
        yield from (first, *rows) if "options" in first else _made_of_pairs([first, *rows])


def _made_of_pairs(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield questions with four options from rows that are far apart; the right one's place goes round."""
    step = len(rows) // len(LETTERS)
    for number, place in enumerate(range(0, step, PAIRS_APART)):
        right = number % len(LETTERS)
        order = [(place + step * ((option - right) % len(LETTERS))) % len(rows) for option in range(4)]
        options = [rows[index]["answer"].strip().split(". ")[0][:MOST_OPTION_CHARACTERS] for index in order]
        if len(set(options)) == len(options):
            yield {"question": rows[place]["question"], "options": options, "answer_idx": LETTERS[right]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--lm-eval", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--questions", nargs="+", type=Path, required=True)
    parser.add_argument("--unpacked", action="store_true")
    parser.add_argument("--items", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("lm_eval_check"))
    return parser.parse_args()


def main() -> None:
    """Write a row for each model and task."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.work = arguments.work.resolve()
    questions = arguments.work / "questions.jsonl"
    count = write_questions(arguments.questions, arguments.items, questions)
    write_tasks(arguments.work, questions)
    sys.stdout.write(f"{count} questions with four options\n")
    sys.stdout.write(
        f"{'model':16} {'task':16}  items  same choice  by length    greedy    |Δ| nats   tie      theirs   ours\n"
    )
    for model in arguments.models:
        for task, difference in compare(model.resolve(), arguments).items():
            sys.stdout.write(f"{model.stem:16} {task:16} {difference.line}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
