"""One fine-tuning run, from a recipe, prepared data and a base model to an adapter with its training card.

The same command after a kill goes on from the last sound checkpoint, with the same losses to the last bit.
"""

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from edgemed import __version__
from edgemed.errors import EdgemedError, StorageError
from edgemed.operating_system import lock_file, write_atomically
from edgemed_training import checkpoints
from edgemed_training.base_model import BaseModel
from edgemed_training.card import CARD_NAME, EncodingFacts, TrainingCard, best_step
from edgemed_training.chat_format import CHAT_TEMPLATE_NAME, ChatFormat
from edgemed_training.checkpoints import RunIdentity
from edgemed_training.encoding import EncodedPairs
from edgemed_training.errors import TrainingFailed
from edgemed_training.libraries import prepare_libraries
from edgemed_training.recipe import Recipe
from edgemed_training.records import HELDOUT_NAME, TRAIN_NAME
from edgemed_training.run_data import RunData, read_run_data
from edgemed_training.run_plan import (
    RunPlan,
    choose_attention,
    clamp_length,
    encode_file,
    evaluator,
    has_cuda,
    plan_rows,
)

ADAPTER_NAME = "adapter"
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container")
"""Stand in the RuntimeError with which torch.save meets a full disk."""
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class RunReport:
    """What a run left behind."""

    adapter: Path
    card: TrainingCard
    resumed_from: str | None
    """The checkpoint's name."""


def run(
    recipe: Recipe,
    *,
    data: Path,
    base: Path,
    out: Path,
    allow_leaks: bool = False,
    progress: Progress = lambda sentence: None,
) -> RunReport:
    """Train an adapter, or go on with a run that was stopped.

    Args:
        recipe: what to train and how.
        data: the folder that `prepare` wrote.
        base: the base model's folder.
        out: the run's folder; the adapter is written to `out/adapter`.
        allow_leaks: train although held-out pairs are found in the training data, or nobody looked.
        progress: told a sentence now and then.

    Raises:
        BaseModelError: the base model cannot be used, or is not the recipe's.
        DataError: the data cannot be used; LeakError: its held-out pairs are no test.
        CheckpointDamaged: `out` belongs to another run.
        TrainingFailed: no memory, a loss that is no number.
        StorageError: the disk.
    """
    prepare_libraries()
    model_folder = BaseModel.read(base)
    model_folder.check_fits(recipe.base)
    found = read_run_data(recipe, model_folder, data, allow_leaks=allow_leaks)
    with _one_process_of(out, found.identity, progress) as checkpoint:
        if (out / CARD_NAME).is_file():
            progress(f"{out} holds the finished run already.")
            return RunReport(out / ADAPTER_NAME, _read_card(out / CARD_NAME), None)
        if checkpoint is not None:
            progress(f"Going on from {checkpoint.name}.")
        with _storage_errors(out):
            return _train(recipe, model_folder, found, out, checkpoint, progress)


@contextlib.contextmanager
def _one_process_of(out: Path, identity: RunIdentity, progress: Progress) -> Iterator[Path | None]:
    """Hold the run's folder and yield the checkpoint to go on from; of several processes, the first looks."""
    from accelerate import PartialState
    from transformers import TrainingArguments

    with contextlib.ExitStack() as stack:
        is_first = int(os.environ.get("RANK", "0")) == 0
        if identity.processes > 1 and not PartialState._shared_state:
            # Joins the processes the way the Trainer does later.
            on_cpu = not has_cuda()
            joined = TrainingArguments(
                output_dir=str(out), use_cpu=on_cpu, ddp_backend="gloo" if on_cpu else None
            )
            _ = joined.device
        if is_first:
            _make_parent(out)
            stack.enter_context(lock_file(out.with_name(f".{out.name}.lock")))
            checkpoints.claim_folder(out, identity)
            _checkpoint, sentences = checkpoints.find_checkpoint(out)
            for sentence in sentences:
                progress(sentence)
        if identity.processes > 1:
            PartialState().wait_for_everyone()
        yield checkpoints.find_checkpoint(out)[0]


def _make_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{out.parent} cannot be made: {error.strerror}.", hint="Name another folder with --out."
        ) from error


@contextlib.contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    """Turn what a full or failing disk makes of writing into one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(mark in str(error) for mark in _TORCH_WRITER):
            raise
        reason = error.strerror if isinstance(error, OSError) else "the disk is full, or fails"
        raise StorageError(
            f"The run in {out} cannot be written: {reason or error}.",
            hint="Free some space and give the same command again: it goes on from the last checkpoint.",
        ) from error


def _train(
    recipe: Recipe, base: BaseModel, data: RunData, out: Path, checkpoint: Path | None, progress: Progress
) -> RunReport:
    import torch
    from transformers import set_seed

    from edgemed_training import qlora
    from edgemed_training.trainer import BEST_NAME, build_trainer, training_arguments

    started = time.monotonic()
    set_seed(recipe.train.seed)
    chat_format = ChatFormat(qlora.load_tokenizer(base), recipe)
    max_length = clamp_length(recipe, base, progress)
    encoded = encode_file(data.train, chat_format, recipe, max_length, TRAIN_NAME)
    heldout = encode_file(data.heldout, chat_format, recipe, max_length, HELDOUT_NAME)
    for name, pairs in ((TRAIN_NAME, encoded), (HELDOUT_NAME, heldout)):
        for sentence in _losses_of(name, pairs, max_length):
            progress(sentence)
    try:
        model = qlora.attach_adapter(
            qlora.load_base(base, recipe, attention=choose_attention(recipe)), recipe, base
        )
        plan = plan_rows(model, chat_format, recipe, encoded, heldout, max_length, progress)
        arguments = training_arguments(
            recipe,
            out,
            precision=qlora.precision(recipe),
            checkpointing=_prepare_recomputing(model, recipe, base, max_length),
            on_cpu=not has_cuda(),
        )
        trainer = build_trainer(
            model,
            arguments,
            recipe,
            rows=plan.rows,
            collator=plan.collator,
            evaluate=evaluator(recipe, chat_format, base, plan),
            progress=progress,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        row_tokens = max_length if recipe.train.packing != "off" else encoded.longest
        raise _no_memory(error, recipe, base, row_tokens) from error
    best = out / BEST_NAME
    if not best.is_dir():
        trainer.save_model(str(best))
    card = _card(recipe, base, data, plan, trainer, chat_format, time.monotonic() - started)
    if trainer.is_world_process_zero():
        _write_adapter(best, out / ADAPTER_NAME, card, chat_format.own_template)
        write_atomically(out / CARD_NAME, _json(card))
    return RunReport(out / ADAPTER_NAME, card, checkpoint.name if checkpoint else None)


def _losses_of(name: str, pairs: EncodedPairs, max_length: int) -> Iterator[str]:
    """Yield what did not fit of a file's pairs."""
    if cut := sum(example.cut for example in pairs.examples):
        yield (
            f"{name}: {cut} of {len(pairs.examples)} answers ({pairs.cut_share:.1%}) are cut at "
            f"{max_length} tokens."
        )
    for reason, count in pairs.dropped.items():
        yield f"{name}: {count} pairs are left out: {reason}."


def _prepare_recomputing(model: Any, recipe: Recipe, base: BaseModel, max_length: int) -> bool:
    """Decide whether activations are computed again in the backward pass, and prepare the model for it."""
    on = _recomputes(recipe, base, max_length)
    if on:
        model.enable_input_require_grads()
    return on


def _recomputes(recipe: Recipe, base: BaseModel, max_length: int) -> bool:
    from edgemed_training.estimate import activations_fit

    wanted = recipe.train.activation_checkpointing
    return wanted == "on" or (wanted == "auto" and not activations_fit(recipe, base, max_length))


def _write_adapter(best: Path, adapter: Path, card: TrainingCard, template: str | None) -> None:
    """Put the adapter under its name when all of it is on the disk, with its base's fingerprint."""
    from edgemed_training.qlora import ADAPTER_CONFIG_NAME, BASE_SHA256_KEY

    written = adapter.with_name(f".{adapter.name}.partial")
    shutil.rmtree(written, ignore_errors=True)
    shutil.copytree(best, written, copy_function=shutil.copyfile)
    path = written / ADAPTER_CONFIG_NAME
    fields = msgspec.json.decode(path.read_bytes()) | {BASE_SHA256_KEY: card.identity.base_sha256}
    if isinstance(fields["target_modules"], list):
        fields["target_modules"].sort()  # PEFT writes a set
    path.write_bytes(msgspec.json.format(msgspec.json.encode(fields, order="sorted"), indent=2) + b"\n")
    (written / CARD_NAME).write_bytes(_json(card))
    if template is not None:
        (written / CHAT_TEMPLATE_NAME).write_bytes(template.encode())
    shutil.rmtree(adapter, ignore_errors=True)
    written.rename(adapter)


def _card(
    recipe: Recipe,
    base: BaseModel,
    data: RunData,
    plan: RunPlan,
    trainer: Any,
    chat_format: ChatFormat,
    seconds: float,
) -> TrainingCard:
    import torch

    from edgemed_training import packing, qlora

    history = trainer.state.log_history
    evaluations = [
        {name.removeprefix("eval_"): value for name, value in entry.items()}
        for entry in history
        if "eval_loss" in entry
    ]
    losses = [entry for entry in history if "loss" in entry]
    last_epoch = [entry["loss"] for entry in losses if entry["epoch"] > losses[-1]["epoch"] - 1]
    sources = data.card.sources if data.card else []
    on_gpu = has_cuda()
    return TrainingCard(
        edgemed_version=__version__,
        libraries={name: metadata.version(name) for name in _LIBRARIES},
        device=torch.cuda.get_device_name() if on_gpu else f"CPU ({platform.machine()})",
        precision=qlora.precision(recipe),
        recipe=recipe,
        identity=data.identity,
        base_model=qlora.public_name(base, recipe),
        base_license=recipe.base.license,
        data_sources=[{"name": s.name, "source": s.source, "license": s.license} for s in sources],
        leaking_pairs=data.card.leaks.leaking if data.card else None,
        encoding=EncodingFacts(
            examples=len(plan.encoded.examples),
            tokens=plan.encoded.tokens,
            answer_tokens=plan.encoded.answer_tokens,
            max_length=plan.max_length,
            cut_answers=sum(example.cut for example in plan.encoded.examples),
            dropped=dict(plan.encoded.dropped),
            packed=plan.packed,
            rows=len(plan.rows),
            fill_share=packing.fill_share(plan.rows, plan.max_length),
            system_prompt_in=chat_format.system_placement,
        ),
        steps=trainer.state.global_step,
        best_step=best_step(evaluations, recipe.eval.select_by),
        evaluations=evaluations,
        final_loss=sum(last_epoch) / len(last_epoch),
        seconds=seconds,
        peak_gpu_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
    )


def _read_card(path: Path) -> TrainingCard:
    try:
        return msgspec.json.decode(path.read_bytes(), type=TrainingCard)
    except (OSError, msgspec.DecodeError) as error:
        raise TrainingFailed(
            f"{path} is not a training card: {error}.", hint="Remove it and give the same command again."
        ) from error


def _json(card: TrainingCard) -> bytes:
    return msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"


def _no_memory(error: Exception, recipe: Recipe, base: BaseModel, row_tokens: int) -> TrainingFailed:
    from edgemed_training.estimate import memory_bytes, model_size

    train = recipe.train
    said, rows = " ".join(str(error).split())[:200].rstrip("."), train.micro_batch_rows
    recompute, needed = True, ""
    with contextlib.suppress(EdgemedError):  # what the run is short of matters more than the estimate
        recompute = _recomputes(recipe, base, row_tokens)
        parts = memory_bytes(
            model_size(base, recipe), recipe, micro_tokens=rows * row_tokens, recompute=recompute
        )
        shown = ", ".join(f"{size / 2**30:.2f} {name}" for name, size in parts.items())
        needed = f" It is estimated to need {sum(parts.values()) / 2**30:.2f} GiB ({shown})"
        needed += f" with {rows} rows of {row_tokens} tokens."
    lower = [
        f"train.micro_batch_rows (now {rows})" if rows > 1 else "",
        f"train.max_length (below {row_tokens})",
        f"eval.batch_size (now {recipe.eval.batch_size})" if recipe.eval.generation_items else "",
    ]
    also = "" if recompute else ' Or set train.activation_checkpointing = "on".'
    return TrainingFailed(
        f"The GPU has too little memory for this run: {said}.{needed}",
        hint=f"Lower {', '.join(filter(None, lower))}, in this order.{also} A changed recipe is another run: "
        "name a new folder with --out.",
    )
