"""Exact duplicates, and clusters of near-duplicate answers by the word 5-grams they share.

An answer is a near-duplicate of another when at least half of the shorter one's 5-grams stand in the longer.
Clusters are kept but never split: MedQuAD says one paragraph on inheritance about hundreds of diseases.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

from edgemed.metrics import words
from edgemed_training.records import QAPair

SHINGLE_WORDS = 5
CONTAINMENT = 0.5
_ASCII_WORD = re.compile("[a-z0-9]+")


def shingles(text: str) -> frozenset[str]:
    """Return a text's word 5-grams, without case and punctuation; a shorter text is one of its own."""
    found = _ASCII_WORD.findall(text.lower()) if text.isascii() else words(text)
    if len(found) < SHINGLE_WORDS:
        return frozenset([" ".join(found)]) if found else frozenset()
    runs = zip(*(found[start:] for start in range(SHINGLE_WORDS)), strict=False)
    return frozenset(map(" ".join, runs))


def question_key(pair: QAPair) -> str:
    """Return what two pairs with the same question have in common, whatever their case and punctuation."""
    return " ".join(words(pair.all_questions()))


def exact_key(pair: QAPair) -> tuple[str, str]:
    """Return what two exact duplicates have in common: question and answer without case and spacing."""
    return (
        " ".join(pair.all_questions().casefold().split()),
        " ".join(pair.all_answers().casefold().split()),
    )


class Clusters:
    """Things that belong together, by union-find."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def find(self, index: int) -> int:
        """Return the number that stands for the cluster of `index`."""
        parents = self._parents
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    def join(self, one: int, other: int) -> None:
        """Make one cluster of two."""
        self._parents[self.find(one)] = self.find(other)

    def join_equal(self, keys: Iterable[Hashable]) -> None:
        """Join all whose keys are equal; None and "" join nothing."""
        first: dict[Hashable, int] = {}
        for index, key in enumerate(keys):
            if key:
                self.join(index, first.setdefault(key, index))

    def sizes(self) -> Counter[int]:
        """Return the size of each cluster."""
        return Counter(self.find(index) for index in range(len(self._parents)))

    def members(self) -> list[list[int]]:
        """Return the members of each cluster, in order of the first."""
        found: dict[int, list[int]] = defaultdict(list)
        for index in range(len(self._parents)):
            found[self.find(index)].append(index)
        return list(found.values())


def answer_clusters(pairs: Sequence[QAPair]) -> Clusters:
    """Return clusters of pairs with equal or near-duplicate answers."""
    clusters = near_duplicate_clusters([shingles(pair.all_answers()) for pair in pairs])
    # An answer of signs alone has no words to compare.
    clusters.join_equal(exact_key(pair)[1] for pair in pairs)
    return clusters


def near_duplicate_clusters(sets: Sequence[frozenset[str]]) -> Clusters:
    """Return clusters of texts, any two of which are joined when one holds half of the other's shingles.

    Exact, and fast by one observation: who holds half of a set must hold one of its rarer half plus one.

    Args:
        sets: `shingles` of each text; an empty set is joined to nothing.
    """
    clusters = Clusters(len(sets))
    first: dict[frozenset[str], int] = {}
    for index, found in enumerate(sets):
        if found:
            clusters.join(index, first.setdefault(found, index))
    frequency = Counter(shingle for found in first for shingle in found)
    holders: dict[str, list[int]] = defaultdict(list)
    for found, index in first.items():
        for shingle in found:
            if frequency[shingle] > 1:
                holders[shingle].append(index)
    for found, index in first.items():
        _join_to_holders(clusters, sets, index, found, holders)
    return clusters


def _join_to_holders(
    clusters: Clusters,
    sets: Sequence[frozenset[str]],
    index: int,
    found: frozenset[str],
    holders: dict[str, list[int]],
) -> None:
    """Join one text, as the shorter, to all that hold half of it."""
    wanted = -(-len(found) // 2)  # the half, rounded up
    shared = sorted((shingle for shingle in found if shingle in holders), key=lambda one: len(holders[one]))
    # Those in no other text come first in the order of rarity; a holder of `wanted` needs one of the next.
    only_here = len(found) - len(shared)
    tried = {index}
    for shingle in shared[: max(0, len(found) - wanted + 1 - only_here)]:
        for other in holders[shingle]:
            if other in tried:
                continue
            tried.add(other)
            if len(sets[other]) < len(found) or clusters.find(other) == clusters.find(index):
                continue
            if len(found & sets[other]) >= CONTAINMENT * len(found):
                clusters.join(index, other)
