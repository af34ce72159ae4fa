"""The text model of a Gemma 3 that reads images too, as a Hugging Face folder of its own, in a stream.

Published Gemma 3 4B and larger are such models: a text model beside a vision tower. Only a block of rows is
in memory at any time, and the text weights keep their bytes.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemed import __version__
from edgemed_convert.checkpoint import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    HEAD,
    INDEX_NAME,
    TOKENIZER_FILES,
    check_completeness,
    embedding_name,
    files_sha256,
    is_tied,
    read_config,
    read_weights,
)
from edgemed_convert.errors import CheckpointError, UnsupportedArchitecture
from edgemed_convert.families.config_fields import integer
from edgemed_convert.licence import README_NAMES, licence_files
from edgemed_convert.merge import (
    ROOM_FOR_OTHER_FILES,
    SHARD_BYTES,
    weights_bytes,
    write_json,
    write_weights,
)
from edgemed_convert.output import Progress, check_free_space, new_folder, no_progress
from edgemed_convert.safetensors_file import COPY_AGAIN, StoredTensor, row_blocks

SOURCE_ARCHITECTURE = "Gemma3ForConditionalGeneration"
TEXT_ARCHITECTURE = "Gemma3ForCausalLM"
NOTE_NAME = "text_model.json"
# How transformers names them: as published and saved today, and as some versions of 2025 saved them.
_TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "lm_head.": "lm_head.",
}
_OTHER_PARTS = ("vision_tower", "multi_modal_projector")
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers")
# What published configs leave out, with the values of transformers' Gemma3TextConfig.
_DEFAULTS = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "max_position_embeddings": 131_072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "use_cache": True,
}
# The whole model's values hold for its text model.
_OF_THE_WHOLE = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "license")


@dataclass(frozen=True)
class TextModelReport:
    """What was written."""

    folder: Path
    weight_files: tuple[str, ...]
    tensors: int
    left_out: dict[str, int]
    """Part of the model → its tensors that were not taken."""
    size_bytes: int
    """Of the weights."""


def write_text_model(
    folder: Path, target: Path, *, shard_bytes: int = SHARD_BYTES, progress: Progress = no_progress
) -> TextModelReport:
    """Write the text model of a Gemma 3 as a folder that training and all commands take.

    Args:
        folder: of a Gemma3ForConditionalGeneration.
        target: the new folder.
        shard_bytes: how large one weights file may become.
        progress: shown while bytes are read and written.

    Raises:
        UnsupportedArchitecture: a text model already, or another model of several media.
        CheckpointError: the folder is damaged, or lacks a tensor of the text model.
        UsageError: the target exists.
        StorageError: the disk is too small, full, or read-only.
    """
    whole = read_config(folder)
    text_config = _text_config(folder, whole)
    stored, weight_files = read_weights(folder)
    weights, left_out = _text_weights(folder, stored)
    if not weights:
        raise CheckpointError(f"{folder} holds no tensors of a text model.", hint=COPY_AGAIN)
    config = _completed(folder, whole, text_config, weights)
    check_completeness(folder, config, TEXT_ARCHITECTURE, weights)
    _leave_out_tied_head(folder, config, weights, left_out)
    size_bytes = weights_bytes(weights)
    check_free_space(target.parent, size_bytes + ROOM_FOR_OTHER_FILES)
    others = _other_files(folder)
    sources = [folder / CONFIG_NAME, *others, *weight_files]
    sources += [folder / INDEX_NAME] if (folder / INDEX_NAME).is_file() else []
    hashes = {path.name: sha256 for path, sha256 in files_sha256(sources, progress)}
    with new_folder(target) as written:
        names = write_weights(
            weights, written, shard_bytes=shard_bytes, stage="text model", progress=progress
        )
        write_json(written / CONFIG_NAME, config)
        for path in others:
            shutil.copyfile(path, written / path.name)
        write_json(written / NOTE_NAME, _note(folder, hashes, len(weights), left_out))
    return TextModelReport(target, names, len(weights), dict(left_out), size_bytes)


def _text_config(folder: Path, whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config's part about the text model, of the only architecture that is known."""
    names = whole.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    text_config = whole.get("text_config")
    if text_config is None and "vision_config" not in whole and name != SOURCE_ARCHITECTURE:
        raise UnsupportedArchitecture(
            f"{folder} is no model of several media: its config.json has no text_config.",
            hint="A text model needs no such step: name its folder where you wanted to use it.",
        )
    if name != SOURCE_ARCHITECTURE:
        raise UnsupportedArchitecture(
            f"{folder} is a {name}: only the text model of a {SOURCE_ARCHITECTURE} can be taken out.",
            hint="Load its text model alone in transformers, save it with save_pretrained, and use that.",
        )
    if not isinstance(text_config, dict):
        raise CheckpointError(f"{folder / CONFIG_NAME} has no text_config.", hint=COPY_AGAIN)
    if whole.get("quantization_config") or text_config.get("quantization_config"):
        raise CheckpointError(
            f"{folder} holds quantized weights.", hint="Use the model as it was published, in BF16."
        )
    for field in _SIZES:
        if type(text_config.get(field)) is not int:
            raise CheckpointError(
                f"The text_config of {folder / CONFIG_NAME} has no {field}.", hint=COPY_AGAIN
            )
    return text_config


def _text_weights(
    folder: Path, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], Counter[str]]:
    """Return the text model's tensors by the name they have alone, and how many each other part has."""
    weights: dict[str, StoredTensor] = {}
    left_out: Counter[str] = Counter()
    for name, tensor in stored.items():
        part = next(
            (part for part in _OTHER_PARTS if name.removeprefix("model.").startswith(f"{part}.")), None
        )
        prefix = next((prefix for prefix in _TEXT_PREFIXES if name.startswith(prefix)), None)
        if part:
            left_out[part] += 1
        elif prefix is None:
            raise CheckpointError(
                f"{folder} holds {name}, which is of no known part of a {SOURCE_ARCHITECTURE}.",
                hint=COPY_AGAIN,
            )
        else:
            alone = _TEXT_PREFIXES[prefix] + name.removeprefix(prefix)
            if alone in weights:
                raise CheckpointError(
                    f"{folder} holds {alone} twice: as {weights[alone].name} and as {name}.", hint=COPY_AGAIN
                )
            weights[alone] = tensor
    return weights, left_out


def _completed(
    folder: Path,
    whole: Mapping[str, Any],
    text_config: Mapping[str, Any],
    weights: Mapping[str, StoredTensor],
) -> dict[str, Any]:
    """Return a config that stands alone: with what published ones leave to the library that reads them."""
    config = {**_DEFAULTS, **text_config}
    config |= {field: whole[field] for field in _OF_THE_WHOLE if field in whole}
    config["architectures"], config["model_type"] = [TEXT_ARCHITECTURE], "gemma3_text"
    config.setdefault("tie_word_embeddings", whole.get("tie_word_embeddings", True))
    config.setdefault("vocab_size", weights[embedding_name(weights)].shape[0])
    _check_heads(folder, config, weights)
    return config


def _check_heads(folder: Path, config: Mapping[str, Any], weights: Mapping[str, StoredTensor]) -> None:
    """Refuse a config whose heads, its own or those filled in, are not those of the weights."""
    length, width = integer(config, "head_dim"), integer(config, "hidden_size")
    for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        tensor = weights.get(f"model.layers.0.self_attn.{part}.weight")
        expected = (integer(config, heads) * length, width)
        if tensor is not None and tensor.shape != expected:
            raise CheckpointError(
                f"In {folder} {tensor.name} is {tensor.shape}, and config.json makes it {expected}.",
                hint=COPY_AGAIN,
            )


def _leave_out_tied_head(
    folder: Path, config: dict[str, Any], weights: dict[str, StoredTensor], left_out: Counter[str]
) -> None:
    """Drop a head that repeats the embedding, as a tied model's may."""
    if HEAD not in weights or not is_tied(config):
        return
    head, embedding = weights[HEAD], weights[embedding_name(weights)]
    same = (head.shape, head.type_name) == (embedding.shape, embedding.type_name) and all(
        np.array_equal(_bits(head, rows), _bits(embedding, rows)) for rows in row_blocks(head.shape)
    )
    if not same:
        raise CheckpointError(
            f"{folder} has a {head.name} of its own, though its config.json ties the head to the embedding.",
            hint=COPY_AGAIN,
        )
    del weights[HEAD]
    left_out["lm_head that repeats the embedding"] += 1


def _bits(tensor: StoredTensor, rows: slice) -> Any:
    numbers = tensor.read_stored(rows)
    return numbers.view(f"u{numbers.itemsize}")


def _other_files(folder: Path) -> list[Path]:
    """Return generation config, tokenizer, template, model card and licence, as far as they are there."""
    names: Iterable[str] = (GENERATION_CONFIG_NAME, *TOKENIZER_FILES, *README_NAMES)
    named = [folder / name for name in names if (folder / name).is_file()]
    return named + [path for path in licence_files(folder) if path not in named]


def _note(folder: Path, hashes: dict[str, str], kept: int, left_out: Mapping[str, int]) -> dict[str, Any]:
    return {
        "made_by": f"edgemed-convert {__version__} text-model",
        "source": folder.resolve().name,
        "source_architecture": SOURCE_ARCHITECTURE,
        "source_sha256": hashes,
        "tensors": kept,
        "left_out": dict(left_out),
    }
