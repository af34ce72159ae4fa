"""Safetensors files: the header read with suspicion, the numbers read in row blocks, new headers encoded.

A model file comes from a download or a stick, so every number in its header may be wrong. Plain reads and no
memory map: a file that shrinks under a map kills the process, and mapped pages count as its memory.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import ModelError
from edgemed_convert.errors import CheckpointError

FloatArray = NDArray[np.float32]
Rows = slice | NDArray[np.intp]

BLOCK_BYTES = 64 * 2**20
"""How much of a tensor, as float32, is held at one time."""
COPY_AGAIN = "Copy or download the model again; compare the file's size and SHA-256 with its source."

_BYTES_OF = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
STORED_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    # numpy has no bfloat16: its bits are the upper half of a float32.
    "BF16": np.dtype("<u2"),
}
# The format's own limit.
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 8
_MAX_NAME_LENGTH = 256


class Tensor(Protocol):
    """One weight, wherever its numbers come from."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of its dimensions, rows first."""

    @property
    def type_name(self) -> str:
        """What the numbers are stored as: F32, F16 or BF16."""

    def read(self, rows: Rows) -> FloatArray:
        """Return rows as float32 of shape (rows, *shape[1:]); of a vector, the elements are the rows."""

    def read_stored(self, rows: Rows) -> NDArray[Any] | None:
        """Return rows as they are stored (BF16 as uint16), or None when the numbers are computed."""


Weights = Mapping[str, Tensor]
"""Tensors by their Hugging Face name."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file; its numbers stay on the disk until they are read."""

    path: Path
    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    """Of its first byte, from the file's start."""
    file_state: tuple[int, int] = field(repr=False)
    """Size in bytes and time of the last change when the header was read."""
    error: type[ModelError] = field(default=CheckpointError, repr=False)

    def read(self, rows: Rows) -> FloatArray:
        """Return rows as float32."""
        return to_float32(self.read_stored(rows), self.type_name)

    def read_stored(self, rows: Rows) -> NDArray[Any]:
        """Return rows as they are stored: float32, float16, or the bits of bfloat16 as uint16.

        Raises:
            ModelError: the file cannot be read, or was changed since its header was read (of the kind given).
        """
        row_count = self.shape[0] if self.shape else 1
        try:
            with self.path.open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if (status.st_size, status.st_mtime_ns) != self.file_state:
                    raise self.error(
                        f"{self.path} was changed while it was being read.",
                        hint="Start again, and leave the model's folder alone meanwhile.",
                    )
                if isinstance(rows, slice):
                    start, stop, step = rows.indices(row_count)
                    if step != 1:
                        raise ValueError("rows are read in steps of 1")
                    return self._read_range(file, start, max(start, stop))
                return self._read_numbered(file, rows)
        except OSError as error:
            raise unreadable(self.path, error, self.error) from error

    def _read_numbered(self, file: FileIO, rows: NDArray[np.intp]) -> NDArray[Any]:
        if not len(rows):
            return self._read_range(file, 0, 0)
        first, last = int(rows.min()), int(rows.max())
        if last - first < 4 * len(rows) + 1024:
            return self._read_range(file, first, last + 1)[rows - first]
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return np.concatenate([self._read_range(file, int(run[0]), int(run[-1]) + 1) for run in runs])

    def _read_range(self, file: FileIO, start: int, stop: int) -> NDArray[Any]:
        row_count = self.shape[0] if self.shape else 1
        if not 0 <= start <= stop <= row_count:
            raise IndexError(f"rows {start} to {stop} of {row_count}")
        numbers = np.empty((stop - start, *self.shape[1:]), dtype=STORED_TYPES[self.type_name])
        file.seek(self.offset + start * numbers.itemsize * prod(self.shape[1:]))
        left = numbers.reshape(-1).view(np.uint8).data
        while left:
            count = file.readinto(left)
            if not count:
                raise self.error(f"{self.path} ends in the middle of {self.name}.", hint=COPY_AGAIN)
            left = left[count:]
        return numbers


def read_whole(tensor: Tensor) -> FloatArray:
    """Return a whole tensor as float32, in its own shape."""
    return tensor.read(slice(0, tensor.shape[0] if tensor.shape else 1)).reshape(tensor.shape)


def row_blocks(shape: Sequence[int], *, block_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
    """Yield the row ranges in which a tensor is read so that a block as float32 has about `block_bytes`."""
    row_count = shape[0] if shape else 1
    rows_at_once = max(1, block_bytes // max(1, 4 * prod(shape[1:])))
    for start in range(0, row_count, rows_at_once):
        yield slice(start, min(start + rows_at_once, row_count))


def to_float32(numbers: NDArray[Any], type_name: str) -> FloatArray:
    """Return stored numbers as float32; exact for all three types."""
    if type_name == "BF16":
        bits = numbers.astype(np.uint32)
        np.left_shift(bits, 16, out=bits)
        return bits.view(np.float32)
    return numbers.astype(np.float32, copy=False)


def from_float32(numbers: FloatArray, type_name: str) -> NDArray[Any]:
    """Return float32 numbers as they are stored, rounded to nearest, ties to even.

    What is too large for the type becomes infinite; NaN is not for here.
    """
    if type_name == "BF16":
        bits = np.ascontiguousarray(numbers).view(np.uint32)
        odd = np.right_shift(bits, 16)
        np.bitwise_and(odd, 1, out=odd)
        odd += np.uint32(0x7FFF)
        odd += bits
        np.right_shift(odd, 16, out=odd)
        return odd.astype("<u2")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(numbers, dtype=STORED_TYPES[type_name])


def all_finite(numbers: NDArray[Any], type_name: str) -> bool:
    """Whether stored numbers are free of NaN and Inf."""
    exponent = {"BF16": 0x7F80, "F16": 0x7C00}.get(type_name)
    if exponent is None:
        return bool(np.isfinite(numbers).all())
    return not ((numbers.view(np.uint16) & np.uint16(exponent)) == exponent).any()


def read_tensors(path: Path, *, error: type[ModelError] = CheckpointError) -> dict[str, StoredTensor]:
    """Read the header of a safetensors file: its tensors by name, in the order of their bytes.

    The types are not judged: `StoredTensor.read` works for those of STORED_TYPES only.

    Raises:
        ModelError: not a safetensors file, cut short, or its offsets are wrong (of the kind given).
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            beginning = file.read(8)
            header_bytes = struct.unpack("<Q", beginning)[0] if len(beginning) == 8 else 0
            if not 2 <= header_bytes <= size - 8:
                raise _foreign(path, beginning, header_bytes, error)
            if header_bytes > _MAX_HEADER_BYTES:
                raise error(f"{path} has a header of {header_bytes:,} bytes.", hint=COPY_AGAIN)
            encoded = file.read(header_bytes)
    except OSError as problem:
        raise unreadable(path, problem, error) from problem
    header = _decode_header(path, encoded, error)
    header.pop("__metadata__", None)
    data_start = 8 + header_bytes
    tensors = [
        _tensor(path, name, entry, data_start, (size, status.st_mtime_ns), error)
        for name, entry in header.items()
    ]
    tensors.sort(key=lambda tensor: (tensor.offset, _size_bytes(tensor)))
    _check_layout(path, tensors, data_start, size, error)
    return {tensor.name: tensor for tensor in tensors}


def encode_header(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Return the beginning of a new file whose data follows in this order: (name, type, shape) each."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, type_name, shape in tensors:
        end = offset + stored_bytes(type_name, shape)
        header[name] = {"dtype": type_name, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def stored_bytes(type_name: str, shape: Sequence[int]) -> int:
    """Return how many bytes a tensor takes in a file."""
    return prod(shape) * _BYTES_OF[type_name]


def unreadable(path: Path, problem: OSError, error: type[ModelError]) -> ModelError:
    """Return the one sentence for a file that the disk does not give."""
    if isinstance(problem, FileNotFoundError):
        return error(f"{path} is missing.", hint=COPY_AGAIN)
    return error(
        f"{path} cannot be read: {problem.strerror or problem}.",
        hint="Check the disk and who may read the file.",
    )


def _decode_header(path: Path, encoded: bytes, error: type[ModelError]) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise error(f"{path} names a tensor twice in its header.", hint=COPY_AGAIN)
        return found

    try:
        header = json.loads(encoded, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} has a header that is not JSON: it is damaged.", hint=COPY_AGAIN) from problem
    if not isinstance(header, dict):
        raise error(f"{path} has a header that lists no tensors.", hint=COPY_AGAIN)
    return header


def _tensor(
    path: Path,
    name: str,
    entry: object,
    data_start: int,
    file_state: tuple[int, int],
    error: type[ModelError],
) -> StoredTensor:
    if not name.isprintable() or len(name) > _MAX_NAME_LENGTH:
        raise error(f"{path} holds a tensor with an impossible name: {name[:40]!r}.", hint=COPY_AGAIN)
    fields = entry if isinstance(entry, dict) else {}
    type_name, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(type_name, str) and _are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise error(f"{path} describes the tensor {name} wrongly: it is damaged.", hint=COPY_AGAIN)
    if type_name not in _BYTES_OF:
        raise error(
            f"{path} stores {name} as {type_name[:20]!r}, a type that is not supported.",
            hint="Use the model's original weights in F32, F16 or BF16.",
        )
    start, end = offsets
    if len(shape) > _MAX_DIMENSIONS or end - start != stored_bytes(type_name, shape):
        raise error(f"{path} gives {name} a size that its shape does not have.", hint=COPY_AGAIN)
    return StoredTensor(path, name, tuple(shape), type_name, data_start + start, file_state, error)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)


def _size_bytes(tensor: StoredTensor) -> int:
    return stored_bytes(tensor.type_name, tensor.shape)


def _check_layout(
    path: Path, tensors: Sequence[StoredTensor], data_start: int, size: int, error: type[ModelError]
) -> None:
    """The format leaves no holes and no overlaps between the tensors, and nothing behind them."""
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            raise error(
                f"{path} has wrong offsets: {tensor.name} does not begin where the tensor before it ends.",
                hint=COPY_AGAIN,
            )
        position += _size_bytes(tensor)
    if position > size:
        raise error(f"{path} is cut short: {position - size:,} bytes are missing.", hint=COPY_AGAIN)
    if position < size:
        raise error(f"{path} has {size - position:,} bytes too many at its end.", hint=COPY_AGAIN)


def _foreign(path: Path, beginning: bytes, header_bytes: int, error: type[ModelError]) -> ModelError:
    if beginning.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        return error(
            f"{path} is a pickle file under another name: it could run any code, and is refused.",
            hint="Ask for the weights as safetensors.",
        )
    if beginning.startswith(b"version "):
        return error(
            f"{path} is a Git LFS pointer, not the weights themselves.",
            hint="Fetch the file with `git lfs pull`.",
        )
    if len(beginning) < 8:
        return error(f"{path} is cut short: it has {len(beginning)} bytes.", hint=COPY_AGAIN)
    return error(
        f"{path} is no safetensors file or is cut short: it claims a header of {header_bytes:,} bytes.",
        hint=COPY_AGAIN,
    )
