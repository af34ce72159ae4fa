"""The metrics of `edgemed.metrics` as subclasses of `evaluate.Metric`, for the tools that have `evaluate`.

`evaluate.load("bleu")` fetches a script from the network; these are made on the spot. The libraries come from
the caller: a clinic machine has neither, and edgemed never imports them.
"""

import difflib
from collections.abc import Sequence
from typing import Any

from edgemed.errors import UsageError
from edgemed.metrics import DEFINITIONS, corpus_scores, score_item


def check_metric_name(name: str) -> None:
    """Refuse a metric that is not one of `edgemed.metrics.DEFINITIONS`, before anything large is imported.

    Raises:
        UsageError: there is no such metric.
    """
    if name not in DEFINITIONS:
        nearest = difflib.get_close_matches(name, DEFINITIONS, n=1)
        raise UsageError(
            f"There is no metric {name!r}." + (f" Did you mean {nearest[0]}?" if nearest else ""),
            hint=f"Choose one of {', '.join(DEFINITIONS)}.",
        )


def make_metric(name: str, evaluate: Any, datasets: Any) -> Any:
    """Return one metric as an instance of a subclass of `evaluate.Metric`.

    Its `compute` gives the score and its 95 % bootstrap interval: {name, name_low, name_high}.

    Args:
        name: one of `edgemed.metrics.DEFINITIONS`.
        evaluate: the module.
        datasets: the module.

    Raises:
        UsageError: there is no such metric.
    """
    check_metric_name(name)
    text = datasets.Value("string")
    features = datasets.Features({"predictions": text, "references": text})
    # keep_in_memory: else evaluate leaves a file and its lock in the user's cache folder.
    return _metric_class(evaluate, features, name)(keep_in_memory=True)


def _metric_class(evaluate: Any, features: Any, name: str) -> Any:
    def info(_metric: object) -> Any:
        return evaluate.MetricInfo(description=DEFINITIONS[name], citation="", features=features)

    def compute(_metric: object, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        items = [score_item(*both) for both in zip(predictions, references, strict=True)]
        score = corpus_scores(items)[name]
        return {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}

    return type(f"Edgemed_{name}", (evaluate.Metric,), {"_info": info, "_compute": compute})
