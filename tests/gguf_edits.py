"""Faults planted in right GGUF files: what a wrong exporter would have written."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgemed.gguf_header import read_header

Numbers = NDArray[np.float32]
Change = Callable[[Numbers], Numbers]


def rewrite(
    source: Path,
    target: Path,
    *,
    fields: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Change | None] | None = None,
    added: Mapping[str, Numbers] | None = None,
) -> Path:
    """Write an unquantized file anew with other metadata and tensors.

    Args:
        fields: key → new value, None removes the key; a new key's value tells its type.
        tensors: name → what becomes of its numbers (F32 only, rows first), None removes it.
        added: further F32 tensors.
    """
    reader = gguf.GGUFReader(source)
    fields, tensors = dict(fields or {}), dict(tensors or {})
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or fields.get(key, 0) is None:
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, fields.pop(key, field.contents()), field.types[0], sub_type)
    for key, value in fields.items():
        if value is not None:
            # Python's int would become a signed one, which llama.cpp refuses.
            number = isinstance(value, int) and not isinstance(value, bool)
            value_type = gguf.GGUFValueType.UINT32 if number else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, value_type)
    for tensor in reader.tensors:
        if tensor.name in tensors:
            change = tensors[tensor.name]
            if change is not None:
                numbers = np.asarray(tensor.data, np.float32)
                writer.add_tensor(tensor.name, np.ascontiguousarray(change(numbers)))
        else:
            writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    for name, numbers in (added or {}).items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def zero_tensor(source: Path, target: Path, name: str) -> Path:
    """Copy a file of any type with the bytes of one tensor set to zero."""
    content = bytearray(source.read_bytes())
    tensor = _tensor(source, name)
    content[tensor.offset : tensor.offset + tensor.size_bytes] = bytes(tensor.size_bytes)
    target.write_bytes(content)
    return target


def swap_tensors(source: Path, target: Path, one: str, other: str) -> Path:
    """Copy a file of any type with the bytes of two tensors of one size exchanged."""
    content = bytearray(source.read_bytes())
    first, second = _tensor(source, one), _tensor(source, other)
    assert (first.shape, first.type_name) == (second.shape, second.type_name)
    one_place = slice(first.offset, first.offset + first.size_bytes)
    other_place = slice(second.offset, second.offset + second.size_bytes)
    content[one_place], content[other_place] = bytes(content[other_place]), bytes(content[one_place])
    target.write_bytes(content)
    return target


def _tensor(path: Path, name: str) -> Any:
    return next(tensor for tensor in read_header(path).tensors if tensor.name == name)


def interleaved(heads: int) -> Change:
    """Return the reordering of q and k rows that Llama files need."""
    return lambda numbers: (
        numbers.reshape(heads, 2, len(numbers) // heads // 2, -1).swapaxes(1, 2).reshape(numbers.shape)
    )


def not_interleaved(heads: int) -> Change:
    """Return its inverse."""
    return lambda numbers: (
        numbers.reshape(heads, len(numbers) // heads // 2, 2, -1).swapaxes(1, 2).reshape(numbers.shape)
    )
