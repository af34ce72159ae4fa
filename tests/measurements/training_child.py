"""One arm of `training_speed`, in a process of its own: load, train once over the rows, say how fast it was.

Started by `training_speed`, also to make the random model and to compute the loss of the trained adapters.
"""

import importlib.util
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.measurements.training_arms import ARMS, SHAPES, Arm, Job, Shape
from tests.measurements.training_trainers import (
    device,
    encoded,
    our_recipe,
    our_trainer,
    trl_trainer,
    unsloth_trainer,
)

_LIBRARIES = (
    "edgemed", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "unsloth", "unsloth_zoo",
    "xformers", "flash_attn", "triton",
)  # fmt: skip


def main() -> None:
    """Do what the parent asks, and write the answer as JSON."""
    what, job_path, answer, *rest = sys.argv[1:]
    job = Job(**json.loads(Path(job_path).read_text(encoding="utf-8")))
    if what == "prepare":
        found = prepare(job)
    elif what == "evaluate":
        found = evaluate(job, [Path(folder) for folder in rest])
    else:
        found = run_arm(ARMS[what], job, Path(answer).with_suffix(""))
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


# The model and the device.


def prepare(job: Job) -> dict[str, Any]:
    """Write the random model where it is missing; return the device and its bf16 peak by a large product."""
    import torch

    from tests.training_models import make_tokenizer

    base = Path(job.base)
    if not (base / "config.json").exists():
        tokenizer = make_tokenizer(special=("<|im_start|>", "<|pad|>"))
        tokenizer.pad_token = "<|pad|>"
        tokenizer.save_pretrained(base)
        _write_model(base, SHAPES[job.size], tokenizer, job.seed)
    has_cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if has_cuda else f"CPU ({platform.machine()})"
    return {"device": name, "peak_flops": _measured_peak(), "libraries": _versions()}


def _write_model(folder: Path, shape: Shape, tokenizer: Any, seed: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    found = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    assert found == shape.parameters_without_embedding(), "the shape's arithmetic is wrong"
    model.save_pretrained(folder)


def _measured_peak() -> float:
    """Return the FLOP/s of a product of two large bf16 matrices (on a CPU: small float32 ones)."""
    import torch

    has_cuda = torch.cuda.is_available()
    size, number_type = (8192, torch.bfloat16) if has_cuda else (1024, torch.float32)
    one, other = (torch.randn(size, size, device=device(), dtype=number_type) for _ in range(2))
    seconds = []
    for _ in range(30):
        _wait()
        started = time.perf_counter()
        torch.mm(one, other)
        _wait()
        seconds.append(time.perf_counter() - started)
    return float(2 * size**3 / sorted(seconds)[len(seconds) // 2])


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# Training.


def run_arm(arm: Arm, job: Job, out: Path) -> dict[str, Any]:
    """Train once over the rows; leave the adapter in `out/adapter`; return counts, time and memory."""
    needed = {"edgemed": ["edgemed_training", "peft"], "trl": ["trl", "peft"], "unsloth": ["unsloth"]}
    for name in needed[arm.library]:
        if importlib.util.find_spec(name) is None:
            sys.exit(f"not installed: {name}")
    train = json.loads(Path(job.rows).read_text(encoding="utf-8"))["train"]
    build = {"edgemed": our_trainer, "trl": trl_trainer, "unsloth": unsloth_trainer}[arm.library]
    trainer, layout = build(arm, job, train, out)
    clock = _Clock(job.warmup_steps)
    trainer.data_collator = clock.counting(trainer.data_collator)
    trainer.add_callback(_callback(clock))
    trainer.train()
    if clock.stopped is None or clock.started is None:
        sys.exit(f"only {trainer.state.global_step} optimizer steps: none is left after the warm-up")
    trainer.model.save_pretrained(str(out / "adapter"), save_embedding_layers=False)
    return clock.found() | layout | {"steps": trainer.state.global_step, "libraries": _versions()}


class _Clock:
    """Counts what the collator hands out and times what the trainer has done with it."""

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps
        self.handed_out: list[
            tuple[int, int, int]
        ] = []  # examples, tokens, places; the loader is ahead by one
        self.all = [0, 0, 0]
        self.timed = [0, 0, 0]
        self.micro_steps = self.timed_micro_steps = self.timed_steps = 0
        self.begun = time.perf_counter()
        self.started: float | None = None
        self.stopped: float | None = None
        self.memory: dict[str, int] = {}

    def counting(self, collator: Any) -> Any:
        def collate(rows: Any) -> Any:
            # Counted before the collator: some take columns out of the rows.
            lengths = [
                row.get("lengths") or row.get("seq_lengths") or [len(row["input_ids"])] for row in rows
            ]
            examples, tokens = sum(map(len, lengths)), sum(map(sum, lengths))
            batch = collator(rows)
            self.handed_out.append((examples, tokens, batch["input_ids"].numel()))
            return batch

        return collate

    def micro_step(self) -> None:
        counts = self.handed_out.pop(0)
        self.micro_steps += 1
        self.all = [a + b for a, b in zip(self.all, counts, strict=True)]
        if self.started is not None:
            self.timed_micro_steps += 1
            self.timed = [a + b for a, b in zip(self.timed, counts, strict=True)]

    def step(self, number: int, last: int) -> None:
        self.micro_step()
        self.timed_steps += self.started is not None
        if number == self.warmup_steps and number < last:
            _wait()
            self.started = time.perf_counter()
        elif number == last:
            _wait()
            self.stopped = time.perf_counter()
            self.memory = _peak_memory()

    def found(self) -> dict[str, Any]:
        assert self.started is not None and self.stopped is not None
        seconds = self.stopped - self.started
        return {
            "micro_steps": self.micro_steps,
            "examples": self.all[0],
            "tokens": self.all[1],
            "padding_share": 1 - self.all[1] / self.all[2],
            "seconds": seconds,
            "timed_tokens": self.timed[1],
            "tokens_per_second": self.timed[1] / seconds,
            "tokens_per_micro_step": self.timed[1] / self.timed_micro_steps,
            "tokens_per_step": self.timed[1] / self.timed_steps,
            "examples_per_step": self.timed[0] / self.timed_steps,
            "seconds_with_warm_up": self.stopped - self.begun,
            **self.memory,
        }


def _peak_memory() -> dict[str, int]:
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
    }


def _callback(clock: _Clock) -> Any:
    import torch
    from transformers import TrainerCallback

    class Timing(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
            clock.begun = time.perf_counter()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()

        def on_substep_end(self, *_args: Any, **_kwargs: Any) -> None:
            clock.micro_step()

        def on_step_end(self, _args: Any, state: Any, *_rest: Any, **_kwargs: Any) -> None:
            clock.step(state.global_step, state.max_steps)

    return Timing()


# The loss afterwards.


def evaluate(job: Job, adapters: list[Path]) -> dict[str, Any]:
    """Return each adapter's loss over the held-out answers, by one and the same code; "" is no adapter."""
    from edgemed_training.libraries import prepare_libraries

    prepare_libraries()
    from accelerate import Accelerator
    from edgemed_training import qlora
    from edgemed_training.base_model import BaseModel
    from edgemed_training.loss import use_answer_loss
    from edgemed_training.packing import PaddedCollator, unpacked
    from edgemed_training.run_plan import heldout_scores

    recipe, base = our_recipe(ARMS["ours-padded"], job), BaseModel.read(Path(job.base))
    heldout = json.loads(Path(job.rows).read_text(encoding="utf-8"))["heldout"]
    rows = unpacked(encoded(heldout).examples)
    precision = qlora.precision(recipe)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision, cpu=device() == "cpu"
    )
    model = qlora.load_base(base, recipe)
    use_answer_loss(model)
    collator = PaddedCollator(0)
    losses = {"": heldout_scores(model, accelerator, rows, collator, recipe).loss}
    for folder in adapters:
        adapted = qlora.load_adapter(model, folder, base_sha256="", base=base)
        losses[str(folder)] = heldout_scores(adapted, accelerator, rows, collator, recipe).loss
        model = adapted.unload()
    return losses


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
