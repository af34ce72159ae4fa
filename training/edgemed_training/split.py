"""Training and held-out pairs: by group, so that a test is a test, or at random, as the study did.

By group: pairs of one document or disease stay together, and so do small clusters of equal questions and
near-duplicate answers. Whole units are held out, in the order of a hash of the group and the seed, so that
a group keeps its place as the data grow. A pair that shares its question or half its answer with another unit
(a paragraph on inheritance stands in hundreds) is never a test.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from edgemed_training.duplicates import Clusters, question_key
from edgemed_training.errors import DataError
from edgemed_training.records import QAPair, SplitFacts

SplitMethod = Literal["group", "random"]
STUDY_TRAIN, STUDY_HELDOUT = 1900, 100
"""The study's sizes."""
LARGEST_JOIN = 10
"""Clusters of more pairs do not join their groups: they would join half of MedQuAD."""


class Split(NamedTuple):
    """Both parts, each in a fixed order, and the numbers for the card."""

    train: list[QAPair]
    heldout: list[QAPair]
    facts: SplitFacts


def split_pairs(
    pairs: Sequence[QAPair],
    near: Clusters,
    *,
    method: SplitMethod = "group",
    train: int | None = None,
    heldout: int | None = None,
    seed: int = 42,
) -> Split:
    """Divide pairs.

    Args:
        pairs: all, with ids of their own.
        near: clusters of near-duplicate answers, by the index of the pair.
        method: "group", or "random" as the study did.
        train: pairs for training; None: the study's 1,900, or 95 % of the data where they are fewer.
        heldout: pairs to test with; None: the study's 100, or 5 % of the data where they are fewer.
        seed: another seed holds out other groups.

    Raises:
        DataError: there are not so many pairs, or not so many that can be a test.
    """
    train_count, heldout_count = _sizes(len(pairs), train, heldout)
    if method == "random":
        chosen = random.Random(seed).sample(range(len(pairs)), train_count + heldout_count)
        units, largest = 0, 0
        training, testing = chosen[:train_count], chosen[train_count:]
    else:
        members = _units(pairs, near)
        units, largest = len(members), max(map(len, members))
        testing, training = _by_group(pairs, near, members, heldout_count, seed)
        if len(training) < train_count:
            if train is not None:
                raise _too_few(train_count, heldout_count, len(training) + heldout_count)
            train_count = len(training)
        training = training[:train_count]
    parts = [pairs[index] for index in training], [pairs[index] for index in testing]
    facts = SplitFacts(
        method=method,
        seed=seed,
        train=len(parts[0]),
        heldout=len(parts[1]),
        unused=len(pairs) - len(parts[0]) - len(parts[1]),
        units=units,
        largest_unit=largest,
        sha256=split_sha256(*parts),
    )
    return Split(*parts, facts)


def split_sha256(train: Sequence[QAPair], heldout: Sequence[QAPair]) -> str:
    """Return one SHA-256 over the SHA-256 of every pair, whatever their order."""
    lines = sorted(f"train {pair.sha256()}" for pair in train)
    lines += sorted(f"heldout {pair.sha256()}" for pair in heldout)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sizes(total: int, train: int | None, heldout: int | None) -> tuple[int, int]:
    """Return how many pairs each part gets; what was not asked for shrinks with the data."""
    if heldout is None:
        heldout = min(STUDY_HELDOUT, max(1, total // 20))
    if train is None:
        train = min(STUDY_TRAIN, total - heldout)
    if train < 1 or heldout < 1:
        raise DataError(
            f"{total} pairs cannot be divided into {train} for training and {heldout} held out.",
            hint="Both parts need one pair at least: change --train and --test, or add data.",
        )
    if train + heldout > total:
        raise _too_few(train, heldout, total)
    return train, heldout


def _too_few(train: int, heldout: int, total: int) -> DataError:
    return DataError(
        f"{train} training and {heldout} held-out pairs were asked for, but only {total} can be had.",
        hint="Lower --train or --test, or add data.",
    )


def _units(pairs: Sequence[QAPair], near: Clusters) -> list[list[int]]:
    """Return the indices of pairs that are never split: groups, joined by small clusters."""
    joined = Clusters(len(pairs))
    joined.join_equal(_group_key(pair) for pair in pairs)
    for members in (*near.members(), *_same_question(pairs).members()):
        if 1 < len(members) <= LARGEST_JOIN:
            for other in members[1:]:
                joined.join(members[0], other)
    return joined.members()


def _group_key(pair: QAPair) -> str:
    return " ".join(pair.group.casefold().split())


def _same_question(pairs: Sequence[QAPair]) -> Clusters:
    same = Clusters(len(pairs))
    same.join_equal(question_key(pair) for pair in pairs)
    return same


def _by_group(
    pairs: Sequence[QAPair], near: Clusters, units: list[list[int]], wanted: int, seed: int
) -> tuple[list[int], list[int]]:
    """Return the held-out pairs, and all others that may be trained on, in the order of their hashes."""
    unit_of = {index: number for number, members in enumerate(units) for index in members}
    shared = _crossing(near, unit_of) | _crossing(_same_question(pairs), unit_of)
    # A unit may not be most of the test.
    largest = max(LARGEST_JOIN, wanted // 10)
    order = sorted(range(len(units)), key=lambda number: _unit_hash(pairs, units[number], seed))
    heldout: list[int] = []
    units_out = set()
    for number in order:
        if len(heldout) >= wanted:
            break
        fit = [index for index in units[number] if index not in shared]
        if fit and len(units[number]) <= largest:
            heldout += sorted(fit, key=lambda index: _hash(seed, pairs[index].id))
            units_out.add(number)
    if len(heldout) < wanted:
        raise DataError(
            f"Only {len(heldout)} of {len(pairs)} pairs can be held out: the others share a question or half "
            "an answer with other groups, or belong to very large groups.",
            hint=f"Ask for fewer (--test {len(heldout)}), or take --split random and accept its leaks.",
        )
    rest = (index for index in range(len(pairs)) if unit_of[index] not in units_out)
    return heldout[:wanted], sorted(rest, key=lambda index: _hash(seed, pairs[index].id))


def _crossing(clusters: Clusters, unit_of: dict[int, int]) -> set[int]:
    """Return the members of clusters that reach over more than one unit."""
    return {
        index
        for members in clusters.members()
        if len({unit_of[index] for index in members}) > 1
        for index in members
    }


def _unit_hash(pairs: Sequence[QAPair], members: list[int], seed: int) -> str:
    """Return the unit's place in the order: the last of its groups', so that to grow never moves it forward.

    What was trained on yesterday is then not held out today because a new group was joined to it.
    """
    return max(_hash(seed, _group_key(pairs[index]) or question_key(pairs[index])) for index in members)


def _hash(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}\n{key}".encode()).hexdigest()
