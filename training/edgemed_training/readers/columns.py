"""From one row of named values to a question-answer pair, for CSV, JSON and Parquet alike.

Known layouts are found by their column names; any other needs a mapping, `[data.columns]` in a recipe.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgemed_training.errors import DataError
from edgemed_training.readers.messages import Conversation, conversation
from edgemed_training.records import QAPair, SourcePair

Row = Mapping[str, object]

FIELDS = ("question", "answer", "system", "group", "id", "source", "license", "messages")
"""What a mapping can name."""
_LAYOUTS: tuple[dict[str, str], ...] = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"system": "instruction", "question": "input", "answer": "output"},
    {"question": "question", "answer": "answer"},
    {"question": "prompt", "answer": "completion"},
    {"question": "prompt", "answer": "response"},
    {"question": "instruction", "answer": "output"},
    {"question": "instruction", "answer": "response"},
)
_OPTIONAL = {
    "system": ("system", "system_prompt"),
    "group": ("group", "focus_area", "focus"),
    "id": ("id",),
    "source": ("source",),
    "license": ("license", "licence"),
}
_SHOWN_ROWS = 5


class ReadOptions(NamedTuple):
    """How sources are read."""

    columns: Mapping[str, str] = {}
    """Our field → the source's column; "" leaves a field out."""
    name: str = ""
    """What to call a data set that does not name itself."""
    license: str = ""
    """Of a data set that does not carry its own."""
    drop_null: bool = False
    """Leave out rows whose question or answer is null, instead of refusing the file."""


class Columns(NamedTuple):
    """The column of each field, None where there is none."""

    question: str | None = None
    answer: str | None = None
    system: str | None = None
    group: str | None = None
    id: str | None = None
    source: str | None = None
    license: str | None = None
    messages: str | None = None


def find_columns(path: Path, found: Sequence[str], mapping: Mapping[str, str]) -> Columns:
    """Return which column holds what: by the mapping, else by a known layout.

    Raises:
        DataError: neither fits; the columns found and the keys to set are listed.
    """
    _check_mapping(path, found, mapping)
    folded = {name.strip().casefold(): name for name in reversed(found)}
    chosen = _layout(folded, mapping)
    if chosen is None:
        raise DataError(
            f"{path} has no columns that edgemed knows. Found: {', '.join(map(repr, found)) or 'none'}.",
            hint='Set columns.question and columns.answer, or columns.messages: in a recipe, question = "…" '
            "under [data.columns]. Also: system, group, id, source, license.",
        )
    for field, names in _OPTIONAL.items():
        # A chat's messages hold their own system prompt; the same column cannot serve twice.
        column = next((folded[name] for name in names if name in folded), None)
        if column is not None and column not in chosen.values():
            chosen.setdefault(field, column)
    chosen.update(mapping)
    return Columns(**{field: column for field, column in chosen.items() if column})


def _layout(folded: Mapping[str, str], mapping: Mapping[str, str]) -> dict[str, str] | None:
    if mapping.get("messages") or (mapping.get("question") and mapping.get("answer")):
        return {}
    for layout in _LAYOUTS:
        if all(field in mapping or column in folded for field, column in layout.items()):
            return {field: folded[column] for field, column in layout.items() if field not in mapping}
    return None


def _check_mapping(path: Path, found: Sequence[str], mapping: Mapping[str, str]) -> None:
    for field, column in mapping.items():
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, n=1)
            raise DataError(
                f"The column mapping has no field {field!r}." + (f" Did you mean {near[0]}?" if near else ""),
                hint=f"Its fields are {', '.join(FIELDS)}.",
            )
        if column and column not in found:
            near = difflib.get_close_matches(column, found, n=1)
            raise DataError(
                f"{path} has no column {column!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
                hint=f"Found: {', '.join(map(repr, found))}. Correct columns.{field}.",
            )


def pairs_from_rows(
    path: Path, rows: Iterable[tuple[str, Row]], columns: Columns, options: ReadOptions
) -> tuple[list[SourcePair], int]:
    """Return a pair for each row, and how many rows ask a question without an answer or are left out as null.

    Args:
        path: the file, for ids and sentences.
        rows: place, such as "line 3", and the values by column.
        columns: from `find_columns`.
        options: names, licence and what to do with nulls.

    Raises:
        DataError: a null or something that is no text (row and field are named), or an id that comes twice.
    """
    pairs: list[SourcePair] = []
    nulls: list[str] = []
    unanswered, places = 0, dict[str, str]()
    for number, (place, row) in enumerate(rows, 1):
        reader = _RowReader(path, place, row)
        pair = reader.pair(columns, options, default_id=f"{path.name}#{number}")
        nulls += reader.nulls
        if pair is None:
            unanswered += 1
            continue
        if pair.id in places:
            raise DataError(
                f"{path} has the id {pair.id!r} twice: {places[pair.id]} and {place}.",
                hint='Name another column as columns.id, or set columns.id = "" to number the rows.',
            )
        places[pair.id] = place
        pairs.append(SourcePair(pair, path.name, place))
    if nulls and not options.drop_null:
        more = f" (and {len(nulls) - _SHOWN_ROWS} more)" if len(nulls) > _SHOWN_ROWS else ""
        raise DataError(
            f"{path} has nulls: {'; '.join(nulls[:_SHOWN_ROWS])}{more}.",
            hint="Fill them in or take these rows out; or let `prepare` drop rows with nulls.",
        )
    return pairs, unanswered


class _RowReader:
    """The values of one row, each checked to be text."""

    def __init__(self, path: Path, place: str, row: Row) -> None:
        self._path, self._place, self._row = path, place, row
        self.nulls: list[str] = []

    def pair(self, columns: Columns, options: ReadOptions, *, default_id: str) -> QAPair | None:
        """Return the row's pair; None for a null or a conversation without an answer."""
        found = self._conversation(columns) if self._is_chat(columns) else self._single(columns)
        if found is None:
            return None
        return QAPair(
            id=self._optional(columns.id) or default_id,
            group=self._optional(columns.group).strip(),
            source=self._optional(columns.source) or options.name or self._path.name,
            license=self._optional(columns.license) or options.license,
            **found._asdict(),
        )

    def _is_chat(self, columns: Columns) -> bool:
        return columns.messages is not None or isinstance(self._value(columns.question), list)

    def _single(self, columns: Columns) -> Conversation | None:
        answer, system = self._text("answer", columns.answer), self._optional(columns.system) or None
        if columns.system == "instruction" and system and not self._optional(columns.question).strip():
            question: str | None = system  # Alpaca's way: without an input the instruction asks
            system = None
        else:
            question = self._text("question", columns.question)
        if question is None or answer is None:
            return None
        return Conversation(question, answer, system, self._turns())

    def _turns(self) -> tuple[tuple[str, str], ...]:
        """Return the earlier turns of our own records; other layouts have them in messages."""
        turns = self._row.get("turns")
        if not isinstance(turns, list) or not all(
            isinstance(turn, list) and len(turn) == 2 for turn in turns
        ):
            return ()
        return tuple((str(asked), str(answered)) for asked, answered in turns)

    def _conversation(self, columns: Columns) -> Conversation | None:
        messages = self._value(columns.messages or columns.question)
        if columns.messages is None:  # prompt and completion as lists of messages
            messages = [*_as_list(messages), *_as_list(self._value(columns.answer))]
        if messages is None:
            self.nulls.append(f"{self._place}, field messages")
            return None
        try:
            return conversation(messages, system=self._optional(columns.system) or None)
        except ValueError as error:
            raise DataError(
                f"{self._path} {self._place}: {error}.",
                hint="Messages are a list of {role, content}: perhaps a system message, then user and "
                "assistant in turn.",
            ) from error

    def _text(self, field: str, column: str | None) -> str | None:
        value = self._value(column)
        if value is None:
            self.nulls.append(f"{self._place}, field {column!r} ({field})")
            return None
        if not isinstance(value, str):
            raise DataError(
                f"{self._path} {self._place}: the {field} (column {column!r}) is a {type(value).__name__}, "
                "not text.",
                hint=f"Correct the row, or name another column as columns.{field}.",
            )
        return value

    def _optional(self, column: str | None) -> str:
        value = self._value(column)
        return "" if value is None else str(value)

    def _value(self, column: str | None) -> object:
        return None if column is None else self._row.get(column)


def _as_list(value: object) -> list[object]:
    """Return messages as they are, and a plain completion as one."""
    if isinstance(value, list):
        return value
    return [] if value is None else [{"role": "assistant", "content": value}]
