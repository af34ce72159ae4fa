"""The SQLite file of saved conversations: opened, checked, migrated, recovered. Used by `history`."""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from edgemed.errors import StorageError
from edgemed.languages import later, plural
from edgemed.languages import text as _

SCHEMA_VERSION = 2
BUSY_SECONDS = 5.0
"""How long to wait for another program that is writing."""
_SIDE_FILES = ("-wal", "-shm", "-journal")

SCHEMA = (
    """CREATE TABLE conversation(
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        title TEXT NOT NULL,
        created_at TEXT NOT NULL,
        model_name TEXT NOT NULL,
        model_sha256 TEXT NOT NULL,
        head_id INTEGER,
        activity INTEGER NOT NULL DEFAULT 0,
        deleted INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE message(
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation_id INTEGER NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK(role IN ('user', 'assistant')),
        text TEXT NOT NULL,
        status TEXT NOT NULL
            CHECK(status IN ('done', 'writing', 'stopped', 'length', 'engine_died', 'interrupted')),
        created_at TEXT NOT NULL,
        notice TEXT,
        parent_id INTEGER REFERENCES message(id),
        deleted INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX message_of_conversation ON message(conversation_id)",
    "CREATE INDEX message_being_written ON message(id) WHERE status = 'writing'",
)
# What version 2 has beyond the columns above: made for a new file and by the migration.
_ADDED_IN_2 = (
    "CREATE INDEX message_of_parent ON message(parent_id)",
    "CREATE INDEX conversation_by_activity ON conversation(activity)",
    # Place 0 is the draft of a conversation that has no question yet.
    "CREATE TABLE draft(place INTEGER PRIMARY KEY, text TEXT NOT NULL)",
    """CREATE VIRTUAL TABLE message_text USING fts5(
        text, content = 'message', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2')""",
    # An answer enters the index when it ends, not each second.
    """CREATE TRIGGER message_added AFTER INSERT ON message WHEN new.status <> 'writing' BEGIN
        INSERT INTO message_text(rowid, text) VALUES(new.id, new.text);
    END""",
    """CREATE TRIGGER message_left AFTER UPDATE OF text, status ON message WHEN old.status <> 'writing' BEGIN
        INSERT INTO message_text(message_text, rowid, text) VALUES('delete', old.id, old.text);
    END""",
    """CREATE TRIGGER message_came AFTER UPDATE OF text, status ON message WHEN new.status <> 'writing' BEGIN
        INSERT INTO message_text(rowid, text) VALUES(new.id, new.text);
    END""",
    """CREATE TRIGGER message_deleted AFTER DELETE ON message WHEN old.status <> 'writing' BEGIN
        INSERT INTO message_text(message_text, rowid, text) VALUES('delete', old.id, old.text);
    END""",
)
_TO_VERSION_2 = (
    "ALTER TABLE conversation ADD COLUMN head_id INTEGER",
    "ALTER TABLE conversation ADD COLUMN activity INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE conversation ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE message ADD COLUMN parent_id INTEGER REFERENCES message(id)",
    "ALTER TABLE message ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0",
    # In version 1 several answers in a row were answers to the same question.
    """UPDATE message SET parent_id = (
        SELECT max(earlier.id) FROM message AS earlier
        WHERE earlier.conversation_id = message.conversation_id AND earlier.id < message.id
            AND (message.role = 'user' OR earlier.role = 'user'))""",
    """UPDATE conversation SET
        head_id = (SELECT max(id) FROM message WHERE conversation_id = conversation.id),
        activity = coalesce((SELECT max(id) FROM message WHERE conversation_id = conversation.id), 0)""",
    *_ADDED_IN_2,
    "INSERT INTO message_text(rowid, text) SELECT id, text FROM message WHERE status <> 'writing'",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_TABLES = {"conversation": 8, "message": 9}
"""Tables that hold what was said → number of columns."""


class OpenedFile(NamedTuple):
    """A connection, and what the user must be told of the opening."""

    connection: sqlite3.Connection
    note: str
    """Mostly empty."""


class Damaged(Exception):
    """The file is no history, or its pages are spoilt."""


def open_file(path: Path) -> OpenedFile:
    """Open the store for reading and writing, or begin one; the caller holds the lock.

    An older schema is migrated, with a backup beside it. A damaged file is set aside, never deleted, and what
    SQLite can still read of it is taken over.

    Raises:
        StorageError: it cannot be written, or a newer edgemed wrote it.
    """
    try:
        return OpenedFile(*_connect(path))
    except Damaged as damage:
        aside = _set_aside(path)
        connection, _note = _connect(path)
        try:
            with in_words(path):
                questions = _salvage(aside, connection)
        except BaseException:
            connection.close()
            raise
        recovered = (
            plural(
                "{count} question with its answer could be recovered.",
                "{count} questions with their answers could be recovered.",
                questions,
            )
            if questions
            else _("Nothing in them could be recovered.")
        )
        note = _(
            "The saved conversations were damaged ({damage}). {recovered} "
            "The damaged file is kept as {aside}.",
            damage=damage,
            recovered=recovered,
            aside=aside,
        )
        return OpenedFile(connection, note)


def open_file_for_reading(path: Path) -> OpenedFile:
    """Open a store that another edgemed is writing.

    Raises:
        StorageError: it cannot be read, is damaged, or has another schema.
    """
    with in_words(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if _version(connection) != SCHEMA_VERSION:
                raise StorageError(
                    _("The saved conversations in {path} are being opened by another edgemed.", path=path),
                    hint=_("Close the other edgemed, then start again."),
                )
        except BaseException:
            connection.close()
            raise
    return OpenedFile(connection, "")


def open_memory() -> sqlite3.Connection:
    """Return an empty store that lives as long as the connection."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _prepare(connection)
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Do several things, or none of them."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk has SQLite roll back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn what SQLite says of the disk into a `StorageError`; a mistake in our code stays one."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
        raise
    except sqlite3.Error as error:
        raise refused(path, _(_REASONS.get(_primary_code(error), str(error)))) from error


def _connect(path: Path) -> tuple[sqlite3.Connection, str]:
    journal = path.with_name(path.name + "-wal")
    try:
        # What patients said is for this user alone; SQLite gives its side files the same rights.
        path.touch(mode=0o600)
        if path.stat().st_size == 0 and journal.exists() and journal.stat().st_size > 0:
            # SQLite would delete the journal, and it may hold all there is.
            raise Damaged(_("the file is empty"))
    except OSError as error:
        raise refused(path, error.strerror or str(error)) from error
    with in_words(path):
        # Each statement is its own transaction unless `transaction` joins some.
        connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
    try:
        with in_words(path):
            version = _check(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            note = _migrate(connection, path) if version == 1 else ""
            _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection, note


def _check(connection: sqlite3.Connection, path: Path) -> int:
    """Return the schema's version; 0 for a new file."""
    try:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        version = _version(connection)
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.DatabaseError as error:
        if _primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise Damaged(str(error)) from error
        raise
    if verdict != "ok":
        raise Damaged(_("parts of the file are spoilt"))
    if version > SCHEMA_VERSION:
        raise StorageError(
            _("The saved conversations in {path} were written by a newer edgemed.", path=path),
            hint=_("Use the newer edgemed, or rename that file to begin a new history."),
        )
    if tables and not (version >= 1 and set(_TABLES) <= tables):
        raise Damaged(_("the file belongs to another program"))
    return version


def _migrate(connection: sqlite3.Connection, path: Path) -> str:
    backup = _free_name(path, "history-before-update")
    try:
        backup.touch(mode=0o600)
        with contextlib.closing(sqlite3.connect(backup)) as copy:
            connection.backup(copy)
        # ALTER TABLE may not be part of a foreign-key check in mid-way.
        with transaction(connection):
            for statement in _TO_VERSION_2:
                connection.execute(statement)
    except (sqlite3.Error, OSError):
        with contextlib.suppress(OSError):
            backup.unlink()
        raise
    return _(
        "The saved conversations were brought to this version. A copy of how they were is {backup}.",
        backup=backup,
    )


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables where there are none, and prove that the file can be written."""
    connection.execute("PRAGMA foreign_keys = ON")
    with transaction(connection):
        if _version(connection) == 0:
            for statement in (*SCHEMA, *_ADDED_IN_2):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


# Damage.


def _set_aside(path: Path) -> Path:
    aside = _free_name(path, "history-damaged")
    try:
        # The journal goes along: it may hold the newest pages. A new file must never meet an old journal.
        for side in _SIDE_FILES:
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + side).rename(aside.with_name(aside.name + side))
        path.rename(aside)
    except OSError as error:
        raise refused(path, f"it is damaged and cannot be renamed: {error.strerror}") from error
    return aside


def _free_name(path: Path, stem: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name, number = path.with_name(f"{stem}-{stamp}.sqlite3"), 1
    while name.exists():
        number += 1
        name = path.with_name(f"{stem}-{stamp}-{number}.sqlite3")
    return name


def _salvage(damaged: Path, target: sqlite3.Connection) -> int:
    """Copy every row that can still be read; return how many questions those are.

    Read through an immutable connection, which takes no lock and changes nothing; the newest pages, when they
    are still in the journal, are left to a person with SQLite's own tools.
    """
    source = sqlite3.connect(f"{damaged.absolute().as_uri()}?immutable=1", uri=True, isolation_level=None)
    source.text_factory = lambda data: data.decode("utf-8", "replace")
    with contextlib.closing(source), transaction(target):
        # A message's conversation or parent may be among what is lost.
        target.execute("PRAGMA defer_foreign_keys = ON")
        for table, most in _TABLES.items():
            columns = _columns(source, table)[:most]
            known = [name for name in columns if name in _columns(target, table)]
            places = ", ".join("?" * len(known))
            for row in _readable_rows(source, table, known):
                with contextlib.suppress(sqlite3.IntegrityError):
                    target.execute(f"INSERT INTO {table}({', '.join(known)}) VALUES({places})", row)
        _mend(target)
        questions: int = target.execute("SELECT count(*) FROM message WHERE role = 'user'").fetchone()[0]
    return questions


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    try:
        return [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
    except sqlite3.DatabaseError:
        return []


def _readable_rows(
    connection: sqlite3.Connection, table: str, columns: Sequence[str]
) -> Iterator[tuple[object, ...]]:
    """Yield rows from both ends, and one by one between, past whatever page is spoilt."""
    if not columns:
        return
    select = f"SELECT {', '.join(columns)} FROM {table}"
    id_place = columns.index("id")
    seen: set[int] = set()
    for order in ("ASC", "DESC"):
        with contextlib.suppress(sqlite3.DatabaseError):
            for row in connection.execute(f"{select} ORDER BY id {order}"):
                if row[id_place] in seen:
                    break
                seen.add(row[id_place])
                yield row
    if not seen:
        return
    for missing in range(min(seen) + 1, max(seen)):
        if missing not in seen:
            with contextlib.suppress(sqlite3.DatabaseError):
                yield from connection.execute(f"{select} WHERE id = ?", (missing,))


def _mend(connection: sqlite3.Connection) -> None:
    """Give what was saved from a damaged file its bonds back."""
    for statement in (
        """INSERT INTO conversation(id, title, created_at, model_name, model_sha256)
            SELECT DISTINCT conversation_id, 'Recovered', min(created_at), 'unknown', '' FROM message
            WHERE conversation_id NOT IN (SELECT id FROM conversation) GROUP BY conversation_id""",
        """UPDATE message SET parent_id = (
                SELECT max(earlier.id) FROM message AS earlier
                WHERE earlier.conversation_id = message.conversation_id AND earlier.id < message.id)
            WHERE parent_id IS NULL OR parent_id NOT IN (SELECT id FROM message)""",
        """UPDATE conversation SET
                head_id = (SELECT max(id) FROM message WHERE conversation_id = conversation.id)
            WHERE head_id IS NULL OR head_id NOT IN (SELECT id FROM message)""",
        """UPDATE conversation SET activity = coalesce(
            (SELECT max(id) FROM message WHERE conversation_id = conversation.id), 0)""",
    ):
        connection.execute(statement)


# Words.

_REASONS = {
    sqlite3.SQLITE_FULL: later("the disk is full"),
    sqlite3.SQLITE_READONLY: later("it is read-only"),
    sqlite3.SQLITE_CANTOPEN: later("it cannot be opened"),
    sqlite3.SQLITE_PERM: later("the system does not allow it"),
    sqlite3.SQLITE_AUTH: later("the system does not allow it"),
    sqlite3.SQLITE_BUSY: later("another program is using it"),
    sqlite3.SQLITE_LOCKED: later("another program is using it"),
    sqlite3.SQLITE_IOERR: later("the disk could not be read or written"),
    sqlite3.SQLITE_CORRUPT: later("it is damaged"),
    sqlite3.SQLITE_NOTADB: later("it is damaged"),
}


def _primary_code(error: sqlite3.Error) -> int:
    # The higher bytes say more than a user needs.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def refused(path: Path, reason: str) -> StorageError:
    """Return the error for a store that the disk does not take."""
    return StorageError(
        _("Conversations cannot be saved in {path}: {reason}.", path=path, reason=reason),
        hint=_("Free some space, close other programs, or set EDGEMED_HOME to a folder that can be written."),
    )
