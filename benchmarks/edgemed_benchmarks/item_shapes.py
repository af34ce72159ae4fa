"""The shapes in which question sets are published: from one row of such a file to an `Item`.

Each function takes a row as a dict and returns an item whose id is only what the row says ("" if nothing), or
raises `RowFault` with the end of the sentence "line 7 …".
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from edgemed.records import Item
from edgemed_benchmarks.item_messages import LETTERS

Row = Mapping[str, Any]


class RowFault(Exception):
    """A row cannot be used; the text is the end of the sentence that names it."""


Reader = Callable[[Row], Item]


class Published(NamedTuple):
    """A set that others published."""

    source: str
    license: str
    readers: tuple[tuple[frozenset[str], Reader], ...]
    """How its rows are read, by the columns that they have, in lower case."""
    told_by: frozenset[str] | None = None
    """Columns that no other set has; None: its name must be given."""


def lettered(row: Row) -> Item:
    """Read MedQA, and MedMCQA and MMLU as MIRAGE has them: options by letter, the answer's letter."""
    options = row["options"]
    if isinstance(options, Mapping):
        letters = sorted(options)
        texts = [_text(options[letter], f"option {letter}") for letter in letters]
    elif isinstance(options, list):
        texts = [_text(option, "an option") for option in options]
        letters = list(LETTERS[: len(texts)])
    else:
        raise RowFault("has no list of options")
    answer = next((row[key] for key in ("answer_idx", "answer", "correct", "label") if key in row), None)
    return _choice(row, texts, _index(answer, letters, texts))


def medmcqa(row: Row) -> Item:
    """Read MedMCQA as its authors publish it: opa to opd, and cop (see `count_from_one`)."""
    texts = [_text(row[key], key) for key in ("opa", "opb", "opc", "opd")]
    answer = row["cop"]
    if not isinstance(answer, int | str) or not str(answer).lstrip("-").isdigit():
        raise RowFault("has no number as cop")
    return _choice(row, texts, int(answer))


def mmlu(row: Row) -> Item:
    """Read MMLU as Hugging Face has it: choices, and the answer's index."""
    choices = row["choices"]
    if not isinstance(choices, list):
        raise RowFault("has no list of choices")
    texts = [_text(choice, "a choice") for choice in choices]
    return _choice(row, texts, _index(row["answer"], list(LETTERS[: len(texts)]), texts))


def pubmedqa(row: Row) -> Item:
    """Read PubMedQA: a question, passages of an abstract, and yes, no or maybe."""
    context = row.get("contexts", row.get("context"))
    passages = context.get("contexts") if isinstance(context, Mapping) else context
    if not isinstance(passages, list):
        raise RowFault("has no list of contexts")
    answer = str(row.get("final_decision", row.get("label", ""))).strip().lower()
    texts = ["yes", "no", "maybe"]
    if answer not in texts:
        raise RowFault("has no final decision yes, no or maybe")
    item = _choice(row, texts, texts.index(answer))
    return _with(item, passages=[_text(passage, "a context") for passage in passages])


def kqa(row: Row) -> Item:
    """Read K-QA: a patient's question with a free answer or statements that it must have; or neither."""
    answer = row.get("free_form_answer") or " ".join(map(str, row.get("must_have") or []))
    references = [answer.strip()] if isinstance(answer, str) and answer.strip() else []
    return Item(id="", kind="generation", question=_question(row), references=references)


def question_and_answer(row: Row) -> Item:
    """Read a question with one or more right answers, under the column names in common use."""
    answers = next((row[key] for key in ANSWER_COLUMNS if row.get(key)), None)
    listed = answers if isinstance(answers, list) else [answers]
    # Medical Meadow has the question as the input of an instruction that is the same for all.
    asks_in_input = row.get("instruction") and _is_filled(row.get("input"))
    return Item(
        id=_id(row),
        kind="generation",
        question=_text(row["input"], "an input") if asks_in_input else _question(row),
        references=[_text(answer, "an answer") for answer in listed],
    )


def option_columns(row: Row) -> Item:
    """Read a question with one column for each option, and the right one's letter, number or words."""
    columns = [key for key in OPTION_COLUMNS if _is_filled(row.get(key))]
    letters = sorted({key[-1] for key in columns})
    texts = [_text(next(row[key] for key in columns if key[-1] == letter), letter) for letter in letters]
    answer = next((row[key] for key in ("answer", "correct", "answer_idx", "label") if row.get(key)), None)
    return _choice(row, texts, _index(answer, [letter.upper() for letter in letters], texts))


ANSWER_COLUMNS = ("references", "reference", "answer", "output", "response", "completion")
OPTION_COLUMNS = tuple(
    f"{prefix}{letter.lower()}" for letter in LETTERS for prefix in ("option_", "option ", "option", "")
)
_BY_LETTER = (
    (frozenset({"question", "options", "answer_idx"}), lettered),
    (frozenset({"question", "options", "answer"}), lettered),
)
_MEDMCQA_COLUMNS = frozenset({"question", "opa", "opb", "opc", "opd", "cop"})
PUBLISHED = {
    "medqa": Published("jind11/MedQA (Jin and others 2021)", "MIT", _BY_LETTER),
    "medmcqa": Published(
        "medmcqa/medmcqa (Pal and others 2022)",
        "MIT",
        ((_MEDMCQA_COLUMNS, medmcqa), *_BY_LETTER),
        _MEDMCQA_COLUMNS,
    ),
    "mmlu": Published(
        "hendrycks/test (Hendrycks and others 2021)",
        "MIT",
        (
            (frozenset({"question", "choices", "answer"}), mmlu),
            *_BY_LETTER,
            (frozenset({"question", "a", "b", "c", "d", "answer"}), option_columns),
        ),
        frozenset({"question", "choices", "answer", "subject"}),
    ),
    "pubmedqa": Published(
        "pubmedqa/pubmedqa (Jin and others 2019)",
        "MIT",
        (
            (frozenset({"question", "contexts", "final_decision"}), pubmedqa),
            (frozenset({"question", "contexts", "label"}), pubmedqa),
            (frozenset({"question", "context", "final_decision"}), pubmedqa),
        ),
        frozenset({"question", "final_decision"}),
    ),
    "kqa": Published(
        "Itaymanes/K-QA (Manes and others 2024)",
        "MIT",
        (
            (frozenset({"question", "free_form_answer"}), kqa),
            (frozenset({"question", "icd_10_diag"}), kqa),
        ),
        frozenset({"question", "icd_10_diag"}),
    ),
}
"""By the name that `suites import --format` takes."""


def published_reader(name: str, columns: set[str]) -> Reader | None:
    """Return how a row with these columns is read as one of `PUBLISHED`; None if it cannot be."""
    return next((read for needed, read in PUBLISHED[name].readers if needed <= columns), None)


def published_name(columns: set[str]) -> str | None:
    """Return the published set that these columns tell; None if it could be anybody's."""
    return next((name for name, each in PUBLISHED.items() if each.told_by and each.told_by <= columns), None)


def table_reader(columns: set[str]) -> Reader | None:
    """Return how a user's own table (JSON Lines or CSV) is read, by its columns; None if it cannot be."""
    if "question" not in columns and "instruction" not in columns:
        return None
    if "options" in columns:
        return lettered
    if {"a", "b"} <= columns or {"option_a", "option_b"} <= columns or {"option a", "option b"} <= columns:
        return option_columns
    return question_and_answer if columns & set(ANSWER_COLUMNS) else None


def count_from_one(items: list[Item]) -> list[Item]:
    """Return MedMCQA items whose `cop` counted from 1, as its authors have it; Hugging Face has it from 0."""
    return [_with(item, correct=(item.correct or 0) - 1) for item in items]


def _choice(row: Row, options: list[str], correct: int) -> Item:
    # -1: the answer is held back; `fault_of` must not see it as the last option.
    return Item(
        id=_id(row),
        kind="choice",
        question=_question(row),
        options=options,
        correct=correct if correct >= 0 else None,
        tags=[f"topic:{row[key]}" for key in ("subject", "subject_name") if isinstance(row.get(key), str)],
    )


def _index(answer: object, letters: list[str], texts: list[str]) -> int:
    """Return the right option's index: from an index, a letter or the option's words."""
    if isinstance(answer, bool) or not isinstance(answer, int | str):
        raise RowFault("names no right option")
    if isinstance(answer, int):
        return answer
    plain = answer.strip()
    if plain.upper() in letters:
        return letters.index(plain.upper())
    if plain in texts:
        return texts.index(plain)
    raise RowFault(f"names a right option that is not there: {plain[:20]!r}")


def _question(row: Row) -> str:
    return _text(row.get("question") or row.get("instruction"), "a question")


def _id(row: Row) -> str:
    value = next((row[key] for key in ("id", "pubid", "qid") if row.get(key) is not None), "")
    return str(value).strip()


def _text(value: object, what: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowFault(f"has no text as {what}")
    return value.strip()


def _is_filled(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _with(item: Item, **changes: Any) -> Item:
    return msgspec.structs.replace(item, **changes)
