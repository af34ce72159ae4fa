"""The scores of a run: what `score` makes of a record file, read by reports and comparisons.

One `Score` is one number with its interval, the number of answers behind it and its definition in words. One
`ItemScore` is what one answer got, so that two arms can be compared question by question.
"""

from typing import Literal

import msgspec

from edgemed.records import ItemFile, Suite

SCHEMA: Literal["edgemed.scores/1"] = "edgemed.scores/1"

Unit = Literal["share", "points", "nats"]
"""`share` goes from 0 to 1, `points` (BLEU) from 0 to 100."""


class _Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Immutable; unknown fields are refused."""


class Score(_Struct, frozen=True, kw_only=True):
    """One number about one arm."""

    suite: Suite
    arm: int
    """Index into `Scores.arms`."""
    metric: str
    item_set: str = ""
    """The name of the item set; "" is all of the suite."""
    value: float | None
    """None: no answer could be scored; `note` says why."""
    low: float | None = None
    high: float | None = None
    """95 % interval."""
    n: int
    """Questions behind the number."""
    unit: Unit = "share"
    higher_is_better: bool | None = None
    """None: neither."""
    definition: str
    note: str = ""


class ItemScore(_Struct, frozen=True, kw_only=True):
    """What one answer got: what paired comparisons are made from."""

    suite: Suite
    arm: int
    metric: str
    item_set: str
    item_id: str
    group: str = ""
    """Items of one group are not independent; "" stands alone."""
    value: float


class ReliabilityBin(_Struct, frozen=True, kw_only=True):
    """Answers about which the model was equally sure."""

    arm: int
    low: float
    high: float
    n: int
    mean_confidence: float
    share_right: float


class SetUsed(_Struct, frozen=True, kw_only=True):
    """An item set, and whether the very questions of the run were found here."""

    item_file: ItemFile
    found: bool
    reason: str = ""


class Scores(_Struct, frozen=True, kw_only=True):
    """All scores of one record file."""

    schema: Literal["edgemed.scores/1"] = SCHEMA
    edgemed_version: str
    run_id: str
    machine_id: str = ""
    arms: list[str]
    """Labels, in the run's order."""
    model_sha256: list[str]
    """One an arm."""
    item_sets: list[SetUsed] = []
    scores: list[Score] = []
    items: list[ItemScore] = []
    bins: list[ReliabilityBin] = []
    samples: int = 0
    """Samples of the quality and safety suites, warm-up left out."""
    without_text: int = 0
    """Written answers whose text is not in the file: they cannot be scored."""
    cut: int = 0
    """Answers that the engine's death ended: left out."""
    late: int = 0
    """Answers that were ended because they took too long: scored as they stand."""
