"""Saved conversations: one SQLite file that a power cut cannot spoil. Used by the chat.

A question is on the disk before its answer begins; the answer follows about once a second. The messages of a
conversation are a tree: asking again or editing a question begins a branch, and nothing is overwritten. Rows
are ordered by id, never by date: the clock of a clinic machine may jump.
"""

import contextlib
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from edgemed import history_file
from edgemed.errors import FileInUse, StorageError
from edgemed.languages import later
from edgemed.languages import text as _
from edgemed.operating_system import lock_file
from edgemed.terminal_text import clean

TITLE_LENGTH = 60
HIT_WORDS = 12
"""Words around a hit of the search."""

FinalStatus = Literal["done", "stopped", "length", "engine_died", "interrupted"]
Status = FinalStatus | Literal["writing"]

UNFINISHED = {
    "writing": later("interrupted"),
    "stopped": later("stopped by the user"),
    "length": later("cut at its longest"),
    "engine_died": later("the engine stopped"),
    "interrupted": later("interrupted"),
}
"""Why an answer of this status is not whole; `text` translates it."""

_MESSAGE_COLUMNS = "id, conversation_id, role, text, status, created_at, notice, parent_id"
_CONVERSATION_COLUMNS = "id, title, created_at, model_name, model_sha256"
_BRANCH = """WITH RECURSIVE branch(id) AS (
    SELECT head_id FROM conversation WHERE id = ?
    UNION SELECT parent_id FROM message JOIN branch USING(id) WHERE parent_id IS NOT NULL)"""
_SUBTREE = """WITH RECURSIVE subtree(id) AS (
    VALUES(?) UNION SELECT message.id FROM message JOIN subtree ON message.parent_id = subtree.id)"""
_HIT_BEGIN, _HIT_END = "\x02", "\x03"


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
    parent_id: int | None
    """What it follows: an answer its question, a question the answer before it."""


class Hit(NamedTuple):
    """Where the search found something, as one clean line."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Begin and end of each found word in `text`."""


class ConversationLine(NamedTuple):
    """One line of the list of conversations."""

    id: int
    title: str
    created_at: str
    activity: int
    """Grows with each question and answer; where the next page begins."""
    hit: Hit | None


class Deletion(NamedTuple):
    """What `undo` needs to bring a deleted message or conversation back."""

    conversation_id: int
    message_id: int | None
    """None: the whole conversation."""
    head_id: int | None


class History:
    """The saved conversations. Every method may raise `StorageError`. Any thread may call."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        *,
        lock: contextlib.ExitStack | None = None,
        saves: bool = True,
        read_only: bool = False,
        opening_note: str = "",
    ) -> None:
        """Take over an open connection; `History.open` makes one."""
        self._connection = connection
        self._lock = lock or contextlib.ExitStack()
        self._turn = threading.RLock()
        self._purges = False
        self.path = path
        self.saves = saves
        """False: what is said now is forgotten at the end."""
        self.read_only = read_only
        """True: another edgemed is open, and only it may ask and write."""
        self.opening_note = opening_note
        """One sentence or two for the user about what was found at opening; mostly empty."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the store, or begin one; read-only when another edgemed has it open.

        A damaged file is set aside, never deleted, and recovered as far as SQLite can.

        Raises:
            StorageError: it cannot be written, or a newer edgemed wrote it.
        """
        lock = contextlib.ExitStack()
        try:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise history_file.refused(path, error.strerror or str(error)) from error
            lock.enter_context(lock_file(path.with_suffix(".lock")))
            opened = history_file.open_file(path)
        except FileInUse:
            opened = history_file.open_file_for_reading(path)
            return cls(
                opened.connection,
                path,
                saves=False,
                read_only=True,
                opening_note=_(
                    "Another edgemed is open on this computer. Here you can read, search and export. "
                    "Ask in the other one, or close it."
                ),
            )
        except BaseException:
            lock.close()
            raise
        history = cls(opened.connection, path, lock=lock, opening_note=opened.note)
        history._purge()
        return history

    def close(self) -> None:
        """Close the file; what was deleted is gone from now on."""
        with self._turn:
            try:
                if self._purges:
                    self._purges = False
                    with contextlib.suppress(StorageError):
                        self._purge()
                self._connection.close()
            finally:
                self._lock.close()

    # Writing.

    def start_conversation(self, model_name: str, model_sha256: str) -> int:
        """Begin a conversation and return its id."""
        return self._insert(
            "INSERT INTO conversation(title, created_at, model_name, model_sha256, activity) "
            f"VALUES('', ?, ?, ?, {_NEXT_ACTIVITY})",
            (_now(), model_name, model_sha256),
        )

    def add_question(self, conversation_id: int, text: str, *, instead_of: int | None = None) -> int:
        """Save a question and return its id; once this returns, no power cut takes it away.

        The first question of a conversation gives it its title. Its draft is gone in the same moment.

        Args:
            instead_of: a question of this conversation that this one replaces on a branch of its own.
        """
        with self._transaction():
            if instead_of is None:
                parent = self._one("SELECT head_id FROM conversation WHERE id = ?", (conversation_id,))
                self._execute("DELETE FROM draft WHERE place = ?", (conversation_id if parent else 0,))
            else:
                parent = self._one("SELECT parent_id FROM message WHERE id = ?", (instead_of,))
                self._execute("DELETE FROM draft WHERE place = ?", (conversation_id,))
            self._execute(
                "UPDATE conversation SET title = ? WHERE id = ? AND title = ''",
                (_title(text), conversation_id),
            )
            return self._insert_message(conversation_id, "user", text, "done", None, parent)

    def begin_answer(self, question_id: int, notice: str | None) -> int:
        """Note that an answer to a question is being written, and return its id."""
        with self._transaction():
            conversation_id = self._one("SELECT conversation_id FROM message WHERE id = ?", (question_id,))
            assert conversation_id is not None
            return self._insert_message(conversation_id, "assistant", "", "writing", notice, question_id)

    def continue_answer(self, answer_id: int) -> None:
        """Note that an unfinished answer is being written on."""
        with self._transaction():
            self._execute("UPDATE message SET status = 'writing' WHERE id = ?", (answer_id,))
            self._make_head(answer_id)

    def save_partial(self, answer_id: int, text: str) -> None:
        """Save what is written of an answer by now."""
        self._execute("UPDATE message SET text = ? WHERE id = ?", (_storable(text), answer_id))

    def finish_answer(self, answer_id: int, text: str, status: FinalStatus) -> None:
        """Save the answer's last text together with how it ended."""
        self._execute(
            "UPDATE message SET text = ?, status = ? WHERE id = ?", (_storable(text), status, answer_id)
        )

    def mark_interrupted(self, answers: Sequence[SavedMessage]) -> None:
        """Mark these unfinished answers as interrupted, so that no later start reports them again."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE message SET status = 'interrupted' WHERE id = ? AND status = 'writing'",
                [(answer.id,) for answer in answers],
            )

    def choose_branch(self, message_id: int) -> None:
        """Show the branch that goes through this message, to its newest end."""
        with self._transaction():
            while True:
                child = self._one(
                    "SELECT max(id) FROM message WHERE parent_id = ? AND deleted = 0", (message_id,)
                )
                if child is None:
                    break
                message_id = child
            self._make_head(message_id)

    def rename(self, conversation_id: int, title: str) -> None:
        """Give a conversation another title."""
        self._execute("UPDATE conversation SET title = ? WHERE id = ?", (_title(title), conversation_id))

    def save_draft(self, conversation_id: int | None, text: str) -> None:
        """Keep what is typed and not sent yet; None is the conversation that has no question yet."""
        place = conversation_id or 0
        if text:
            self._execute(
                "INSERT INTO draft(place, text) VALUES(?, ?) "
                "ON CONFLICT(place) DO UPDATE SET text = excluded.text",
                (place, _storable(text)),
            )
        else:
            self._execute("DELETE FROM draft WHERE place = ?", (place,))

    # Deleting.

    def delete_conversation(self, conversation_id: int) -> Deletion:
        """Take a conversation out of sight; it is gone when the history is closed."""
        self._execute("UPDATE conversation SET deleted = 1 WHERE id = ?", (conversation_id,))
        self._purges = True
        return Deletion(conversation_id, None, None)

    def delete_message(self, message_id: int) -> Deletion:
        """Take a message and all that follows it out of sight; gone when the history is closed."""
        with self._transaction():
            ((conversation_id, parent_id),) = self._rows(
                "SELECT conversation_id, parent_id FROM message WHERE id = ?", (message_id,)
            )
            head = self._one("SELECT head_id FROM conversation WHERE id = ?", (conversation_id,))
            self._execute(
                f"{_SUBTREE} UPDATE message SET deleted = 1 WHERE id IN (SELECT id FROM subtree)",
                (message_id,),
            )
            sibling = self._one(
                "SELECT max(id) FROM message WHERE conversation_id = ? AND parent_id IS ? AND deleted = 0",
                (conversation_id, parent_id),
            )
            if sibling is not None:
                self.choose_branch(sibling)
            else:
                self._execute(
                    "UPDATE conversation SET head_id = ? WHERE id = ?", (parent_id, conversation_id)
                )
        self._purges = True
        return Deletion(conversation_id, message_id, head)

    def undo(self, deletion: Deletion) -> None:
        """Bring back what was deleted."""
        if deletion.message_id is None:
            self._execute("UPDATE conversation SET deleted = 0 WHERE id = ?", (deletion.conversation_id,))
            return
        with self._transaction():
            self._execute(
                f"{_SUBTREE} UPDATE message SET deleted = 0 WHERE id IN (SELECT id FROM subtree)",
                (deletion.message_id,),
            )
            self._execute(
                "UPDATE conversation SET head_id = ? WHERE id = ?",
                (deletion.head_id, deletion.conversation_id),
            )

    def _purge(self) -> None:
        """Remove deleted rows for good, from the search index and the journal too."""
        if not self._one(
            "SELECT EXISTS(SELECT 1 FROM conversation WHERE deleted) "
            "OR EXISTS(SELECT 1 FROM message WHERE deleted)"
        ):
            return
        with self._transaction():
            self._execute("DELETE FROM message WHERE deleted")
            self._execute("DELETE FROM draft WHERE place IN (SELECT id FROM conversation WHERE deleted)")
            self._execute("DELETE FROM conversation WHERE deleted")
            self._execute("INSERT INTO message_text(message_text) VALUES('optimize')")
        self._rows("PRAGMA wal_checkpoint(TRUNCATE)")

    # Reading.

    def unfinished_answers(self) -> list[SavedMessage]:
        """Return the answers that a power cut or a kill left half-written, the oldest first."""
        # What another edgemed writes at this moment is no leftover.
        if self.read_only:
            return []
        return self._messages("WHERE status = 'writing' AND deleted = 0 ORDER BY id")

    def conversation(self, conversation_id: int) -> Conversation:
        """Return one conversation."""
        rows = self._rows(
            f"SELECT {_CONVERSATION_COLUMNS} FROM conversation WHERE id = ? AND deleted = 0",
            (conversation_id,),
        )
        if not rows:
            raise StorageError(
                _(
                    "There is no saved conversation {conversation_id} in {path}.",
                    conversation_id=conversation_id,
                    path=self.path,
                ),
                hint=_("Choose one from the list of conversations."),
            )
        return Conversation(*rows[0])

    def conversations(
        self, *, search: str = "", before: int | None = None, limit: int = 50
    ) -> list[ConversationLine]:
        """Return a page of the conversations that were asked something, the last used first.

        Args:
            search: words that must all begin a word of one message, or be part of the title; "" is all.
            before: the `activity` of the last line of the page before; None is the first page.
        """
        words = _words(search)
        if search.strip() and not words:
            return []
        conditions, values = ["deleted = 0", "head_id IS NOT NULL"], list[object]()
        if before is not None:
            conditions.append("activity < ?")
            values.append(before)
        found, match = "NULL", ""
        if words:
            match = " ".join(f'"{word}"*' for word in words)
            found = "hit.message_id"
            titles = " AND ".join(["title LIKE ? ESCAPE '\\'"] * len(words))
            conditions.append(f"(hit.message_id IS NOT NULL OR ({titles}))")
            values = [match, *values, *(f"%{_escaped(word)}%" for word in words)]
        rows = self._rows(
            f"SELECT conversation.id, title, created_at, activity, {found} FROM conversation "
            + (_HITS if words else "")
            + f" WHERE {' AND '.join(conditions)} ORDER BY activity DESC LIMIT ?",
            (*values, limit),
        )
        return [
            ConversationLine(
                conversation_id,
                title,
                created_at,
                activity,
                None if hit_id is None else self._hit(match, hit_id),
            )
            for conversation_id, title, created_at, activity, hit_id in rows
        ]

    def messages(self, conversation_id: int) -> list[SavedMessage]:
        """Return the questions and answers of the branch in use, the oldest first."""
        return self._messages(
            "WHERE id IN (SELECT id FROM branch) AND deleted = 0 ORDER BY id", (conversation_id,), _BRANCH
        )

    def siblings(self, message: SavedMessage) -> list[int]:
        """Return the ids of a message and of those that stand in its place on other branches, in order."""
        rows = self._rows(
            "SELECT id FROM message "
            "WHERE conversation_id = ? AND parent_id IS ? AND role = ? AND deleted = 0 ORDER BY id",
            (message.conversation_id, message.parent_id, message.role),
        )
        return [message_id for (message_id,) in rows]

    def latest_answer(self) -> SavedMessage | None:
        """Return the answer that was begun last, in whatever conversation."""
        found = self._messages(
            "WHERE role = 'assistant' AND deleted = 0 AND conversation_id NOT IN "
            "(SELECT id FROM conversation WHERE deleted) ORDER BY id DESC LIMIT 1"
        )
        return found[0] if found else None

    def draft(self, conversation_id: int | None) -> str:
        """Return what was typed and not sent; mostly empty."""
        rows = self._rows("SELECT text FROM draft WHERE place = ?", (conversation_id or 0,))
        return str(rows[0][0]) if rows else ""

    def _hit(self, match: str, message_id: int) -> Hit:
        ((marked,),) = self._rows(
            "SELECT snippet(message_text, 0, ?, ?, '...', ?) FROM message_text "
            "WHERE message_text MATCH ? AND rowid = ?",
            (_HIT_BEGIN, _HIT_END, HIT_WORDS, match, message_id),
        )
        return _unmarked(marked)

    def _insert_message(
        self,
        conversation_id: int,
        role: str,
        text: str,
        status: Status,
        notice: str | None,
        parent_id: int | None,
    ) -> int:
        message_id = self._insert(
            "INSERT INTO message(conversation_id, role, text, status, created_at, notice, parent_id) "
            "VALUES(?, ?, ?, ?, ?, ?, ?)",
            (conversation_id, role, _storable(text), status, _now(), notice, parent_id),
        )
        self._make_head(message_id)
        return message_id

    def _make_head(self, message_id: int) -> None:
        self._execute(
            f"UPDATE conversation SET head_id = ?, activity = {_NEXT_ACTIVITY} "
            "WHERE id = (SELECT conversation_id FROM message WHERE id = ?)",
            (message_id, message_id),
        )

    def _messages(
        self, condition: str, values: Sequence[object] = (), preamble: str = ""
    ) -> list[SavedMessage]:
        rows = self._rows(f"{preamble} SELECT {_MESSAGE_COLUMNS} FROM message {condition}", values)
        return [SavedMessage(*row) for row in rows]

    def _one(self, sql: str, values: Sequence[object] = ()) -> int | None:
        rows = self._rows(sql, values)
        return rows[0][0] if rows else None

    def _rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._turn, history_file.in_words(self.path):
            return self._connection.execute(sql, values).fetchall()

    def _insert(self, sql: str, values: Sequence[object]) -> int:
        row_id = self._execute(sql, values).lastrowid
        assert row_id is not None
        return row_id

    def _execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        with self._turn, history_file.in_words(self.path):
            return self._connection.execute(sql, values)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._turn, history_file.in_words(self.path):
            if self._connection.in_transaction:
                yield
            else:
                with history_file.transaction(self._connection):
                    yield


class NoHistory(History):
    """The same in memory, for a disk that takes no data: the chat works, and its `opening_note` says so."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(
            history_file.open_memory(),
            Path(":memory:"),
            saves=False,
            opening_note=_("Nothing is being saved. {reason}", reason=reason).strip(),
        )

    @classmethod
    def continuing(cls, history: History, conversation: Conversation) -> Self:
        """Go on with a conversation, ids unchanged, from a store that takes no more data."""
        memory = cls()
        with memory._transaction():
            memory._copy("conversation", _CONVERSATION_COLUMNS, [conversation])
            # Where the store cannot even be read, the chat still goes on, with what comes from now.
            with contextlib.suppress(StorageError):
                messages = history.messages(conversation.id)
                memory._copy("message", _MESSAGE_COLUMNS, messages)
                if messages:
                    memory._make_head(messages[-1].id)
        return memory

    def _copy(self, table: str, columns: str, rows: Sequence[tuple[Any, ...]]) -> None:
        places = ", ".join("?" * (columns.count(",") + 1))
        self._connection.executemany(f"INSERT INTO {table}({columns}) VALUES({places})", rows)


_NEXT_ACTIVITY = "(SELECT coalesce(max(activity), 0) + 1 FROM conversation)"
_HITS = """LEFT JOIN (
    SELECT message.conversation_id AS of_conversation, max(message.id) AS message_id
    FROM message_text JOIN message ON message.id = message_text.rowid
    WHERE message_text MATCH ? AND message.deleted = 0 GROUP BY message.conversation_id
    ) AS hit ON hit.of_conversation = conversation.id"""


def _words(search: str) -> list[str]:
    # What is no letter or digit separates words for the index, too.
    return re.findall(r"\w+", search)


def _escaped(word: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", word)


def _unmarked(marked: str) -> Hit:
    parts = re.split(f"([{_HIT_BEGIN}{_HIT_END}])", marked)
    text, spans, begin = "", list[tuple[int, int]](), 0
    for part in parts:
        if part == _HIT_BEGIN:
            begin = len(text)
        elif part == _HIT_END:
            spans.append((begin, len(text)))
        else:
            # Not stripped: a space at a seam belongs there.
            text += re.sub(r"\s+", " ", clean(part))
    return Hit(text, tuple(spans))


def local_time(created_at: str, pattern: str = "%Y-%m-%d %H:%M") -> str:
    """Return a saved moment on this computer's clock, or nothing where it is none that a clock can show."""
    try:
        return datetime.fromisoformat(created_at).astimezone().strftime(pattern)
    except (ValueError, OverflowError, OSError):
        # A clock that was wrong enough to be no date, or a store written by other hands.
        return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _storable(text: str) -> str:
    # SQLite takes no lone surrogates.
    return text.encode("utf-8", "replace").decode("utf-8")


def _title(question: str) -> str:
    words = " ".join(clean(_storable(question)).split())
    return words if len(words) <= TITLE_LENGTH else words[: TITLE_LENGTH - 3].rstrip() + "..."
