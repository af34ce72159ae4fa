"""What looks like a person's data in questions and answers: counted, placed, never shown.

Strong signs (a record number, a date of birth) and contact data of persons refuse a data set unless the
engineer allows it. A hospital's or a hotline's number is institutional: counted only.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from edgemed_training.cleaning_text import EMAIL, PHONE, URL
from edgemed_training.errors import DataError
from edgemed_training.records import PatientDataFacts, SourcePair

_DATE = r"(?:[0-9]{1,2}[/.-][0-9]{1,2}[/.-](?:19|20)?[0-9]{2}|(?:19|20)[0-9]{2}-[0-9]{2}-[0-9]{2})"
_WRITTEN_DATE = (
    r"(?:[0-9]{1,4}[./ -][0-9A-Za-z]{1,9}[./ -][0-9]{2,4}|[A-Z][a-z]{2,8}\.? [0-9]{1,2},? [0-9]{4})"
)
_TITLED = r"\b(?:Mr|Mrs|Ms|Miss|Mme)\.? [A-Z][a-z]{2,}"
_NUMBER_WORD = r"(?:record|file|card) (?:number|no\b\.?|#)"
_IDENTITY = r"NIN|NHS|Aadhaar|CPF|CURP|NHIS|passport|national id(?:entity)?|identity card|ID card"
_PERSONAL: dict[str, re.Pattern[str]] = {
    "record number": re.compile(
        rf"\b(?:MRN|UHID|(?:medical|hospital|patient) {_NUMBER_WORD}|patient (?:id|number|no\.))"
        r"\s*(?:is|[:#=])?\s*[A-Z]{0,3}[-/]?[0-9]{3,}",
        re.IGNORECASE,
    ),
    "date of birth": re.compile(
        rf"\b(?:DOB|D\.O\.B\.?|date of birth|born on)\b(?:\s|[:=]|\bis\b)*(?:the )?{_WRITTEN_DATE}",
        re.IGNORECASE,
    ),
    "social security number": re.compile(
        r"(?<![\w-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![\w-])"
    ),
    "national identity number": re.compile(
        rf"\b(?:{_IDENTITY})\b\s*(?:number|no\b\.?|card|#)*\s*(?:is|[:#=])?\s*"
        r"[A-Z]{0,4}[0-9][0-9 .-]{5,}",
        re.IGNORECASE,
    ),
    "name of a person": re.compile(
        r"\b(?:[Pp]atient(?:'s)? name|[Nn]ame of (?:the )?patient|[Nn]ext of kin)\s*(?:is|[:=])\s*[^\W\d_]"
        rf"|{_TITLED}(?: [A-Z][a-z]+)*,? (?:(?:is|was|a|an|the) )*"
        r"(?:[0-9]{1,3}[- ]?(?:year|yr|y/?o)|aged|present(?:ed|s))"
    ),
    "name beside a date": re.compile(
        rf"{_TITLED}[^.\n]{{0,60}}?\b{_DATE}\b|\b{_DATE}\b[^.\n]{{0,60}}?{_TITLED}"
    ),
}
_INSTITUTION = re.compile(
    r"toll[- ]free|hot ?line|help ?line|\b(?:call|contact|phone|fax|tty|tel|visit|order|write to|e-?mail)\b"
    r"|centers?\b|centre\b|institut|association|foundation|society|organi[sz]ation|department|clinic\b"
    r"|hospital|office|service|agency|registry|library|network|program|support|\b(?:nih|cdc|who|fda)\b",
    re.IGNORECASE,
)
_OWN = re.compile(
    r"\b(?:my|his|her|patient'?s?|their|mother'?s?|father'?s?|home|cell|mobile|reach me|call me)\b",
    re.IGNORECASE,
)
_TOLL_FREE = re.compile(r"^(?:\+?1[ .-]?)?\(?8(?:00|33|44|55|66|77|88)\b")
_FREE_MAIL = re.compile(
    r"@(?:gmail|yahoo|hotmail|outlook|live|aol|icloud|protonmail|mail|gmx|web)\.", re.IGNORECASE
)
_CONTEXT_CHARACTERS = 80
_SHOWN_PLACES = 8


class PatientData(NamedTuple):
    """Which pairs hold what; no value is kept."""

    personal: dict[str, list[str]]
    """Pattern → places of the pairs, e.g. "visits.csv line 12"."""
    institutional: dict[str, int]
    """Pattern → number of pairs."""

    def facts(self, *, allowed: bool) -> PatientDataFacts:
        """Return the numbers for the dataset card."""
        return PatientDataFacts(
            personal={name: len(places) for name, places in self.personal.items()},
            institutional=dict(self.institutional),
            allowed=allowed,
        )


def find_patient_data(pairs: Iterable[SourcePair]) -> PatientData:
    """Look through question, answer, system prompt and earlier turns of each pair."""
    personal: dict[str, list[str]] = defaultdict(list)
    institutional: Counter[str] = Counter()
    for entry in pairs:
        text = "\n".join((entry.pair.system or "", entry.pair.all_questions(), entry.pair.all_answers()))
        found, of_institutions = _kinds(text)
        for kind in sorted(found):
            personal[kind].append(entry.where())
        institutional.update(of_institutions)
    return PatientData(dict(personal), dict(institutional))


def refuse_patient_data(found: PatientData) -> None:
    """Refuse a data set that seems to hold data of persons.

    Raises:
        DataError: with the places of each kind, and none of the values.
    """
    if not found.personal:
        return
    kinds = "; ".join(f"{name} in {_places(places)}" for name, places in sorted(found.personal.items()))
    raise DataError(
        f"The data seem to hold what identifies a person: {kinds}.",
        hint="A model repeats what it was trained on. Take these out, or allow them (--allow-pii) if they "
        "are invented or belong to no patient.",
    )


def _places(places: Sequence[str]) -> str:
    more = f" and {len(places) - _SHOWN_PLACES} more" if len(places) > _SHOWN_PLACES else ""
    return ", ".join(places[:_SHOWN_PLACES]) + more


def _kinds(text: str) -> tuple[set[str], set[str]]:
    personal = {kind for kind, pattern in _PERSONAL.items() if pattern.search(text)}
    institutional = {"link"} if URL.search(text) else set()
    for kind, pattern in (("telephone number", PHONE), ("e-mail address", EMAIL)):
        for found in pattern.finditer(text):
            (institutional if _is_institutional(text, found) else personal).add(kind)
    return personal, institutional


def _is_institutional(text: str, found: re.Match[str]) -> bool:
    if _TOLL_FREE.match(found[0]):
        return True
    before = text[max(0, found.start() - _CONTEXT_CHARACTERS) : found.start()]
    if _FREE_MAIL.search(found[0]) or _OWN.search(before):
        return False
    return bool(_INSTITUTION.search(before) or ("@" in found[0] and _INSTITUTION.search(found[0])))
