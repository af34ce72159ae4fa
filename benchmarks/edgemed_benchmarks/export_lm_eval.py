"""A run in the shape of lm-evaluation-harness 0.4: `results_*.json` and `samples_*.jsonl` for each arm.

A task is one item set under one condition, such as `choice_letters_0`. `doc_hash` and `target_hash` are made
as the harness makes them, so that samples of the same `doc` can be paired. The prompt is the app's own,
through the model's chat template, and only the SHA-256 of its token ids is in a record: `prompt_hash` and the
text in `arguments` are null.
"""

import datetime
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from edgemed.records import Arm, Choice, Item, Sample
from edgemed_benchmarks.item_messages import LETTERS
from edgemed_benchmarks.journal import Run
from edgemed_benchmarks.run_items import FoundItem
from edgemed_benchmarks.score_format import Scores

_SUITES = ("quality", "safety")
_UNPAIRED = "questions"
"""Task of items whose set is not on this computer."""


class Task(NamedTuple):
    """What one arm gave to one task."""

    name: str
    output_type: str
    metrics: list[str]
    samples: list[dict[str, Any]]
    values: dict[str, float]
    """Of metrics that are no mean over samples, such as BLEU."""


class ArmFiles(NamedTuple):
    """The files of one arm, by name."""

    folder: str
    files: dict[str, str]


def lm_eval_files(run: Run, items: dict[tuple[str, str], FoundItem], scores: Scores) -> list[ArmFiles]:
    """Return the files of all arms that answered questions of the quality or safety suites.

    Args:
        run: any run.
        items: its questions, as far as they were found.
        scores: of the same run: what each written answer got.
    """
    found = []
    date = _date(run)
    for number, arm in enumerate(run.arms):
        tasks = list(_tasks(run, number, items, scores))
        if not tasks:
            continue
        files = {
            f"samples_{task.name}_{date}.jsonl": "".join(
                json.dumps(sample, ensure_ascii=False) + "\n" for sample in task.samples
            )
            for task in tasks
        }
        results = json.dumps(_results(run, arm, tasks, scores), indent=2, ensure_ascii=False)
        files[f"results_{date}.json"] = results + "\n"
        found.append(ArmFiles(_folder_name(arm, number), files))
    return found


def _tasks(run: Run, arm: int, items: dict[tuple[str, str], FoundItem], scores: Scores) -> Iterator[Task]:
    asked: dict[str, dict[str, Sample]] = {}
    for sample in run.samples:
        if (
            sample.arm == arm
            and sample.suite in _SUITES
            and not sample.warm_up
            and sample.stop_reason != "engine_died"
        ):
            name = _task_name(sample, items.get((sample.suite, sample.item_id)))
            asked.setdefault(name, {}).setdefault(sample.item_id, sample)
    values = _values(arm, scores)
    for name, samples in sorted(asked.items()):
        first = next(iter(samples.values()))
        choice = first.choice is not None
        rows = [
            _row(number, sample, _item(items, sample), values)
            for number, sample in enumerate(samples.values())
            if (sample.choice is not None) == choice
        ]
        metrics = ["acc", "acc_norm"] if choice else sorted({key for row in rows for key in row["metrics"]})
        whole = {} if choice else _whole_values(arm, name, scores)
        yield Task(name, "multiple_choice" if choice else "generate_until", metrics, rows, whole)


def _task_name(sample: Sample, found: FoundItem | None) -> str:
    parts = [found.item_set if found else f"{sample.suite}_{_UNPAIRED}", sample.condition]
    return re.sub(r"\W+", "_", "_".join(part for part in parts if part))


def _item(items: dict[tuple[str, str], FoundItem], sample: Sample) -> Item | None:
    found = items.get((sample.suite, sample.item_id))
    return found.item if found else None


def _values(arm: int, scores: Scores) -> dict[tuple[str, str], dict[str, float]]:
    """Return the scores of each written answer by suite and item id."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    for one in scores.items:
        if one.arm == arm:
            values.setdefault((one.suite, one.item_id), {})[one.metric] = one.value
    return values


def _whole_values(arm: int, task: str, scores: Scores) -> dict[str, float]:
    return {
        score.metric: score.value
        for score in scores.scores
        if score.arm == arm and score.item_set == task and score.unit == "points" and score.value is not None
    }


def _row(
    number: int, sample: Sample, item: Item | None, values: dict[tuple[str, str], dict[str, float]]
) -> dict[str, Any]:
    doc = _doc(sample, item)
    if sample.choice is not None:
        target, metrics = str(sample.choice.correct), _choice_metrics(sample.choice)
        arguments, responses = _choice_requests(sample.choice, doc)
    else:
        target = item.references[0] if item and item.references else ""
        metrics = values.get((sample.suite, sample.item_id), {}) if not sample.condition else {}
        arguments, responses = {"gen_args_0": {"arg_0": None, "arg_1": None}}, [[sample.text]]
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": arguments,
        "resps": responses,
        "filtered_resps": [response[0] for response in responses],
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": None,
        "target_hash": _sha256(target),
        **metrics,
        "edgemed_prompt_ids_sha256": sample.prompt_sha256,
        "edgemed_text_sha256": sample.text_sha256,
    }


def _doc(sample: Sample, item: Item | None) -> dict[str, Any]:
    """Return the question with its options as they were shown; only its id where the set was not found."""
    if item is None:
        return {"id": sample.item_id}
    doc: dict[str, Any] = {"id": item.id, "question": item.question}
    if item.options:
        order = sample.choice.permutation if sample.choice and sample.choice.permutation else None
        doc["options"] = [item.options[place] for place in order] if order else item.options
    return doc


def _choice_requests(choice: Choice, doc: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    shown = doc.get("options", []) if choice.by_text else list(LETTERS)
    arguments = {
        f"gen_args_{place}": {"arg_0": None, "arg_1": shown[place] if place < len(shown) else None}
        for place in range(len(choice.options))
    }
    # The harness writes numbers and flags of its answers as text.
    responses = [[[str(option.log_probability), str(option.greedy)]] for option in choice.options]
    return arguments, responses


def _choice_metrics(choice: Choice) -> dict[str, float]:
    sums = [option.log_probability for option in choice.options]
    by_length = [option.log_probability / max(1, option.characters) for option in choice.options]
    return {
        "acc": float(sums.index(max(sums)) == choice.correct),
        "acc_norm": float(by_length.index(max(by_length)) == choice.correct),
    }


def _results(run: Run, arm: Arm, tasks: Sequence[Task], scores: Scores) -> dict[str, Any]:
    names = [task.name for task in tasks]
    return {
        "results": {task.name: _task_results(task) for task in tasks},
        "group_subtasks": {},
        "configs": {
            task.name: {
                "task": task.name,
                "output_type": task.output_type,
                "num_fewshot": 0,
                "repeats": 1,
                "metric_list": [{"metric": metric, "aggregation": "mean"} for metric in task.metrics],
            }
            for task in tasks
        },
        "versions": dict.fromkeys(names, run.start.edgemed_version),
        "n-shot": dict.fromkeys(names, 0),
        "higher_is_better": {task.name: _better(task, scores) for task in tasks},
        "n-samples": {
            task.name: {"original": len(task.samples), "effective": len(task.samples)} for task in tasks
        },
        "config": {
            "model": "edgemed",
            "model_args": {
                "name": arm.model_name,
                "sha256": arm.model_sha256,
                "quantization_type": arm.quantization_type,
            },
            "model_num_parameters": arm.parameters or None,
            "model_dtype": arm.quantization_type,
            "batch_size": 1,
            "device": "cpu",
            "random_seed": run.start.seed,
        },
        "git_hash": None,
        "date": _moment(run).timestamp(),
        "lm_eval_version": None,
        "edgemed_version": run.start.edgemed_version,
        "edgemed_run_id": run.start.run_id,
        "chat_template": None,
        "chat_template_sha": arm.chat_template_sha256,
        "model_source": "edgemed",
        "model_name": arm.model_name,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", arm.model_name),
    }


def _task_results(task: Task) -> dict[str, Any]:
    found: dict[str, Any] = {"alias": task.name, "sample_len": len(task.samples)}
    for metric in task.metrics:
        values = [row[metric] for row in task.samples if metric in row]
        whole = task.values.get(metric)
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 and whole is None else None
        found[f"{metric},none"] = fmean(values) if whole is None else whole
        found[f"{metric}_stderr,none"] = error
    return found


def _better(task: Task, scores: Scores) -> dict[str, bool | None]:
    known = {score.metric: score.higher_is_better for score in scores.scores}
    return {metric: True if metric.startswith("acc") else known.get(metric) for metric in task.metrics}


def _folder_name(arm: Arm, number: int) -> str:
    return f"{number}_{re.sub(r'[^A-Za-z0-9._-]+', '_', arm.label)}"


def _moment(run: Run) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(run.start.utc)
    except ValueError:
        return datetime.datetime.fromtimestamp(0, datetime.UTC)


def _date(run: Run) -> str:
    """Return the date as the harness writes it into names; colons are none for Windows."""
    return _moment(run).strftime("%Y-%m-%dT%H-%M-%S.%f")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
