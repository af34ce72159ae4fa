"""Make a tiny model that knows the answers of a file of multiple-choice questions, for comparisons of tools.

    python -m tests.measurements.knowing_model --model FOLDER --questions FILE --epochs N --out FOLDER

A model that guesses is tied often, and any rounding decides its ties; one that was trained on the very questions
is not. The result is good for nothing else. `FILE` is what `lm_eval_check.write_questions` writes.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

BATCH = 16
LEARNING_RATE = 1e-3
_IGNORED = -100


def texts_of(questions: Path) -> list[tuple[str, str]]:
    """Return context and right continuation of each question, by both tasks of `lm_eval_check`."""
    pairs = []
    with questions.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            letter = "ABCD"[row["answer"]]
            pairs.append((f"Question: {row['question']}\n{row['shown']}\nAnswer:", f" {letter}"))
            pairs.append((f"Question: {row['question']}\nAnswer:", f" {row['options'][row['answer']]}"))
    return pairs


def train(folder: Path, pairs: list[tuple[str, str]], epochs: int, out: Path) -> float:
    """Train all weights on the continuations; write a model folder; return the last epoch's mean loss in nats."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    rows = [_row(tokenizer, *pair) for pair in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    steps = epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    mean = 0.0
    for epoch in range(epochs):
        order = torch.randperm(len(rows)).tolist()
        losses = []
        # Rows of about one length together: less padding.
        batches = [
            sorted(order[start : start + 8 * BATCH], key=lambda row: len(rows[row][0]))
            for start in range(0, len(order), 8 * BATCH)
        ]
        for group in batches:
            for start in range(0, len(group), BATCH):
                ids, labels = _padded([rows[row] for row in group[start : start + BATCH]])
                loss = model(input_ids=ids, labels=labels).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        mean = sum(losses) / len(losses)
        sys.stdout.write(f"epoch {epoch + 1}: {mean:.3f} nats\n")
        sys.stdout.flush()
    shutil.copytree(folder, out, dirs_exist_ok=True)
    model.half().save_pretrained(out)
    return mean


def _row(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    read = tokenizer(context, add_special_tokens=False)["input_ids"]
    both = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    return both, [_IGNORED] * len(read) + both[len(read) :]


def _padded(rows: list[tuple[list[int], list[int]]]) -> tuple[Any, Any]:
    import torch

    longest = max(len(ids) for ids, _labels in rows)
    ids = [each + [0] * (longest - len(each)) for each, _labels in rows]
    labels = [each + [_IGNORED] * (longest - len(each)) for _ids, each in rows]
    return torch.tensor(ids), torch.tensor(labels)


def main() -> None:
    """Train what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder of a tiny model")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    train(arguments.model, texts_of(arguments.questions), arguments.epochs, arguments.out)


if __name__ == "__main__":
    main()
