"""The full screen in a real terminal: what keyboards, windows and systems do to it."""

import os
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path

import psutil
import pytest

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo terminal of this kind", allow_module_level=True)

from edgemed import models, paths
from edgemed.history import History
from tests.terminal import ANSWERED, APP, SLOW_APP, terminal


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "data"


def saved(home: Path) -> list[tuple[str, str, str]]:
    history = History.open(home / "history.sqlite3")
    try:
        assert history._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        lines = history.conversations()
        return [(m.role, m.text, m.status) for m in history.messages(lines[0].id)] if lines else []
    finally:
        history.close()


def test_from_the_first_start_to_a_first_answer_in_three_keys(home: Path) -> None:
    with terminal(APP, home) as screen:
        screen.wait_for("recommended")
        screen.press("enter")
        screen.wait_for("Ready.")
        screen.press("up", "enter")
        text = screen.wait_for(*ANSWERED)
        assert "not for patients" in text
        screen.press("f10")
        screen.wait_for("Leave edgemed?")
        screen.press("l")
        assert screen.wait_for_end() == 0
    assert [role for role, _, _ in saved(home)] == ["user", "assistant"]


def test_bytes_that_are_no_utf8_are_taken_as_unreadable_letters(home: Path) -> None:
    with terminal(SLOW_APP, home, WORDS="3") as screen:
        screen.wait_for("Ready.")
        screen.send(b"fe\xffver \xc3")
        screen.send(b"\xa9t\xe9")
        time.sleep(0.1)
        screen.press("x", "enter")
        screen.wait_for("Done.")
    assert saved(home)[0][1] == "fe\ufffdver ét\ufffdx"


def test_a_paste_of_a_megabyte_is_refused_at_once_and_costs_nothing(home: Path) -> None:
    with terminal(SLOW_APP, home, WORDS="3") as screen:
        screen.wait_for("Ready.")
        screen.press("h", "i")
        started = time.monotonic()
        screen.send(b"\x1b[200~" + b"word " * 200_000 + b"\x1b[201~")
        screen.wait_for("The pasted text has 1000000 characters")
        assert time.monotonic() - started < 10
        screen.press("!", "enter")
        screen.wait_for("Done.")
    assert saved(home)[0][1] == "hi!"


def test_a_paste_of_several_lines_with_escapes_is_one_harmless_question(home: Path) -> None:
    with terminal(SLOW_APP, home, WORDS="3") as screen:
        screen.wait_for("Ready.")
        screen.send(b"\x1b[200~one\r\ntwo \x1b]0;own\x07three\n\x1b[201~")
        time.sleep(0.2)
        screen.press("enter")
        screen.wait_for("Done.")
    (question, *_) = saved(home)
    assert question[1].replace("\n", "").isprintable()
    assert {"one", "two"} <= set(question[1].split())


def test_lines_from_a_terminal_without_bracketed_paste_do_not_send_themselves(home: Path) -> None:
    with terminal(SLOW_APP, home, WORDS="3") as screen:
        screen.wait_for("Ready.")
        screen.send(b"the first line\rtwo\rthree\r")
        time.sleep(0.3)
        screen.press("enter")
        screen.wait_for("Done.")
    assert [text for role, text, _ in saved(home) if role == "user"] == ["the first line\ntwo\nthree"]


def test_an_enter_that_comes_together_with_the_last_letters_sends(home: Path) -> None:
    """A computer that is busy reads several keys at once; the Enter then began a new line."""
    with terminal(SLOW_APP, home, WORDS="3") as screen:
        screen.wait_for("Ready.")
        screen.send(b"fever?\r")
        screen.wait_for("Done.")
    assert [text for role, text, _ in saved(home) if role == "user"] == ["fever?"]


def test_an_answer_that_is_being_written_is_shown_once_and_not_as_unfinished(home: Path) -> None:
    with terminal(SLOW_APP, home, WORDS="400", WORDS_PER_SECOND="100") as screen:
        screen.wait_for("Ready.")
        for keys in (("h", "i", "enter"), ("tab", "a")):
            screen.press(*keys)
            screen.wait_for("w0 w1")
            time.sleep(0.6)
            assert "NOT FINISHED" not in screen.text
            assert screen.text.count("not for patients") == 2, "in the first line and beside the answer"
            assert sum(line.split()[:1] == ["AI"] for line in screen.text.split("\n")) == 1
            screen.wait_for("Done.")


def test_a_window_of_20_by_5_is_enough_to_ask(home: Path) -> None:
    with terminal(SLOW_APP, home, columns=20, lines=5, WORDS="3") as screen:
        screen.wait_for("Ready")
        screen.press("h", "i", "enter")
        screen.wait_for("w0 w1 w2")


def test_the_screen_follows_a_long_answer_unless_the_user_scrolled_up(home: Path) -> None:
    with terminal(SLOW_APP, home, WORDS="900", WORDS_PER_SECOND="100") as screen:
        screen.wait_for("Ready.")
        screen.press("h", "i", "enter")
        screen.wait_for("w600")
        assert "w0 " not in screen.text
        for _page in range(4):
            screen.send(b"\x1b[5~")
        screen.wait_for("w0 ")
        time.sleep(0.6)
        assert "w0 " in screen.text
        assert "more below" in screen.text
        for _page in range(6):
            screen.send(b"\x1b[6~")
        screen.wait_for("w899")
        screen.wait_for("Done.")
        screen.press("n", "o", "w", "enter")
        screen.wait_for("w450 ")
    assert len(saved(home)) == 4


def test_a_storm_of_resizes_in_mid_answer_loses_nothing(home: Path) -> None:
    with terminal(SLOW_APP, home, WORDS="60") as screen:
        screen.wait_for("Ready.")
        screen.press("h", "i", "enter")
        screen.wait_for("w5")
        for number in range(100):
            screen.resize(20 + 7 * (number % 17), 5 + number % 40)
            time.sleep(0.005)
        screen.resize(80, 24)
        screen.wait_for("Done. 60 words")
    assert len(saved(home)[1][1].split()) == 60


@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "a-terminal-that-nobody-knows"},
        {"TERM": "linux"},
        {"TERM": "vt100"},
        {"LANG": None, "LC_ALL": "C", "LC_CTYPE": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"NO_COLOR": "1"},
    ],
    ids=["unknown TERM", "linux", "vt100", "no locale", "no colour"],
)
def test_strange_terminals_work(home: Path, environment: dict[str, str | None]) -> None:
    with terminal(SLOW_APP, home, WORDS="3", **environment) as screen:
        screen.wait_for("Ready.")
        screen.press("h", "i", "enter")
        screen.wait_for("w0 w1 w2")
        screen.wait_for("────")


@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_a_terminal_that_can_draw_nothing_gets_line_mode(home: Path, term: str) -> None:
    with terminal(APP, home, TERM=term) as screen:
        screen.wait_for("You>")
        screen.press(*"/quit", "enter")
        assert screen.wait_for_end() == 0


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_in_mid_answer_saves_everything(home: Path, number: signal.Signals, exit_code: int) -> None:
    with terminal(SLOW_APP, home) as screen:
        screen.wait_for("Ready.")
        screen.press("h", "i", "enter")
        screen.wait_for("w5")
        screen.press("m", "o", "r", "e")
        screen.process.send_signal(number)
        assert screen.wait_for_end() == exit_code
    (_, question, _), (_, answer, status) = saved(home)
    assert question == "hi"
    assert answer.startswith("w0 w1 w2 w3 w4 w5")
    assert status == "interrupted"
    with sqlite3.connect(home / "history.sqlite3") as store:
        assert store.execute("SELECT text FROM draft").fetchall() == [("more",)]
    store.close()


def test_a_closed_window_in_mid_answer_saves_everything(home: Path) -> None:
    with terminal(SLOW_APP, home) as screen:
        screen.wait_for("Ready.")
        screen.press("h", "i", "enter")
        screen.wait_for("w5")
        screen.close_window()
        assert screen.wait_for_end() == 129
    assert saved(home)[1][2] == "interrupted"


def test_habit_keys_never_end_the_chat(home: Path) -> None:
    with terminal(SLOW_APP, home) as screen:
        screen.wait_for("Ready.")
        screen.press("h", "i", "\x11")
        screen.wait_for("Leave edgemed?")
        screen.press("escape")
        screen.wait_for("F10 leave")
        screen.press("enter")
        screen.wait_for("w3")
        screen.press("\x03")
        screen.wait_for("Stopped.")
        screen.press("\x03")
        screen.wait_for("Leave edgemed?")
    assert saved(home)[1][2] == "stopped"


def test_typing_is_taken_while_an_answer_comes_and_enter_then_sends_nothing(home: Path) -> None:
    with terminal(SLOW_APP, home) as screen:
        screen.wait_for("Ready.")
        screen.press("h", "i", "enter")
        screen.wait_for("w3")
        screen.press("n", "e", "x", "t", "enter")
        screen.wait_for("still writing")
        assert "next" in screen.text
    assert len(saved(home)) == 2


def test_a_model_that_is_gone_is_explained_and_another_one_offered(home: Path) -> None:
    home.mkdir()
    (home / "settings.toml").write_text('model = "gone"\n', encoding="utf-8")
    with terminal(APP, home) as screen:
        text = " ".join(screen.wait_for("recommended").split())
        assert "edge-chat-8m" in text
        screen.press("enter")
        screen.wait_for("Ready.")


def test_a_model_that_is_deleted_while_it_is_in_use_still_answers_and_is_then_explained(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMED_HOME", str(home))
    embedded = next(path for path in paths.embedded_models_folder().iterdir() if path.is_dir())
    installed = models.install_model(next(embedded.glob("*.gguf")), name="clinic-model")
    models.use_model("clinic-model")
    with terminal(APP, home) as screen:
        screen.wait_for("Ready.")
        shutil.rmtree(installed.folder)
        screen.press("h", "i", "enter")
        screen.wait_for(*ANSWERED)
        (child,) = [
            child
            for child in psutil.Process(screen.process.pid).children()
            if "resource_tracker" not in " ".join(child.cmdline())
        ]
        child.kill()
        screen.press("m", "o", "r", "e", "enter")
        text = " ".join(screen.wait_for("recommended").split())
        assert "edge-chat-8m" in text
        screen.press("enter")
        screen.wait_for("Ready.")
    assert [text for role, text, _ in saved(home) if role == "user"] == ["hi", "more"]


def test_a_settings_file_with_slips_costs_only_those_settings(home: Path) -> None:
    home.mkdir()
    (home / "settings.toml").write_text('theme = "purple"\nlanguag = "fr"\n', encoding="utf-8")
    with terminal(APP, home) as screen:
        text = " ".join(screen.wait_for("Did you mean language").split())
        assert "The setting theme in" in text


@pytest.mark.parametrize("damage", ["damaged", "newer", "folder"])
def test_a_store_that_cannot_be_used_is_told_above_the_conversation(home: Path, damage: str) -> None:
    home.mkdir()
    path = home / "history.sqlite3"
    if damage == "damaged":
        path.write_bytes(b"no database at all" * 500)
    elif damage == "folder":
        path.mkdir()
    else:
        History.open(path).close()
        with sqlite3.connect(path) as store:
            store.execute("PRAGMA user_version = 9")
        store.close()
    words = {"damaged": "were damaged", "newer": "newer edgemed", "folder": "Nothing is being saved"}
    with terminal(SLOW_APP, home, WORDS="3") as screen:
        screen.wait_for(words[damage])
        screen.wait_for("Ready.")
        screen.press("h", "i", "enter")
        screen.wait_for("w0 w1 w2")


def test_kills_while_typing_and_answering_lose_at_most_a_second(home: Path, tmp_path: Path) -> None:
    from tests.measurements.chat_kills import kill_rounds

    result = kill_rounds(home, tmp_path / "words", rounds=6, seed=11)
    assert result.questions_lost == 0
    assert result.integrity_failures == 0
    # A word each 50 ms: a second is 20 words, and saving itself takes a moment.
    assert result.most_words_lost <= 22
    assert os.listdir(home)  # noqa: PTH208
