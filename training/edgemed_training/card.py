"""The training card: what was trained on what, and how well it did. Read by `report` and by people who ask.

`run` writes it beside the adapter and into it. A number in a report walks back to the data by hashes.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from edgemed_training.checkpoints import RunIdentity
from edgemed_training.recipe import Recipe

CARD_NAME = "training_card.json"


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict and immutable."""


class EncodingFacts(_Facts, frozen=True, kw_only=True):
    """How the training pairs became rows."""

    examples: int
    tokens: int
    answer_tokens: int
    """Tokens that the loss looked at."""
    max_length: int
    """Tokens; the recipe's, or the model's own context length where that is less."""
    cut_answers: int
    dropped: dict[str, int]
    packed: bool
    rows: int
    fill_share: float
    """Share of the rows' places that hold a token."""
    system_prompt_in: str
    """`system` or `first question`, where the template refuses a system message."""


class TrainingCard(_Facts, frozen=True, kw_only=True):
    """One finished run."""

    schema_version: Literal[1] = 1
    edgemed_version: str
    libraries: dict[str, str]
    """torch, transformers, peft, bitsandbytes: their versions."""
    device: str
    precision: str
    recipe: Recipe
    identity: RunIdentity
    base_model: str
    base_license: str
    data_sources: list[dict[str, str]]
    """Name, source and licence of each, from the dataset card."""
    leaking_pairs: int | None
    """Held-out pairs that the training data holds, from the dataset card; None without one."""
    encoding: EncodingFacts
    steps: int
    best_step: int | None
    """The evaluation whose adapter was kept; None: the last one."""
    evaluations: list[dict[str, float]]
    """Each with step, epoch and metrics, as in log.jsonl."""
    final_loss: float
    """Mean training loss of the last epoch, in nats a token."""
    seconds: float
    """Of this process; less than the whole where the run was resumed."""
    peak_gpu_bytes: int | None


def best_step(evaluations: Sequence[Mapping[str, float]], select_by: str) -> int | None:
    """Return the step of the evaluation that was kept."""
    if not evaluations:
        return None
    key = select_by if select_by in evaluations[0] else "loss"
    sign = 1 if key == "loss" else -1
    return int(min(evaluations, key=lambda entry: (sign * entry[key], entry["step"]))["step"])
