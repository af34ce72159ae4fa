"""Files of questions: those that come with edgemed, and those that a user imported. JSON Lines.

The first line says what the file is (`Header`), each other line is one `records.Item`. The SHA-256 of the
file's bytes names the set in every record.
"""

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from edgemed import paths
from edgemed.records import Item, ItemFile
from edgemed_benchmarks.errors import ItemError

LARGEST_FILE_BYTES = 256 * 2**20
LONGEST_LINE_BYTES = 2**20
MOST_OPTIONS = 10
HEADER_HINT = "Make it with: edgemed-bench suites import FILE"
SUFFIX = ".jsonl"

ItemSuite = Literal["latency", "quality", "safety"]


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line of an item file."""

    edgemed_items: Literal[1]
    name: str
    suite: ItemSuite
    source: str
    """Where the questions are from, as their licence asks."""
    license: str
    note: str = ""
    """What must be known before a number from this set is believed."""


class ItemSet(NamedTuple):
    """An item file, read and checked."""

    name: str
    suite: ItemSuite
    items: list[Item]
    sha256: str
    source: str
    license: str
    note: str
    path: Path

    @property
    def item_file(self) -> ItemFile:
        """What a run's record says of this set."""
        return ItemFile(
            name=self.name,
            sha256=self.sha256,
            items=len(self.items),
            source=self.source,
            license=self.license,
        )


def shipped_folder() -> Path:
    """The item sets that come with edgemed: our own words, CC0."""
    return Path(__file__).parent / "items"


def imported_folder() -> Path:
    """The item sets that users imported; it need not exist yet."""
    return paths.data_folder() / "suites"


def set_paths() -> dict[str, Path]:
    """Return the file of every set by its name; a shipped set cannot be hidden by an imported one."""
    found = {
        path.stem: path
        for folder in (imported_folder(), shipped_folder())
        for path in sorted(folder.glob(f"*{SUFFIX}"))
    }
    return dict(sorted(found.items()))


def find_item_set(name_or_path: str) -> ItemSet:
    """Read a set by its name, or a file by its path.

    Raises:
        ItemError: there is none, or it cannot be used.
    """
    known = set_paths()
    if name_or_path in known:
        return read_item_set(known[name_or_path])
    path = Path(name_or_path)
    if path.suffix == SUFFIX and path.is_file():
        return read_item_set(path)
    nearest = difflib.get_close_matches(name_or_path, known, n=1)
    raise ItemError(
        f"There is no set of questions {name_or_path!r}."
        + (f" Did you mean {nearest[0]}?" if nearest else ""),
        hint="See the sets with: edgemed-bench suites list",
    )


def find_recorded_set(wanted: ItemFile, given: Sequence[str] = ()) -> ItemSet:
    """Read the very set that a record names: by its name, or one of those given, with the same SHA-256.

    Args:
        given: names or paths to look at as well; a run may have taken its set from a file of its own.

    Raises:
        ItemError: it is not here, or is another one now; the message is the reason.
    """
    names = [*given, *([wanted.name] if wanted.name in set_paths() else [])]
    if not names:
        raise ItemError(f"There is no set {wanted.name!r} here.", hint="Give its file with --items.")
    for name in names:
        found = find_item_set(name)
        if found.sha256 == wanted.sha256:
            return found
    raise ItemError(
        f"The set {wanted.name!r} that is here is not the one of the run.", hint="Give its file with --items."
    )


def shipped_sets(suite: ItemSuite) -> list[ItemSet]:
    """Return the sets that come with edgemed for one suite, in the order of their names."""
    sets = [read_item_set(path) for path in sorted(shipped_folder().glob(f"*{SUFFIX}"))]
    return [each for each in sets if each.suite == suite]


def read_item_set(path: Path) -> ItemSet:
    """Read and check an item file.

    Raises:
        ItemError: it is missing, empty, too large, no UTF-8, or a line is not as it should be; it is named.
    """
    digest = hashlib.sha256()
    lines = numbered_lines(path, digest)
    first = next(lines, None)
    if first is None:
        raise ItemError(f"{path} is empty.", hint=HEADER_HINT)
    header = _header(path, first[1])
    items: list[Item] = []
    seen: dict[str, int] = {}
    decoder = msgspec.json.Decoder(Item)
    for number, line in lines:
        try:
            item = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise line_error(path, number, f"is no item: {error}") from error
        if fault := fault_of(item):
            raise line_error(path, number, fault)
        if item.id in seen:
            raise line_error(path, number, f"has the id {item.id!r} of line {seen[item.id]} again")
        seen[item.id] = number
        items.append(item)
    if not items:
        raise ItemError(f"{path} holds no questions.", hint=HEADER_HINT)
    return ItemSet(
        header.name,
        header.suite,
        items,
        digest.hexdigest(),
        header.source,
        header.license,
        header.note,
        path,
    )


def encode_item_set(header: Header, items: list[Item]) -> bytes:
    """Return the bytes of an item file: the same items always give the same bytes."""
    encoder = msgspec.json.Encoder(order="deterministic")
    fields = [msgspec.to_builtins(header), *map(msgspec.to_builtins, items)]
    return b"".join(encoder.encode(each) + b"\n" for each in fields)


def fault_of(item: Item) -> str:
    """Return why an item cannot be asked, as the end of "line 7 …"; nothing when it can."""
    if not item.id.strip():
        return "has no id"
    if not item.question.strip():
        return "has no question"
    if item.kind == "choice" or item.options:
        return _fault_of_options(item)
    if len(item.history) % 2:
        return "has a question without an answer in its history"
    return ""


def _fault_of_options(item: Item) -> str:
    if not 2 <= len(item.options) <= MOST_OPTIONS:
        return f"needs 2 to {MOST_OPTIONS} options and has {len(item.options)}"
    if not all(option.strip() for option in item.options):
        return "has an empty option"
    if len({option.strip() for option in item.options}) < len(item.options):
        return "has the same option twice"
    if item.correct is None or item.correct >= len(item.options):
        return f"has {len(item.options)} options and names number {item.correct} as the right one"
    return ""


def numbered_lines(path: Path, digest: "hashlib._Hash | None" = None) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not empty; the number counts from 1.

    Args:
        digest: fed with the bytes of the file as they are read.

    Raises:
        ItemError: the file is missing, empty, too large or no UTF-8; the line is named.
    """
    check_size(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE_BYTES + 1), b""), 1):
                if digest is not None:
                    digest.update(line)
                if len(line) > LONGEST_LINE_BYTES:
                    raise line_error(path, number, f"is longer than {LONGEST_LINE_BYTES >> 20} MiB")
                text = _decoded(path, number, line)
                if text.strip():
                    yield number, text.rstrip("\r\n")
    except OSError as error:
        raise _cannot_read(path, error) from error


def check_size(path: Path) -> None:
    """Refuse a file that is missing, empty or too large, before it is read.

    Raises:
        ItemError: it is.
    """
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise _cannot_read(path, error) from error
    if not size_bytes:
        raise ItemError(f"{path} is empty.", hint="Copy it again.")
    if size_bytes > LARGEST_FILE_BYTES:
        raise ItemError(
            f"{path} has {size_bytes / 2**20:.0f} MiB; {LARGEST_FILE_BYTES >> 20} MiB is the most.",
            hint="Use a part of it: some thousand questions tell all that can be told.",
        )


def line_error(path: Path, number: int, fault: str) -> ItemError:
    """Return the error that names a line."""
    return ItemError(f"{path}, line {number} {fault}.", hint="Correct the line, or take it out.")


def _header(path: Path, line: str) -> Header:
    try:
        return msgspec.json.decode(line, type=Header)
    except msgspec.DecodeError as error:
        raise ItemError(
            f"{path}, line 1 does not say what the file is: {error}.", hint=HEADER_HINT
        ) from error


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ItemError(
            f"{path}, line {number} is no UTF-8 at byte {error.start + 1}.",
            hint="Save the file as UTF-8; spreadsheets call it CSV UTF-8.",
        ) from error


def _cannot_read(path: Path, error: OSError) -> ItemError:
    return ItemError(f"{path} cannot be read: {error.strerror}.", hint="Check the name and the place.")
