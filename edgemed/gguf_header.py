"""The header of a GGUF file: metadata and the list of tensors, read with suspicion.

A model file comes from a stick or a download, so every number in it may be wrong. Nothing here allocates
more than the file holds, loops longer than the limits below, or raises anything but a named error.
Called by `models.py` before a file is installed; the engine never reads a GGUF in this process.
"""

import re
import stat
import struct
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from edgemed.errors import ModelCorrupt, ModelError, ModelUnsupported, StorageError
from edgemed.ggml_types import FILE_TYPES, GGML_TYPES
from edgemed.languages import later
from edgemed.languages import text as _
from edgemed.manifest import ModelShape

COPY_AGAIN = later("Copy the model again from where it came; the copy or the download is not whole.")
NEED_GGUF = later(
    "edgemed runs GGUF files: ask for the model's .gguf file, or convert it with edgemed-convert."
)

# Limits far beyond real models (262,144 tokens, 2,000 tensors) that keep the worst file to a few seconds.
_MAX_KEYS = 65_536
_MAX_TENSORS = 65_536
_MAX_STRINGS = 4_000_000
_MAX_STRING_BYTES = 16 * 2**20
_MAX_HYPERPARAMETER = 2**31 - 1
_MAX_KV_BYTES_PER_TOKEN = 2**40
_KEPT_ARRAY_LENGTH = 1024
# For an array that a caller asks for: beyond every real vocabulary.
_MAX_WANTED_LENGTH = 2**20
_MAX_WANTED_BYTES = 128 * 2**20
# llama.cpp's own limits.
_MAX_TENSOR_NAME_BYTES = 63
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32

_SCALARS = {
    0: ("uint8", "<B"),
    1: ("int8", "<b"),
    2: ("uint16", "<H"),
    3: ("int16", "<h"),
    4: ("uint32", "<I"),
    5: ("int32", "<i"),
    6: ("float32", "<f"),
    7: ("bool", "<?"),
    10: ("uint64", "<Q"),
    11: ("int64", "<q"),
    12: ("float64", "<d"),
}
_STRING, _ARRAY = 8, 9

_SHARD_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

Scalar = int | float | bool | str


@dataclass(frozen=True)
class ArraySummary:
    """An array too long to keep, such as the vocabulary."""

    element_type: str
    length: int


Value = Scalar | list[Scalar] | ArraySummary


@dataclass(frozen=True)
class TensorInfo:
    """One tensor; `shape` as ggml has it, the length of a row first; `offset` from the file's start."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """Everything in the file but the weights."""

    path: Path
    version: int
    metadata: dict[str, Value]
    tensors: list[TensorInfo]
    file_size: int
    alignment: int

    @property
    def architecture(self) -> str:
        """Return llama.cpp's name of the architecture.

        Raises:
            ModelCorrupt: the file names none.
        """
        architecture = self.text("general.architecture")
        if not architecture or not architecture.isprintable():
            raise _damaged(self.path, "it does not name the model's architecture")
        return architecture

    @property
    def quantization_type(self) -> str | None:
        """Return what the file says that it was quantized to, such as Q4_K_M; None if it does not say."""
        number = self.metadata.get("general.file_type")
        return FILE_TYPES.get(number) if type(number) is int else None

    def text(self, key: str) -> str | None:
        """Return a metadata value that is text, else None."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def length(self, key: str) -> int:
        """Return how many elements an array of the metadata has, kept or not; 0 when there is none."""
        value = self.metadata.get(key)
        if isinstance(value, ArraySummary):
            return value.length
        return len(value) if isinstance(value, list) else 0


def read_header(path: Path, *, keep: Collection[str] = ()) -> GGUFHeader:
    """Read the header of one GGUF file, or say what the file really is.

    Args:
        keep: metadata keys whose arrays are kept whole, such as the vocabulary; without it, or beyond
            1,048,576 elements or 128 MiB, a long array is only counted.

    Raises:
        ModelCorrupt: the file is damaged, cut short, or not a model at all.
        ModelUnsupported: another format, or a GGUF that llama.cpp cannot read.
        StorageError: the disk does not give the file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # Opening a named pipe would wait for ever.
            raise ModelCorrupt(
                _("{name} is not a file.", name=path.name), hint=_("Name the model's .gguf file.")
            )
        with path.open("rb") as file:
            beginning = file.read(512)
            if not beginning.startswith(b"GGUF"):
                raise _foreign(path, beginning, status.st_size)
            file.seek(4)
            return _Reader(path, file, status.st_size, keep).header()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_shards(path: Path) -> list[GGUFHeader]:
    """Read the header of a model's only file, or of all its shards, given any of them; in order.

    Raises:
        ModelCorrupt: besides damage, a shard is missing, renamed, or of another model.
    """
    header = read_header(path)
    count = _hyperparameter(header, "split.count", default=1)
    if count <= 1:
        return [header]
    match = _SHARD_NAME.fullmatch(path.name)
    if not match or int(match["count"]) != count:
        raise ModelCorrupt(
            _(
                "{name} is one of {count} parts of a model, but its name does not say which.",
                name=path.name,
                count=count,
            ),
            hint=_("Give the parts their names back: NAME-00001-of-{count:05}.gguf and so on.", count=count),
        )
    headers = []
    for number in range(1, count + 1):
        shard = path.with_name(shard_name(match["prefix"], number, count))
        try:
            exists = shard.exists()
        except OSError as error:
            raise _unreadable(shard, error) from error
        if not exists:
            raise ModelCorrupt(
                _("{name} is missing: the model has {count} parts.", name=shard.name, count=count),
                hint=_("Copy all parts into one folder, then install again."),
            )
        headers.append(header if shard.name == path.name else read_header(shard))
    _check_shards(headers)
    return headers


def shard_name(prefix: str, number: int, count: int) -> str:
    """Return the file name by which llama.cpp finds a shard; `number` counts from 1."""
    return f"{prefix}-{number:05}-of-{count:05}.gguf"


def tensor_types(*headers: GGUFHeader) -> dict[str, int]:
    """Count the tensors of each quantization type, over all shards; the most frequent first."""
    return dict(Counter(tensor.type_name for header in headers for tensor in header.tensors).most_common())


def shape_of(headers: Sequence[GGUFHeader]) -> ModelShape:
    """Return the numbers that decide the model's memory; what an adapter leaves out is 0.

    Args:
        headers: of all shards, the first one with the metadata.

    Raises:
        ModelCorrupt: a number is absurd or of the wrong kind.
    """
    first = headers[0]
    architecture = first.architecture
    return ModelShape(
        architecture=architecture,
        parameters=sum(prod(tensor.shape) for header in headers for tensor in header.tensors),
        block_count=_hyperparameter(first, f"{architecture}.block_count"),
        embedding_length=_hyperparameter(first, f"{architecture}.embedding_length"),
        feed_forward_length=max(_per_layer(first, f"{architecture}.feed_forward_length"), default=0),
        vocabulary_size=first.length("tokenizer.ggml.tokens")
        or _hyperparameter(first, f"{architecture}.vocab_size"),
        kv_bytes_per_token=_kv_bytes_per_token(first),
    )


def context_length_of(header: GGUFHeader) -> int:
    """Return how many tokens the model was trained to attend to; 0 when the file does not say."""
    return _hyperparameter(header, f"{header.architecture}.context_length")


def _check_shards(headers: Sequence[GGUFHeader]) -> None:
    names: set[str] = set()
    for number, header in enumerate(headers):
        belongs = header.metadata.get("split.no") == number and header.metadata.get("split.count") == len(
            headers
        )
        if not belongs or names & {tensor.name for tensor in header.tensors}:
            raise _damaged(header.path, f"its content is not that of part {number + 1} of {len(headers)}")
        names.update(tensor.name for tensor in header.tensors)
    expected = _hyperparameter(headers[0], "split.tensors.count", default=len(names))
    if expected != len(names):
        raise _damaged(headers[0].path, f"its parts hold {len(names)} tensors instead of {expected}")


def _kv_bytes_per_token(header: GGUFHeader) -> int:
    """F16 keys and values of one token, summed over the layers."""
    architecture = header.architecture
    block_count = _hyperparameter(header, f"{architecture}.block_count")
    head_counts = _per_layer(header, f"{architecture}.attention.head_count")
    kv_head_counts = _per_layer(header, f"{architecture}.attention.head_count_kv") or head_counts
    heads = next((count for count in head_counts if count), 0)
    head_length = _hyperparameter(header, f"{architecture}.embedding_length") // heads if heads else 0
    key_length = _hyperparameter(header, f"{architecture}.attention.key_length", default=head_length)
    value_length = _hyperparameter(header, f"{architecture}.attention.value_length", default=head_length)
    if len(kv_head_counts) == 1:
        kv_heads = kv_head_counts[0] * block_count
    elif len(kv_head_counts) in (0, block_count):
        kv_heads = sum(kv_head_counts)
    else:
        raise _damaged(
            header.path, f"it lists heads for {len(kv_head_counts)} layers and has {block_count} layers"
        )
    kv_bytes_per_token = 2 * kv_heads * (key_length + value_length)
    if kv_bytes_per_token > _MAX_KV_BYTES_PER_TOKEN:
        raise _damaged(header.path, "it asks for an impossible amount of memory")
    return kv_bytes_per_token


def _hyperparameter(header: GGUFHeader, key: str, *, default: int = 0) -> int:
    value = header.metadata.get(key, default)
    return _checked(header, key, value)


def _per_layer(header: GGUFHeader, key: str) -> list[int]:
    """A number for all layers, or one for each; empty when the file has none."""
    value = header.metadata.get(key)
    if value is None:
        return []
    return [_checked(header, key, item) for item in (value if isinstance(value, list) else [value])]


def _checked(header: GGUFHeader, key: str, value: Value) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_HYPERPARAMETER:
        raise _damaged(header.path, f"its {key} is no sensible number")
    return value


class _Reader:
    """Walks through one open file from behind the magic, never past its end."""

    def __init__(self, path: Path, file: BinaryIO, file_size: int, keep: Collection[str]) -> None:
        self._keep = keep
        self._wanted_bytes_left = _MAX_WANTED_BYTES
        self._path = path
        self._file = file
        self._file_size = file_size
        self._position = 4
        self._strings_left = _MAX_STRINGS

    def header(self) -> GGUFHeader:
        version = self._version()
        tensor_count = self._number("<Q")
        key_count = self._number("<Q")
        if tensor_count > _MAX_TENSORS or key_count > _MAX_KEYS:
            raise _damaged(self._path, f"it claims {tensor_count:,} tensors and {key_count:,} metadata keys")
        metadata: dict[str, Value] = {}
        for _key in range(key_count):
            key = self._name("metadata key")
            if key in metadata:
                raise _damaged(self._path, f"the metadata key {_quoted(key)} stands in it twice")
            metadata[key] = self._value(key)
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _damaged(self._path, "its alignment is no power of two")
        return GGUFHeader(
            path=self._path,
            version=version,
            metadata=metadata,
            tensors=self._tensors(tensor_count, alignment),
            file_size=self._file_size,
            alignment=alignment,
        )

    def _version(self) -> int:
        version = self._number("<I")
        if version in (2, 3):
            return version
        if version and version & 0xFFFF == 0:
            raise ModelUnsupported(
                _("{name} was written for a big-endian machine.", name=self._path.name),
                hint=_("Ask for the little-endian file; nearly every published GGUF is one."),
            )
        raise ModelUnsupported(
            _(
                "{name} says it is GGUF version {version}; edgemed reads versions 2 and 3.",
                name=self._path.name,
                version=version,
            ),
            hint=_("Ask for a newer file of this model.") if version < 2 else _("Install a newer edgemed."),
        )

    def _value(self, key: str) -> Value:
        value_type = self._number("<I")
        if value_type == _ARRAY:
            return self._array(key)
        if value_type == _STRING:
            return self._string(key)
        return self._scalar(value_type, key)

    def _array(self, key: str) -> list[Scalar] | ArraySummary:
        """llama.cpp reads no arrays of arrays, so they count as damage."""
        element_type = self._number("<I")
        length = self._number("<Q")
        if element_type == _STRING:
            self._strings_left -= length
            # Each string takes 8 bytes at least.
            if self._strings_left < 0 or length * 8 > self._file_size - self._position:
                raise _damaged(self._path, f"{_quoted(key)} claims {length:,} strings")
            if length <= _KEPT_ARRAY_LENGTH:
                return [self._string(key) for _ in range(length)]
            if self._is_wanted(key, length):
                return self._wanted_strings(key, length)
            for _ in range(length):
                self._skip(self._number("<Q"))
            return ArraySummary("string", length)
        name, code = self._scalar_type(element_type, key)
        if length <= _KEPT_ARRAY_LENGTH or self._is_wanted(key, length):
            return [self._scalar(element_type, key) for _ in range(length)]
        self._skip(length * struct.calcsize(code))
        return ArraySummary(name, length)

    def _is_wanted(self, key: str, length: int) -> bool:
        return key in self._keep and length <= _MAX_WANTED_LENGTH

    def _wanted_strings(self, key: str, length: int) -> list[Scalar] | ArraySummary:
        strings: list[Scalar] = []
        for _unused in range(length):
            if self._wanted_bytes_left < 0:
                self._skip(self._number("<Q"))
                continue
            text = self._string(key)
            strings.append(text)
            self._wanted_bytes_left -= len(text)
        return strings if len(strings) == length else ArraySummary("string", length)

    def _scalar(self, value_type: int, key: str) -> Scalar:
        _, code = self._scalar_type(value_type, key)
        value: Scalar = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return value

    def _scalar_type(self, value_type: int, key: str) -> tuple[str, str]:
        if value_type not in _SCALARS:
            raise _damaged(self._path, f"{_quoted(key)} has a value of the unknown type {value_type}")
        return _SCALARS[value_type]

    def _string(self, what: str) -> str:
        # Tokens and names may hold any bytes; only keys and tensor names must be proper text.
        return self._bytes(what).decode("utf-8", errors="replace")

    def _name(self, what: str) -> str:
        try:
            name = self._bytes(what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(self._path, f"a {what} is not readable text") from error
        if not name:
            raise _damaged(self._path, f"a {what} is empty")
        return name

    def _bytes(self, what: str) -> bytes:
        length = self._number("<Q")
        if length > _MAX_STRING_BYTES:
            raise _damaged(self._path, f"{_quoted(what)} claims to be {length:,} bytes long")
        return self._take(length)

    def _tensors(self, count: int, alignment: int) -> list[TensorInfo]:
        """llama.cpp wants the tensors one behind the other in the order of the list, each aligned."""
        listed = [self._tensor() for _unused in range(count)]
        data_start = _padded(self._position, alignment)
        tensors: dict[str, TensorInfo] = {}
        expected_offset = 0
        for tensor in listed:
            if tensor.name in tensors:
                raise _damaged(self._path, f"the tensor {_quoted(tensor.name)} stands in it twice")
            if tensor.offset != expected_offset:
                raise _damaged(self._path, f"the tensor {_quoted(tensor.name)} is not where it should be")
            offset = data_start + tensor.offset
            if offset + tensor.size_bytes > self._file_size:
                raise ModelCorrupt(
                    _(
                        "{name} is cut short: it ends at {file_size:,} bytes, "
                        "before the weights of {quoted} do.",
                        name=self._path.name,
                        file_size=self._file_size,
                        quoted=_quoted(tensor.name),
                    ),
                    hint=_(COPY_AGAIN),
                )
            expected_offset = _padded(tensor.offset + tensor.size_bytes, alignment)
            tensors[tensor.name] = TensorInfo(
                tensor.name, tensor.shape, tensor.type_name, offset, tensor.size_bytes
            )
        return list(tensors.values())

    def _tensor(self) -> TensorInfo:
        """Read one entry; its offset still counts from the start of the data."""
        name = self._name("tensor name")
        if len(name.encode()) > _MAX_TENSOR_NAME_BYTES:
            raise _damaged(self._path, f"the tensor name {_quoted(name)} is too long")
        dimensions = self._number("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise _damaged(self._path, f"the tensor {_quoted(name)} has {dimensions:,} dimensions")
        shape = tuple(self._number("<Q") for _unused in range(dimensions))
        type_number = self._number("<I")
        offset = self._number("<Q")
        if any(length >= 2**63 for length in shape) or prod(shape) >= 2**63:
            raise _damaged(self._path, f"the tensor {_quoted(name)} has an impossible size")
        if type_number not in GGML_TYPES:
            raise ModelUnsupported(
                _(
                    "{name} holds the tensor {quoted} of the unknown type {type_number}.",
                    name=self._path.name,
                    quoted=_quoted(name),
                    type_number=type_number,
                ),
                hint=_("The file is damaged, or too old or too new for this edgemed: ask for another one."),
            )
        type_name, block_elements, block_bytes = GGML_TYPES[type_number]
        if (shape[0] if shape else 1) % block_elements:
            raise _damaged(self._path, f"the rows of {_quoted(name)} do not fit its type {type_name}")
        return TensorInfo(name, shape, type_name, offset, prod(shape) // block_elements * block_bytes)

    def _number(self, code: str) -> int:
        number: int = struct.unpack(code, self._take(struct.calcsize(code)))[0]
        return number

    def _take(self, size: int) -> bytes:
        self._advance(size)
        data = self._file.read(size)
        if len(data) < size:
            # The file was shortened while it was read.
            raise _cut_short(self._path)
        return data

    def _skip(self, size: int) -> None:
        self._advance(size)
        self._file.seek(self._position)

    def _advance(self, size: int) -> None:
        if size > self._file_size - self._position:
            raise _cut_short(self._path)
        self._position += size


def _foreign(path: Path, beginning: bytes, file_size: int) -> ModelError:
    """What a file without GGUF's magic is, in words that help."""
    name = path.name
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if file_size == 0:
        return ModelCorrupt(_("{name} is empty.", name=name), hint=_(COPY_AGAIN))
    if not beginning.strip(b"\0"):
        return ModelCorrupt(
            _("{name} begins with zeros: the copy was interrupted.", name=name), hint=_(COPY_AGAIN)
        )
    if text.startswith(b"version https://git-lfs"):
        return ModelCorrupt(
            _("{name} is a Git LFS pointer: a note of where the model is, not the model.", name=name),
            hint=_("Run `git lfs pull` where it came from, or download the file itself."),
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return ModelCorrupt(
            _("{name} is a web page, not a model.", name=name),
            hint=_("Download the file itself, not the page about it."),
        )
    if beginning[:1] == b"\x80" and beginning[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return ModelUnsupported(
            _(
                "{name} is a Python pickle; edgemed never opens one, because it can run any program.",
                name=name,
            ),
            hint=_(NEED_GGUF),
        )
    if beginning.startswith(b"PK"):
        return ModelUnsupported(
            _(
                "{name} is a zip archive, as PyTorch writes with pickles inside; edgemed never opens one, "
                "because it can run any program.",
                name=name,
            ),
            hint=_(NEED_GGUF),
        )
    header_length = int.from_bytes(beginning[:8], "little")
    if beginning[8:9] == b"{" and header_length <= file_size - 8:
        return ModelUnsupported(_("{name} is a safetensors file, not GGUF.", name=name), hint=_(NEED_GGUF))
    if beginning.startswith((b"lmgg", b"tjgg", b"fmgg", b"algg")):
        return ModelUnsupported(
            _("{name} is in the old GGML format of before GGUF.", name=name), hint=_(NEED_GGUF)
        )
    if beginning.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"7z\xbc\xaf", b"BZh", b"\x28\xb5\x2f\xfd", b"Rar!")):
        return ModelUnsupported(
            _("{name} is a packed archive.", name=name), hint=_("Unpack it, then install the .gguf file.")
        )
    if file_size < 4 and b"GGUF".startswith(beginning):
        return _cut_short(path)
    return ModelCorrupt(_("{name} is not a GGUF file.", name=name), hint=_(NEED_GGUF))


def _damaged(path: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(_("{name} is damaged: {what}.", name=path.name, what=what), hint=_(COPY_AGAIN))


def _cut_short(path: Path) -> ModelCorrupt:
    return ModelCorrupt(
        _("{name} is cut short: it ends inside its header.", name=path.name), hint=_(COPY_AGAIN)
    )


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        _("{name} cannot be read: {reason}.", name=path.name, reason=error.strerror),
        hint=_("Check that the stick or disk is connected and that you may read the file."),
    )


def _quoted(text: str) -> str:
    """Text from the file, harmless to a terminal."""
    return ascii(text if len(text) <= 64 else text[:61] + "...")


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
