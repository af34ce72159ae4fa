"""Saved conversations: one SQLite file that a power cut cannot spoil. Used by the chat.

A question is on the disk before its answer begins; the answer follows about once a second. Rows are ordered
by id, never by date: the clock of a clinic machine may jump.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from edgemed.errors import StorageError
from edgemed.terminal_text import clean

SCHEMA_VERSION = 1
TITLE_LENGTH = 60
BUSY_SECONDS = 5.0
"""How long to wait for another edgemed that is writing."""

FinalStatus = Literal["done", "stopped", "length", "engine_died", "interrupted"]
Status = FinalStatus | Literal["writing"]

UNFINISHED = {
    "writing": "interrupted",
    "stopped": "stopped by the user",
    "length": "cut at its longest",
    "engine_died": "the engine stopped",
    "interrupted": "interrupted",
}
"""Why an answer of this status is not whole."""

_SCHEMA = (
    """CREATE TABLE conversation(
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        title TEXT NOT NULL,
        created_at TEXT NOT NULL,
        model_name TEXT NOT NULL,
        model_sha256 TEXT NOT NULL)""",
    """CREATE TABLE message(
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation_id INTEGER NOT NULL REFERENCES conversation(id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK(role IN ('user', 'assistant')),
        text TEXT NOT NULL,
        status TEXT NOT NULL
            CHECK(status IN ('done', 'writing', 'stopped', 'length', 'engine_died', 'interrupted')),
        created_at TEXT NOT NULL,
        notice TEXT)""",
    "CREATE INDEX message_of_conversation ON message(conversation_id)",
    "CREATE INDEX message_being_written ON message(id) WHERE status = 'writing'",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_MESSAGE_COLUMNS = "id, conversation_id, role, text, status, created_at, notice"
_CONVERSATION_COLUMNS = "id, title, created_at, model_name, model_sha256"


class Conversation(NamedTuple):
    """One conversation, without its messages."""

    id: int
    title: str
    created_at: str
    """UTC, ISO 8601, to the second."""
    model_name: str
    model_sha256: str


class SavedMessage(NamedTuple):
    """One question or answer."""

    id: int
    conversation_id: int
    role: Literal["user", "assistant"]
    text: str
    """As typed or written by the model: `clean` it before a terminal sees it."""
    status: Status
    created_at: str
    notice: str | None
    """Of an answer: the words that must stand beside it."""


class _Damaged(Exception):
    """The file is no history, or its pages are spoilt."""


class History:
    """The saved conversations. Every method may raise `StorageError`."""

    saves = True

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Take over an open connection; `History.open` makes one."""
        self._connection = connection
        self.path = path
        self.opening_note = ""
        """One sentence for the user about what was found at opening; mostly empty."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the store, or begin one. A damaged file is set aside, never deleted.

        Raises:
            StorageError: it cannot be written, or a newer edgemed wrote it.
        """
        try:
            return cls(_connect(path), path)
        except _Damaged as damage:
            aside = _set_aside(path)
            history = cls(_connect(path), path)
            history.opening_note = (
                f"The saved conversations were damaged ({damage}); they are kept as {aside}, "
                "and a new history is begun."
            )
            return history

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def start_conversation(self, model_name: str, model_sha256: str) -> int:
        """Begin a conversation and return its id."""
        return self._insert(
            "INSERT INTO conversation(title, created_at, model_name, model_sha256) VALUES('', ?, ?, ?)",
            (_now(), model_name, model_sha256),
        )

    def add_question(self, conversation_id: int, text: str) -> int:
        """Save a question and return its id; once this returns, no power cut takes it away.

        The first question of a conversation gives it its title.
        """
        with self._transaction():
            self._connection.execute(
                "UPDATE conversation SET title = ? WHERE id = ? AND title = ''",
                (_title(text), conversation_id),
            )
            return self._insert_message(conversation_id, "user", text, "done", None)

    def begin_answer(self, conversation_id: int, notice: str | None) -> int:
        """Note that an answer is being written, and return its id."""
        with self._transaction():
            return self._insert_message(conversation_id, "assistant", "", "writing", notice)

    def save_partial(self, message_id: int, text: str) -> None:
        """Save what is written of an answer by now."""
        self._execute("UPDATE message SET text = ? WHERE id = ?", (_storable(text), message_id))

    def finish_answer(self, message_id: int, text: str, status: FinalStatus) -> None:
        """Save the answer's last text together with how it ended."""
        self._execute(
            "UPDATE message SET text = ?, status = ? WHERE id = ?", (_storable(text), status, message_id)
        )

    def unfinished_answers(self) -> list[SavedMessage]:
        """Return the answers that a power cut or a kill left half-written, the oldest first."""
        return self._messages("WHERE status = 'writing' ORDER BY id")

    def mark_interrupted(self, answers: list[SavedMessage]) -> None:
        """Mark these unfinished answers as interrupted, so that no later start reports them again."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE message SET status = 'interrupted' WHERE id = ? AND status = 'writing'",
                [(answer.id,) for answer in answers],
            )

    def conversation(self, conversation_id: int) -> Conversation:
        """Return one conversation."""
        rows = self._rows(
            f"SELECT {_CONVERSATION_COLUMNS} FROM conversation WHERE id = ?", (conversation_id,)
        )
        if not rows:
            raise StorageError(f"There is no saved conversation {conversation_id} in {self.path}.")
        return Conversation(*rows[0])

    def messages(self, conversation_id: int) -> list[SavedMessage]:
        """Return the questions and answers of one conversation, the oldest first."""
        return self._messages("WHERE conversation_id = ? ORDER BY id", (conversation_id,))

    def latest_answer(self) -> SavedMessage | None:
        """Return the answer that was begun last, in whatever conversation."""
        found = self._messages("WHERE role = 'assistant' ORDER BY id DESC LIMIT 1")
        return found[0] if found else None

    def export_markdown(self, conversation_id: int) -> str:
        """Return one conversation as Markdown, ready to print."""
        conversation, messages = self.conversation(conversation_id), self.messages(conversation_id)
        lines = [f"# {conversation.title or 'Conversation'}", ""]
        lines += [f"- {fact}" for fact in _facts(conversation, messages)]
        for message in messages:
            lines += ["", f"## {_heading(message)}", ""]
            if mark := _mark(message):
                lines += [f"**{mark}**", ""]
            text = clean(message.text).strip() or "(nothing)"
            # Quoted, a question cannot pass for a heading or an answer.
            lines += [f"> {line}".rstrip() for line in text.split("\n")] if message.role == "user" else [text]
        return "\n".join(lines) + "\n"

    def export_text(self, conversation_id: int) -> str:
        """Return one conversation as plain text."""
        conversation, messages = self.conversation(conversation_id), self.messages(conversation_id)
        lines = [conversation.title or "Conversation", *_facts(conversation, messages)]
        for message in messages:
            mark = _mark(message)
            lines += ["", f"{_heading(message)}:{' ' + mark if mark else ''}"]
            lines.append(clean(message.text).strip() or "(nothing)")
        return "\n".join(lines) + "\n"

    def _insert_message(
        self, conversation_id: int, role: str, text: str, status: Status, notice: str | None
    ) -> int:
        return self._insert(
            "INSERT INTO message(conversation_id, role, text, status, created_at, notice) "
            "VALUES(?, ?, ?, ?, ?, ?)",
            (conversation_id, role, _storable(text), status, _now(), notice),
        )

    def _messages(self, condition: str, values: tuple[int, ...] = ()) -> list[SavedMessage]:
        rows = self._rows(f"SELECT {_MESSAGE_COLUMNS} FROM message {condition}", values)
        return [SavedMessage(*row) for row in rows]

    def _rows(self, sql: str, values: tuple[int, ...]) -> list[tuple[Any, ...]]:
        with _in_words(self.path):
            return self._connection.execute(sql, values).fetchall()

    def _insert(self, sql: str, values: tuple[object, ...]) -> int:
        row_id = self._execute(sql, values).lastrowid
        assert row_id is not None
        return row_id

    def _execute(self, sql: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        with _in_words(self.path):
            return self._connection.execute(sql, values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _in_words(self.path), _transaction(self._connection):
            yield


class NoHistory(History):
    """The same in memory, for a disk that takes no data: the chat works, and its `opening_note` says so."""

    saves = False

    def __init__(self, reason: str = "") -> None:
        connection = sqlite3.connect(":memory:", isolation_level=None)
        _prepare(connection)
        super().__init__(connection, Path(":memory:"))
        self.opening_note = f"Nothing is being saved. {reason}".strip()

    @classmethod
    def continuing(cls, history: History, conversation: Conversation) -> Self:
        """Go on with a conversation, ids unchanged, from a store that takes no more data."""
        memory = cls()
        memory._copy("conversation", _CONVERSATION_COLUMNS, [conversation])
        # Where the store cannot even be read, the chat still goes on, with what comes from now.
        with contextlib.suppress(StorageError):
            memory._copy("message", _MESSAGE_COLUMNS, history.messages(conversation.id))
        return memory

    def _copy(self, table: str, columns: str, rows: list[Conversation] | list[SavedMessage]) -> None:
        places = ", ".join("?" * (columns.count(",") + 1))
        with self._transaction():
            self._connection.executemany(f"INSERT INTO {table}({columns}) VALUES({places})", rows)


def _connect(path: Path) -> sqlite3.Connection:
    journal = path.with_name(path.name + "-wal")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # What patients said is for this user alone; SQLite gives its side files the same rights.
        path.touch(mode=0o600)
        if path.stat().st_size == 0 and journal.exists() and journal.stat().st_size > 0:
            # SQLite would delete the journal, and it may hold all there is.
            raise _Damaged("the file is empty")
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error
    with _in_words(path):
        # Each statement is its own transaction unless `_transaction` joins some.
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        with _in_words(path):
            _check(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
    try:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        version = _version(connection)
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.DatabaseError as error:
        if _primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _Damaged(str(error)) from error
        raise
    if verdict != "ok":
        raise _Damaged("parts of the file are spoilt")
    if version > SCHEMA_VERSION:
        raise StorageError(
            f"The saved conversations in {path} were written by a newer edgemed.",
            hint="Use the newer edgemed, or rename that file to begin a new history.",
        )
    if tables and not (version == SCHEMA_VERSION and {"conversation", "message"} <= tables):
        raise _Damaged("the file belongs to another program")


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables where there are none, and prove that the file can be written."""
    connection.execute("PRAGMA foreign_keys = ON")
    with _transaction(connection):
        # Asked again inside the transaction: another edgemed may have been faster.
        if _version(connection) == 0:
            for statement in _SCHEMA:
                connection.execute(statement)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk has SQLite roll back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _set_aside(path: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    aside, number = path.with_name(f"history-damaged-{stamp}.sqlite3"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"history-damaged-{stamp}-{number}.sqlite3")
    try:
        # The journal goes along: it may hold the newest pages. A new file must never meet an old journal.
        for side in ("-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + side).rename(aside.with_name(aside.name + side))
        path.rename(aside)
    except OSError as error:
        raise _refused(path, f"it is damaged and cannot be renamed: {error.strerror}") from error
    return aside


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turn what SQLite says of the disk into a `StorageError`; a mistake in this module stays one."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
        raise
    except sqlite3.Error as error:
        raise _refused(path, _REASONS.get(_primary_code(error), str(error))) from error


_REASONS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_PERM: "the system does not allow it",
    sqlite3.SQLITE_AUTH: "the system does not allow it",
    sqlite3.SQLITE_BUSY: "another program is using it",
    sqlite3.SQLITE_LOCKED: "another program is using it",
    sqlite3.SQLITE_IOERR: "the disk could not be read or written",
    sqlite3.SQLITE_CORRUPT: "it is damaged",
    sqlite3.SQLITE_NOTADB: "it is damaged",
}


def _primary_code(error: sqlite3.Error) -> int:
    # The higher bytes say more than a user needs.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _refused(path: Path, reason: str) -> StorageError:
    return StorageError(
        f"Conversations cannot be saved in {path}: {reason}.",
        hint="Free some space, close other programs, or set EDGEMED_HOME to a folder that can be written.",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _storable(text: str) -> str:
    # SQLite takes no lone surrogates.
    return text.encode("utf-8", "replace").decode("utf-8")


def _title(question: str) -> str:
    words = " ".join(clean(question).split())
    return words if len(words) <= TITLE_LENGTH else words[: TITLE_LENGTH - 3].rstrip() + "..."


def _facts(conversation: Conversation, messages: list[SavedMessage]) -> list[str]:
    notices = dict.fromkeys(message.notice for message in messages if message.notice)
    return [
        f"Date: {conversation.created_at[:16].replace('T', ' ')} UTC",
        f"Model: {clean(conversation.model_name)} (SHA-256 {clean(conversation.model_sha256)})",
        *(f"Notice: {_one_line(notice)}" for notice in notices),
        "AI text can be wrong. You decide.",
    ]


def _heading(message: SavedMessage) -> str:
    if message.role == "user":
        return "Question"
    return f"AI ({_one_line(message.notice)})" if message.notice else "AI"


def _mark(message: SavedMessage) -> str:
    reason = UNFINISHED.get(message.status)
    return f"NOT FINISHED ({reason})" if reason else ""


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())
