"""Importance matrices as files: llama.cpp's GGUF form, written and read, and its older .dat form, read.

A matrix says how strongly each column of each weight matrix is used: the mean square of what it is fed.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from numpy.typing import NDArray

from edgemed.errors import ModelCorrupt, ModelUnsupported, StorageError
from edgemed.gguf_header import GGUFHeader, TensorInfo, read_header
from edgemed_convert.output import new_file

FloatArray = NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_ENTRIES = 65_536
_MAX_NAME_BYTES = 1024
MODEL_KEY = "edgemed.imatrix.model"
"""Our own key: the file that the matrix was collected with."""


@dataclass(frozen=True)
class ImportanceMatrix:
    """What was collected, and on what."""

    sums: dict[str, FloatArray]
    """Tensor name → sums of squares: (matrices, columns), one matrix unless there are experts."""
    counts: dict[str, FloatArray]
    """Tensor name → how many vectors were summed up, for each matrix."""
    datasets: list[str]
    chunk_count: int
    chunk_size: int
    """In tokens; 0 when the file does not say."""
    model: str | None = None

    def weights(self) -> dict[str, FloatArray]:
        """Return what the quantizer takes: mean squares, 1 where nothing was counted; flat arrays."""
        means = {}
        for name, sums in self.sums.items():
            counts = self.counts[name][:, None]
            means[name] = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1)).ravel()
        return means


def write_imatrix(matrix: ImportanceMatrix, path: Path, *, replace: bool = False) -> None:
    """Write the GGUF form that llama.cpp's tools read.

    Raises:
        UsageError: the file exists.
        StorageError: the disk does not take it.
    """
    with new_file(path, replace=replace) as written:
        writer = gguf.GGUFWriter(written, "")
        # A matrix is of no architecture; the writer puts the key in unasked.
        writer.kv_data[0].pop("general.architecture", None)
        writer.add_string("general.type", "imatrix")
        writer.add_array("imatrix.datasets", matrix.datasets)
        writer.add_uint32("imatrix.chunk_count", matrix.chunk_count)
        writer.add_uint32("imatrix.chunk_size", matrix.chunk_size)
        if matrix.model is not None:
            writer.add_string(MODEL_KEY, matrix.model)
        for name in sorted(matrix.sums):
            writer.add_tensor(name + _SUMS, matrix.sums[name])
            writer.add_tensor(name + _COUNTS, matrix.counts[name][:, None])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        # The writer does not notice a short write.
        read_header(written)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read either form.

    Raises:
        ModelCorrupt: the file is damaged.
        ModelUnsupported: it is something else.
        StorageError: the disk does not give it.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
    matrix = _read_gguf(path) if magic == b"GGUF" else _read_legacy(path)
    _check_numbers(path, matrix)
    return matrix


def check_belongs(matrix: ImportanceMatrix, path: Path, headers: Sequence[GGUFHeader]) -> None:
    """Refuse a matrix that was made for another model.

    Args:
        path: the matrix's file, for the message.
        headers: of the model's shards.

    Raises:
        ModelUnsupported: a name or a size is not the model's, or a layer is missing.
    """
    hint = "Collect one from this model: edgemed-convert imatrix"
    model = headers[0].path.name
    shapes = {tensor.name: tensor.shape for header in headers for tensor in header.tensors}
    for name, sums in matrix.sums.items():
        if name not in shapes:
            raise ModelUnsupported(
                f"{path.name} was made for another model than {model}: it has weights for {name}.", hint=hint
            )
        expected = shapes[name][0] * (shapes[name][2] if len(shapes[name]) > 2 else 1)
        if sums.size != expected:
            raise ModelUnsupported(
                f"{path.name} was made for another model than {model}: it has {sums.size:,} numbers "
                f"for {name}, which needs {expected:,}.",
                hint=hint,
            )
    missing = [name for name in layer_matrices(shapes) if name not in matrix.sums]
    if missing:
        raise ModelUnsupported(
            f"{path.name} was made for another model than {model}, or is not whole: "
            f"it has nothing for {missing[0]}.",
            hint=hint,
        )


def layer_matrices(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the names of the matrices in a model's layers: what a matrix must have weights for."""
    return [
        name
        for name, shape in shapes.items()
        if name.startswith("blk.") and name.endswith(".weight") and "_norm." not in name and len(shape) >= 2
    ]


def _read_gguf(path: Path) -> ImportanceMatrix:
    header = read_header(path)
    if header.text("general.type") != "imatrix":
        raise ModelUnsupported(
            f"{path.name} is a GGUF file, but no importance matrix.",
            hint="Make one with: edgemed-convert imatrix",
        )
    tensors = {tensor.name: tensor for tensor in header.tensors}
    sums: dict[str, FloatArray] = {}
    counts: dict[str, FloatArray] = {}
    with path.open("rb") as file:
        for name, tensor in tensors.items():
            if not name.endswith(_SUMS):
                continue
            base = name.removesuffix(_SUMS)
            counted = tensors.get(base + _COUNTS)
            if counted is None or {tensor.type_name, counted.type_name} != {"F32"}:
                raise _damaged(path, f"{base} has no counts, or not as float32")
            counts[base] = _numbers(file, counted)
            values = _numbers(file, tensor)
            if not counts[base].size or not values.size or values.size % counts[base].size:
                raise _damaged(path, f"the counts of {base} do not fit its sums")
            sums[base] = values.reshape(counts[base].size, -1)
    datasets = header.metadata.get("imatrix.datasets")
    return ImportanceMatrix(
        sums=sums,
        counts=counts,
        datasets=[str(name) for name in datasets] if isinstance(datasets, list) else [],
        chunk_count=_count(header, "imatrix.chunk_count"),
        chunk_size=_count(header, "imatrix.chunk_size"),
        model=header.text(MODEL_KEY),
    )


def _numbers(file: BinaryIO, tensor: TensorInfo) -> FloatArray:
    file.seek(tensor.offset)
    return np.frombuffer(file.read(tensor.size_bytes), dtype="<f4").astype(np.float32)


def _count(header: GGUFHeader, key: str) -> int:
    value = header.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _read_legacy(path: Path) -> ImportanceMatrix:
    """llama.cpp's older form: counted entries of name, calls and means times calls; then chunks, dataset."""
    reader = _Bytes(path)
    entries = reader.number()
    if not 0 < entries <= _MAX_ENTRIES:
        raise ModelUnsupported(
            f"{path.name} is no importance matrix.", hint="Make one with: edgemed-convert imatrix"
        )
    sums: dict[str, FloatArray] = {}
    counts: dict[str, FloatArray] = {}
    for _ in range(entries):
        name = reader.text()
        calls = reader.number()
        values = reader.floats(reader.number())
        sums[name] = values[None, :]
        counts[name] = np.array([max(calls, 1)], np.float32)
    chunks, datasets = 0, []
    if reader.left:
        chunks = max(0, reader.number())
        if reader.left:
            datasets = [reader.text()]
    return ImportanceMatrix(sums=sums, counts=counts, datasets=datasets, chunk_count=chunks, chunk_size=0)


class _Bytes:
    """Takes numbers and texts off a file's bytes, never past their end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._data = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._position

    def number(self) -> int:
        number: int = struct.unpack("<i", self._take(4))[0]
        return number

    def text(self) -> str:
        length = self.number()
        if not 0 < length <= _MAX_NAME_BYTES:
            raise _damaged(self._path, f"a name claims to be {length:,} bytes long")
        return self._take(length).decode("utf-8", "replace")

    def floats(self, count: int) -> FloatArray:
        if count < 1:
            raise _damaged(self._path, f"an entry claims {count:,} numbers")
        return np.frombuffer(self._take(4 * count), dtype="<f4").astype(np.float32)

    def _take(self, size: int) -> bytes:
        if size > self.left:
            raise _damaged(self._path, "it is cut short")
        self._position += size
        return self._data[self._position - size : self._position]


def _check_numbers(path: Path, matrix: ImportanceMatrix) -> None:
    if not matrix.sums:
        raise _damaged(path, "it holds nothing")
    for name, sums in matrix.sums.items():
        if not (np.isfinite(sums).all() and np.isfinite(matrix.counts[name]).all() and (sums >= 0).all()):
            raise _damaged(path, f"{name} has numbers that are no sums of squares")


def _damaged(path: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"The importance matrix {path.name} is damaged: {what}.", hint="Copy or make it again."
    )
