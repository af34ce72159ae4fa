"""The metrics of `edgemed.metrics` for those who work with Hugging Face's `evaluate`, without its hub.

    metric = evaluate_metric("token_f1")
    metric.compute(predictions=["…"], references=["…"])

They can be joined by `evaluate.combine([evaluate_metric("bleu"), evaluate_metric("rouge_l")])`.
"""

from typing import Any

from edgemed.evaluate_metrics import check_metric_name, make_metric
from edgemed_training.libraries import prepare_libraries


def evaluate_metric(name: str) -> Any:
    """Return one metric of `edgemed.metrics.DEFINITIONS` as an `evaluate.Metric`.

    Raises:
        MissingExtra: `evaluate` or `datasets` is not installed.
        UsageError: there is no such metric.
    """
    check_metric_name(name)
    prepare_libraries("evaluate", "datasets")
    import datasets
    import evaluate

    return make_metric(name, evaluate, datasets)
