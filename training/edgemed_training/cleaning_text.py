"""The text side of cleaning: what one rule changes in one text. The rules themselves are in `cleaning`."""

import html
import re
import unicodedata
from collections.abc import Callable

# What a terminal obeys or nobody sees; line feed and tab stay.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufffe\uffff]"
)
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_TAG = re.compile(
    r"</?(?:a|b|br|div|em|h[1-6]|hr|i|img|li|ol|p|span|strong|su[bp]|table|t[dhr]|tbody|u|ul)"
    r"(?:\s[^<>]{0,500})?/?>",
    re.IGNORECASE,
)
_WIKI_MARKUP = re.compile(
    r"\{\{[^{}\n]{0,300}\}\}|\bTemplate:[\w-]+(?: Sources)?|\[\[(?:File|Image):[^\]\n]{0,300}\]\]"
)
_LONGEST_SENTENCE_CHARACTERS = 300
"""What is longer has lost its full stops, and only the address itself is taken out of it."""
_SENTENCE = re.compile(r"(?<=[.!?])[ \t]+(?=[\"'(\[]?[A-ZÀ-ÞΑ-ΩА-Я0-9])")

PHONE = re.compile(
    r"(?<![\w.-])(?:\+?[0-9]{1,3}[ .-]?)?(?:\([0-9]{3}\)[ .–-]?|[0-9]{3}[.–-]{1,2})"
    r"[0-9]{3}[ .–-][0-9]{4}(?![\w-])"
    r"|(?<![\w.-])1-8[0-9]{2}-[0-9A-Z]+(?:-[0-9A-Z]+)*"
    r"|(?<![\w.])\+[1-9][0-9]{0,2}(?:[ .-]?\(?[0-9]{2,4}\)?){2,5}(?![\w-])"
)
"""North American and international telephone numbers, also spelt ones such as 1-800-4-CANCER."""
URL = re.compile(
    r"https?://|\bwww\.\w|\b[a-z0-9-]{2,63}\.(?:gov|org|edu|com|net)\b(?:/|(?=[\s.,;)]|$))", re.IGNORECASE
)
_WHOLE_URL = re.compile(
    r"\(?(?:https?://|\bwww\.)[^\s<>]+|\b[a-z0-9-]{2,63}\.(?:gov|org|edu|com|net)(?:/\S*|\b)", re.IGNORECASE
)
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{0,63}\w")

_BOILERPLATE = tuple(
    re.compile(pattern)
    for pattern in (
        # GARD's words around each table of symptoms (2,243 answers of MedQuAD)
        r"^The Human Phenotype Ontology provides the following list",
        r"^If the information is available, the table below includes how often",
        r"^You can use the MedlinePlus Medical Dictionary to look up",
        r"^Much of this information comes from Orphanet",
        r"^The frequency of a sign or symptom is usually listed as a rough estimate",
        r"^The frequency may also be listed as a fraction\.",
        r"^The first number of the fraction is how many people had the symptom",
        r"^For example, a frequency of 25/25 means",
        r"^Because these frequencies are based on a specific study",
        r"^Sometimes, no information on frequency is available\.",
        r"^In these cases, the sign or symptom may be rare or common\.",
        # The National Cancer Institute's pointers into its own pages
        r"^See the Treatment Options section that follows",
        r"^These have been retrieved from NCI's listing",
        r"^(?:General i|I)nformation about clinical trials is available from the NCI",
        r"^For more specific results, refine the search by using other search features",
        r"^Check the list of NCI-supported cancer clinical trials",
        r"^This summary section (?:describes|refers to)",
        r"^It may not mention every new treatment being studied\.",
        # NIHSeniorHealth's videos
        r"\b[Ww]atch the video\b",
        r"^To (?:en|re)large the video|^To reduce the video",
        r"^(?:Please )?[Cc]lick (?:here|on)\b",
    )
)
_PASSAGES = re.compile(
    # The sources that MedlinePlus names last
    r"\s+(?:NIH: (?:National|Eunice|Office|Clinical)[^.:!?\n]*|Centers for Disease Control and Prevention)$"
    r"|\((?:Watch the video|To (?:en|re)large the video)[^()]*(?:\([^()]*\)[^()]*)*\)"
    # GARD's table ends with it, without a full stop before
    r"|The Human Phenotype Ontology \(HPO\) has collected information on how often [^.]*\."
    r"|^Key Points\s+",
    re.MULTILINE,
)
"""Boilerplate that is no sentence of its own."""


def clean_characters(text: str) -> str:
    """Return the text in NFC, with line feeds alone as line ends and without control characters."""
    return unicodedata.normalize("NFC", _CONTROL.sub("", _LINE_ENDS.sub("\n", text)))


def clean_markup(text: str) -> str:
    """Return the text without HTML tags and wiki templates, and with its entities as characters."""
    text = _WIKI_MARKUP.sub("", text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    # Twice: &amp;lt; is common. A lone & or a < of a comparison stays as it is.
    return html.unescape(html.unescape(text)) if "&" in text else text


def clean_spaces(text: str) -> str:
    """Return the text without indentation, runs of spaces and more than one empty line in a row."""
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip()


def clean_question(text: str) -> str:
    """Return a question as people ask it: "What is (are) Malaria ?" becomes "What is Malaria?"."""
    text = re.sub(r"\b([Ii]s|[Dd]oes) \((?:are|do)\)", r"\1", text)
    return re.sub(r"\s*\?(?:\s*\?)*", "?", text)


def without_boilerplate(text: str) -> str:
    """Return the text without sentences that only lead through the web page it was taken from."""
    return _without_sentences(_PASSAGES.sub("", text), _without_lead)


def without_contacts(text: str) -> str:
    """Return the text without sentences that hold a telephone number, link or e-mail address."""
    return _without_sentences(text, _without_contact)


def _without_lead(sentence: str) -> str:
    return "" if any(pattern.search(sentence) for pattern in _BOILERPLATE) else sentence


def _without_contact(sentence: str) -> str:
    if not (PHONE.search(sentence) or URL.search(sentence) or EMAIL.search(sentence)):
        return sentence
    if len(sentence) <= _LONGEST_SENTENCE_CHARACTERS:
        return ""
    for pattern in (_WHOLE_URL, EMAIL, PHONE):
        sentence = pattern.sub("", sentence)
    return " ".join(sentence.split())


def _without_sentences(text: str, change: Callable[[str], str]) -> str:
    """Return the text with each sentence as `change` leaves it; the same object when nothing changes."""
    lines = []
    for line in text.split("\n"):
        sentences = _SENTENCE.split(line)
        kept = [changed for changed in map(change, sentences) if changed]
        if kept == sentences or not line.strip():
            lines.append(line)
        elif kept:
            lines.append(" ".join(kept))
    return "\n".join(lines).strip()
