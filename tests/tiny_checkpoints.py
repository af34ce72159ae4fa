"""Llama-shaped model folders and adapters of a few kilobytes, written with numpy alone: for damage and for size."""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCABULARY, HIDDEN, RANK = 12, 8, 2
_TYPES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "F8_E4M3": 1, "U8": 1, "F64": 8}


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[np.float32]], type_name: str = "F32") -> None:
    """Write float32 arrays as one safetensors file; BF16 by cutting, so give numbers that fit."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, numbers in tensors.items():
        encoded = _encode(numbers, type_name)
        header[name] = entry(type_name, numbers.shape, len(data), len(data) + len(encoded))
        data += encoded
    write_raw(path, header, data)


def write_raw(path: Path, header: Mapping[str, Any] | bytes, data: bytes = b"") -> None:
    """Write a file of any header, right or wrong."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def entry(type_name: str, shape: tuple[int, ...], start: int, end: int) -> dict[str, Any]:
    """Return a tensor's line of a header."""
    return {"dtype": type_name, "shape": list(shape), "data_offsets": [start, end]}


def base_weights(*, layers: int = 2, tied: bool = False, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return random weights by Hugging Face name; every number fits BF16 and F16."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        for part in ("q_proj", "o_proj"):
            shapes[f"model.layers.{layer}.self_attn.{part}.weight"] = (HIDDEN, HIDDEN)
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (3 * HIDDEN, HIDDEN)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return random_arrays(shapes, seed)


def random_arrays(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, NDArray[np.float32]]:
    """Return random multiples of 1/64 below 2, which every float type holds exactly."""
    generator = np.random.default_rng(seed)
    return {
        name: (generator.integers(-127, 128, shape) / 64).astype(np.float32) for name, shape in shapes.items()
    }


def write_base(
    folder: Path,
    *,
    weights: Mapping[str, NDArray[np.float32]] | None = None,
    type_name: str = "F32",
    shards: int = 1,
    **config: Any,
) -> Path:
    """Write a base model folder; more than one shard come with an index."""
    folder.mkdir(parents=True)
    weights = base_weights() if weights is None else weights
    tied = "lm_head.weight" not in weights
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": len({match[1] for name in weights if (match := re.search(r"\.(\d+)\.", name))}),
        "tie_word_embeddings": tied,
    }
    write_json(folder / "config.json", {**fields, **config})
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 2]})
    write_json(folder / "tokenizer.json", {"model": {"type": "BPE"}})
    (folder / "chat_template.jinja").write_text("{{ messages }}\n", encoding="utf-8")
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights, type_name)
        return folder
    parts = [list(weights)[number::shards] for number in range(shards)]
    for name, part in zip(names, parts, strict=True):
        write_safetensors(folder / name, {key: weights[key] for key in part}, type_name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def adapter_weights(
    base: Mapping[str, NDArray[np.float32]], targets: tuple[str, ...] = ("q_proj",), seed: int = 1
) -> dict[str, NDArray[np.float32]]:
    """Return random A and B for the targets of a base, by PEFT's names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, numbers in base.items():
        module = name.removesuffix(".weight")
        if module.endswith(targets):
            shapes[f"base_model.model.{module}.lora_A.weight"] = (RANK, numbers.shape[1])
            shapes[f"base_model.model.{module}.lora_B.weight"] = (numbers.shape[0], RANK)
    return random_arrays(shapes, seed)


def write_adapter(
    folder: Path,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    type_name: str = "F32",
    **config: Any,
) -> Path:
    """Write an adapter folder of PEFT's form."""
    folder.mkdir(parents=True)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": RANK,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
    }
    write_json(folder / "adapter_config.json", {**fields, **config})
    write_safetensors(folder / "adapter_model.safetensors", weights, type_name)
    return folder


def write_json(path: Path, content: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")


def _encode(numbers: NDArray[np.float32], type_name: str) -> bytes:
    if type_name == "BF16":
        return (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
    if type_name in ("F32", "F16", "F64"):
        return numbers.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[type_name]).tobytes()
    return bytes(numbers.size * _TYPES[type_name])
