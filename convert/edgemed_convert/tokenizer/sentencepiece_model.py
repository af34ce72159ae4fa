"""A SentencePiece model file (tokenizer.model): its pieces and how it treats spaces.

The file is a protocol buffer with a public schema (sentencepiece_model.proto, Apache-2.0). Only the few
fields that matter are read, so neither sentencepiece nor protobuf is needed.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgemed_convert.errors import CheckpointError
from edgemed_convert.safetensors_file import COPY_AGAIN
from edgemed_convert.tokenizer.fields import TokenType

_MAX_PIECES = 4_000_000
_BPE = 2
_KINDS = {
    1: TokenType.NORMAL,
    2: TokenType.UNKNOWN,
    3: TokenType.CONTROL,
    4: TokenType.USER_DEFINED,
    5: TokenType.UNUSED,
    6: TokenType.BYTE,
}


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    type: TokenType


@dataclass(frozen=True)
class SentencePieceModel:
    """What of the file matters to the engine."""

    pieces: list[Piece]
    add_dummy_prefix: bool
    """Whether a text gets a space before it."""
    rewrites_text: bool
    """Whether letters are normalized (NFKC or other tables), which the engine does not do."""


def parse_model(content: bytes, path: Path) -> SentencePieceModel:
    """Read a SentencePiece model.

    Raises:
        CheckpointError: it is no such file, damaged, or of a kind that the engine does not know.
    """
    try:
        return _model(content, path)
    except (ValueError, IndexError, struct.error, TypeError) as error:
        raise CheckpointError(
            f"{path} is no SentencePiece model, or it is damaged.", hint=COPY_AGAIN
        ) from error


def _model(content: bytes, path: Path) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, bytes | int] = {}
    normalizer: dict[int, bytes | int] = {}
    for number, value in _fields(content):
        if number == 1:
            pieces.append(_piece(_bytes(value)))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
        if len(pieces) > _MAX_PIECES:
            raise ValueError("too many pieces")
    if not pieces:
        raise ValueError("no pieces")
    # The schema's default is a unigram model.
    if trainer.get(3, 1) != _BPE:
        raise CheckpointError(
            f"{path} is a SentencePiece model of another kind than BPE.",
            hint="The engine would split texts otherwise than the model was trained on.",
        )
    return SentencePieceModel(
        pieces,
        bool(normalizer.get(3, 1)),
        rewrites_text=bool(normalizer.get(2)),
    )


def _piece(content: bytes) -> Piece:
    fields = dict(_fields(content))
    score = struct.unpack("<f", _bytes(fields.get(2, bytes(4))))[0]
    kind = fields.get(3, 1)
    return Piece(
        _bytes(fields.get(1, b"")).decode("utf-8"), score, _KINDS[int(kind)] if kind in _KINDS else _KINDS[1]
    )


def _fields(content: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield (field number, value) of one message: a whole number, or the bytes of anything else."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(content, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(content, position)
        else:
            length = {1: 8, 5: 4}.get(wire_type, -1)
        if not 0 <= length <= len(content) - position:
            raise ValueError("a field that is longer than the file")
        yield number, content[position : position + length]
        position += length


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number without an end")


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number where bytes should be")
    return value
