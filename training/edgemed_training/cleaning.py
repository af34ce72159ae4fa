"""The cleaning rules: each has a name, is counted, and can be left out.

A rule looks at one pair and gives it back, changed or not, or says why it must go. `duplicates` is the one
rule that looks at all of them.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from edgemed.metrics import words
from edgemed_training import cleaning_text
from edgemed_training.duplicates import exact_key
from edgemed_training.errors import DataError
from edgemed_training.records import Dropped, QAPair, RuleCount, SourcePair

MAX_EMPTY_SHARE = 0.05
"""More empty answers than this mean that the file is damaged or was read wrongly."""
MIN_ANSWER_WORDS = 5
MIN_ANSWER_CHARACTERS = 25
"""An answer must reach one of both: some scripts count each letter as a word, some write long words."""

_ARTEFACT = re.compile(
    r"\b(?:re-?phras|paraphras|proper english|grammatically correct|as an ai\b|language model)"
    r"|\bi(?:'m| am) sorry\b|\bi apologi[sz]e\b"
    r"|\b(?:original|given|current|exact|entire|full|complete) (?:text|sentence|statement|phras(?:e|ing))\b"
    r"|^(?:could|can|would) you (?:please )?(?:provide|give|share|clarify|specify)\b(?: me| us)?(?: with)?"
    r" (?:the |more |some |additional |further |any |a )*"
    r"(?:context|text|sentence|statement|target audience)\b",
    re.IGNORECASE,
)
_LINK_LIST = re.compile(r"^(?:These resources address|This resource addresses)\b")

Outcome = QAPair | str
"""The pair that stays, or why it goes."""


class Rule(NamedTuple):
    """One cleaning rule."""

    name: str
    meaning: str
    apply: Callable[[QAPair], Outcome]


class Cleaned(NamedTuple):
    """What the rules left."""

    pairs: list[SourcePair]
    counts: list[RuleCount]
    dropped: list[Dropped]


def _on_texts(change: Callable[[str], str]) -> Callable[[QAPair], Outcome]:
    """Apply a change to question, answer and all earlier turns."""

    def apply(pair: QAPair) -> Outcome:
        return _with(pair, question=change(pair.question), answer=change(pair.answer), change=change)

    return apply


def _on_answers(change: Callable[[str], str]) -> Callable[[QAPair], Outcome]:
    def apply(pair: QAPair) -> Outcome:
        turns = tuple((question, change(answer)) for question, answer in pair.turns)
        return _if_changed(pair, msgspec.structs.replace(pair, answer=change(pair.answer), turns=turns))

    return apply


def _with(pair: QAPair, *, question: str, answer: str, change: Callable[[str], str]) -> QAPair:
    turns = tuple((change(asked), change(answered)) for asked, answered in pair.turns)
    system = change(pair.system) if pair.system else pair.system
    return _if_changed(
        pair, msgspec.structs.replace(pair, question=question, answer=answer, turns=turns, system=system)
    )


def _if_changed(before: QAPair, after: QAPair) -> QAPair:
    return before if after == before else after


def _question_form(pair: QAPair) -> Outcome:
    return _if_changed(
        pair, msgspec.structs.replace(pair, question=cleaning_text.clean_question(pair.question))
    )


def _empty(pair: QAPair) -> Outcome:
    if not pair.answer.strip():
        return "the answer is empty"
    return pair if pair.question.strip() else "the question is empty"


def _artefact(pair: QAPair) -> Outcome:
    return "the question speaks of rephrasing, not of health" if _ARTEFACT.search(pair.question) else pair


def _link_list(pair: QAPair) -> Outcome:
    return "the answer is a list of links" if _LINK_LIST.match(pair.answer.lstrip()) else pair


def _short(pair: QAPair) -> Outcome:
    if len(pair.answer.strip()) >= MIN_ANSWER_CHARACTERS:
        return pair
    count = len(words(pair.answer))
    return f"the answer has {count} words" if count < MIN_ANSWER_WORDS else pair


def _echo(pair: QAPair) -> Outcome:
    if len(pair.answer) > 2 * len(pair.question):
        return pair
    return "the answer repeats the question" if words(pair.answer) == words(pair.question) else pair


RULES: tuple[Rule, ...] = (
    Rule("empty", "pairs without a question or an answer", _empty),
    Rule(
        "characters", "line ends, control characters, Unicode NFC", _on_texts(cleaning_text.clean_characters)
    ),
    Rule("markup", "HTML tags and entities, wiki templates", _on_texts(cleaning_text.clean_markup)),
    Rule("spaces", "indentation, runs of spaces and empty lines", _on_texts(cleaning_text.clean_spaces)),
    Rule("question-form", 'MedQuAD\'s "is (are)" and " ?"', _question_form),
    Rule("artefacts", "questions in which a model asks what to rephrase", _artefact),
    Rule("link-lists", "answers that only list links", _link_list),
    Rule(
        "boilerplate",
        "sentences that lead through a web page",
        _on_answers(cleaning_text.without_boilerplate),
    ),
    Rule(
        "contacts",
        "sentences with a telephone number, link or e-mail address",
        _on_answers(cleaning_text.without_contacts),
    ),
    Rule("short", f"answers under {MIN_ANSWER_WORDS} words and {MIN_ANSWER_CHARACTERS} characters", _short),
    Rule("echoes", "answers that only repeat the question", _echo),
)
DUPLICATES = "duplicates"
_DUPLICATES_MEANING = "pairs whose question and answer both came before"
RULE_NAMES = (*(rule.name for rule in RULES), DUPLICATES)


def clean(pairs: Sequence[SourcePair], *, skip: Collection[str] = ()) -> Cleaned:
    """Apply all rules in order.

    Args:
        pairs: as the readers gave them.
        skip: names of rules to leave out; they are counted as not enabled.

    Raises:
        DataError: an unknown rule's name, too many empty answers, or nothing left.
    """
    _check_names(skip)
    left, counts, dropped = list(pairs), list[RuleCount](), list[Dropped]()
    for rule in RULES:
        enabled = rule.name not in skip
        after = _apply(rule, left) if enabled else _Applied(left, [], 0)
        counts.append(_count(rule.name, rule.meaning, left, after, enabled=enabled))
        if rule.name == "empty" and len(after.dropped) > MAX_EMPTY_SHARE * len(left):
            raise _too_many_empty(after.dropped, len(left))
        left, dropped = after.pairs, dropped + after.dropped
    enabled = DUPLICATES not in skip
    after = _without_duplicates(left) if enabled else _Applied(left, [], 0)
    counts.append(_count(DUPLICATES, _DUPLICATES_MEANING, left, after, enabled=enabled))
    dropped += after.dropped
    if not after.pairs:
        raise _nothing_left(len(pairs), counts)
    return Cleaned(after.pairs, counts, dropped)


class _Applied(NamedTuple):
    pairs: list[SourcePair]
    dropped: list[Dropped]
    changed: int


def _apply(rule: Rule, pairs: Iterable[SourcePair]) -> _Applied:
    kept, dropped, changed = list[SourcePair](), list[Dropped](), 0
    for entry in pairs:
        outcome = rule.apply(entry.pair)
        if isinstance(outcome, str):
            dropped.append(Dropped(entry.pair.id, entry.where(), rule.name, outcome))
        elif outcome is entry.pair:
            kept.append(entry)
        else:
            changed += 1
            kept.append(msgspec.structs.replace(entry, pair=outcome))
    return _Applied(kept, dropped, changed)


def _without_duplicates(pairs: Iterable[SourcePair]) -> _Applied:
    kept, dropped = list[SourcePair](), list[Dropped]()
    first: dict[tuple[str, str], SourcePair] = {}
    for entry in pairs:
        earlier = first.setdefault(exact_key(entry.pair), entry)
        if earlier is entry:
            kept.append(entry)
        else:
            reason = f"the same as {earlier.pair.id} ({earlier.where()})"
            dropped.append(Dropped(entry.pair.id, entry.where(), DUPLICATES, reason))
    return _Applied(kept, dropped, 0)


def _count(name: str, meaning: str, before: list[SourcePair], after: _Applied, *, enabled: bool) -> RuleCount:
    return RuleCount(
        rule=name,
        meaning=meaning,
        enabled=enabled,
        before=len(before),
        changed=after.changed,
        dropped=len(after.dropped),
    )


def _check_names(skip: Collection[str]) -> None:
    for name in skip:
        if name not in RULE_NAMES:
            near = difflib.get_close_matches(name, RULE_NAMES, n=1)
            raise DataError(
                f"There is no cleaning rule {name!r}." + (f" Did you mean {near[0]}?" if near else ""),
                hint=f"The rules are {', '.join(RULE_NAMES)}.",
            )


def _too_many_empty(dropped: Sequence[Dropped], total: int) -> DataError:
    places = "; ".join(entry.where for entry in dropped[:5])
    return DataError(
        f"{len(dropped)} of {total} pairs have no question or no answer, for example {places}.",
        hint="Look whether the right columns are read. Take these rows out if the file is meant so.",
    )


def _nothing_left(total: int, counts: Sequence[RuleCount]) -> DataError:
    reasons = ", ".join(f"{count.rule} {count.dropped}" for count in counts if count.dropped)
    return DataError(
        f"No usable examples (0 of {total}): {reasons or 'there were none'}.",
        hint="Leave a cleaning rule out if it goes too far, or name another source.",
    )
