"""What the study's Table 4 says, as far as it is recorded here, and why it cannot be compared as it stands.

The study gives the largest value over its 100 test answers for BLEU, ROUGE and F1, and no definition.
"""

from dataclasses import dataclass
from typing import Literal

Measure = Literal["exact_match", "bleu", "rouge", "token_f1", "seconds"]
MODELS = {
    "paper/llama-2-7b": "Llama 2 7B",
    "paper/mistral-7b": "Mistral 7B",
    "paper/llama-3-8b": "Llama 3 8B",
    "paper/gemma-1.1-7b": "Gemma 1.1 7B",
    "paper/distilgpt2": "DistilGPT2",
}
"""Preset → the model's name in the table."""
_THREE = "one of 81.34, 76.45, 46.92"
_WITH_81 = "in the row with 81.34 % exact match"


@dataclass(frozen=True)
class StudyMeasure:
    """One column of the study's Table 4."""

    title: str
    definition: str
    """Ours."""
    remark: str
    values: dict[str, str]
    """Preset → the study's value; a model that is missing has none recorded here."""


MEASURES: dict[Measure, StudyMeasure] = {
    "exact_match": StudyMeasure(
        "Exact match, %",
        "share of answers equal to the reference; case, quotation marks and spaces aside",
        "Of 100 answers a share must be a whole percent. The study's text calls it “the exact match of "
        "n-grams”; it looks like token accuracy with the reference in sight.",
        {
            "paper/llama-2-7b": "0",
            "paper/mistral-7b": "1",
            "paper/llama-3-8b": _THREE,
            "paper/gemma-1.1-7b": _THREE,
            "paper/distilgpt2": _THREE,
        },
    ),
    "bleu": StudyMeasure(
        "BLEU",
        "over the corpus, sacreBLEU's 13a, 0 to 100; in brackets the largest of one answer",
        f"The study's is from 0 to 1; 0.58 (largest) stands {_WITH_81}.",
        {"paper/llama-2-7b": "0.06", "paper/mistral-7b": "0.06"},
    ),
    "rouge": StudyMeasure(
        "ROUGE",
        "mean of ROUGE-L's F-measure; in brackets the largest of one answer",
        f"The study does not say which ROUGE; 0.54 (largest) stands {_WITH_81}.",
        {"paper/mistral-7b": "1.00 (largest)"},
    ),
    "token_f1": StudyMeasure(
        "F1",
        "mean of token F1; in brackets the largest of one answer",
        f"0.73 (largest) stands {_WITH_81}. An exact match has F1 = 1, which Mistral's row contradicts.",
        {"paper/llama-2-7b": "0.2 to 0.3", "paper/mistral-7b": "0.28 (largest)"},
    ),
    "seconds": StudyMeasure(
        "Seconds for an answer",
        "median, of greedy answers in batches, loading left out",
        "The study gives neither length nor decoding; its text says 15 to 25 s for the model whose row "
        "says 7.03.",
        {"paper/distilgpt2": "7.03"},
    ),
}
