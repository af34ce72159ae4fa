"""A prepared data set: the folder that `prepare` writes, read back unchanged or not at all."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from edgemed_training.checkpoints import file_sha256
from edgemed_training.errors import DataError, LeakError
from edgemed_training.records import CARD_NAME, HELDOUT_NAME, TRAIN_NAME, DatasetCard, QAPair, read_pairs

_PREPARE_AGAIN = "Make the data with `edgemed-train prepare SOURCE --out DIR` and name that folder."
_ALLOW = "`run` trains all the same with --allow-leaks: the scores then mean nothing."


class Dataset(NamedTuple):
    """Both parts, their card, and what they are made of."""

    train: list[QAPair]
    heldout: list[QAPair]
    card: DatasetCard | None
    """None only where a folder without one was allowed."""
    sha256: dict[str, str]
    """File name of each part → SHA-256."""


def read_dataset(folder: Path, *, allow_leaks: bool = False) -> Dataset:
    """Read a prepared data set. Whether the leaks its card reports matter is for the caller to ask.

    Args:
        folder: that `prepare` wrote.
        allow_leaks: take it also without a card, or with parts changed since the card was written.

    Raises:
        LeakError: no card, or a part that is not as `prepare` wrote it: its leak report no longer holds.
        DataError: a file is missing or cannot be read.
    """
    card = read_card(folder) if not allow_leaks or (folder / CARD_NAME).exists() else None
    parts = [read_pairs(folder / name) for name in (TRAIN_NAME, HELDOUT_NAME)]
    sha256 = {name: file_sha256(folder / name) for name in (TRAIN_NAME, HELDOUT_NAME)}
    if card and not allow_leaks:
        for name, found in sha256.items():
            if card.files.get(name, found) != found:
                raise LeakError(
                    f"{folder / name} is not as `prepare` wrote it: its card's numbers no longer hold, "
                    "nor does the leak report.",
                    hint=f"Change the source and run `edgemed-train prepare` again. {_ALLOW}",
                )
    return Dataset(parts[0], parts[1], card, sha256)


def read_card(folder: Path) -> DatasetCard:
    """Read a prepared data set's card.

    Raises:
        LeakError: there is none.
        DataError: it is not valid.
    """
    path = folder / CARD_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=DatasetCard)
    except FileNotFoundError as error:
        raise LeakError(
            f"{folder} is no prepared data set: it has no {CARD_NAME}, so nobody looked for held-out pairs "
            "in the training data.",
            hint=f"{_PREPARE_AGAIN} {_ALLOW}",
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint=_PREPARE_AGAIN) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a dataset card: {error}.", hint=_PREPARE_AGAIN) from error
