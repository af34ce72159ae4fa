"""Answer quality in pure Python: exact match, token F1, BLEU, ROUGE, repetition, bootstrap intervals.

One core for training and benchmarks. SQuAD's normalisation is no use in medicine: it takes away what tells
"Vitamin A" from "Vitamin", 1.5 mg from 15 mg and < from >. Here such signs stay, in every script.

Each function that takes two texts takes the prediction first and the reference second.
"""

import functools
import math
import random
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key")

BLEU_SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|impl:edgemed-1"
"""How `bleu` counts, in sacreBLEU's words. Equal to sacreBLEU 2.6 to the last digits."""
_MAX_ORDER = 4

_UNIFIED = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`´ʼ", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―−﹣－", "-"),
        "≤": "<=",
        "⩽": "<=",
        "≥": ">=",
        "⩾": ">=",
        "⁄": "/",
        "٫": ".",
        "٬": ",",
        # Format characters that no one sees: soft hyphen, zero width space, marks of direction, BOM.
        **dict.fromkeys(
            "\u00ad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
        ),
    }
)
# NFKC would read 10⁹ as 109 and 1½ as 11/2.
_SUPERSCRIPT = re.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")
_FRACTION = re.compile("(?<=[0-9])(?=[¼-¾⅐-⅞])")
_SENTENCE_END = re.compile(r"[.!?。।॥။።؟۔]+(?=[\s\"')\]]|$)")
_OTHER_DIGIT = re.compile(r"[^\W0-9\D]")
# Not a dash before a number, which may be a minus, nor a letter: E. coli.
_BULLET = re.compile(r"^[ \t]*(?:-(?=[ \t]+[^\W\d])|[*•‣◦∙·▪]|\(?[0-9]{1,2}[.)])[ \t]+(?=\S)", re.MULTILINE)
# Scripts that are written without spaces: each letter with its marks is a token.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_JOINERS = "\u200c\u200d"


def normalise(text: str) -> str:
    """Return the text in one spelling, with all that carries medical meaning kept.

    NFKC and casefold; quotation marks, dashes, digits of all scripts, ≤ and ≥ unified; white space collapsed;
    list bullets and sentence-final punctuation taken away. Decimal points, % / < > = + -, single letters,
    articles and units stay; 10⁹ becomes 10^9.
    """
    return " ".join(_SENTENCE_END.sub("", _BULLET.sub("", _unified(text))).split())


def tokens(text: str) -> list[str]:
    """Return the tokens of the normalised text, for token F1 and n-gram precision.

    A token is a number with its decimal point, a word of any script with its marks, or one of the signs that
    decide a dose (< <= > >= = % + / - ^ ~ ± × °). Scripts without spaces give one token a letter.
    """
    return _token_pattern().findall(normalise(text))


def words(text: str) -> list[str]:
    """Return the words and numbers of a text alone, for ROUGE and for duplicates: 1.5 is two of them."""
    return _word_pattern().findall(_unified(text))


def exact_match(prediction: str, reference: str) -> float:
    """Return 1.0 when both normalised texts are equal, else 0.0."""
    return float(normalise(prediction) == normalise(reference))


def squad_exact_match(prediction: str, reference: str) -> float:
    """Return SQuAD's exact match: without case, punctuation and articles. For comparison with others only."""
    return float(_squad_normalised(prediction) == _squad_normalised(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Return the F1 of both multisets of `tokens`; 1.0 when both are empty."""
    return _f1(Counter(tokens(prediction)), Counter(tokens(reference)))


def ngram_precision(prediction: str, reference: str, order: int = 1) -> float:
    """Return the share of the prediction's n-grams that the reference has, each at most as often as there."""
    found, wanted = _ngrams(tokens(prediction), order), _ngrams(tokens(reference), order)
    total = found.total()
    return (found & wanted).total() / total if total else 0.0


class BleuCounts(NamedTuple):
    """What BLEU is made of, for one item or, added up, for a corpus."""

    correct: tuple[int, ...]
    """Clipped matches of 1- to 4-grams."""
    total: tuple[int, ...]
    """1- to 4-grams of the prediction."""
    prediction_tokens: int
    reference_tokens: int


def bleu_counts(prediction: str, reference: str) -> BleuCounts:
    """Return the counts of one item, with sacreBLEU's 13a tokens."""
    found, wanted = tokens_13a(prediction), tokens_13a(reference)
    grams = [(_ngrams(found, order), _ngrams(wanted, order)) for order in range(1, _MAX_ORDER + 1)]
    return BleuCounts(
        tuple((mine & theirs).total() for mine, theirs in grams),
        tuple(mine.total() for mine, _ in grams),
        len(found),
        len(wanted),
    )


def bleu_of_counts(items: Sequence[BleuCounts], *, effective_order: bool = False) -> float:
    """Return BLEU from 0 to 100 over the sum of all items' counts.

    Args:
        items: one or more.
        effective_order: leave out orders for which the prediction is too short; for single answers.
    """
    correct = [sum(item.correct[order] for item in items) for order in range(_MAX_ORDER)]
    total = [sum(item.total[order] for item in items) for order in range(_MAX_ORDER)]
    length, wanted = (
        sum(item.prediction_tokens for item in items),
        sum(item.reference_tokens for item in items),
    )
    if not any(correct):
        return 0.0
    logs, halved = [], 1.0
    for hits, possible in zip(correct, total, strict=True):
        if not possible:
            break
        if not hits:  # "exp" smoothing: each empty order counts half of the one before
            halved *= 2
        logs.append(math.log(100 * hits / possible if hits else 100 / (halved * possible)))
    if len(logs) < _MAX_ORDER and not effective_order:
        return 0.0
    brevity = 1.0 if length >= wanted else math.exp(1 - wanted / length)
    return brevity * math.exp(sum(logs) / len(logs))


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return corpus BLEU from 0 to 100, equal to `sacrebleu.corpus_bleu`; see `BLEU_SIGNATURE`."""
    return bleu_of_counts(list(map(bleu_counts, predictions, references)))


def sentence_bleu(prediction: str, reference: str) -> float:
    """Return BLEU from 0 to 100 of one answer, equal to `sacrebleu.sentence_bleu` (effective order)."""
    return bleu_of_counts([bleu_counts(prediction, reference)], effective_order=True)


class Rouge(NamedTuple):
    """F-measures from 0 to 1."""

    rouge_1: float
    rouge_2: float
    rouge_l: float


def rouge(prediction: str, reference: str) -> Rouge:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L of one answer, without stemming.

    Equal to rouge_score on ASCII (letters and digits, so that 1.5 is two tokens); other scripts count too.
    """
    found, wanted = words(prediction), words(reference)
    one, two = (_f1(_ngrams(found, order), _ngrams(wanted, order), empty=0.0) for order in (1, 2))
    common = _longest_common_subsequence(found, wanted)
    return Rouge(one, two, 2 * common / (len(found) + len(wanted)) if common else 0.0)


def repeated_share(text: str, order: int = 4) -> float:
    """Return the share of the text's 4-grams that it has said before; 0.0 for a short text."""
    grams = _ngrams(tokens(text), order)
    return 1 - len(grams) / grams.total() if grams else 0.0


def is_degenerate(text: str) -> bool:
    """Whether an answer is empty, or goes round in circles: over half of its 4-grams are repetitions."""
    return not tokens(text) or repeated_share(text) > 0.5


class Interval(NamedTuple):
    """A mean, or another statistic, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean; 0.0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def bootstrap_interval(
    items: Sequence[Item],
    statistic: Callable[[Sequence[Item]], float],
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return a statistic of the items with its 95 % percentile interval over resampled items.

    Args:
        items: one entry for each answer, e.g. its F1 or its `BleuCounts`.
        statistic: `mean`, `bleu_of_counts` or another.
        samples: resampled sets of the same size.
        seed: the same seed gives the same interval on every machine.
    """
    value = statistic(items)
    if len(items) < 2:
        return Interval(value, value, value)
    chance = random.Random(seed)
    drawn = sorted(statistic(chance.choices(items, k=len(items))) for _ in range(samples))
    last = samples - 1
    return Interval(value, drawn[math.floor(0.025 * last)], drawn[math.ceil(0.975 * last)])


class ItemScores(NamedTuple):
    """All scores of one answer; shares from 0 to 1."""

    exact_match: float
    squad_exact_match: float
    token_f1: float
    bleu: BleuCounts
    rouge_1: float
    rouge_2: float
    rouge_l: float
    unigram_precision: float
    degenerate: float


DEFINITIONS = {
    "exact_match": "share of answers equal to the reference after `normalise`",
    "squad_exact_match": "share equal after SQuAD's normalisation, which loses signs, decimals and articles",
    "token_f1": "mean over answers of the F1 of both multisets of tokens",
    "bleu": f"corpus BLEU, 0 to 100, {BLEU_SIGNATURE}",
    "rouge_1": "mean over answers of ROUGE-1's F-measure, no stemming",
    "rouge_2": "mean over answers of ROUGE-2's F-measure, no stemming",
    "rouge_l": "mean over answers of ROUGE-L's F-measure, no stemming",
    "unigram_precision": "mean over answers of the share of tokens that the reference has too, clipped",
    "degenerate": "share of answers that are empty or of whose 4-grams over half are repetitions",
}


def score_item(prediction: str, reference: str) -> ItemScores:
    """Return all scores of one answer."""
    return ItemScores(
        exact_match(prediction, reference),
        squad_exact_match(prediction, reference),
        token_f1(prediction, reference),
        bleu_counts(prediction, reference),
        *rouge(prediction, reference),
        ngram_precision(prediction, reference),
        float(is_degenerate(prediction)),
    )


def corpus_scores(items: Sequence[ItemScores], *, samples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Return each score over all answers with its interval, by the names of `DEFINITIONS`."""
    scores = {}
    for name in DEFINITIONS:
        values = [getattr(item, name) for item in items]
        statistic = bleu_of_counts if name == "bleu" else mean
        scores[name] = bootstrap_interval(values, statistic, samples=samples, seed=seed)
    return scores


def tokens_13a(text: str) -> list[str]:
    """Return the tokens of sacreBLEU's default tokenizer, mteval-v13a: ASCII punctuation stands alone."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, sign)
    text = f" {text} "
    for pattern, spaced in _RULES_13A:
        text = pattern.sub(spaced, text)
    return text.split()


_RULES_13A = (
    (re.compile(r"([!-&(-+/:-@\[-`{-~ ])"), r" \1 "),
    # A period or comma stays inside a number, and a dash within a word.
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _squad_normalised(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _unified(text: str) -> str:
    text = _SUPERSCRIPT.sub(lambda found: "^" + found[0], _FRACTION.sub(" ", text.translate(_UNIFIED)))
    text = unicodedata.normalize("NFKC", text).translate(_UNIFIED)
    text = _OTHER_DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), text)
    # Casefolding can take a composed letter apart (İ), so NFKC has the last word.
    return unicodedata.normalize("NFKC", text.casefold())


def _ngrams(sequence: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(sequence[start:] for start in range(order)), strict=False))


def _f1(found: Counter[Key], wanted: Counter[Key], *, empty: float = 1.0) -> float:
    if not found and not wanted:
        return empty
    common = (found & wanted).total()
    return 2 * common / (found.total() + wanted.total())


def _longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length, all columns of the table at once in the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for index, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << index
    every = (1 << len(left)) - 1
    row = every
    for token in right:
        matches = row & places.get(token, 0)
        row = (row + matches | row - matches) & every
    return len(left) - row.bit_count()


@functools.cache
def _token_pattern() -> re.Pattern[str]:
    return re.compile(rf"[0-9]+(?:[.,][0-9]+)*|{_word_pattern().pattern}|<=|>=|[<>=%+/^~±×°-]")


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    """Return what finds words. Python's \\w leaves out vowel signs: हिन्दी would fall into three pieces."""
    marks = _marks()
    letter = rf"[^\W_{_UNSPACED}]"
    return re.compile(rf"[{_UNSPACED}][{marks}]*|{letter}(?:{letter}|[{marks}{_JOINERS}])*")


@functools.cache
def _marks() -> str:
    """Return all combining marks as ranges of a character class."""
    ranges: list[list[int]] = []
    for code in range(0x300, min(0x1F000, sys.maxunicode)):
        if unicodedata.category(chr(code))[0] == "M":
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
