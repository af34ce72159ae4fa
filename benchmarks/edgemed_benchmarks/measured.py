"""One metric over the questions of a set: the value of each, and the whole with its interval."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgemed.records import Item, Sample
from edgemed_benchmarks.score_format import Unit
from edgemed_benchmarks.stats import Estimate, mean_estimate, upper_bound, wilson


class Asked(NamedTuple):
    """One item with all samples that one arm gave, by condition."""

    item_id: str
    item: Item | None
    """None: the item set was not found, or is not the one of the run."""
    samples: dict[str, Sample]

    @property
    def group(self) -> str:
        """What the item is not independent of; "" stands alone."""
        return self.item.group if self.item else ""


class Measured(NamedTuple):
    """A metric of one arm on one set."""

    metric: str
    estimate: Estimate
    definition: str
    values: Mapping[str, float] = {}
    """By item id; empty where the metric is none of single answers."""
    unit: Unit = "share"
    higher_is_better: bool | None = True
    note: str = ""


def mean_of(
    metric: str,
    asked: Sequence[Asked],
    values: Sequence[float | None],
    definition: str,
    *,
    higher_is_better: bool | None = True,
) -> Measured:
    """Return the mean of the items' values, each 0 to 1; None values are left out.

    Yes-or-no values of independent items get Wilson's interval, all others a bootstrap over items or groups.
    When a fault was never seen, the note says how frequent it may be all the same.
    """
    pairs = [(each, value) for each, value in zip(asked, values, strict=True) if value is not None]
    found = [value for _each, value in pairs]
    groups = [each.group or each.item_id for each, _value in pairs]
    independent = len(set(groups))
    binary = bool(found) and all(value in (0.0, 1.0) for value in found)
    if binary and (independent == len(groups) or len(set(found)) == 1):
        # Where all are alike a bootstrap would find no doubt at all; the groups say how much there is.
        hits = independent if found[0] and independent < len(groups) else round(sum(found))
        estimate = wilson(hits, independent)._replace(samples=len(found))
    else:
        estimate = mean_estimate(found, groups=groups)
    note = estimate.reason
    if binary and higher_is_better is not None and float(not higher_is_better) not in found:
        bound = upper_bound(0, independent)
        note = f"No fault in {len(found)}: at 95 % confidence it may still happen in up to {bound:.1%}."
    return Measured(
        metric,
        estimate,
        definition,
        {each.item_id: value for each, value in pairs},
        higher_is_better=higher_is_better,
        note=note,
    )
