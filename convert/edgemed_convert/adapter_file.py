"""The tensors of a PEFT adapter folder, each with the module it belongs to and its part there."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgemed_convert.adapter_config import CONFIG_NAME
from edgemed_convert.errors import AdapterError
from edgemed_convert.safetensors_file import (
    STORED_TYPES,
    StoredTensor,
    Tensor,
    read_tensors,
    row_blocks,
)

WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
COPY_AGAIN = "Copy the adapter again, as PEFT saved it."

# Longest first: the name of a tensor ends with exactly one of them.
ROLES = (
    "modules_to_save.weight",
    "modules_to_save.bias",
    "original_module.weight",
    "original_module.bias",
    "base_layer.weight",
    "base_layer.bias",
    "lora_magnitude_vector",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "weight",
    "bias",
)

ModuleTensors = dict[str, StoredTensor]
"""One module's tensors by role."""


def refuse_other_things(folder: Path) -> None:
    """Refuse what is not an adapter folder with safetensors weights, and say what it is.

    Raises:
        AdapterError: always, unless config and weights are there.
    """
    if not folder.is_dir():
        what = "is a file, not an adapter folder" if folder.exists() else "does not exist"
        raise AdapterError(
            f"{folder} {what}.", hint=f"Name the folder with {CONFIG_NAME} and {WEIGHTS_NAME}."
        )
    if not (folder / CONFIG_NAME).exists():
        if (folder / "config.json").exists():
            raise AdapterError(
                f"{folder} is a whole model, not an adapter.",
                hint="Name the base model first, then the adapter.",
            )
        raise AdapterError(f"{folder} has no {CONFIG_NAME}.", hint=COPY_AGAIN)
    if not (folder / WEIGHTS_NAME).exists():
        if (folder / "adapter_model.bin").exists():
            raise AdapterError(
                f"{folder} holds pickled weights (adapter_model.bin), which could run any code: refused.",
                hint="Load it where you trust it and save it again: PEFT writes safetensors.",
            )
        raise AdapterError(f"{folder} has no {WEIGHTS_NAME}.", hint=COPY_AGAIN)


def read_modules(folder: Path) -> dict[str, ModuleTensors]:
    """Read an adapter's tensors: module name (without PEFT's prefix) → role → tensor.

    Every number is looked at once.

    Raises:
        AdapterError: a damaged file, a name or a type that is not known, NaN or Inf.
    """
    path = folder / WEIGHTS_NAME
    modules: dict[str, ModuleTensors] = {}
    for name, tensor in read_tensors(path, error=AdapterError).items():
        module, role = _place(path, name)
        _check_numbers(path, tensor)
        modules.setdefault(module, {})[role] = tensor
    if not modules:
        raise AdapterError(f"{path} holds no tensors.", hint=COPY_AGAIN)
    _drop_copies(path, modules)
    return modules


def same_numbers(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same numbers."""
    return first.shape == second.shape and all(
        np.array_equal(first.read(rows), second.read(rows)) for rows in row_blocks(first.shape)
    )


def _place(path: Path, name: str) -> tuple[str, str]:
    if "token_adapter" in name or "trainable_tokens" in name:
        raise AdapterError(
            f"{path} holds {name}, of the option trainable_token_indices, which is not supported.",
            hint="Train without it, or merge with PEFT and use the merged model.",
        )
    for role in ROLES:
        module = name.removeprefix(PREFIX).removesuffix(f".{role}")
        if name == f"{PREFIX}{module}.{role}" and ".lora_" not in module:
            return module, role
    raise AdapterError(f"{path} holds {name}, a tensor that LoRA does not have.", hint=COPY_AGAIN)


def _check_numbers(path: Path, tensor: StoredTensor) -> None:
    if tensor.type_name not in STORED_TYPES:
        raise AdapterError(
            f"{path} stores {tensor.name} as {tensor.type_name}, not as F32, F16 or BF16.", hint=COPY_AGAIN
        )
    if 0 in tensor.shape:
        raise AdapterError(
            f"{path} holds no numbers for {tensor.name}: it was saved from a sharded model.",
            hint="Gather the parameters on one process before saving (DeepSpeed ZeRO-3, FSDP).",
        )
    for rows in row_blocks(tensor.shape):
        if not np.isfinite(tensor.read(rows)).all():
            raise AdapterError(
                f"{path} has NaN or Inf in {tensor.name}.",
                hint="The training diverged: use an earlier adapter.",
            )


def _drop_copies(path: Path, modules: Mapping[str, ModuleTensors]) -> None:
    """Leave out what PEFT saves twice when a vocabulary was resized; `original_module` was never trained."""
    for module, tensors in modules.items():
        for leaf in ("weight", "bias"):
            copy = tensors.pop(f"modules_to_save.{leaf}", None)
            original = tensors.pop(f"original_module.{leaf}", None)
            plain = tensors.get(leaf)
            if (copy or original) and not plain:
                raise AdapterError(f"{path} lacks {PREFIX}{module}.{leaf}.", hint=COPY_AGAIN)
            if copy and plain and not same_numbers(copy, plain):
                raise AdapterError(f"{path} holds two versions of {module}.{leaf}.", hint=COPY_AGAIN)
