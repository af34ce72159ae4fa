"""The baseline that knows no medicine: the answer of the training question most like the one asked.

A model that does no better has learned nothing; a high score here means that the held-out pairs are no test.
"""

import math
from collections import Counter
from collections.abc import Sequence

from edgemed.metrics import tokens
from edgemed_training.records import QAPair


def nearest_answers(questions: Sequence[QAPair], training: Sequence[QAPair]) -> list[str]:
    """Return for each question the answer of the nearest training question, by the cosine of TF-IDF vectors.

    Args:
        questions: their answers are not looked at.
        training: one or more.
    """
    words = [Counter(tokens(pair.question)) for pair in training]
    seen = Counter(word for counts in words for word in counts)
    weight = {word: math.log(len(training) / count) + 1e-3 for word, count in seen.items()}
    lengths = [math.sqrt(sum((weight[w] * n) ** 2 for w, n in counts.items())) or 1.0 for counts in words]
    places: dict[str, list[tuple[int, int]]] = {}
    for index, counts in enumerate(words):
        for word, number in counts.items():
            places.setdefault(word, []).append((index, number))
    return [training[_nearest(pair, places, weight, lengths)].answer for pair in questions]


def _nearest(
    pair: QAPair, places: dict[str, list[tuple[int, int]]], weight: dict[str, float], lengths: list[float]
) -> int:
    likeness: Counter[int] = Counter()
    for word, number in Counter(tokens(pair.question)).items():
        for index, times in places.get(word, ()):
            likeness[index] += number * times * weight[word] ** 2 / lengths[index]  # type: ignore[assignment]
    return max(likeness, key=lambda index: (likeness[index], -index), default=0)
