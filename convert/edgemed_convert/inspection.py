"""What is in a GGUF file: a model, a LoRA adapter, a vocabulary or an importance matrix.

Built on edgemed's own bounded reader: a malformed file gives one named error, never a hang or a crash.
"""

import re
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path

import msgspec

from edgemed.gguf_header import ArraySummary, GGUFHeader, Value, read_header, read_shards
from edgemed_convert.quantization_types import QUANTIZATION_TYPES, file_type_name

SCHEMA_VERSION = 1

_TOKENS, _TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_SPECIAL_ID = re.compile(r"tokenizer\.ggml\.(\w+)_token_id")
_CONTROL, _USER_DEFINED = 3, 4
_NO_TOKEN = 2**32 - 1  # -1, as some exporters write it
_TOKEN_TYPE_NAMES = {
    1: "normal",
    2: "unknown",
    _CONTROL: "control",
    _USER_DEFINED: "user_defined",
    5: "unused",
    6: "byte",
}
_SHOWN_ARRAY_LENGTH = 16


class TensorFacts(msgspec.Struct, frozen=True):
    """One tensor; `shape` as ggml has it, the length of a row first."""

    name: str
    shape: list[int]
    type: str
    size_bytes: int
    file: str


class TypeFacts(msgspec.Struct, frozen=True):
    """All tensors of one type."""

    type: str
    tensors: int
    parameters: int
    size_bytes: int


class TokenFacts(msgspec.Struct, frozen=True):
    """One token; `text` is the vocabulary's own spelling, None when the file has no such id."""

    id: int
    text: str | None


class VocabularyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The tokenizer's part of the metadata."""

    model: str | None
    pre: str | None
    tokens: int
    types: dict[str, int]
    """Kind of token → how many."""
    special: dict[str, TokenFacts]
    """Role, such as bos or eos → token."""
    repeated: list[TokenFacts]
    """Tokens whose text an earlier token has: llama.cpp aborts on them."""
    added: list[TokenFacts]
    """Control and user-defined tokens, in order of their ids."""
    add_bos: bool | None
    """None: the file does not say, and llama.cpp's default for the tokenizer's model holds."""
    add_eos: bool | None


class MatrixFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an importance matrix was collected on."""

    entries: int
    datasets: list[str]
    chunks: int | None
    chunk_tokens: int | None


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a GGUF file says of itself; of a split model, all parts together."""

    schema_version: int = SCHEMA_VERSION
    kind: str
    """model, vocabulary, adapter, imatrix, or what general.type says."""
    files: list[str]
    """Names of all parts, in order."""
    size_bytes: int
    gguf_version: int
    name: str | None
    architecture: str | None
    file_type: str | None
    """The label: what general.file_type claims, such as Q4_K_M."""
    parameters: int
    bits_per_weight: float | None
    """Of all tensors together, without the metadata."""
    context_length: int | None
    types: list[TypeFacts]
    """The largest share of the bytes first."""
    vocabulary: VocabularyFacts | None
    chat_template: str | None
    imatrix: MatrixFacts | None
    lora_ranks: list[int]
    """Of an adapter: every rank that its pairs of matrices have."""
    remarks: list[str]
    """Contradictions in the file, one sentence each."""
    metadata: dict[str, str | int | float | bool | list[str | int | float | bool]]
    """Long arrays as a text that says what they are."""
    tensors: list[TensorFacts]


def inspect_file(path: Path) -> Inspection:
    """Describe a GGUF file, or a split model given any of its parts.

    Raises:
        ModelCorrupt, ModelUnsupported: it is damaged, incomplete or of another format.
        StorageError: the disk does not give it.
    """
    headers = read_shards(path)
    first = read_header(headers[0].path, keep=(_TOKENS, _TOKEN_TYPES))
    types = _types(headers)
    parameters = sum(row.parameters for row in types)
    data_bytes = sum(row.size_bytes for row in types)
    architecture = first.text("general.architecture")
    vocabulary = _vocabulary(first)
    return Inspection(
        kind=_kind(first),
        files=[header.path.name for header in headers],
        size_bytes=sum(header.file_size for header in headers),
        gguf_version=first.version,
        name=first.text("general.name"),
        architecture=architecture,
        file_type=_label(first),
        parameters=parameters,
        bits_per_weight=8 * data_bytes / parameters if parameters and _kind(first) == "model" else None,
        context_length=_whole_number(first, f"{architecture}.context_length"),
        types=types,
        vocabulary=vocabulary,
        chat_template=first.text("tokenizer.chat_template"),
        imatrix=_matrix(first),
        lora_ranks=_lora_ranks(headers),
        remarks=_remarks(headers, vocabulary, types),
        metadata={key: _shown(value) for key, value in first.metadata.items()},
        tensors=[
            TensorFacts(
                tensor.name, list(tensor.shape), tensor.type_name, tensor.size_bytes, header.path.name
            )
            for header in headers
            for tensor in header.tensors
        ],
    )


def as_json(inspection: Inspection) -> bytes:
    """Return one JSON document, indented."""
    return msgspec.json.format(msgspec.json.encode(inspection), indent=2)


def _kind(header: GGUFHeader) -> str:
    kind = header.text("general.type") or "model"
    return "vocabulary" if kind == "model" and not header.tensors else kind


def _label(header: GGUFHeader) -> str | None:
    number = _whole_number(header, "general.file_type")
    return None if number is None else file_type_name(number)


def _whole_number(header: GGUFHeader, key: str) -> int | None:
    value = header.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _types(headers: Sequence[GGUFHeader]) -> list[TypeFacts]:
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    size_bytes: Counter[str] = Counter()
    for header in headers:
        for tensor in header.tensors:
            tensors[tensor.type_name] += 1
            parameters[tensor.type_name] += prod(tensor.shape)
            size_bytes[tensor.type_name] += tensor.size_bytes
    return [TypeFacts(name, tensors[name], parameters[name], size) for name, size in size_bytes.most_common()]


def _vocabulary(header: GGUFHeader) -> VocabularyFacts | None:
    count = header.length(_TOKENS)
    if not count:
        return None
    tokens = header.metadata[_TOKENS]
    texts = tokens if isinstance(tokens, list) else []
    kinds = header.metadata.get(_TOKEN_TYPES)
    kinds = kinds if isinstance(kinds, list) else []
    special = {
        found[1]: _token(id_, texts)
        for key in header.metadata
        if (found := _SPECIAL_ID.fullmatch(key))
        and (id_ := _whole_number(header, key)) is not None
        and id_ != _NO_TOKEN
    }
    return VocabularyFacts(
        model=header.text("tokenizer.ggml.model"),
        pre=header.text("tokenizer.ggml.pre"),
        tokens=count,
        types={
            _TOKEN_TYPE_NAMES.get(kind, str(kind)) if isinstance(kind, int) else str(kind): number
            for kind, number in Counter(kinds).most_common(_SHOWN_ARRAY_LENGTH)
        },
        special=special,
        repeated=_repeated(texts),
        added=[_token(id_, texts) for id_, kind in enumerate(kinds) if kind in (_CONTROL, _USER_DEFINED)],
        add_bos=_flag(header, "tokenizer.ggml.add_bos_token"),
        add_eos=_flag(header, "tokenizer.ggml.add_eos_token"),
    )


def _repeated(texts: Sequence[Value]) -> list[TokenFacts]:
    seen: set[Value] = set()
    repeated = []
    for id_, text in enumerate(texts):
        # Different bytes that are no UTF-8 look alike here.
        if isinstance(text, str) and "\ufffd" not in text:
            if text in seen:
                repeated.append(TokenFacts(id_, text))
            seen.add(text)
    return repeated


def _token(id_: int, texts: Sequence[Value]) -> TokenFacts:
    return TokenFacts(id_, str(texts[id_]) if 0 <= id_ < len(texts) else None)


def _flag(header: GGUFHeader, key: str) -> bool | None:
    value = header.metadata.get(key)
    return value if isinstance(value, bool) else None


def _matrix(header: GGUFHeader) -> MatrixFacts | None:
    if header.text("general.type") != "imatrix":
        return None
    datasets = header.metadata.get("imatrix.datasets")
    return MatrixFacts(
        entries=sum(tensor.name.endswith(".in_sum2") for tensor in header.tensors),
        datasets=[str(name) for name in datasets] if isinstance(datasets, list) else [],
        chunks=_whole_number(header, "imatrix.chunk_count"),
        chunk_tokens=_whole_number(header, "imatrix.chunk_size"),
    )


def _lora_ranks(headers: Sequence[GGUFHeader]) -> list[int]:
    return sorted(
        {
            tensor.shape[1]
            for header in headers
            for tensor in header.tensors
            if tensor.name.endswith(".lora_a") and len(tensor.shape) == 2
        }
    )


def _remarks(
    headers: Sequence[GGUFHeader], vocabulary: VocabularyFacts | None, types: Sequence[TypeFacts]
) -> list[str]:
    first = headers[0]
    remarks = []
    label = _label(first)
    promised = None if label is None else QUANTIZATION_TYPES.get(label)
    if promised is not None and types and promised not in {row.type for row in types}:
        remarks.append(f"The file says {label}, but no tensor is {promised}.")
    if vocabulary is not None:
        remarks += [
            f"The {role} token has the id {token.id:,}, but there are {vocabulary.tokens:,} tokens."
            for role, token in vocabulary.special.items()
            if not 0 <= token.id < vocabulary.tokens
        ]
        if vocabulary.repeated:
            token = vocabulary.repeated[0]
            remarks.append(
                f"The token {token.text!r} stands in the vocabulary twice: llama.cpp aborts on that."
            )
        if vocabulary.add_bos and "bos" not in vocabulary.special:
            remarks.append("A BOS token is to be added, but the file names none.")
        rows = _embedding_rows(headers)
        if rows is not None and rows != vocabulary.tokens:
            remarks.append(f"There are {vocabulary.tokens:,} tokens, but {rows:,} rows of embeddings.")
        if first.text("general.type") in (None, "model") and not first.text("tokenizer.chat_template"):
            remarks.append("There is no chat template: the file cannot be used for chat.")
    return remarks


def _embedding_rows(headers: Sequence[GGUFHeader]) -> int | None:
    for header in headers:
        for tensor in header.tensors:
            if tensor.name == "token_embd.weight" and len(tensor.shape) == 2:
                return tensor.shape[1]
    return None


def _shown(value: Value) -> str | int | float | bool | list[str | int | float | bool]:
    if isinstance(value, ArraySummary):
        return f"{value.length:,} × {value.element_type}"
    if isinstance(value, list) and len(value) > _SHOWN_ARRAY_LENGTH:
        kind = type(value[0]).__name__.replace("str", "string")
        return f"{len(value):,} × {kind}"
    return value
