"""Which option a written answer chose. What cannot be told stays unparsed and is counted, never dropped."""

import re
from collections.abc import Sequence

from edgemed.metrics import normalise
from edgemed_benchmarks.item_messages import LETTERS

_MARKS = "*_`\"'“”‘’ \t\n"


def written_choice(text: str, options: Sequence[str]) -> int | None:
    """Return the place of the chosen option, or None if the answer names none, or more than one.

    The letter counts at the beginning ("B", "B.", "(b) …"), after words such as "answer is", or alone in
    brackets. A lone "A" that begins a sentence ("A doctor should …") is no choice. Failing that, the words of
    exactly one option count.

    Args:
        text: what the model wrote.
        options: in the order in which they were shown.
    """
    letters = LETTERS[: len(options)]
    plain = text.strip(_MARKS)
    if re.match(rf"[(\[]?[{letters}][)\]]?,? (?:or|and) [(\[]?[{letters}]\b", plain):
        return None
    for pattern in _patterns(letters):
        found = {match.group(1).upper() for match in pattern.finditer(plain)}
        if len(found) == 1:
            return letters.index(found.pop())
        if found:
            return None
    return _by_words(plain, options)


def _patterns(letters: str) -> tuple[re.Pattern[str], ...]:
    one = f"([{letters}{letters.lower()}])"
    # "Answer: A doctor …" chose nothing.
    word_a = r"A(?= (?!because|since|as\b|and\b|but\b)[a-z])"
    return (
        re.compile(rf"\A[(\[]?{one}(?:[)\].:,]|\Z|\s*\n|\s*[-–]\s)"),
        re.compile(
            r"\b(?i:answer|option|choice|choose)(?i: is| would be|:)*\s*:?\s*"
            rf"[*(\[]*(?!{word_a})([{letters}])\b"
        ),
        re.compile(rf"[(\[]([{letters}])[)\]]"),
        re.compile(rf"(?m)^\s*([{letters}])[).:]"),
    )


def _by_words(text: str, options: Sequence[str]) -> int | None:
    answer = f" {normalise(text)} "
    held = [place for place, option in enumerate(options) if _holds(answer, normalise(option))]
    # "Vitamin B12" holds "Vitamin B1": the longer option is meant.
    longest = [
        place
        for place in held
        if not any(
            place != other and normalise(options[place]) in normalise(options[other]) for other in held
        )
    ]
    return longest[0] if len(longest) == 1 else None


def _holds(answer: str, option: str) -> bool:
    return bool(option) and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", answer) is not None
