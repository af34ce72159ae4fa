"""Questions and answers as one stream of documents, cut into windows of equal length.

Which windows a step sees depends on the seed and the step alone, so that a resumed run needs no memory of it.
"""

import array
import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgemed_training.base_tokenizer import END_OF_TEXT_ID, encode_texts
from edgemed_training.dataset import read_dataset
from edgemed_training.errors import DataError
from edgemed_training.records import CARD_NAME, TRAIN_NAME, SourceFacts, Text

_TEXTS_AT_ONCE = 1000


class Row(msgspec.Struct, frozen=True):
    """What is read of a line; other keys are not looked at."""

    question: Text
    answer: Text
    turns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Rows:
    """All questions and answers of a file."""

    rows: list[Row]
    """In the file's order."""
    sha256: str
    """Of the file."""
    sources: list[SourceFacts]
    """From the dataset card; empty without one."""


@dataclass(frozen=True)
class Documents:
    """All text that the model learns from."""

    texts: list[str]
    """`Question: …` and `Answer: …` on a line each, in the file's order."""
    sha256: str
    """Of the file."""
    sources: list[SourceFacts]
    """From the dataset card; empty without one."""


def read_rows(data: Path) -> Rows:
    """Read the training part of a prepared folder, or any JSON Lines of questions and answers.

    Args:
        data: the folder that `prepare` wrote, or a file whose lines have `question` and `answer`.

    Raises:
        DataError: no such file, a line without question or answer, or a folder changed since `prepare`.
    """
    path = data / TRAIN_NAME if data.is_dir() else data
    card = read_dataset(data).card if data.is_dir() and (data / CARD_NAME).is_file() else None
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"There is no file {path}.",
            hint="Name a folder that `edgemed-train prepare` wrote, or a file of JSON Lines.",
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return Rows(_decoded(content, path), hashlib.sha256(content).hexdigest(), card.sources if card else [])


def read_documents(data: Path) -> Documents:
    """Read data as `read_rows` does, as one document for each row."""
    found = read_rows(data)
    return Documents([_document(row) for row in found.rows], found.sha256, found.sources)


def _decoded(content: bytes, path: Path) -> list[Row]:
    decoder = msgspec.json.Decoder(Row)
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"Line {number} of {path} is no question with an answer: {error}.",
                hint="Each line needs `question` and `answer`; `edgemed-train prepare` reads other shapes.",
            ) from error
    if not rows:
        raise DataError(f"{path} holds no questions and answers.", hint="Name another file with --data.")
    return rows


def _document(row: Row) -> str:
    pairs = (*row.turns, (row.question, row.answer))
    lines = [f"Question: {one_line(question)}\nAnswer: {one_line(answer)}" for question, answer in pairs]
    return "\n".join(lines)


def one_line(text: str) -> str:
    """Return a text with every run of white space as one space."""
    return " ".join(text.split())


def encode_documents(documents: Documents, tokenizer: Any, seed: int) -> Any:
    """Return all documents in the seed's order, each ended by `<|endoftext|>`: int32 tensor [tokens]."""
    import torch

    texts = list(documents.texts)
    random.Random(seed).shuffle(texts)
    tokens = array.array("i")
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        for ids in encode_texts(tokenizer, texts[start : start + _TEXTS_AT_ONCE]):
            tokens.extend(ids)
            tokens.append(END_OF_TEXT_ID)
    return torch.frombuffer(tokens, dtype=torch.int32).clone()


class Windows:
    """Equal windows over a stream of tokens: each pass begins at another place and has another order."""

    def __init__(self, tokens: Any, *, window_tokens: int, batch_rows: int, seed: int) -> None:
        """Cut the stream.

        Args:
            tokens: int32 tensor [tokens].
            window_tokens: length of a window.
            batch_rows: windows of one step.
            seed: of places and orders.

        Raises:
            DataError: the stream does not fill one window.
        """
        self._tokens, self._window_tokens, self._seed = tokens, window_tokens, seed
        self._batch_rows = batch_rows
        self.per_pass: int = max(0, len(tokens) - window_tokens + 1) // window_tokens
        """Windows of one pass over the data, the same for every place to begin."""
        if not self.per_pass:
            raise DataError(
                f"The data have {len(tokens)} tokens: too little text for windows of {window_tokens}.",
                hint=f"Use more data, or set train.window_tokens to at most {len(tokens) // 2}.",
            )
        self._pass = -1
        self._starts: Any = None

    def batch(self, step: int) -> Any:
        """Return the windows of one step, from 0: int64 tensor [batch_rows, window_tokens]."""
        import torch

        first = step * self._batch_rows
        rows = [self._window(number) for number in range(first, first + self._batch_rows)]
        return torch.stack(rows).long()

    def _window(self, number: int) -> Any:
        number_of_pass, place = divmod(number, self.per_pass)
        if number_of_pass != self._pass:
            self._pass, self._starts = number_of_pass, self._order(number_of_pass)
        start = self._starts[place]
        return self._tokens[start : start + self._window_tokens]

    def _order(self, number_of_pass: int) -> list[int]:
        chance = random.Random(f"{self._seed}/{number_of_pass}")
        offset = chance.randrange(self._window_tokens)
        starts = [offset + number * self._window_tokens for number in range(self.per_pass)]
        chance.shuffle(starts)
        return starts
