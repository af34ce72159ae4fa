"""What a run reads before it begins: prepared pairs, their leak report, and the hashes that name the run.

Called by `train`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgemed_training import checkpoints
from edgemed_training.base_model import BaseModel
from edgemed_training.checkpoints import RunIdentity
from edgemed_training.errors import LeakError
from edgemed_training.leaks import refuse_leaks
from edgemed_training.recipe import Recipe
from edgemed_training.records import CARD_NAME as DATASET_CARD_NAME
from edgemed_training.records import HELDOUT_NAME, TRAIN_NAME, DatasetCard, QAPair, read_pairs


@dataclass(frozen=True)
class RunData:
    """What a run reads, and what names it."""

    train: list[QAPair]
    heldout: list[QAPair]
    card: DatasetCard | None
    identity: RunIdentity


def read_run_data(recipe: Recipe, base: BaseModel, folder: Path, *, allow_leaks: bool) -> RunData:
    train, heldout = read_pairs(folder / TRAIN_NAME), read_pairs(folder / HELDOUT_NAME)
    hashes = {name: checkpoints.file_sha256(folder / name) for name in (TRAIN_NAME, HELDOUT_NAME)}
    card = _dataset_card(folder / DATASET_CARD_NAME)
    if not allow_leaks:
        _refuse_leaks(folder, card, hashes)
    identity = RunIdentity(
        recipe_sha256=recipe.sha256(),
        base_sha256=base.fingerprint(),
        train_sha256=hashes[TRAIN_NAME],
        heldout_sha256=hashes[HELDOUT_NAME],
        processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    return RunData(train, heldout, card, identity)


def _dataset_card(path: Path) -> DatasetCard | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=DatasetCard)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise LeakError(
            f"The dataset card {path} cannot be read: {error}.",
            hint="Make the data again with `edgemed-train prepare`.",
        ) from error


def _refuse_leaks(folder: Path, card: DatasetCard | None, hashes: Mapping[str, str]) -> None:
    allow = "or train all the same with --allow-leaks: the scores then mean nothing."
    if card is None:
        raise LeakError(
            f"{folder} has no {DATASET_CARD_NAME}: nobody looked for held-out pairs in the training data.",
            hint=f"Make the data with `edgemed-train prepare`, {allow}",
        )
    if changed := [name for name, sha256 in hashes.items() if card.files.get(name, sha256) != sha256]:
        raise LeakError(
            f"{folder / changed[0]} was changed after the leak report in {DATASET_CARD_NAME} was made.",
            hint=f"Make the data again with `edgemed-train prepare`, {allow}",
        )
    refuse_leaks(card.leaks)
