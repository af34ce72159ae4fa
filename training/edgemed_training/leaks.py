"""What of the held-out pairs stands in the training data: it must be nothing, or scores measure memory."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import msgspec

from edgemed_training.duplicates import CONTAINMENT, exact_key, question_key, shingles
from edgemed_training.errors import LeakError
from edgemed_training.records import LeakFacts, QAPair


class Leak(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One held-out pair that is no test."""

    heldout: str
    """Its id."""
    shared_group: str = ""
    """The id of a training pair of the same document or disease."""
    shared_question: str = ""
    answer_contained_in: str = ""
    """The id of the training pair whose answer holds most of this one's word 5-grams."""
    contained_share: float = 0.0
    answer_exact: str = ""


class LeakReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All leaks, and their numbers."""

    facts: LeakFacts
    leaks: list[Leak]


def find_leaks(train: Sequence[QAPair], heldout: Sequence[QAPair]) -> LeakReport:
    """Compare every held-out pair with all training pairs."""
    groups = _first(train, [_group(pair) for pair in train])
    questions = _first(train, [question_key(pair) for pair in train])
    answers = _first(train, [exact_key(pair)[1] for pair in train])
    holders = _Holders(train)
    leaks = []
    for pair in heldout:
        share, holder = holders.most_contained(pair)
        leak = Leak(
            heldout=pair.id,
            shared_group=groups.get(_group(pair), ""),
            shared_question=questions.get(question_key(pair), ""),
            answer_contained_in=holder if share >= CONTAINMENT else "",
            contained_share=round(share, 3) if share >= CONTAINMENT else 0.0,
            answer_exact=answers.get(exact_key(pair)[1], ""),
        )
        if leak != Leak(heldout=pair.id):
            leaks.append(leak)
    facts = LeakFacts(
        heldout=len(heldout),
        shared_group=sum(bool(leak.shared_group) for leak in leaks),
        shared_question=sum(bool(leak.shared_question) for leak in leaks),
        answer_contained=sum(bool(leak.answer_contained_in) for leak in leaks),
        answer_exact=sum(bool(leak.answer_exact) for leak in leaks),
        leaking=len(leaks),
    )
    return LeakReport(facts=facts, leaks=leaks)


def refuse_leaks(facts: LeakFacts) -> None:
    """Refuse to train where the held-out pairs are no test.

    Raises:
        LeakError: something of them stands in the training data.
    """
    if facts.leaking:
        raise LeakError(
            f"{facts.leaking} of {facts.heldout} held-out pairs leak into the training data: "
            f"{facts.shared_group} share their document or disease, {facts.shared_question} their question, "
            f"{facts.answer_contained} at least half of their answer, {facts.answer_exact} all of it.",
            hint="Make the data with `edgemed-train prepare --split group`. Or allow the leaks "
            "(--allow-leaks) to repeat the study's random split; its scores then measure memory.",
        )


class _Holders:
    """Which training answers hold which word 5-grams."""

    def __init__(self, train: Sequence[QAPair]) -> None:
        self._ids = [pair.id for pair in train]
        self._by_shingle: dict[str, list[int]] = defaultdict(list)
        for index, pair in enumerate(train):
            for shingle in shingles(pair.all_answers()):
                self._by_shingle[shingle].append(index)

    def most_contained(self, pair: QAPair) -> tuple[float, str]:
        """Return the largest share of the pair's 5-grams in one training answer, and that pair's id."""
        wanted = shingles(pair.all_answers())
        shared: Counter[int] = Counter()
        for shingle in wanted:
            shared.update(self._by_shingle.get(shingle, ()))
        if not shared:
            return 0.0, ""
        index, count = shared.most_common(1)[0]
        return count / len(wanted), self._ids[index]


def _group(pair: QAPair) -> str:
    return " ".join(pair.group.casefold().split())


def _first(pairs: Sequence[QAPair], keys: Sequence[str]) -> dict[str, str]:
    """Return the id of the first pair with each key; "" is no key."""
    found: dict[str, str] = {}
    for pair, key in zip(pairs, keys, strict=True):
        if key:
            found.setdefault(key, pair.id)
    return found
