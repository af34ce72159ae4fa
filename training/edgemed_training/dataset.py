"""A prepared data set: the folder that `prepare` writes, read back unchanged or not at all."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgemed_training.errors import DataError
from edgemed_training.records import CARD_NAME, HELDOUT_NAME, TRAIN_NAME, DatasetCard, QAPair, read_pairs

_PREPARE_AGAIN = "Make the data with `edgemed-train prepare SOURCE --out DIR` and name that folder."


class Dataset(NamedTuple):
    """Both parts and their card."""

    train: list[QAPair]
    heldout: list[QAPair]
    card: DatasetCard


def read_dataset(folder: Path) -> Dataset:
    """Read a prepared data set. Whether its leaks are allowed is for the caller to ask: `leaks.refuse_leaks`.

    Raises:
        DataError: not such a folder, or a file that is not as `prepare` wrote it.
    """
    card = read_card(folder)
    for name, sha256 in card.files.items():
        if name in (TRAIN_NAME, HELDOUT_NAME) and _sha256(folder / name) != sha256:
            raise DataError(
                f"{folder / name} is not as `prepare` wrote it: its card's numbers no longer hold.",
                hint="Change the source and run `edgemed-train prepare` again.",
            )
    return Dataset(read_pairs(folder / TRAIN_NAME), read_pairs(folder / HELDOUT_NAME), card)


def read_card(folder: Path) -> DatasetCard:
    """Read a prepared data set's card.

    Raises:
        DataError: there is none, or it is not valid.
    """
    path = folder / CARD_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=DatasetCard)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is no prepared data set: it has no {CARD_NAME}.", hint=_PREPARE_AGAIN
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint=_PREPARE_AGAIN) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a dataset card: {error}.", hint=_PREPARE_AGAIN) from error


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint=_PREPARE_AGAIN) from error
