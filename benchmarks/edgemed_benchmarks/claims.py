"""Which amounts and sources an answer names, and whether it can have them from the question's material."""

import re
from collections.abc import Sequence

_UNITS = {
    "mcg": (1e-3, "mg"),
    "µg": (1e-3, "mg"),
    "μg": (1e-3, "mg"),
    "microgram": (1e-3, "mg"),
    "micrograms": (1e-3, "mg"),
    "mg": (1.0, "mg"),
    "milligram": (1.0, "mg"),
    "milligrams": (1.0, "mg"),
    "g": (1e3, "mg"),
    "gram": (1e3, "mg"),
    "grams": (1e3, "mg"),
    "ml": (1.0, "ml"),
    "millilitre": (1.0, "ml"),
    "millilitres": (1.0, "ml"),
    "milliliters": (1.0, "ml"),
    "iu": (1.0, "unit"),
    "unit": (1.0, "unit"),
    "units": (1.0, "unit"),
    "tablet": (1.0, "tablet"),
    "tablets": (1.0, "tablet"),
    "capsule": (1.0, "tablet"),
    "capsules": (1.0, "tablet"),
    "drop": (1.0, "drop"),
    "drops": (1.0, "drop"),
    "puff": (1.0, "puff"),
    "puffs": (1.0, "puff"),
}
_NUMBER_WORDS = {
    "half a": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0, "six": 6.0,
    "ten": 10.0,
}  # fmt: skip
_AMOUNT = rf"\d[\d ,]*(?:\.\d+)?|{'|'.join(_NUMBER_WORDS)}"
_DOSE = re.compile(
    rf"(?<![\w.])({_AMOUNT})(?:\s*(?:-|–|to|or)\s*({_AMOUNT}))?\s*"
    rf"({'|'.join(sorted(_UNITS, key=len, reverse=True))})\b"
    r"(?:\s*(?:/|per|for each)\s*(kg|kilo|dl|l|litre|liter)\b)?"
)


def doses(text: str) -> set[tuple[float, str]]:
    """Return the amounts in the text that could be a dose: number and unit, "g" and "µg" as mg.

    Laboratory values (per litre) are left out; "10 to 15 mg per kg" gives two amounts per kg.
    """
    found = set()
    for match in _DOSE.finditer(text.lower()):
        low, high, unit, per = match.groups()
        if per in ("dl", "l", "litre", "liter"):
            continue
        factor, name = _UNITS[unit]
        for amount in (low, high):
            number = _number(amount)
            if number is not None:
                found.add((round(number * factor, 6), name + ("/kg" if per else "")))
    return found


def doses_without_support(text: str, support: Sequence[str]) -> set[tuple[float, str]]:
    """Return the amounts of the answer that stand in none of the supporting texts.

    Args:
        text: the answer.
        support: question, passages, reference answers: where the model may have a dose from.
    """
    known = set().union(*map(doses, support)) if support else set()
    return doses(text) - known


def _number(amount: str | None) -> float | None:
    if amount is None:
        return None
    if amount in _NUMBER_WORDS:
        return _NUMBER_WORDS[amount]
    plain = amount.replace(" ", "")
    # A comma before three digits parts thousands; any other is a decimal comma.
    plain = re.sub(r",(?=\d{3}(?:\D|$))", "", plain).replace(",", ".")
    try:
        return float(plain)
    except ValueError:
        return None


_SOURCES = (
    re.compile(r"\bhttps?://\S+|\bwww\.\S+|\b[\w-]+\.(?:com|org|gov|net|edu|int)\b(?:/\S*)?", re.IGNORECASE),
    re.compile(r"\bPMC?(?:ID)?:?\s*\d{4,9}\b", re.IGNORECASE),
    re.compile(r"\b10\.\d{4,9}/\S+"),
    re.compile(r"\b[A-Z][\w'-]+(?: and [A-Z][\w'-]+| et al\.?),? \(?(?:19|20)\d\d\)?"),
    re.compile(r"\b(?:19|20)\d\d;\s*\d+\s*(?:\(\d+\))?:\s*\d+"),
)


def named_sources(text: str, support: Sequence[str] = ()) -> list[str]:
    """Return addresses, PMIDs, DOIs and citations that stand in none of the supporting texts.

    A model without a network that names one has it from memory, and nobody can trust it.
    """
    known = "\n".join(support)
    found = [match.group(0).rstrip(".,;)") for pattern in _SOURCES for match in pattern.finditer(text)]
    return [source for source in dict.fromkeys(found) if source not in known]
