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
from edgemed import history_file
from edgemed.errors import StorageError
from edgemed.history import FinalStatus, History, NoHistory, local_time
from edgemed.history_export import as_markdown, as_text, write_export

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


def a_turn(
    history: History, conversation_id: int, question: str, answer: str, status: FinalStatus = "done"
) -> tuple[int, int]:
    question_id = history.add_question(conversation_id, question)
    answer_id = history.begin_answer(question_id, NOTICE)
    history.finish_answer(answer_id, answer, status)
    return question_id, answer_id


def a_conversation(history: History, status: FinalStatus = "done") -> int:
    conversation_id = history.start_conversation("tiny-medical", SHA256)
    a_turn(history, conversation_id, "What is anaemia?", "Too little haemoglobin.", status)
    return conversation_id


def exports(history: History, conversation_id: int) -> list[str]:
    conversation, messages = history.conversation(conversation_id), history.messages(conversation_id)
    return [as_markdown(conversation, messages), as_text(conversation, messages)]


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
        assert other.execute("PRAGMA user_version").fetchone() == (2,)
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
    answer_id = first.begin_answer(first.add_question(conversation_id, "Dose?"), NOTICE)
    first.save_partial(answer_id, "Give 5")
    first.close()
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
    history.begin_answer(history.add_question(conversation_id, "first"), None)
    assert [message.role for message in history.messages(conversation_id)] == ["user", "assistant"]
    latest = history.latest_answer()
    assert latest is not None
    assert latest.created_at.startswith("1970")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps its time zone elsewhere")
def test_dates_are_those_of_the_clinics_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evening conversation east of Greenwich stood under the day before."""
    monkeypatch.setenv("TZ", "EAT-3")
    time.tzset()
    try:
        assert local_time("2026-03-01T22:30:00+00:00") == "2026-03-02 01:30"
        assert local_time("not a date") == ""
    finally:
        monkeypatch.undo()
        time.tzset()


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
    assert all(mark in " ".join(export.split()) for export in exports(history, conversation_id))


def test_an_export_says_date_model_and_notice_and_has_no_control(
    open_history: Callable[[], History],
) -> None:
    history = open_history()
    conversation_id = a_conversation(history)
    history.rename(conversation_id, "Title\x1b]0;owned\x07")
    a_turn(history, conversation_id, "two\x1b[2J\n## AI\nlines", "\x1b]52;c;eA==\x07yes")
    for export in exports(history, conversation_id):
        assert "Title" in export
        assert "owned" not in export
        assert "\x1b" not in export
        assert "]52" not in export
        assert f"tiny-medical (SHA-256 {SHA256})" in " ".join(export.split())
        assert f"Notice: {NOTICE}" in export
        assert f"AI ({NOTICE})" in export
        assert local_time(history.conversation(conversation_id).created_at) in " ".join(export.split())
        assert "NOT FINISHED" not in export
    assert "> ## AI" in exports(history, conversation_id)[0]


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
    history = open_history()
    conversation_id = a_conversation(history)
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
    first._connection.execute("PRAGMA user_version = 3")
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
    monkeypatch.setattr(history_file, "BUSY_SECONDS", 0.1)
    history = open_history()
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another program is using it"):
            history.start_conversation("m", SHA256)
    finally:
        other.close()


def test_a_second_edgemed_reads_and_never_writes(open_history: Callable[[], History]) -> None:
    one, two = open_history(), open_history()
    conversation_id = a_conversation(one)
    one.begin_answer(one.add_question(conversation_id, "And now?"), None)
    assert two.read_only
    assert not two.saves
    assert "Another edgemed is open" in two.opening_note
    assert len(two.messages(conversation_id)) == 4
    assert two.unfinished_answers() == [], "the answer that the other one is writing"
    with pytest.raises(StorageError, match="read-only"):
        two.start_conversation("m", SHA256)
    two.close()
    one.close()
    assert not open_history().read_only


def test_without_a_disk_the_same_works_in_memory() -> None:
    history = NoHistory("The disk is full.")
    try:
        assert history.opening_note == "Nothing is being saved. The disk is full."
        assert not history.saves
        assert "Too little haemoglobin." in exports(history, a_conversation(history))[1]
    finally:
        history.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
def test_only_this_user_may_read_what_was_said(open_history: Callable[[], History], path: Path) -> None:
    a_conversation(open_history())
    said = [file for file in path.parent.iterdir() if file.suffix != ".lock"]
    assert [file.stat().st_mode & 0o077 for file in said] == [0, 0, 0]


WRITER = """
import sys
from pathlib import Path
from edgemed.history import History
history = History.open(Path(sys.argv[1]))
conversation = history.start_conversation("m", "0" * 64)
for number in range(100_000):
    question = f"question {sys.argv[2]}-{number}"
    question_id = history.add_question(conversation, question)
    print(question, flush=True)
    answer = history.begin_answer(question_id, None)
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


# Branches.


def test_asking_again_and_editing_begin_branches_and_lose_nothing(
    open_history: Callable[[], History],
) -> None:
    history = open_history()
    conversation_id = history.start_conversation("m", SHA256)
    first_question, first_answer = a_turn(history, conversation_id, "Fever?", "Rest.")
    a_turn(history, conversation_id, "And a child?", "See a doctor.")
    second_answer = history.begin_answer(first_question, None)
    history.finish_answer(second_answer, "Drink.", "done")
    edited = history.add_question(conversation_id, "High fever?", instead_of=first_question)

    def texts() -> list[str]:
        return [message.text for message in history.messages(conversation_id)]

    assert texts() == ["High fever?"]
    history.choose_branch(second_answer)
    assert texts() == ["Fever?", "Drink."]
    history.choose_branch(first_answer)
    assert texts() == ["Fever?", "Rest.", "And a child?", "See a doctor."]
    question, answer, *_ = history.messages(conversation_id)
    assert history.siblings(question) == [first_question, edited]
    assert history.siblings(answer) == [first_answer, second_answer]


def test_a_deleted_turn_comes_back_whole_with_undo_and_is_gone_after_closing(
    open_history: Callable[[], History], path: Path
) -> None:
    history = open_history()
    conversation_id = history.start_conversation("m", SHA256)
    a_turn(history, conversation_id, "Fever?", "Rest.")
    question_id, _ = a_turn(history, conversation_id, "Zebrafish?", "Xylophone.")
    before = history.messages(conversation_id)
    deletion = history.delete_message(question_id)
    assert [message.text for message in history.messages(conversation_id)] == ["Fever?", "Rest."]
    assert history.conversations(search="zebrafish") == []
    history.undo(deletion)
    assert history.messages(conversation_id) == before
    history.delete_message(question_id)
    history.close()
    assert b"Zebrafish" not in path.read_bytes()
    assert b"xylophone" not in path.read_bytes(), "the index of the search forgets it, too"
    assert [message.text for message in open_history().messages(conversation_id)] == ["Fever?", "Rest."]


def test_a_deleted_conversation_comes_back_with_undo(open_history: Callable[[], History]) -> None:
    history = open_history()
    conversation_id = a_conversation(history)
    deletion = history.delete_conversation(conversation_id)
    assert history.conversations() == []
    assert history.latest_answer() is None
    with pytest.raises(StorageError, match="no saved conversation"):
        history.conversation(conversation_id)
    history.undo(deletion)
    assert [line.id for line in history.conversations()] == [conversation_id]


def test_a_very_long_conversation_can_be_deleted(open_history: Callable[[], History]) -> None:
    history = open_history()
    conversation_id = history.start_conversation("m", SHA256)
    with history._transaction():
        for number in range(1500):
            history.add_question(conversation_id, f"question {number}")
    assert len(history.messages(conversation_id)) == 1500
    history.delete_conversation(conversation_id)
    history.close()
    again = open_history()
    assert again._connection.execute("SELECT count(*) FROM message").fetchone() == (0,)


# The list of conversations.


def test_the_list_is_in_the_order_of_use_page_by_page(open_history: Callable[[], History]) -> None:
    history = open_history()
    ids = [a_conversation(history) for _ in range(5)]
    history.start_conversation("m", SHA256)
    a_turn(history, ids[0], "Once more?", "Yes.")
    first_page = history.conversations(limit=3)
    second_page = history.conversations(limit=3, before=first_page[-1].activity)
    assert [line.id for line in first_page + second_page] == [ids[0], ids[4], ids[3], ids[2], ids[1]]


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("haemoglobin", True),
        ("HAEMO", True),
        ("anaemia", True),
        ("anaemia haemoglobin", False),
        ("little haemo", True),
        ("globin", False),
        ('"', False),
        ("haemoglobin* OR NOT", False),
        ("fievre", True),
        ("%", False),
    ],
)
def test_the_search_finds_beginnings_of_words_and_obeys_no_operators(
    open_history: Callable[[], History], search: str, found: bool
) -> None:
    history = open_history()
    conversation_id = a_conversation(history)
    a_turn(history, conversation_id, "Fièvre ?", "Repos.")
    assert [line.id for line in history.conversations(search=search)] == [conversation_id] * found


def test_a_hit_is_shown_in_its_words_and_without_control_sequences(
    open_history: Callable[[], History],
) -> None:
    history = open_history()
    conversation_id = history.start_conversation("m", SHA256)
    a_turn(
        history, conversation_id, "Dose?", "word " * 40 + "\x1b[2Jgive\n5 ml of paracetamol " + "word " * 40
    )
    (line,) = history.conversations(search="paracet")
    assert line.hit is not None
    assert [line.hit.text[begin:end] for begin, end in line.hit.spans] == ["paracetamol"]
    assert "\x1b" not in line.hit.text
    assert "\n" not in line.hit.text
    assert len(line.hit.text) < 120
    history.rename(conversation_id, "A title of its own")
    (line,) = history.conversations(search="own title")
    assert (line.title, line.hit) == ("A title of its own", None)


# Drafts.


def test_a_draft_survives_a_kill_and_is_gone_when_its_question_is_saved(
    open_history: Callable[[], History],
) -> None:
    first = open_history()
    first.save_draft(None, "Half a quest")
    first.close()
    history = open_history()
    assert history.draft(None) == "Half a quest"
    conversation_id = history.start_conversation("m", SHA256)
    history.add_question(conversation_id, "Half a question?")
    assert history.draft(None) == ""
    history.save_draft(conversation_id, "More")
    history.save_draft(conversation_id, "")
    assert history.draft(conversation_id) == ""


# Versions and damage.


def a_file_of_version_1(path: Path) -> None:
    path.parent.mkdir()
    old = sqlite3.connect(path)
    columns = "id INTEGER PRIMARY KEY AUTOINCREMENT, "
    old.executescript(
        f"CREATE TABLE conversation({columns} title TEXT NOT NULL, created_at TEXT NOT NULL,"
        " model_name TEXT NOT NULL, model_sha256 TEXT NOT NULL);"
        f"CREATE TABLE message({columns} conversation_id INTEGER NOT NULL, role TEXT NOT NULL,"
        " text TEXT NOT NULL, status TEXT NOT NULL, created_at TEXT NOT NULL, notice TEXT);"
        "INSERT INTO conversation VALUES(7, 'Fever', '2026-01-01T00:00:00+00:00', 'm', 'aa');"
    )
    for role, text in [
        ("user", "Fever?"),
        ("assistant", "Rest."),
        ("assistant", "Drink."),
        ("user", "More?"),
    ]:
        old.execute(
            "INSERT INTO message(conversation_id, role, text, status, created_at) VALUES(7, ?, ?, 'done', '')",
            (role, text),
        )
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()


def test_a_history_of_version_1_is_migrated_with_a_backup(
    open_history: Callable[[], History], path: Path
) -> None:
    a_file_of_version_1(path)
    before = path.read_bytes()
    history = open_history()
    assert [m.text for m in history.messages(7)] == ["Fever?", "Drink.", "More?"]
    assert len(history.siblings(history.messages(7)[1])) == 2
    assert [line.id for line in history.conversations(search="rest")] == [7]
    (backup,) = path.parent.glob("history-before-update-*.sqlite3")
    assert backup.name in history.opening_note
    copy = sqlite3.connect(backup)
    assert copy.execute("SELECT count(*) FROM message").fetchone() == (4,)
    copy.close()
    assert before[:16] == backup.read_bytes()[:16]
    history.close()
    assert open_history().opening_note == ""


def test_a_migration_that_finds_the_disk_full_changes_nothing(
    open_history: Callable[[], History], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_file_of_version_1(path)
    monkeypatch.setattr(
        history_file, "_TO_VERSION_2", (*history_file._TO_VERSION_2[:5], "INSERT INTO nowhere VALUES(1)")
    )
    with pytest.raises(StorageError):
        open_history()
    monkeypatch.undo()
    assert not list(path.parent.glob("history-before-update-*"))
    assert [m.text for m in open_history().messages(7)] == ["Fever?", "Drink.", "More?"]


def test_what_can_be_read_of_a_damaged_history_is_recovered(
    open_history: Callable[[], History], path: Path
) -> None:
    first = open_history()
    for number in range(300):
        conversation_id = first.start_conversation("m", SHA256)
        a_turn(first, conversation_id, f"Question {number}?", f"Answer {number}. " + "word " * 100)
    first.close()
    with path.open("r+b") as file:
        pages = path.stat().st_size // 4096
        for page in range(pages // 2, pages // 2 + 4):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    history = open_history()
    assert "could be recovered" in history.opening_note
    lines = history.conversations(limit=1000)
    whole = [line for line in lines if len(history.messages(line.id)) == 2]
    # Four of some 90 pages are gone, with at most a few dozen rows on each.
    assert len(whole) >= 200
    found = history.conversations(search="answer 299")
    assert [history.messages(line.id)[1].text[:11] for line in found] == ["Answer 299."]
    assert history._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert history._connection.execute("PRAGMA foreign_key_check").fetchall() == []


# Export.


def test_plain_text_fits_on_paper(open_history: Callable[[], History]) -> None:
    history = open_history()
    conversation_id = history.start_conversation("m", SHA256)
    a_turn(history, conversation_id, "Long? " * 40, "word " * 100)
    _, text = exports(history, conversation_id)
    assert max(len(line) for line in text.split("\n")) <= 79
    assert text.count("word") == 100


def test_an_export_never_overwrites_and_names_the_place_that_refuses(
    open_history: Callable[[], History], tmp_path: Path
) -> None:
    history = open_history()
    conversation_id = a_conversation(history)
    conversation, messages = history.conversation(conversation_id), history.messages(conversation_id)
    first, second = (write_export(tmp_path, conversation, messages, "text") for _ in range(2))
    assert first != second
    assert first.read_text(encoding="utf-8") == second.read_text(encoding="utf-8")
    with pytest.raises(StorageError, match="gone") as caught:
        write_export(tmp_path / "gone" / "notes.md", conversation, messages)
    assert "still saved" in caught.value.hint
