"""The saved conversations survive power cuts, full disks, damage and clocks that jump."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgemed import history as history_module
from edgemed.errors import StorageError
from edgemed.history import FinalStatus, History, NoHistory

NOTICE = "demonstration model, not for patients"
SHA256 = "ab" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "history.sqlite3"


@pytest.fixture
def open_history(path: Path) -> Iterator[Callable[[], History]]:
    """Open the store any number of times; all are closed at the end."""
    opened: list[History] = []

    def open_it() -> History:
        opened.append(History.open(path))
        return opened[-1]

    yield open_it
    for history in opened:
        history.close()


def a_conversation(history: History, status: FinalStatus = "done") -> int:
    conversation_id = history.start_conversation("tiny-medical", SHA256)
    history.add_question(conversation_id, "What is anaemia?")
    answer_id = history.begin_answer(conversation_id, NOTICE)
    history.finish_answer(answer_id, "Too little haemoglobin.", status)
    return conversation_id


def test_a_conversation_comes_back_as_it_was(open_history: Callable[[], History]) -> None:
    first = open_history()
    conversation_id = a_conversation(first)
    first.close()
    again = open_history()
    assert [(m.role, m.text, m.status, m.notice) for m in again.messages(conversation_id)] == [
        ("user", "What is anaemia?", "done", None),
        ("assistant", "Too little haemoglobin.", "done", NOTICE),
    ]
    conversation = again.conversation(conversation_id)
    assert (conversation.title, conversation.model_name) == ("What is anaemia?", "tiny-medical")
    assert conversation.created_at.endswith("+00:00")
    assert again.opening_note == ""


def test_a_question_is_on_the_disk_when_adding_it_returns(
    open_history: Callable[[], History], path: Path
) -> None:
    history = open_history()
    history.add_question(history.start_conversation("m", SHA256), "Is it saved?")
    other = sqlite3.connect(path)
    try:
        assert other.execute("SELECT text FROM message").fetchall() == [("Is it saved?",)]
        assert history._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert history._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert other.execute("PRAGMA user_version").fetchone() == (1,)
    finally:
        other.close()


def test_the_title_is_the_cleaned_beginning_of_the_first_question(
    open_history: Callable[[], History],
) -> None:
    history = open_history()
    conversation_id = history.start_conversation("m", SHA256)
    history.add_question(conversation_id, "\x1b]0;owned\x07Fever\n for " + "many " * 50)
    history.add_question(conversation_id, "A second question")
    title = history.conversation(conversation_id).title
    assert title.startswith("Fever for many many")
    assert title.endswith("...")
    assert len(title) <= 60


def test_an_answer_cut_by_a_power_failure_is_found_and_marked(open_history: Callable[[], History]) -> None:
    first = open_history()
    conversation_id = first.start_conversation("m", SHA256)
    first.add_question(conversation_id, "Dose?")
    answer_id = first.begin_answer(conversation_id, NOTICE)
    first.save_partial(answer_id, "Give 5")
    again = open_history()
    (unfinished,) = again.unfinished_answers()
    assert (unfinished.text, unfinished.status) == ("Give 5", "writing")
    again.mark_interrupted([unfinished])
    assert again.unfinished_answers() == []
    assert again.messages(conversation_id)[-1].status == "interrupted"


def test_a_clock_that_jumps_back_reorders_nothing(
    open_history: Callable[[], History], monkeypatch: pytest.MonkeyPatch
) -> None:
    history = open_history()
    times = iter(["2030-01-01T00:00:00+00:00", "2029-01-01T00:00:00+00:00", "1970-01-01T00:00:00+00:00"])
    monkeypatch.setattr(history_module, "_now", lambda: next(times))
    conversation_id = history.start_conversation("m", SHA256)
    history.add_question(conversation_id, "first")
    history.begin_answer(conversation_id, None)
    assert [message.role for message in history.messages(conversation_id)] == ["user", "assistant"]
    latest = history.latest_answer()
    assert latest is not None
    assert latest.created_at.startswith("1970")


def test_text_with_lone_surrogates_and_nul_is_saved(open_history: Callable[[], History]) -> None:
    history = open_history()
    conversation_id = history.start_conversation("m", SHA256)
    history.add_question(conversation_id, "a\udcffb\x00c")
    assert history.messages(conversation_id)[0].text == "a?b\x00c"


@pytest.mark.parametrize(
    ("status", "mark"),
    [
        ("stopped", "NOT FINISHED (stopped by the user)"),
        ("engine_died", "NOT FINISHED (the engine stopped)"),
        ("interrupted", "NOT FINISHED (interrupted)"),
        ("length", "NOT FINISHED (cut at its longest)"),
    ],
)
def test_an_unfinished_answer_is_exported_with_its_mark(
    open_history: Callable[[], History], status: FinalStatus, mark: str
) -> None:
    history = open_history()
    conversation_id = a_conversation(history, status)
    assert mark in history.export_markdown(conversation_id)
    assert mark in history.export_text(conversation_id)


def test_an_export_says_date_model_and_notice_and_has_no_control(
    open_history: Callable[[], History],
) -> None:
    history = open_history()
    conversation_id = a_conversation(history)
    history.add_question(conversation_id, "two\x1b[2J\n## AI\nlines")
    history.finish_answer(history.begin_answer(conversation_id, NOTICE), "\x1b]52;c;eA==\x07yes", "done")
    for export in (history.export_markdown(conversation_id), history.export_text(conversation_id)):
        assert "\x1b" not in export
        assert "]52" not in export
        assert f"tiny-medical (SHA-256 {SHA256})" in export
        assert f"Notice: {NOTICE}" in export
        assert f"AI ({NOTICE})" in export
        assert history.conversation(conversation_id).created_at[:10] in export
        assert "NOT FINISHED" not in export
    assert "> ## AI" in history.export_markdown(conversation_id)


@pytest.mark.parametrize("content", [b"this is no database at all" * 100, b"\x00" * 8192])
def test_a_file_that_is_no_database_is_set_aside_and_never_deleted(
    open_history: Callable[[], History], path: Path, content: bytes
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    history = open_history()
    (aside,) = path.parent.glob("history-damaged-*.sqlite3")
    assert aside.read_bytes() == content
    assert aside.name in history.opening_note
    assert history.messages(a_conversation(history))
    assert sys.platform == "win32" or path.stat().st_mode & 0o077 == 0


def test_the_journal_of_a_lost_file_is_set_aside_before_sqlite_deletes_it(
    open_history: Callable[[], History], path: Path
) -> None:
    conversation_id = a_conversation(open_history())
    journal = path.with_name(path.name + "-wal").read_bytes()
    lost = path.parent.with_name("lost") / path.name
    lost.parent.mkdir()
    lost.touch()
    lost.with_name(lost.name + "-wal").write_bytes(journal)
    again = History.open(lost)
    try:
        assert "the file is empty" in again.opening_note
        (aside,) = lost.parent.glob("history-damaged-*-wal")
        assert aside.read_bytes() == journal
        assert again.messages(conversation_id) == []
    finally:
        again.close()


def test_a_history_with_spoilt_pages_is_set_aside(open_history: Callable[[], History], path: Path) -> None:
    first = open_history()
    for _ in range(200):
        a_conversation(first)
    first.close()
    with path.open("r+b") as file:
        for page in range(2, path.stat().st_size // 4096, 2):
            file.seek(page * 4096)
            file.write(os.urandom(512))
    again = open_history()
    assert "damaged" in again.opening_note
    assert len(list(path.parent.glob("history-damaged-*.sqlite3"))) == 1
    assert again.latest_answer() is None
    again.close()
    assert open_history().opening_note == ""


def test_a_database_of_another_program_is_set_aside(open_history: Callable[[], History], path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE recipes(name)")
    other.commit()
    other.close()
    assert "another program" in open_history().opening_note


def test_a_history_of_a_newer_edgemed_is_left_alone(open_history: Callable[[], History], path: Path) -> None:
    first = open_history()
    first._connection.execute("PRAGMA user_version = 2")
    first.close()
    with pytest.raises(StorageError, match="written by a newer edgemed"):
        open_history()
    assert not list(path.parent.glob("history-damaged-*"))


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot be saved") as caught:
        History.open(tmp_path / "file" / "history.sqlite3")
    assert caught.value.hint


def test_a_folder_in_place_of_the_file_is_a_storage_error(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot be"):
        History.open(path)


def test_a_read_only_store_is_a_storage_error(open_history: Callable[[], History]) -> None:
    history = open_history()
    history._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StorageError, match="it is read-only"):
        history.start_conversation("m", SHA256)


def test_a_full_disk_is_a_storage_error_and_what_was_saved_stays(
    open_history: Callable[[], History],
) -> None:
    history = open_history()
    conversation_id = a_conversation(history)
    pages = history._connection.execute("PRAGMA page_count").fetchone()[0]
    history._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="the disk is full"):
        history.add_question(conversation_id, "long " * 10_000)
    assert len(history.messages(conversation_id)) == 2
    memory = NoHistory.continuing(history, history.conversation(conversation_id))
    try:
        assert memory.messages(conversation_id) == history.messages(conversation_id)
        memory.add_question(conversation_id, "in memory")
        assert memory.messages(conversation_id)[-1].id > history.messages(conversation_id)[-1].id
    finally:
        memory.close()


def test_a_store_locked_by_another_program_is_a_storage_error(
    open_history: Callable[[], History], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "BUSY_SECONDS", 0.1)
    history = open_history()
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another program is using it"):
            history.start_conversation("m", SHA256)
    finally:
        other.close()


def test_two_edgemed_at_once_both_save(open_history: Callable[[], History]) -> None:
    one, two = open_history(), open_history()
    first, second = a_conversation(one), a_conversation(two)
    assert first != second
    assert len(one.messages(second)) == len(two.messages(first)) == 2


def test_without_a_disk_the_same_works_in_memory() -> None:
    history = NoHistory("The disk is full.")
    try:
        assert history.opening_note == "Nothing is being saved. The disk is full."
        assert not history.saves
        assert "Too little haemoglobin." in history.export_text(a_conversation(history))
    finally:
        history.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
def test_only_this_user_may_read_what_was_said(open_history: Callable[[], History], path: Path) -> None:
    a_conversation(open_history())
    assert [file.stat().st_mode & 0o077 for file in path.parent.iterdir()] == [0, 0, 0]


WRITER = """
import sys
from pathlib import Path
from edgemed.history import History
history = History.open(Path(sys.argv[1]))
conversation = history.start_conversation("m", "0" * 64)
for number in range(100_000):
    question = f"question {sys.argv[2]}-{number}"
    history.add_question(conversation, question)
    print(question, flush=True)
    answer = history.begin_answer(conversation, None)
    for words in range(5):
        history.save_partial(answer, "word " * words)
    history.finish_answer(answer, "word " * 5, "done")
"""


def test_ten_kills_at_random_moments_lose_no_acknowledged_question(
    open_history: Callable[[], History], path: Path
) -> None:
    chance = random.Random(5)
    acknowledged: list[str] = []
    for kill in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(kill)],
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        ) as writer:
            assert writer.stdout is not None
            acknowledged.append(writer.stdout.readline().strip())
            time.sleep(chance.uniform(0, 0.15))
            writer.kill()
            # A last line without its end was never acknowledged.
            acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    history = open_history()
    assert history.opening_note == ""
    assert history._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    saved = {text for (text,) in history._connection.execute("SELECT text FROM message WHERE role = 'user'")}
    assert len(acknowledged) >= 10
    assert set(acknowledged) <= saved
    assert len(history.unfinished_answers()) <= 10
