"""The first layers of a file, with its embedding and head, as a small F32 file of their own.

What is true of them is true of the whole model's kind of calculation, and float32 shows faults that 16 bits
hide. The file's own bytes are used: what is tested is the file, not another export. Called by `logits.py`.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from edgemed_convert.check.gguf_file import GGUFFile
from edgemed_convert.check.model_config import ModelConfig
from edgemed_convert.check.tensor_sources import EMBEDDING, HEAD
from edgemed_convert.safetensors_file import Weights

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_F32, _F16, _BF16 = 0, 1, 30
_TYPE_NUMBERS = {"F32": _F32, "F16": _F16, "BF16": _BF16}


def layer_count(config: ModelConfig) -> int:
    """Return how many layers show all that happens in the model: two, or one period of its pattern."""
    return min(config.layers, max(2, config.period))


def first_layers_config(config: ModelConfig, layers: int) -> dict[str, Any]:
    """Return config.json of the model with its first layers only."""
    raw = dict(config.raw)
    raw["n_layer" if config.is_gpt2 else "num_hidden_layers"] = layers
    for key in ("layer_types", "no_rope_layers"):
        if raw.get(key):
            raw[key] = raw[key][:layers]
    if config.architecture == "gemma3" and config.layers == 62:
        # llama.cpp knows Gemma 3 27B and its scale by its number of layers (`metadata.py` checks the scale).
        raw["query_pre_attn_scalar"] = config.head_length
    return raw


def first_layers_weights(weights: Weights, layers: int) -> Weights:
    """Return the weights without those of later layers."""
    return {name: tensor for name, tensor in weights.items() if _layer_of(name) < layers}


def _layer_of(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


def first_layers_bytes(file: GGUFFile, layers: int) -> int:
    """Return how large the small file will be, in bytes."""
    return sum(_size(file, name, _stored_as(file, name)) for name in _kept(file, layers))


def write_first_layers(file: GGUFFile, target: Path, layers: int) -> None:
    """Write the first layers of an unquantized file in float32, its metadata byte for byte."""
    names = _kept(file, layers)
    with target.open("wb") as output:
        pairs = list(_pairs(file.headers[0].path))
        kept = [pair for pair in pairs if not pair.key.startswith("split.")]
        output.write(struct.pack("<4sIQQ", b"GGUF", 3, len(names), len(kept)))
        for pair in kept:
            output.write(_patched(pair, f"{file.architecture}.block_count", layers))
        offset = 0
        for name in names:
            output.write(_tensor_info(file, name, offset))
            offset += _padded(_size(file, name, _stored_as(file, name)))
        _pad(output)
        for name in names:
            _write_numbers(file, name, output)
            _pad(output)


def _kept(file: GGUFFile, layers: int) -> list[str]:
    return [
        tensor.name
        for tensor in file.tensors
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < layers
    ]


def _stored_as(file: GGUFFile, name: str) -> str:
    """Rows of the embedding are only looked up where the head is another tensor: no rounding to avoid."""
    return file.info(name).type_name if name == EMBEDDING and HEAD in file else "F32"


def _size(file: GGUFFile, name: str, type_name: str) -> int:
    return prod(file.shape(name)) * (4 if type_name == "F32" else 2)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pad(output: BinaryIO) -> None:
    output.write(b"\0" * (-output.tell() % _ALIGNMENT))


def _tensor_info(file: GGUFFile, name: str, offset: int) -> bytes:
    shape = file.info(name).shape
    encoded = name.encode()
    return struct.pack(
        f"<Q{len(encoded)}sI{len(shape)}QIQ",
        len(encoded),
        encoded,
        len(shape),
        *shape,
        _TYPE_NUMBERS[_stored_as(file, name)],
        offset,
    )


def _write_numbers(file: GGUFFile, name: str, output: BinaryIO) -> None:
    for start, stop in file.blocks(name):
        if _stored_as(file, name) == "F32":
            output.write(file.read(name, start, stop).astype("<f4").tobytes())
        else:
            output.write(file.stored(name, start, stop).tobytes())


@dataclass(frozen=True)
class Pair:
    """One key of the metadata with its value, as bytes of the file."""

    key: str
    value: bytes
    """Type number and value."""

    @property
    def encoded(self) -> bytes:
        key = self.key.encode()
        return struct.pack("<Q", len(key)) + key + self.value


def metadata_bytes(path: Path) -> Mapping[str, bytes]:
    """Return the bytes of every value in the metadata of a file that `gguf_header` has found sound."""
    return {pair.key: pair.value for pair in _pairs(path)}


def _pairs(path: Path) -> Iterator[Pair]:
    with path.open("rb") as file:
        file.seek(16)
        (count,) = struct.unpack("<Q", file.read(8))
        for _unused in range(count):
            (length,) = struct.unpack("<Q", file.read(8))
            key = file.read(length).decode()
            start = file.tell()
            (value_type,) = struct.unpack("<I", file.read(4))
            _skip_value(file, value_type)
            end = file.tell()
            file.seek(start)
            yield Pair(key, file.read(end - start))


def _skip_value(file: BinaryIO, value_type: int) -> None:
    if value_type == _STRING:
        (length,) = struct.unpack("<Q", file.read(8))
        file.seek(length, 1)
    elif value_type == _ARRAY:
        element_type, count = struct.unpack("<IQ", file.read(12))
        if element_type == _STRING:
            for _unused in range(count):
                (length,) = struct.unpack("<Q", file.read(8))
                file.seek(length, 1)
        else:
            file.seek(count * _SIZES[element_type], 1)
    else:
        file.seek(_SIZES[value_type], 1)


def _patched(pair: Pair, key: str, number: int) -> bytes:
    if pair.key == key:
        return Pair(key, struct.pack("<II", 4, number)).encoded
    if pair.key == "general.file_type":
        return Pair(pair.key, struct.pack("<II", 4, 0)).encoded
    if pair.key == "general.alignment":
        return Pair(pair.key, struct.pack("<II", 4, _ALIGNMENT)).encoded
    return pair.encoded
