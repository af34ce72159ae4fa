"""What conversion does to a trained model, measured again: the same answers, and what each type costs.

`train` makes a small LoRA adapter for the small base model of the shared data folder; `answers` compares greedy
answers of the merged file, of base file + LoRA file, and of transformers + PEFT; `types` measures each
quantization type, with and without importance matrix. Needs torch, transformers, peft and the shared data
folder; docs/convert_results.md has the tables.
"""

import argparse
import json
import lzma
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgemed_convert.adapter import Adapter, apply_adapters
from edgemed_convert.check.divergence import Divergence, DivergenceMeter
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.export import export_gguf
from edgemed_convert.imatrix import collect_imatrix
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.lora import export_adapter
from edgemed_convert.lora_check import check_adapter
from edgemed_convert.quantization_plan import QuantizeOptions, plan_quantization
from edgemed_convert.quantize import QuantizedFile, quantize

HELD_OUT = 400
"""Pairs that the adapter never sees: the first of a fixed shuffle."""
ANSWER_TOKENS = 48
TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")
WINDOWS = 60
CHUNKS = 120
_STEPS, _BATCH, _WINDOW = 200, 8, 128
_LEARNING_RATE = 2e-3


def main() -> None:
    """Run one measurement and print it as text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["train", "answers", "types"])
    parser.add_argument("--shared", type=Path, required=True, help="the shared data folder")
    parser.add_argument("--work", type=Path, required=True, help="where adapter and GGUF files are made")
    parser.add_argument("--questions", type=int, default=24)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    {"train": train, "answers": answers, "types": types}[arguments.what](arguments)


@dataclass(frozen=True)
class Pair:
    """A question with an answer of one or two sentences."""

    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """What the base model was trained to go on from."""
        return f"Question: {self.question}\nAnswer:"


def read_pairs(shared: Path) -> list[Pair]:
    """Return short pairs of MedQuAD and WikiDoc in one fixed order."""
    pairs = [
        *(
            Pair(*texts)
            for row in _rows(shared, "medquad")
            if (texts := _short(row["question"], row["answer"]))
        ),
        *(
            Pair(*texts)
            for row in _rows(shared, "wikidoc_patient_information")
            if (texts := _short(row["input"], row["output"]))
        ),
    ]
    pairs = list(dict.fromkeys(pairs))
    random.Random(0).shuffle(pairs)
    return pairs


def train(arguments: argparse.Namespace) -> None:
    """Train the adapter on the CPU: loss on the answers alone."""
    import peft
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(2)
    model, tokenizer = _transformers_model(arguments.shared / "models" / "edge-base-8m")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted: Any = peft.get_peft_model(
        model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    )
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=_LEARNING_RATE)
    examples = _examples(read_pairs(arguments.shared)[HELD_OUT:], tokenizer)
    started, average = time.monotonic(), None
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * min(1, (step + 1) / 20) * (1 - step / _STEPS)
        batch = [next(examples) for _ in range(_BATCH)]
        ids, labels = (torch.tensor([example[part] for example in batch]) for part in (0, 1))
        loss = adapted(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        if step % 20 == 0:
            _print(f"step {step}: loss {average:.3f}, {time.monotonic() - started:.0f} s")
    adapted.save_pretrained(arguments.work / "adapter")
    _print(f"loss {average:.3f} after {_STEPS} steps, {time.monotonic() - started:.0f} s")


def answers(arguments: argparse.Namespace) -> None:
    """Compare greedy answers to held-out questions."""
    files = _export(arguments)
    base_folder = arguments.shared / "models" / "edge-base-8m"
    reference = _PeftModel(base_folder, arguments.work / "adapter")
    prompts = [pair.prompt for pair in read_pairs(arguments.shared)[: arguments.questions]]
    ids = [reference.tokenizer.encode(prompt).ids for prompt in prompts]
    expected = [reference.greedy(prompt) for prompt in ids]
    _print(f"{len(prompts)} questions, {sum(map(len, expected))} tokens by transformers + PEFT")
    with LlamaProcess(threads=2) as process:
        for name, (path, adapter) in files.items():
            process.load(path, adapter=adapter, context_length=512)
            if process.tokenize(prompts, add_special=True) != ids:
                raise SystemExit(f"{name}: other tokens than the tokenizer's")
            found = [process.greedy(prompt, ANSWER_TOKENS) for prompt in ids]
            same = sum(one == other for one, other in zip(expected, found, strict=True))
            _print(f"{name}: {same} of {len(prompts)} answers are the same tokens")
            for number, (prompt, one, other) in enumerate(zip(ids, expected, found, strict=True)):
                _print_divergence(reference, number, prompt, one, other)
        for name, (path, adapter) in files.items():
            if adapter is not None:
                agreement = check_adapter(path, adapter, files["merged"][0], process=process)
                _print(f"{name} against merged: {agreement.sentence} Effect {agreement.effect:.2f}.")


def _print_divergence(
    reference: "_PeftModel", number: int, prompt: list[int], one: list[int], other: list[int]
) -> None:
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if at is None:
        return
    logits = reference.logits([*prompt, *one[:at]])[-1]
    best, second = np.sort(logits)[::-1][:2]
    _print(
        f"  question {number}, token {at}: {one[at]} against {other[at]}; the gap of the two likeliest is "
        f"{best - second:.4f} logits (deviation {logits.std():.2f})"
    )


def _export(arguments: argparse.Namespace) -> dict[str, tuple[Path, Path | None]]:
    """Write base, merged and LoRA files; return name → file and adapter to run."""
    work = arguments.work
    base = Checkpoint.open(arguments.shared / "models" / "edge-base-8m")
    merged = apply_adapters(base, [Adapter.open(work / "adapter")])
    paths = {"base": work / "base-F32.gguf", "merged": work / "edge-F32.gguf"}
    for name, model in (("base", base), ("merged", merged)):
        export_gguf(model, paths[name], file_type="F32", overwrite=True)
    loras: dict[str, Path] = {}
    for type_name in ("F16", "F32"):
        loras[type_name] = work / f"adapter-{type_name}.gguf"
        export_adapter(work / "adapter", paths["base"], loras[type_name], type_name=type_name, overwrite=True)
        _print(f"adapter {type_name}: {loras[type_name].stat().st_size:,} bytes")
    return {
        "merged": (paths["merged"], None),
        "base + LoRA F16": (paths["base"], loras["F16"]),
        "base + LoRA F32": (paths["base"], loras["F32"]),
        "base alone": (paths["base"], None),
    }


class _PeftModel:
    """The adapted model as transformers and PEFT run it, unmerged, in float32."""

    def __init__(self, base: Path, adapter: Path) -> None:
        import peft

        model, self.tokenizer = _transformers_model(base)
        self._model: Any = peft.PeftModel.from_pretrained(model, str(adapter)).eval()

    def logits(self, ids: Sequence[int]) -> Any:
        """Return the logits of all positions, (positions, vocabulary)."""
        import torch

        with torch.inference_mode():
            return self._model(torch.tensor([list(ids)])).logits[0].numpy()

    def greedy(self, ids: Sequence[int]) -> list[int]:
        """Return the likeliest tokens one after the other, at most ANSWER_TOKENS, the end token included."""
        written: list[int] = []
        while len(written) < ANSWER_TOKENS and written[-1:] != [0]:
            written.append(int(self.logits([*ids, *written])[-1].argmax()))
        return written


def types(arguments: argparse.Namespace) -> None:
    """Measure each type against the merged F32 file, with and without importance matrix."""
    source = _export(arguments)["merged"][0]
    pairs = read_pairs(arguments.shared)
    prompts = [pair.prompt for pair in pairs[: arguments.questions]]
    with LlamaProcess(threads=2) as process:
        matrix = _matrix(arguments, source, pairs[HELD_OUT:], process)
        files = {"without": _quantized(source, arguments.work / "plain", None, process)}
        files["with"] = _quantized(source, arguments.work / "imatrix", matrix, process)
        reference = _greedy(source, prompts, process)
        texts = {"held-out pairs": _text(pairs[:HELD_OUT]), "unseen messages": _messages(arguments.shared)}
        for text_name, text in texts.items():
            with DivergenceMeter(source, text, windows=WINDOWS, threads=2) as meter:
                for kind, quantized in files.items():
                    for file in quantized:
                        answered = _greedy(file.path, prompts, process)
                        same = sum(one == other for one, other in zip(reference, answered, strict=True))
                        _print_type(text_name, kind, file, meter.measure(file.path), f"{same}/{len(prompts)}")


def _matrix(
    arguments: argparse.Namespace, source: Path, pairs: Sequence[Pair], process: LlamaProcess
) -> Path:
    data = arguments.work / "imatrix.jsonl"
    lines = [json.dumps({"text": f"{pair.prompt} {pair.answer}\n"}) for pair in pairs[:3000]]
    data.write_text("\n".join(lines), encoding="utf-8")
    target: Path = arguments.work / "imatrix.gguf"
    report = collect_imatrix(source, data, target, process=process, chunks=CHUNKS, overwrite=True)
    _print(f"importance matrix: {report.chunks} chunks of 512 tokens, {report.matrices} matrices")
    return target


def _quantized(source: Path, folder: Path, matrix: Path | None, process: LlamaProcess) -> list[QuantizedFile]:
    folder.mkdir(exist_ok=True)
    wanted = ("F16", "BF16", *TYPES) if matrix is None else TYPES[1:]
    options = QuantizeOptions(imatrix=matrix, overwrite=True)
    plan = plan_quantization(source, wanted, folder, options=options, process=process)
    return quantize(plan, process=process)


def _greedy(path: Path, prompts: Sequence[str], process: LlamaProcess) -> list[list[int]]:
    process.load(path, context_length=512)
    return [process.greedy(ids, ANSWER_TOKENS) for ids in process.tokenize(prompts, add_special=True)]


def _print_type(text: str, kind: str, file: QuantizedFile, found: Divergence, answered: str) -> None:
    present = ", ".join(f"{name} {count}" for name, count in file.tensor_types.items())
    _print(
        f"{text} | {file.type_name} | {kind} matrix | {file.size_bytes / 1e6:.2f} MB | "
        f"{file.bits_per_weight:.2f} bits | KL {found.mean_kl:.2e} ± {found.mean_kl_uncertainty:.1e} | "
        f"99 % {found.kl_99:.2e} | worst {found.max_kl:.2e} | top-1 {found.top1_agreement:.4f} | "
        f"perplexity {found.parent_perplexity:.3f} → {found.perplexity:.3f} | answers {answered} | "
        f"{found.positions} positions | {present}"
    )


def _text(pairs: Sequence[Pair]) -> str:
    return "\n".join(f"{pair.prompt} {pair.answer}" for pair in pairs)


def _messages(shared: Path) -> str:
    """Return real consumer messages (MeQSum), which neither base nor adapter was trained on."""
    return "\n".join(re.sub(r"\s+", " ", row["CHQ"]).strip() for row in _rows(shared, "meqsum"))


def _examples(pairs: Sequence[Pair], tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (ids, labels) of one length: prompts and padding are -100."""
    chosen = list(pairs)
    generator = random.Random(1)
    while True:
        generator.shuffle(chosen)
        for pair in chosen:
            prompt = tokenizer.encode(pair.prompt).ids
            answer = [*tokenizer.encode(f" {pair.answer}").ids, 0]
            ids = (prompt + answer)[:_WINDOW]
            labels = ([-100] * len(prompt) + answer)[:_WINDOW]
            padding = _WINDOW - len(ids)
            yield ids + [0] * padding, labels + [-100] * padding


def _transformers_model(folder: Path) -> tuple[Any, Any]:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def _rows(shared: Path, name: str) -> Iterator[dict[str, Any]]:
    with lzma.open(shared / "data" / f"{name}.jsonl.xz", "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _short(question: str, answer: str) -> tuple[str, str] | None:
    """Return question and first sentences of the answer, at most 300 characters; None where there are none."""
    question, answer = (re.sub(r"\s+", " ", text).strip() for text in (question, answer))
    question = re.sub(r" ([?.,])", r"\1", re.sub(r" ?\(are\)", "", question))
    end = max(answer.rfind(mark, 0, 300) for mark in (". ", "? "))
    if len(answer) > 300:
        answer = answer[: end + 1] if end > 40 else ""
    useless = answer.startswith("These resources address") or "Human Phenotype Ontology" in answer
    return (question, answer) if question and answer and not useless else None


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
