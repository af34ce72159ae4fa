"""One GGUF file (or all its shards) as the gate reads it: header with suspicion, numbers in row blocks.

Built on `edgemed.gguf_header`, not on the exporter's writer, so that a fault there is seen here.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from edgemed.errors import StorageError
from edgemed.gguf_header import GGUFHeader, TensorInfo, Value, read_shards, tensor_types
from edgemed_convert.safetensors_file import FloatArray

UNQUANTIZED = ("F32", "F16", "BF16")
BLOCK_NUMBERS = 4 * 2**20
"""Numbers read at once: 16 MiB as float32."""


class GGUFFile:
    """A model file: metadata, and the rows of its tensors as float32."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            ModelCorrupt, ModelUnsupported, StorageError: what `edgemed.gguf_header` says of a bad file.
        """
        self.path = path
        self.headers: list[GGUFHeader] = read_shards(path)
        self.architecture: str = self.headers[0].architecture
        self._places = {
            tensor.name: (header.path, tensor) for header in self.headers for tensor in header.tensors
        }

    @property
    def metadata(self) -> dict[str, Value]:
        return self.headers[0].metadata

    @property
    def tensors(self) -> list[TensorInfo]:
        """Return all tensors, in the order of the file."""
        return [tensor for _path, tensor in self._places.values()]

    @property
    def tensor_types(self) -> dict[str, int]:
        return tensor_types(*self.headers)

    @property
    def is_quantized(self) -> bool:
        return any(name not in UNQUANTIZED for name in self.tensor_types)

    @property
    def size_bytes(self) -> int:
        return sum(header.file_size for header in self.headers)

    @property
    def bits_per_weight(self) -> float:
        weights = sum(prod(tensor.shape) for tensor in self.tensors)
        return 8 * sum(tensor.size_bytes for tensor in self.tensors) / weights if weights else 0.0

    @property
    def token_count(self) -> int:
        return self.headers[0].length("tokenizer.ggml.tokens")

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def info(self, name: str) -> TensorInfo:
        return self._places[name][1]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape as transformers has it: rows first."""
        return tuple(reversed(self.info(name).shape))

    def stored(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes of rows `start` to `stop`, a line for each; a vector's elements are its rows.

        Read, not mapped: a file that shrinks under a map ends the process.

        Raises:
            StorageError: the disk does not give the file.
        """
        path, tensor = self._places[name]
        row_bytes = tensor.size_bytes // max(1, self.shape(name)[0] if tensor.shape else 1)
        try:
            numbers = np.fromfile(
                path, np.uint8, (stop - start) * row_bytes, offset=tensor.offset + start * row_bytes
            )
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}", hint="Check the disk.") from error
        if numbers.size != (stop - start) * row_bytes:
            raise StorageError(f"{path} became shorter while it was read.", hint="Check it again.")
        return numbers.reshape(stop - start, row_bytes)

    def read(self, name: str, start: int, stop: int) -> FloatArray:
        """Return rows `start` to `stop` as float32; quantized numbers are what llama.cpp calculates with."""
        tensor = self.info(name)
        shape = (stop - start, *self.shape(name)[1:])
        return dequantized(self.stored(name, start, stop), tensor.type_name).reshape(shape)

    def blocks(self, name: str) -> Iterator[tuple[int, int]]:
        """Yield row ranges of at most `BLOCK_NUMBERS` numbers."""
        rows, *rest = self.shape(name)
        step = max(1, BLOCK_NUMBERS // max(1, prod(rest)))
        for start in range(0, rows, step):
            yield start, min(rows, start + step)


def can_dequantize(type_name: str) -> bool:
    """Whether the numbers of this quantization type can be read here."""
    if type_name in UNQUANTIZED:
        return True
    try:
        quantized = gguf.GGMLQuantizationType[type_name]
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[quantized][1]), np.uint8), quantized)
    except (KeyError, NotImplementedError):
        return False
    return True


def dequantized(stored: NDArray[np.uint8], type_name: str) -> FloatArray:
    """Return the float32 numbers of whole rows of bytes, shape (rows, numbers)."""
    if type_name == "F32":
        return stored.view("<f4").astype(np.float32, copy=False)
    if type_name == "F16":
        return stored.view("<f2").astype(np.float32)
    if type_name == "BF16":
        return (stored.view("<u2").astype(np.uint32) << 16).view(np.float32)
    numbers: FloatArray = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[type_name])
    return numbers


def rounded(numbers: FloatArray, type_name: str) -> FloatArray:
    """Round float32 numbers to an unquantized type and back: to nearest, ties to even."""
    if type_name == "F32":
        return numbers
    if type_name == "F16":
        with np.errstate(over="ignore"):
            return numbers.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    kept = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return kept.view(np.float32)
