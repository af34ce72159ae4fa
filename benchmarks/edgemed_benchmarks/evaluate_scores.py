"""Written answers scored through Hugging Face's `evaluate`, for those whose pipelines want its `Metric`.

The numbers are those of `score_answers.py`, for both count with `edgemed.metrics`. `evaluate` takes seconds
and hundreds of megabytes to import; it is met here alone, and only when it is asked for.
"""

import importlib.util
import os
from collections.abc import Iterable, Sequence
from typing import Any

from edgemed.errors import MissingExtra
from edgemed.evaluate_metrics import check_metric_name, make_metric
from edgemed.metrics import DEFINITIONS

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")


def evaluate_metric(name: str) -> Any:
    """Return one metric of `edgemed.metrics.DEFINITIONS` as an `evaluate.Metric` that needs no network.

    Raises:
        MissingExtra: `evaluate` or `datasets` is not installed.
        UsageError: there is no such metric.
    """
    check_metric_name(name)
    evaluate, datasets = _libraries()
    return make_metric(name, evaluate, datasets)


def evaluate_scores(
    predictions: Sequence[str], references: Sequence[str], names: Iterable[str] = tuple(DEFINITIONS)
) -> dict[str, float]:
    """Return the metrics of these answers and their intervals, from one `evaluate.combine`.

    Raises:
        MissingExtra: `evaluate` or `datasets` is not installed.
        UsageError: there is no such metric.
    """
    evaluate, datasets = _libraries()
    combined = evaluate.combine([make_metric(name, evaluate, datasets) for name in names])
    return dict(combined.compute(predictions=list(predictions), references=list(references)))


def _libraries() -> tuple[Any, Any]:
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    missing = [name for name in ("evaluate", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"This needs {' and '.join(missing)}, not installed here; without it all scores are the same.",
            hint="pip install 'edgemed[bench]'",
        )
    import datasets
    import evaluate

    return evaluate, datasets
