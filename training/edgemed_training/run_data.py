"""What a run reads before it begins: prepared pairs, their leak report, and the hashes that name the run.

Called by `train`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from edgemed_training.base_model import BaseModel
from edgemed_training.checkpoints import RunIdentity
from edgemed_training.dataset import read_dataset
from edgemed_training.leaks import refuse_leaks
from edgemed_training.recipe import Recipe
from edgemed_training.records import HELDOUT_NAME, TRAIN_NAME, DatasetCard, QAPair


@dataclass(frozen=True)
class RunData:
    """What a run reads, and what names it."""

    train: list[QAPair]
    heldout: list[QAPair]
    card: DatasetCard | None
    identity: RunIdentity


def read_run_data(recipe: Recipe, base: BaseModel, folder: Path, *, allow_leaks: bool) -> RunData:
    """Read a run's data.

    Args:
        recipe: part of the run's name.
        base: part of the run's name; its weights are read once.
        folder: that `prepare` wrote.
        allow_leaks: train although held-out pairs are found in the training data, or nobody looked.

    Raises:
        LeakError: the held-out pairs are no test.
        DataError: the data cannot be used.
    """
    data = read_dataset(folder, allow_leaks=allow_leaks)
    if data.card and not allow_leaks:
        refuse_leaks(data.card.leaks)
    identity = RunIdentity(
        recipe_sha256=recipe.sha256(),
        base_sha256=base.fingerprint(),
        train_sha256=data.sha256[TRAIN_NAME],
        heldout_sha256=data.sha256[HELDOUT_NAME],
        processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    return RunData(data.train, data.heldout, data.card, identity)
