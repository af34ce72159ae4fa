"""Token ids of llama.cpp against those of transformers, on strings that wrong tokenizers fail on.

Four ordinary sentences do not find a wrong pre-tokenizer; these strings do. A few differences are no fault of
the file; each has its own exact rule in `_explanation`, is counted, and never excuses an ordinary sentence.
Called by `gate.py`.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgemed.check_report import CheckResult
from edgemed_convert.check import probe_strings
from edgemed_convert.check.reference_tokenizer import ReferenceTokenizer

Ids = list[int]

OWN_FILES = "transformers departs from the model's own tokenizer files"
SPACE_SIGN = "SentencePiece's own sign for a space stands in the text"
LETTERS = "llama.cpp's rule for this tokenizer knows neither combining marks nor capitals beyond ASCII"
_SPACE_SIGN = "\u2581"
_VOCABULARY_STRINGS = 2000


class Engine(Protocol):
    """llama.cpp's side: `edgemed_convert.llama.process.LlamaProcess`."""

    def tokenize(self, texts: Sequence[str], *, add_special: bool, parse_special: bool) -> list[Ids]:
        """Return the token ids of each text."""


@dataclass
class _Findings:
    """What the comparison of all strings found."""

    numbers: dict[str, float] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    different: int = 0
    compared: int = 0
    explained: Counter[str] = field(default_factory=Counter)


def check_tokens(
    reference: ReferenceTokenizer,
    engine: Engine,
    *,
    file: str,
    random_count: int = probe_strings.RANDOM_STRINGS,
) -> CheckResult:
    """Compare the ids of tricky, random and the vocabulary's own strings, with special tokens and without."""
    random_texts = probe_strings.random_strings(random_count)
    findings = _Findings()
    for name, texts, add_special in (
        ("tricky", probe_strings.TRICKY, False),
        ("tricky_with_special", probe_strings.TRICKY, True),
        ("vocabulary", reference.vocabulary_texts(_VOCABULARY_STRINGS), False),
        ("random", random_texts, False),
        ("random_with_special", random_texts[:1000], True),
    ):
        _compare(reference, engine, name, texts, add_special, findings)
    notes = [f"{count} strings: {why}" for why, count in findings.explained.items()]
    if reference.frame:
        notes.append("compared behind a control token, as in a chat: plain text begins without a space")
    if reference.normal_form:
        notes.append(f"compared in {reference.normal_form}, into which llama.cpp does not bring text")
    return CheckResult(
        name="tokens",
        file=file,
        status="failed" if findings.different else "passed",
        sentence=(
            f"{findings.different} of {findings.compared} strings have other token ids than in transformers."
            if findings.different
            else f"All {findings.compared} strings have the token ids that the model was trained with"
            + (f" ({'; '.join(notes)})." if notes else ".")
        ),
        numbers={**findings.numbers, "explained": sum(findings.explained.values())},
        limit="no string different without one of the named reasons; no ordinary sentence different",
        details=findings.examples[:20],
    )


def _compare(
    reference: ReferenceTokenizer,
    engine: Engine,
    name: str,
    texts: Sequence[str],
    add_special: bool,
    findings: _Findings,
) -> None:
    framed = [reference.frame + text for text in texts]
    expected = reference.encode(framed, add_special=add_special)
    own = reference.encode_by_own_files(framed, add_special=add_special)
    form = reference.normal_form
    given = [unicodedata.normalize(form, text) for text in framed] if form else framed
    found = engine.tokenize(given, add_special=add_special, parse_special=True)
    different = 0
    for index, text in enumerate(texts):
        if found[index] == expected[index]:
            continue
        why = _explanation(text, found[index], own[index], reference)
        if why and text not in probe_strings.ORDINARY:
            findings.explained[why] += 1
            continue
        different += 1
        if different <= 6:
            findings.examples.append(_example(name, text, expected[index], found[index]))
    findings.numbers |= {f"{name}_strings": len(texts), f"{name}_different": different}
    findings.different += different
    findings.compared += len(texts)


def _explanation(text: str, found: Ids, own: Sequence[Ids], reference: ReferenceTokenizer) -> str | None:
    """Return why a difference is not the file's fault; None when it is."""
    if found in own:
        return OWN_FILES
    if reference.is_sentencepiece and _SPACE_SIGN in text:
        return SPACE_SIGN
    # The model's own rule, not the file's claim: another model's file must not be excused.
    if reference.rule_knows_marks and any(_is_mark_or_capital(one) for one in text if not one.isascii()):
        return LETTERS
    return None


def _is_mark_or_capital(character: str) -> bool:
    category = unicodedata.category(character)
    return category.startswith("M") or category in ("Lu", "Lt")


def _example(name: str, text: str, expected: Ids, found: Ids) -> str:
    """Show a difference in one line that any terminal can print."""
    shown = text.encode("unicode_escape").decode("ascii")[:60]
    return f'{name}: "{shown}" is {_listed(found)}, in transformers {_listed(expected)}'


def _listed(ids: Ids) -> str:
    return f"[{' '.join(map(str, ids[:10]))}{' …' if len(ids) > 10 else ''}]"
