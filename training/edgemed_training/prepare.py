"""`prepare`: from sources of any shape to a data set that can be trained on and tested with.

Read, clean, look for data of persons, divide, look for leaks; then write the whole folder or nothing.
"""

import hashlib
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from edgemed import __version__
from edgemed.errors import StorageError
from edgemed.metrics import words
from edgemed.operating_system import fsync_folder, write_durably
from edgemed_training.cleaning import clean
from edgemed_training.dataset_card import card_markdown
from edgemed_training.duplicates import Clusters, answer_clusters
from edgemed_training.errors import DataError
from edgemed_training.leaks import LeakReport, find_leaks
from edgemed_training.pii import find_patient_data, refuse_patient_data
from edgemed_training.readers.columns import ReadOptions
from edgemed_training.readers.source import read_source
from edgemed_training.records import (
    CARD_NAME,
    CARD_TEXT_NAME,
    DROPPED_NAME,
    HELDOUT_NAME,
    LEAKS_NAME,
    SPLIT_NAME,
    TRAIN_NAME,
    DatasetCard,
    DuplicateFacts,
    QAPair,
    Quantiles,
    SourceFacts,
    SourcePair,
    encode_pairs,
)
from edgemed_training.split import Split, SplitMethod, split_pairs

_OUR_NAMES = {CARD_NAME, CARD_TEXT_NAME, DROPPED_NAME, HELDOUT_NAME, LEAKS_NAME, SPLIT_NAME, TRAIN_NAME}


def prepare(
    sources: Sequence[Path],
    out: Path,
    *,
    split: SplitMethod = "group",
    train: int | None = None,
    heldout: int | None = None,
    seed: int = 42,
    options: ReadOptions | None = None,
    skip_rules: Collection[str] = (),
    allow_pii: bool = False,
    overwrite: bool = False,
    token_counters: Mapping[str, Callable[[str], int]] | None = None,
) -> DatasetCard:
    """Make a data set of all sources together, and return its card.

    The folder gets train.jsonl, heldout.jsonl, the card for machines and for people, the leak report, the
    split with a hash of each pair, and the list of dropped pairs. The same sources and options give the same
    bytes.

    Args:
        sources: files and folders of any shape that `read_source` knows.
        out: the folder to make.
        split: "group", or "random" as the study did; its leaks are reported, and `run` then refuses.
        train: pairs for training; None: the study's 1,900 or what there is.
        heldout: pairs to test with; None: the study's 100, or 5 % of fewer data.
        seed: another seed holds out other groups.
        options: the column mapping, names and licence.
        skip_rules: cleaning rules to leave out.
        allow_pii: let pass what looks like data of persons.
        overwrite: replace a data set that stands there.
        token_counters: tokenizer's name → tokens of a text, for the card.

    Raises:
        DataError: a source, an option or the data themselves; nothing is written.
        StorageError: the disk does not take the folder.
    """
    _check_target(out, overwrite=overwrite)
    entries, facts = _read(sources, options or ReadOptions())
    cleaned = clean(entries, skip=skip_rules)
    persons = find_patient_data(cleaned.pairs)
    if not allow_pii:
        refuse_patient_data(persons)
    pairs = [entry.pair for entry in cleaned.pairs]
    near = answer_clusters(pairs)
    parts = split_pairs(pairs, near, method=split, train=train, heldout=heldout, seed=seed)
    report = find_leaks(parts.train, parts.heldout)
    files = _part_files(parts, report)
    files[DROPPED_NAME] = b"".join(msgspec.json.encode(one) + b"\n" for one in cleaned.dropped)
    card = DatasetCard(
        edgemed_version=__version__,
        sources=facts,
        rules=cleaned.counts,
        duplicates=_duplicate_facts(near),
        split=parts.facts,
        leaks=report.facts,
        patient_data=persons.facts(allowed=allow_pii),
        lengths=_lengths([*parts.train, *parts.heldout], token_counters or {}),
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    files[CARD_TEXT_NAME] = card_markdown(card).encode()
    files[CARD_NAME] = _json(card)
    _write_folder(out, files)
    return card


def _read(sources: Sequence[Path], options: ReadOptions) -> tuple[list[SourcePair], list[SourceFacts]]:
    """Return the pairs of all sources, each with an id of its own."""
    if not sources:
        raise DataError("No source was named.", hint="Name at least one file or folder.")
    entries: list[SourcePair] = []
    facts: list[SourceFacts] = []
    used: set[str] = set()
    for path in sources:
        source = read_source(path, options)
        facts.append(source.facts)
        for entry in source.pairs:
            name, number = entry.pair.id, 1
            while name in used:  # two sources may both count from 1
                number += 1
                name = f"{entry.pair.id}~{number}"
            used.add(name)
            if name != entry.pair.id:
                entry = msgspec.structs.replace(entry, pair=msgspec.structs.replace(entry.pair, id=name))
            entries.append(entry)
    return entries, facts


def _duplicate_facts(near: Clusters) -> DuplicateFacts:
    sizes = [size for size in near.sizes().values() if size > 1]
    return DuplicateFacts(
        clusters=len(sizes), pairs_in_clusters=sum(sizes), largest_cluster=max(sizes, default=0)
    )


def _part_files(parts: Split, report: LeakReport) -> dict[str, bytes]:
    hashes = {
        "train": {pair.id: pair.sha256() for pair in parts.train},
        "heldout": {pair.id: pair.sha256() for pair in parts.heldout},
    }
    return {
        TRAIN_NAME: encode_pairs(parts.train),
        HELDOUT_NAME: encode_pairs(parts.heldout),
        LEAKS_NAME: _json(report),
        SPLIT_NAME: _json({**msgspec.to_builtins(parts.facts), "pairs": hashes}),
    }


def _lengths(pairs: Sequence[QAPair], counters: Mapping[str, Callable[[str], int]]) -> dict[str, Quantiles]:
    spreads = {
        "question_words": _quantiles(len(words(pair.question)) for pair in pairs),
        "answer_words": _quantiles(len(words(pair.answer)) for pair in pairs),
        "answer_characters": _quantiles(len(pair.answer) for pair in pairs),
    }
    for name, count in counters.items():
        spreads[f"question_tokens_{name}"] = _quantiles(count(pair.question) for pair in pairs)
        spreads[f"answer_tokens_{name}"] = _quantiles(count(pair.answer) for pair in pairs)
    return spreads


def _quantiles(lengths: Iterable[int]) -> Quantiles:
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return Quantiles(
        mean=round(sum(ordered) / len(ordered), 2),
        median=ordered[round(0.5 * last)],
        p95=ordered[round(0.95 * last)],
        p99=ordered[round(0.99 * last)],
        largest=ordered[last],
    )


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder with anything in it but a data set that may be replaced."""
    if out.is_file():
        raise DataError(f"{out} is a file.", hint="Name a folder that does not exist yet.")
    found = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if not found:
        return
    if CARD_NAME not in found or not found <= _OUR_NAMES:
        raise DataError(
            f"{out} holds something else than a prepared data set.",
            hint="Name a folder that does not exist yet.",
        )
    if not overwrite:
        raise DataError(
            f"{out} already holds a data set.",
            hint="Name another folder, or replace it (--overwrite). Runs that used it could not be resumed.",
        )


def _write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder with all files at once: its name stands for the old data, nothing, or the new data."""
    mark = secrets.token_hex(4)
    written, replaced = out.with_name(f"{out.name}.{mark}.tmp"), out.with_name(f"{out.name}.{mark}.old")
    try:
        written.mkdir(parents=True)
        for name, data in files.items():
            write_durably(written / name, data)
        fsync_folder(written)
        if out.is_dir():
            out.rename(replaced)
        written.rename(out)
        fsync_folder(out.parent)
    except OSError as error:
        if replaced.is_dir() and not out.exists():
            replaced.rename(out)
        raise StorageError(
            f"The data set cannot be written to {out}: {error.strerror or error}.",
            hint="Free some space, or name a folder that you may write to.",
        ) from error
    finally:
        shutil.rmtree(written, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
