"""One source, whatever its shape: find out what a file or folder is, and give it to its reader."""

from pathlib import Path
from typing import NamedTuple

from edgemed_training.errors import DataError
from edgemed_training.readers.arrow_files import SPLITS_NAME, STATE_NAME, read_parquet, read_saved_dataset
from edgemed_training.readers.columns import ReadOptions
from edgemed_training.readers.csv_file import read_csv
from edgemed_training.readers.json_file import read_json
from edgemed_training.readers.known_sources import attributed, recognise
from edgemed_training.readers.medquad_xml import read_medquad_file
from edgemed_training.readers.plain_file import head, read_text, sha256_of_file, sha256_of_files
from edgemed_training.records import SourceFacts, SourcePair

_COMPRESSED = (".gz", ".xz")
_SHAPES = {
    ".xml": "MedQuAD XML",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".json": "JSON",
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".parquet": "Parquet",
}
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")
_WHAT_WE_READ = (
    "Name a file (.csv, .tsv, .json, .jsonl, .parquet, MedQuAD .xml; .gz and .xz too), a folder of "
    "save_to_disk, of Parquet files, or MedQuAD's tree."
)


class Source(NamedTuple):
    """What one file or folder holds."""

    pairs: list[SourcePair]
    facts: SourceFacts


def read_source(path: Path, options: ReadOptions | None = None) -> Source:
    """Read a file or folder of any shape that edgemed knows.

    Raises:
        DataError: it cannot be read or understood; what, which file and where in it are named.
        MissingExtra: Parquet and save_to_disk need pyarrow, which is not installed.
    """
    options = options or ReadOptions()
    if path.is_dir():
        return _read_folder(path, options)
    shape = _shape(path)
    if shape == "MedQuAD XML":
        pairs, unanswered = read_medquad_file(path)
        return _source(path, shape, pairs, unanswered, sha256_of_file(path), options)
    if shape == "CSV":
        pairs, unanswered = read_csv(path, options)
    elif shape == "JSON":
        pairs, unanswered = read_json(path, options)
    else:
        pairs, unanswered = read_parquet(path, options)
    return _source(path, shape, pairs, unanswered, sha256_of_file(path), options)


def _shape(path: Path) -> str:
    """Return the file's shape: by its first bytes, its name, or the text's beginning."""
    first = head(path, 8)
    names = [suffix.lower() for suffix in path.suffixes]
    if first[:4] == b"PAR1":
        return "Parquet"
    if names and names[-1] in _PICKLES:
        raise DataError(
            f"{path} is by its name a Python pickle. Opening one can run any program, so edgemed never does.",
            hint="Ask its maker for CSV, JSON Lines or Parquet.",
        )
    if first[:6] == b"ARROW1" or ".arrow" in names:
        raise DataError(f"{path} is a part of a save_to_disk folder.", hint="Name the folder.")
    for name in reversed(names):
        if name in _SHAPES:
            return _SHAPES[name]
        if name not in _COMPRESSED:
            break
    beginning = read_text(path).lstrip()[:1]
    shape = {"<": "MedQuAD XML", "{": "JSON", "[": "JSON"}.get(beginning)
    if shape is None:
        raise DataError(f"{path} is of a kind that edgemed does not know.", hint=_WHAT_WE_READ)
    return shape


def _read_folder(folder: Path, options: ReadOptions) -> Source:
    if (folder / SPLITS_NAME).is_file() or (folder / STATE_NAME).is_file():
        pairs, unanswered, files = read_saved_dataset(folder, options)
        return _source(folder, "save_to_disk", pairs, unanswered, sha256_of_files(folder, files), options)
    documents = sorted(folder.rglob("*.xml"))
    tables = sorted(folder.rglob("*.parquet"))
    if documents:
        found = [read_medquad_file(document) for document in documents]
        return _joined(folder, "MedQuAD XML", documents, found, options)
    if tables:
        return _joined(folder, "Parquet", tables, [read_parquet(table, options) for table in tables], options)
    holds = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise DataError(f"The folder {folder} holds nothing that edgemed reads ({holds}).", hint=_WHAT_WE_READ)


def _joined(
    folder: Path,
    shape: str,
    files: list[Path],
    found: list[tuple[list[SourcePair], int]],
    options: ReadOptions,
) -> Source:
    pairs = [pair for some, _ in found for pair in some]
    unanswered = sum(number for _, number in found)
    return _source(folder, shape, pairs, unanswered, sha256_of_files(folder, files), options)


def _source(
    path: Path, shape: str, pairs: list[SourcePair], unanswered: int, sha256: str, options: ReadOptions
) -> Source:
    if not pairs:
        raise DataError(
            f"No usable examples in {path} (0 of {unanswered}): no question has an answer.",
            hint="Name another source.",
        )
    known = recognise(path, pairs)
    if known:
        pairs = [attributed(entry, known, options.name or path.name) for entry in pairs]
    licenses = sorted({entry.pair.license for entry in pairs if entry.pair.license})
    facts = SourceFacts(
        name=known.name if known else options.name or path.name,
        source=known.source if known else "",
        license=", ".join(licenses),
        file=path.name,
        shape=shape,
        sha256=sha256,
        rows=len(pairs),
        unanswered=unanswered,
    )
    return Source(pairs, facts)
