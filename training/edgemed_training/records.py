"""The record that all parts of training share: one question with its answer, and JSON Lines of them.

Readers make them from any source, `prepare` writes them, encoding and evaluation read them back.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgemed_training.errors import DataError

Text = Annotated[str, msgspec.Meta(min_length=1)]

TRAIN_NAME = "train.jsonl"
HELDOUT_NAME = "heldout.jsonl"
CARD_NAME = "dataset_card.json"
CARD_TEXT_NAME = "dataset_card.md"
LEAKS_NAME = "leak_report.json"
SPLIT_NAME = "split.json"
DROPPED_NAME = "dropped.jsonl"


class QAPair(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One question with its answer, wherever it came from."""

    id: Text
    """Unique within a data set."""
    question: str
    answer: str
    system: str | None = None
    """The source's own system prompt or instruction; None where it has none."""
    group: str = ""
    """The document or disease the pair is about: never split between training and held-out pairs."""
    source: str = ""
    """The data set, as its licence asks to be named."""
    license: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    """Of a longer conversation: the earlier questions and answers, oldest first."""

    def sha256(self) -> str:
        """Return the SHA-256 of what is trained on: system, turns, question and answer."""
        content = msgspec.json.encode([self.system, self.turns, self.question, self.answer])
        return hashlib.sha256(content).hexdigest()

    def all_questions(self) -> str:
        """Return the questions of all turns, oldest first, one a line."""
        return "\n".join([question for question, _ in self.turns] + [self.question])

    def all_answers(self) -> str:
        """Return the answers of all turns, oldest first, one a line."""
        return "\n".join([answer for _, answer in self.turns] + [self.answer])


class SourcePair(msgspec.Struct, frozen=True):
    """A pair together with the place it was read from, for sentences that people can follow."""

    pair: QAPair
    file: str
    """The file's name, without its folders."""
    place: str
    """Where in the file, e.g. "line 12", "row 3"."""

    def where(self) -> str:
        """Return the file and the place in it."""
        return f"{self.file} {self.place}"


class Dropped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pair that a rule took out, in the list that `prepare` leaves for the engineer."""

    id: str
    where: str
    rule: str
    reason: str
    """What the rule saw; for a duplicate, the pair that stayed."""


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of the dataset card: strict and immutable."""


class SourceFacts(_Facts, frozen=True, kw_only=True):
    """One file or folder that pairs were read from."""

    name: str
    """The data set, as its licence asks to be named."""
    source: str
    """Who made it, or where it is published."""
    license: str
    file: str
    """The file's or folder's name, without the path."""
    shape: str
    """What the reader took it for, e.g. "MedQuAD XML", "CSV"."""
    sha256: str
    """Of the file's bytes; of a folder: over the names and hashes of its files, sorted."""
    rows: int
    """Question-answer pairs read."""
    unanswered: int = 0
    """Questions that the source publishes without an answer; not among `rows`."""


class RuleCount(_Facts, frozen=True, kw_only=True):
    """What one cleaning rule did."""

    rule: str
    meaning: str
    enabled: bool
    before: int
    changed: int = 0
    dropped: int = 0

    @property
    def after(self) -> int:
        """Return the number of pairs left after this rule."""
        return self.before - self.dropped


class DuplicateFacts(_Facts, frozen=True, kw_only=True):
    """Near-duplicate answers among the pairs that stayed: kept, but never split apart."""

    clusters: int
    """Clusters of more than one pair."""
    pairs_in_clusters: int
    largest_cluster: int


class SplitFacts(_Facts, frozen=True, kw_only=True):
    """How training and held-out pairs were told apart."""

    method: Literal["group", "random"]
    seed: int
    train: int
    heldout: int
    unused: int
    """Pairs in neither part."""
    units: int
    """Groups after those that share a question or a near-duplicate answer were joined; 0 for `random`."""
    largest_unit: int
    sha256: str
    """Over the SHA-256 of every pair of both parts."""


class LeakFacts(_Facts, frozen=True, kw_only=True):
    """Held-out pairs of which something stands in the training data: all but `heldout` should be 0."""

    heldout: int
    shared_group: int
    """Held-out pairs whose document or disease has a pair in training."""
    shared_question: int
    answer_contained: int
    """Held-out pairs of whose answer at least half the word 5-grams stand in one training answer."""
    answer_exact: int
    leaking: int
    """Held-out pairs with any of these."""


class PatientDataFacts(_Facts, frozen=True, kw_only=True):
    """What looked like a person's data: pairs by pattern."""

    personal: dict[str, int]
    institutional: dict[str, int]
    """Telephone numbers, addresses and links of institutions that stayed in the pairs."""
    allowed: bool
    """Whether the engineer let personal data pass."""


class Quantiles(_Facts, frozen=True, kw_only=True):
    """The spread of one length."""

    mean: float
    median: float
    p95: float
    p99: float
    largest: float


class DatasetCard(_Facts, frozen=True, kw_only=True):
    """Everything that must be known of a prepared data set; `dataset_card.md` says it to people."""

    schema_version: Literal[1] = 1
    edgemed_version: str
    sources: list[SourceFacts]
    rules: list[RuleCount]
    duplicates: DuplicateFacts
    split: SplitFacts
    leaks: LeakFacts
    patient_data: PatientDataFacts
    lengths: dict[str, Quantiles]
    """E.g. answer_words, question_words; with a tokenizer also answer_tokens."""
    files: dict[str, str]
    """File name → SHA-256."""


def encode_pairs(pairs: Iterable[QAPair]) -> bytes:
    """Return JSON Lines: one pair a line, UTF-8, the same bytes for the same pairs."""
    return b"".join(msgspec.json.encode(pair) + b"\n" for pair in pairs)


def read_pairs(path: Path) -> list[QAPair]:
    """Read JSON Lines of pairs as `prepare` wrote them.

    Raises:
        DataError: no such file, not UTF-8, or a line that is no pair; the line is named.
    """
    decoder = msgspec.json.Decoder(QAPair)
    seen: dict[str, int] = {}
    pairs = []
    for number, line in _lines(path):
        try:
            pair = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"Line {number} of {path} is no question-answer pair: {error}.",
                hint="Make the data again with `edgemed-train prepare`; it reads other shapes.",
            ) from error
        if pair.id in seen:
            raise DataError(
                f"Line {number} of {path} has the id {pair.id!r} of line {seen[pair.id]}.",
                hint="Give every pair an id of its own, or make the data again with `edgemed-train prepare`.",
            )
        seen[pair.id] = number
        pairs.append(pair)
    if not pairs:
        raise DataError(
            f"{path} holds no question-answer pairs.",
            hint="Make the data again with `edgemed-train prepare`.",
        )
    return pairs


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number and bytes of each line that is not empty, from 1."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except FileNotFoundError as error:
        raise DataError(
            f"There is no file {path}.",
            hint="Make the data with `edgemed-train prepare SOURCE --out DIR` and name that folder.",
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
