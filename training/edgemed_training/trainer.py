"""transformers' Trainer, told what we want of it: arguments by today's names, our evaluation and files.

Built by `train`. transformers 5.17 to 5.23 name some arguments differently; the names are looked up.
"""

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgemed_training import checkpoints
from edgemed_training.errors import TrainingFailed
from edgemed_training.qlora import save_adapter
from edgemed_training.recipe import Recipe

BEST_NAME = "best"
LOG_NAME = "log.jsonl"
_DIVERGED_FACTOR = 3.0
_DIVERGED_STEPS = 50
_FIRST_STEPS = 10
_LESS_IS_BETTER = "loss"
Evaluate = Callable[[Any, Any], Mapping[str, float]]
"""Called with the model and the accelerator; returns metrics without prefix, `loss` among them."""


def training_arguments(
    recipe: Recipe, out: Path, *, precision: str, checkpointing: bool, on_cpu: bool
) -> Any:
    """Return transformers' TrainingArguments for a recipe.

    Args:
        recipe: what to train.
        out: the run's folder.
        precision: bf16, fp16 or fp32.
        checkpointing: compute activations again in the backward pass.
        on_cpu: train without a GPU.
    """
    from transformers import TrainingArguments

    train = recipe.train
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    # 5.23 renamed it; the old name goes in version 6.
    recompute = (
        "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    )
    options: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": train.micro_batch_rows,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "num_train_epochs": train.epochs,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule,
        "optim": train.optimizer,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": on_cpu,
        "eval_strategy": "epoch",
        "save_strategy": "steps" if train.save_every_steps else "epoch",
        "save_total_limit": train.keep_checkpoints,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "seed": train.seed,
        "data_seed": train.seed,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
        "ddp_find_unused_parameters": False,
        recompute: checkpointing,
        f"{recompute}_kwargs": {"use_reentrant": False} if checkpointing else None,
        # Below 1 it is a share of all steps; older versions have a name of its own for that.
        "warmup_ratio" if "warmup_ratio" in names else "warmup_steps": train.warmup_ratio,
    }
    if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        options["ddp_backend"] = "gloo"
    if train.save_every_steps:
        options["save_steps"] = train.save_every_steps
    return TrainingArguments(**options)


def build_trainer(
    model: Any,
    arguments: Any,
    recipe: Recipe,
    *,
    rows: Sequence[Any],
    collator: Any,
    evaluate: Evaluate,
    progress: Callable[[str], None],
) -> Any:
    """Return a Trainer that evaluates with `evaluate`, logs, seals checkpoints and keeps the best.

    Args:
        model: with its adapter.
        arguments: of `training_arguments`.
        recipe: how the best is chosen, and when to stop.
        rows: for the collator.
        collator: rows → batch.
        evaluate: see `Evaluate`.
        progress: told a sentence now and then.
    """
    from transformers import PrinterCallback, Trainer

    out = Path(arguments.output_dir)

    class AdapterTrainer(Trainer):  # type: ignore[misc]
        """Writes only the adapter, and evaluates by answering."""

        control: Any

        def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
            """Compute loss and answers on the held-out pairs; keep the adapter if it is the best so far."""
            found = {f"eval_{name}": value for name, value in evaluate(self.model, self.accelerator).items()}
            is_best, since_best = _compare_with_earlier(found, self.state.log_history, recipe.eval.select_by)
            self.log(found)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
            if is_best:
                self._keep_best()
            patience = recipe.train.early_stopping_evaluations
            if patience and since_best >= patience:
                self.control.should_training_stop = True
                progress(f"No better evaluation in the last {since_best}: training stops early.")
            return found

        def _keep_best(self) -> None:
            written = out / f".{BEST_NAME}.partial"
            self.save_model(str(written), _internal_call=True)
            if self.is_world_process_zero():
                shutil.rmtree(out / BEST_NAME, ignore_errors=True)
                written.rename(out / BEST_NAME)

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            """Write the adapter alone: no pickled arguments, no tokenizer."""
            if self.args.should_save:
                save_adapter(self.model, Path(output_dir or self.args.output_dir), state=state_dict)

    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        train_dataset=list(rows),
        eval_dataset=list(rows[:1]),  # Trainer wants one; `evaluate` has its own
        data_collator=collator,
        callbacks=[_run_files(out, progress), _stop_when_lost(out, arguments.fp16)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _compare_with_earlier(
    found: Mapping[str, float], history: Sequence[Mapping[str, float]], select_by: str
) -> tuple[bool, int]:
    """Return whether this evaluation is the best so far, and how many came since the best."""
    key = f"eval_{select_by}"
    key = key if key in found else "eval_loss"
    values = [entry[key] for entry in history if key in entry] + [found[key]]
    sign = 1 if select_by == _LESS_IS_BETTER or key == "eval_loss" else -1
    best = min(range(len(values)), key=lambda i: (sign * values[i], i))
    since_best = len(values) - 1 - best
    return since_best == 0, since_best


def _run_files(out: Path, progress: Callable[[str], None]) -> Any:
    """Return the callback that writes log.jsonl and seals checkpoints."""
    from accelerate import PartialState
    from transformers import TrainerCallback

    class RunFiles(TrainerCallback):  # type: ignore[misc]
        started = time.monotonic()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Take out of the log what came after the checkpoint: it is done again."""
            if state.is_world_process_zero:
                _shorten_log(out / LOG_NAME, state.global_step)
                progress(f"{state.max_steps} steps; {state.max_steps - state.global_step} to do.")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            """Append one line."""
            if not state.is_world_process_zero or "train_runtime" in logs:
                return
            seconds = round(time.monotonic() - self.started, 3)
            line = {"step": state.global_step, **logs, "seconds": seconds}
            with (out / LOG_NAME).open("ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")
            _tell(logs, state, progress)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Leave an epoch's last step to `on_epoch_end`: a checkpoint there knows the evaluation."""
            if abs(state.epoch - round(state.epoch)) < 1e-9:
                control.should_save = False

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Save behind the evaluation."""
            control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Seal the checkpoint when every process has written its part."""
            PartialState().wait_for_everyone()
            if state.is_world_process_zero:
                checkpoints.seal(out / f"checkpoint-{state.global_step}")
            PartialState().wait_for_everyone()

    return RunFiles()


def _tell(logs: Mapping[str, float], state: Any, progress: Callable[[str], None]) -> None:
    every = max(1, state.max_steps // 20)
    if "eval_loss" in logs:
        shown = ", ".join(
            f"{name.removeprefix('eval_')} {value:.4g}" for name, value in logs.items() if name != "epoch"
        )
        progress(f"epoch {logs.get('epoch', 0):.3g}: {shown}")
    elif "loss" in logs and (state.global_step % every == 0 or state.global_step == 1):
        progress(f"step {state.global_step} of {state.max_steps}: loss {logs['loss']:.4f}")


def _shorten_log(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            step = msgspec.json.decode(line)["step"]
        except (msgspec.DecodeError, KeyError, TypeError):
            continue  # a line that a kill cut off
        if step <= last_step:
            kept.append(line)
    path.write_bytes(b"".join(kept))


def _stop_when_lost(out: Path, has_scaler: bool) -> Any:
    """Return the callback that ends a run whose loss is no number, or grew for long.

    It is told of each step before a checkpoint is saved, so that the last one is good.
    """
    from transformers import TrainerCallback

    class StopWhenLost(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            """Look at one step's loss and gradient."""
            if "loss" not in logs:
                return
            # With fp16 a gradient may overflow: its step is left out and its scale made smaller.
            gradient = 0.0 if has_scaler else logs.get("grad_norm", 0.0)
            for name, value in (("loss", logs["loss"]), ("gradient", gradient)):
                if not math.isfinite(value):
                    raise _lost(f"The {name} of step {state.global_step} is no number ({value})", out)
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            if len(losses) < _DIVERGED_STEPS + _FIRST_STEPS:
                return
            start = sum(losses[:_FIRST_STEPS]) / _FIRST_STEPS
            if min(losses[-_DIVERGED_STEPS:]) > _DIVERGED_FACTOR * start:
                raise _lost(f"The loss has been above {_DIVERGED_FACTOR:g} times its start for long", out)

    return StopWhenLost()


def _lost(what: str, out: Path) -> TrainingFailed:
    last, _sentences = checkpoints.find_checkpoint(out)
    kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    return TrainingFailed(
        f"{what}: training stopped; {kept}.",
        hint="Lower train.learning_rate (2e-4 suits most models) and begin in a new folder.",
    )
