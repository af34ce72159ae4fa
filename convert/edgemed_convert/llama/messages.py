"""What the tool and its llama.cpp process say to each other: msgpack frames on its standard streams.

A frame is its length (8 bytes, little-endian) and a msgpack document, never pickle: a process that a hostile
file took over cannot make the tool run code. Numbers travel as raw little-endian bytes.
"""

import struct
from typing import IO

import msgspec

MAX_FRAME_BYTES = 2**31
_LENGTH = struct.Struct("<Q")


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load a model; the one before goes."""

    path: str
    vocabulary_only: bool
    adapter_path: str | None
    adapter_scale: float
    context_length: int
    kv_type_number: int
    threads: int


class Tokenize(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Turn each text (UTF-8) into token ids."""

    texts: list[bytes]
    add_special: bool
    parse_special: bool


class ReadVocabulary(msgspec.Struct, frozen=True, tag=True):
    """Send the whole token table."""


class Render(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Turn each conversation into text by the chat template."""

    conversations: list[list[tuple[str, str]]]
    """Role and content of each message."""
    for_answer: bool
    """Whether the text goes on to where the model's answer begins, or stops where the last answer ended."""
    template: str | None
    """Used instead of the one that the file carries."""


class ComputeLogits(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Read these tokens from an empty KV cache; send the logits of all positions from `start` on."""

    token_ids: list[int]
    start: int


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Write up to `count` tokens, always the likeliest."""

    token_ids: list[int]
    count: int


class CollectActivations(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Read each chunk from an empty KV cache and sum up the squares of what every matrix is fed."""

    chunks: list[list[int]]


class Quantize(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Write a quantized copy of a GGUF file."""

    source: str
    target: str
    type_name: str
    importance: dict[str, bytes] | None
    """Tensor name → float32 weights of its columns."""
    metadata: dict[str, str | int]
    """Keys that the copy gets besides the source's."""
    output_type_number: int | None
    embedding_type_number: int | None
    tensor_types: list[tuple[str, int]]
    """Regular expression on tensor names → ggml's number of the type."""
    pure: bool
    allow_requantize: bool
    dry_run: bool
    threads: int


Request = Load | Tokenize | Render | ReadVocabulary | ComputeLogits | Generate | CollectActivations | Quantize


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is loaded. llama.cpp's names; an id is None where the vocabulary names none."""

    n_vocab: int
    vocabulary_type: int
    """llama.cpp's number: 1 SentencePiece, 2 byte-level BPE."""
    bos: int | None
    eos: int | None
    eot: int | None
    add_bos: bool
    add_eos: bool
    eog_ids: list[int]
    """Every id that ends an answer."""
    chat_template: str | None
    trained_context_length: int
    context_length: int
    """0 for a vocabulary alone."""
    warnings: list[str]
    """llama.cpp's warnings while it loaded, one line each."""


class Tokenized(msgspec.Struct, frozen=True, tag=True):
    """Token ids of each text, in order."""

    token_ids: list[list[int]]


class Rendered(msgspec.Struct, frozen=True, tag=True):
    """The texts, in order; in the place of one that the template refused, None."""

    texts: list[str | None]
    faults: list[str]
    """Why, for each None."""


class VocabularyPart(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Some tokens of the table, in order of their ids."""

    texts: list[bytes]
    """The vocabulary's own spelling."""
    pieces: list[bytes]
    """What the token writes, control tokens included."""
    attributes: list[int]
    """llama.cpp's LLAMA_TOKEN_ATTR bits."""
    is_eog: list[bool]


class LogitsPart(msgspec.Struct, frozen=True, tag=True):
    """Rows of logits, float32, in order of their positions."""

    rows: int
    data: bytes


class Generated(msgspec.Struct, frozen=True, tag=True):
    """The tokens written; an end-of-generation token, if one came, is the last."""

    token_ids: list[int]


class ActivationSums(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What one matrix was fed."""

    name: str
    sums: bytes
    """float32, a sum of squares for each of its columns."""
    rows: int
    """Activation vectors summed up."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How far the request has come."""

    done: int
    total: int
    what: str = ""


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The request is done."""

    log: list[str] = []


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A planned error; `kind` is the error's class on the tool's side."""

    kind: str
    message: str
    hint: str
    log: list[str] = []


Reply = (
    Loaded
    | Tokenized
    | Rendered
    | VocabularyPart
    | LogitsPart
    | Generated
    | ActivationSums
    | Progress
    | Finished
    | Failure
)


def write_frame(stream: IO[bytes], document: bytes) -> None:
    """Write one frame and flush it.

    Raises:
        OSError: the other side is gone.
    """
    stream.write(_LENGTH.pack(len(document)))
    stream.write(document)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """Return the next frame's document; None at the stream's end, also in the middle of a frame."""
    head = _read_all(stream, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        return None
    return _read_all(stream, length)


def _read_all(stream: IO[bytes], size: int) -> bytes | None:
    data = stream.read(size)
    return data if data is not None and len(data) == size else None
