"""Scenarios of the chat in line mode, with an engine that says what the test tells it to say."""

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgemed import history_export, paths
from edgemed.chat import Chat, ModelDescription, open_history
from edgemed.engine.messages import ChatMessage
from edgemed.errors import EngineDied, ModelCorrupt, QuestionTooLong, StorageError, Terminated
from edgemed.history import History, NoHistory, SavedMessage, local_time
from edgemed.line_mode import LineChat, run_line_mode
from tests.fakes import FakeEngine, Script

NOTICE = "demonstration model, not for patients"
SYSTEM = ChatMessage("system", "Be short.")
MODEL = ModelDescription("tiny-medical", "ab" * 32, NOTICE, [SYSTEM])

Line = str | BaseException | Callable[[], str]


class Clock:
    """Each look at it takes as long as the test says."""

    def __init__(self, step_seconds: float = 0.0) -> None:
        self.now, self.step_seconds = 0.0, step_seconds

    def __call__(self) -> float:
        self.now += self.step_seconds
        return self.now


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMED_HOME", str(tmp_path / "data"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def history() -> Iterator[History]:
    opened = History.open(paths.history_file())
    yield opened
    opened.close()


class Scene:
    """A chat, what it printed, and how it ended."""

    def __init__(
        self,
        history: History,
        lines: Sequence[Line],
        engine: FakeEngine,
        *,
        output: io.StringIO | None = None,
        **options: Any,
    ) -> None:
        self._lines = iter(lines)
        self.prompts: list[str] = []
        self.output = output or io.StringIO()
        clock = {"clock": options["clock"]} if "clock" in options else {}
        self.chat = Chat(history, max_tokens=64, **clock)
        self.chat.use(engine, options.pop("model", MODEL))
        line_chat = LineChat(self.chat, read_line=self._read_line, output=self.output, **options)
        self.exit_code = line_chat.run()

    @property
    def text(self) -> str:
        return self.output.getvalue()

    def _read_line(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self._lines, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return line if isinstance(line, str) else line()


def stored(history: History) -> list[tuple[str, str, str]]:
    latest = history.latest_answer()
    assert latest is not None
    return [(m.role, m.text, m.status) for m in history.messages(latest.conversation_id)]


def interrupt_before(number: int) -> Callable[[int], None]:
    return lambda piece: signal.raise_signal(signal.SIGINT) if piece == number else None


def raise_before(number: int, error: BaseException) -> Callable[[int], None]:
    def act(piece: int) -> None:
        if piece == number:
            raise error

    return act


# Questions and answers.


def test_a_question_is_answered_and_both_are_saved(history: History) -> None:
    engine = FakeEngine(["\n Too little haemoglobin."])
    scene = Scene(history, ["What is anaemia?", "/quit"], engine)
    assert scene.exit_code == 0
    assert "AI: Too little haemoglobin.\n(3 words in 0.0 s; demonstration model" in scene.text
    assert engine.asked == [[SYSTEM, ChatMessage("user", "What is anaemia?")]]
    assert engine.max_tokens == [64]
    assert stored(history) == [
        ("user", "What is anaemia?", "done"),
        ("assistant", "Too little haemoglobin.", "done"),
    ]
    latest = history.latest_answer()
    assert latest is not None
    assert latest.notice == NOTICE


def test_the_header_says_what_this_is_and_who_decides(history: History) -> None:
    lines = Scene(history, [], FakeEngine()).text.splitlines()
    assert re.match(r"edgemed [\d.]+, offline\. Model tiny-medical: demonstration model, not for", lines[0])
    assert lines[1] == "AI text can be wrong. You decide."
    assert lines[2].startswith("Commands: /help /new /again ")
    assert lines[2].endswith(" /quit")


def test_the_whole_conversation_goes_to_the_engine_as_it_was_said(history: History) -> None:
    engine = FakeEngine(["  First\x1b[1m answer.  ", "Second answer."])
    Scene(history, ["one", "two"], engine)
    assert engine.asked[1] == [
        SYSTEM,
        ChatMessage("user", "one"),
        ChatMessage("assistant", "First\x1b[1m answer."),
        ChatMessage("user", "two"),
    ]


def test_a_question_without_an_answer_is_not_sent_again(history: History) -> None:
    engine = FakeEngine([Script(""), "Second."])
    scene = Scene(history, ["one", "two"], engine)
    assert "AI: (no answer)\n" in scene.text
    assert engine.asked[1] == [SYSTEM, ChatMessage("user", "two")]


def test_the_question_is_saved_before_the_engine_sees_it(history: History) -> None:
    seen: list[list[SavedMessage]] = []
    script = Script("ok", before_piece=lambda _: seen.append(history.messages(1)))
    Scene(history, ["Is it saved?"], FakeEngine([script]))
    assert [(m.text, m.status) for m in seen[0]] == [("Is it saved?", "done"), ("", "writing")]


def test_partial_answers_are_saved_about_once_a_second(history: History) -> None:
    saved: list[str] = []
    script = Script("a b c d e f", before_piece=lambda _: saved.append(history.messages(1)[-1].text))
    Scene(history, ["q"], FakeEngine([script]), clock=Clock(0.4))
    assert saved == ["", "", "a b", "a b", "a b", "a b c d e", "a b c d e"]
    assert stored(history)[-1] == ("assistant", "a b c d e f", "done")


def test_control_sequences_never_reach_the_terminal(history: History) -> None:
    pieces = ["\x1b", "]0;own", "ed\x07Take \x1b[3", "1mrest\u202e", "."]
    model = ModelDescription("m", "0" * 64, "a\x1b[2Jb", [])
    scene = Scene(history, ["q\x1b[2J?"], FakeEngine([Script(pieces=pieces)]), model=model)
    assert "AI: Take rest.\n" in scene.text
    assert "\x1b" not in scene.text
    assert stored(history)[0] == ("user", "q?", "done")


def test_an_answer_of_control_sequences_alone_is_no_answer(history: History) -> None:
    scene = Scene(history, ["q"], FakeEngine([Script(pieces=["\x1b[2J", "\x1b]0;x"])]))
    assert "AI: ]0;x\n" in scene.text


def test_characters_that_cannot_be_read_are_reported_once(history: History) -> None:
    engine = FakeEngine()
    scene = Scene(history, ["fe\udcffver", "co\ufffdld"], engine)
    assert scene.text.count("(Some characters could not be read.)") == 1
    assert [asked[-1].content for asked in engine.asked] == ["fe\ufffdver", "co\ufffdld"]


def test_turns_left_out_are_named(history: History) -> None:
    engine = FakeEngine([Script("a", turns_left_out=2), Script("b", turns_left_out=1)])
    text = Scene(history, ["one", "two"], engine).text
    assert "(The oldest 2 questions no longer fit and are not read by the AI.)\nAI: a" in text
    assert "(The oldest question no longer fits and is not read by the AI.)\nAI: b" in text


def test_an_answer_cut_at_its_longest_says_so(history: History) -> None:
    scene = Scene(history, ["q"], FakeEngine([Script("cut", stop_reason="length")]))
    assert "(The answer reached its longest length and is cut. /continue writes on.)" in scene.text
    assert stored(history)[-1][2] == "length"


def test_slow_reading_is_shown_in_whole_lines_and_seldom(history: History) -> None:
    script = Script("a", reading=[(n, 600) for n in range(0, 601, 100)])
    slow = Scene(history, ["q"], FakeEngine([script]), clock=Clock(0.9)).text
    assert slow.count("(reading the question: ") == 2
    assert "of 600 tokens)\n" in slow
    assert "reading" not in Scene(history, ["q"], FakeEngine([script]), clock=Clock(0.01)).text
    assert (
        "reading" not in Scene(history, ["q"], FakeEngine([script]), clock=Clock(9), interactive=False).text
    )


def test_a_pipe_gets_no_prompt_and_an_empty_line_nothing(history: History) -> None:
    piped = Scene(history, ["", "q"], FakeEngine(), interactive=False)
    assert set(piped.prompts) == {""}
    assert "Type a question" not in piped.text
    typed = Scene(history, ["  "], FakeEngine())
    assert set(typed.prompts) == {"You> "}
    assert "Type a question, or /help." in typed.text


# Stopping and endings.


def test_ctrl_c_stops_the_answer_and_keeps_it(history: History) -> None:
    engine = FakeEngine([Script("Give two tablets", before_piece=interrupt_before(2)), "More."])
    scene = Scene(history, ["Dose?", "go on"], engine)
    assert "AI: Give two\n(Stopped. What was written is kept.)" in scene.text
    assert (engine.stops, engine.finished) == (1, 2)
    assert stored(history)[1] == ("assistant", "Give two", "stopped")
    assert engine.asked[1][-2] == ChatMessage("assistant", "Give two")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_first_word_stops_too(history: History) -> None:
    scene = Scene(history, ["q"], FakeEngine([Script("a b", before_piece=interrupt_before(0))]))
    assert "(Stopped.)" in scene.text
    assert stored(history)[-1] == ("assistant", "", "stopped")


def test_a_keyboard_interrupt_that_ends_the_events_keeps_the_text(history: History) -> None:
    script = Script("one two three", before_piece=raise_before(2, KeyboardInterrupt()))
    scene = Scene(history, ["q", "next"], FakeEngine([script, "fine"]))
    assert "(Stopped. What was written is kept.)" in scene.text
    assert stored(history)[1] == ("assistant", "one two", "stopped")
    assert stored(history)[3] == ("assistant", "fine", "done")


def test_ctrl_c_at_the_prompt_asks_first_and_leaves_at_the_second(history: History) -> None:
    scene = Scene(history, [KeyboardInterrupt(), "q", KeyboardInterrupt(), KeyboardInterrupt()], FakeEngine())
    assert scene.exit_code == 130
    assert scene.text.count("Type /quit to leave.") == 2


def test_the_end_of_input_leaves_with_0(history: History) -> None:
    assert Scene(history, [], FakeEngine()).exit_code == 0


def test_a_dead_engine_is_explained_and_the_chat_goes_on(history: History) -> None:
    engine = FakeEngine(
        [Script("Half an", stop_reason="engine_died", explanation="It crashed. Ask again."), "Whole."]
    )
    scene = Scene(history, ["q", "again please"], engine)
    assert "AI: Half an\nerror: It crashed. Ask again.\n" in scene.text
    assert "AI: Whole." in scene.text
    assert scene.exit_code == 0
    assert stored(history)[1] == ("assistant", "Half an", "engine_died")


def test_a_question_too_long_is_refused_and_the_chat_goes_on(history: History) -> None:
    refused = Script(refused_with=QuestionTooLong("Too long.", hint="Ask a shorter question."))
    scene = Scene(history, ["x " * 500_000, "short"], FakeEngine([refused, "Yes."]))
    assert "error: Too long.\nhint: Ask a shorter question.\n" in scene.text
    assert "AI: Yes." in scene.text
    assert [role for role, _, _ in stored(history)] == ["user", "user", "assistant"]


def test_an_error_in_mid_answer_keeps_what_was_written(history: History) -> None:
    script = Script("one two", fails_with=ModelCorrupt("The template does not end."))
    scene = Scene(history, ["q", "q"], FakeEngine([script, "fine"]))
    assert "AI: one two\nerror: The template does not end.\n" in scene.text
    assert stored(history)[1] == ("assistant", "one two", "engine_died")


def test_two_failures_in_a_row_end_the_chat_with_their_exit_code(history: History) -> None:
    broken = Script(refused_with=EngineDied("It stopped.", hint="Run: edgemed doctor"))
    assert Scene(history, ["a", "b", "c"], FakeEngine([broken])).exit_code == 4
    assert Scene(history, ["a", "b", "c"], FakeEngine([broken, "fine", broken, "fine"])).exit_code == 0
    damaged = FakeEngine(load_fails_with=ModelCorrupt("Damaged."))
    assert Scene(history, ["a", "b"], damaged).exit_code == 3


def test_termination_in_mid_answer_saves_it_and_says_so(history: History) -> None:
    engine = FakeEngine([Script("one two three", before_piece=raise_before(2, Terminated(143)))])
    scene = Scene(history, ["q"], engine)
    assert scene.exit_code == 143
    assert scene.text.endswith(
        "AI: one two\nEnded by the system. The question and the answer so far are saved.\n"
    )
    assert engine.stops == 1
    assert stored(history) == [("user", "q", "done"), ("assistant", "one two", "interrupted")]


def test_termination_at_the_prompt_ends_with_its_exit_code(history: History) -> None:
    scene = Scene(history, ["q", Terminated(129)], FakeEngine())
    assert scene.exit_code == 129
    assert scene.text.endswith("Ended by the system. Everything is saved.\n")
    assert stored(history)[-1][2] == "done"


def test_a_keyboard_interrupt_between_two_words_still_waits_for_the_end(history: History) -> None:
    class InterruptedOutput(io.StringIO):
        def write(self, text: str) -> int:
            written = super().write(text)
            if text == " two":
                raise KeyboardInterrupt
            return written

    engine = FakeEngine(["one two three four"])
    scene = Scene(history, ["q"], engine, output=InterruptedOutput())
    assert "AI: one two\n(Stopped. What was written is kept.)" in scene.text
    assert (engine.stops, engine.finished) == (1, 1)
    assert stored(history)[-1] == ("assistant", "one two", "stopped")


class GoneOutput(io.StringIO):
    """An output whose reader goes away at a word."""

    def __init__(self, last_word: str, error_number: int) -> None:
        super().__init__()
        self._last_word, self._error = last_word, OSError(error_number, "gone")

    def write(self, text: str) -> int:
        if self._last_word in text or self._last_word in self.getvalue():
            raise self._error
        return super().write(text)


@pytest.mark.parametrize(("error_number", "exit_code"), [(errno.EPIPE, 141), (errno.EIO, 129)])
def test_a_reader_that_is_gone_ends_the_chat_and_the_answer_is_saved(
    history: History, error_number: int, exit_code: int
) -> None:
    engine = FakeEngine(["one two three four"])
    scene = Scene(history, ["q", "never asked"], engine, output=GoneOutput("three", error_number))
    assert scene.exit_code == exit_code
    assert engine.stops == 1
    assert stored(history)[-1] == ("assistant", "one two three", "interrupted")


def test_a_full_disk_behind_the_output_is_not_taken_for_a_reader_that_left(history: History) -> None:
    with pytest.raises(OSError, match="gone"):
        Scene(history, ["q"], FakeEngine(["one two"]), output=GoneOutput("two", errno.ENOSPC))
    assert stored(history)[-1] == ("assistant", "one two", "interrupted")


# Saving.


@pytest.mark.parametrize("failing", ["add_question", "begin_answer", "save_partial", "finish_answer"])
def test_a_full_disk_is_told_once_and_the_answer_goes_on(
    history: History, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("The disk is full.", hint="Free some space.")

    with monkeypatch.context() as patch:
        patch.setattr(history, failing, refuse)
        engine = FakeEngine(["one two three four"])
        scene = Scene(history, ["first", "second", "/export"], engine, clock=Clock(0.7))
    assert scene.exit_code == 0
    assert scene.text.count("The disk is full. The chat goes on, but nothing more is saved.") == 1
    assert re.sub(r"\n\(The disk is full.*\n", "", scene.text).count("one two three four") == 2
    assert not scene.chat.history.saves
    export = next(Path().glob("edgemed-*.md")).read_text(encoding="utf-8")
    assert export.count("one two three four") == 2
    assert "NOT FINISHED" not in export
    scene.chat.history.close()


def test_a_chat_without_a_store_says_that_nothing_is_saved() -> None:
    memory = NoHistory("The folder is read-only.")
    scene = Scene(memory, ["q", Terminated(143)], FakeEngine())
    assert "Nothing is being saved. The folder is read-only.\n" in scene.text
    assert "AI: I do not know." in scene.text
    assert scene.text.endswith("\nEnded by the system.\n")
    memory.close()


def test_an_answer_cut_by_a_power_failure_is_offered_at_the_next_start(history: History) -> None:
    conversation_id = history.start_conversation("m", "0" * 64)
    question_id = history.add_question(conversation_id, "How much?")
    history.save_partial(history.begin_answer(question_id, NOTICE), "Give\x1b[2J 5")
    scene = Scene(history, ["/last"], FakeEngine())
    assert re.search(
        r"The last answer \(\d\d \w+ \d\d:\d\d\) was not finished; it is saved\. /last", scene.text
    )
    assert f"You: How much?\nAI ({NOTICE}): NOT FINISHED (interrupted). Give 5\n" in scene.text
    later = Scene(history, ["/last"], FakeEngine())
    assert "was not finished" not in later.text
    assert "NOT FINISHED (interrupted). Give 5" in later.text


# Commands.


def test_new_forgets_what_was_said(history: History) -> None:
    engine = FakeEngine()
    Scene(history, ["one", "/new", "two"], engine)
    assert engine.asked[1] == [SYSTEM, ChatMessage("user", "two")]
    assert len(history.messages(1)) == len(history.messages(2)) == 2


def test_again_asks_the_same_with_another_seed_and_keeps_both_answers(history: History) -> None:
    engine = FakeEngine(["First.", "Second.", "Third."])
    Scene(history, ["q", "/again", "next"], engine)
    assert engine.asked[0] == engine.asked[1]
    assert engine.seeds[0] is None
    assert isinstance(engine.seeds[1], int)
    assert engine.asked[2][1:3] == [ChatMessage("user", "q"), ChatMessage("assistant", "Second.")]
    assert [text for _, text, _ in stored(history)] == ["q", "Second.", "next", "Third."]
    (first, second) = history.siblings(history.messages(1)[1])
    history.choose_branch(first)
    assert [message.text for message in history.messages(1)] == ["q", "First."]
    assert second > first


def test_again_without_words_leaves_the_answer_that_was_there(history: History) -> None:
    engine = FakeEngine(["First.", Script(""), "Third."])
    Scene(history, ["q", "/again", "next"], engine)
    assert engine.asked[2][2] == ChatMessage("assistant", "First.")


def test_again_before_any_question_says_so(history: History) -> None:
    assert "There is no question yet." in Scene(history, ["/again"], FakeEngine()).text


def test_export_never_overwrites_and_txt_is_plain_text(history: History) -> None:
    scene = Scene(history, ["What is anaemia?", *["/export"] * 3, "/export a.txt", "/export ."], FakeEngine())
    names = sorted(path.name for path in Path().iterdir())
    date = local_time(history.conversation(1).created_at, "%Y-%m-%d")
    assert names == sorted(["a.txt", *(f"edgemed-{date}-1{end}.md" for end in ("", "-2", "-3", "-4"))])
    assert Path(f"edgemed-{date}-1.md").read_text(encoding="utf-8").startswith("# What is anaemia?\n")
    assert Path("a.txt").read_text(encoding="utf-8").startswith("What is anaemia?\n")
    assert scene.text.count("Written to ") == 5


def test_an_export_that_fails_is_one_sentence_and_leaves_no_half_file(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Scene(history, ["/export", "q", "/export nowhere/a.md", "/export a\udcff"], FakeEngine())
    assert "There is nothing to export yet." in missing.text
    assert "could not be written to nowhere/a.md: No such file or directory." in missing.text

    def pulled(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(history_export, "fsync_file", pulled)
    scene = Scene(history, ["q", "/export stick.md", "still here"], FakeEngine())
    assert "could not be written to stick.md: Input/output error." in scene.text
    assert not Path("stick.md").exists()
    assert scene.exit_code == 0


def test_an_unknown_command_names_the_nearest(history: History) -> None:
    engine = FakeEngine()
    scene = Scene(history, ["/exprot", "/HELP", "/zzzzzz"], engine)
    assert "There is no command /exprot. Did you mean /export?" in scene.text
    assert "/again writes another answer" in scene.text
    assert "There is no command /zzzzzz.\n" in scene.text
    assert engine.asked == []


def test_two_slashes_ask_a_question_that_begins_with_one(history: History) -> None:
    engine = FakeEngine()
    Scene(history, ["//help me"], engine)
    assert engine.asked[0][-1].content == "/help me"


def test_last_without_a_saved_answer_says_so(history: History) -> None:
    assert "There is no saved answer yet." in Scene(history, ["/last"], FakeEngine()).text


# The process.


def a_chat(engine: FakeEngine) -> Chat:
    chat = Chat(open_history(), max_tokens=5)
    chat.use(engine, MODEL)
    return chat


def test_run_line_mode_answers_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n/nothing\ntwo"))
    engine = FakeEngine()
    chat = a_chat(engine)
    more = {"/nothing": (lambda say, argument: say(f"nothing{argument}"), "does nothing")}
    assert run_line_mode(chat, more) == 0
    assert len(engine.asked) == 2
    printed = capsys.readouterr().out
    assert "You>" not in printed
    assert "\nnothing\n" in printed
    assert len(stored(chat.history)) == 4
    chat.close()
    assert engine.closed


def test_run_line_mode_goes_on_without_a_folder_to_save_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.data_folder().write_text("a file in the way", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    chat = a_chat(FakeEngine())
    assert run_line_mode(chat, {}) == 0
    printed = capsys.readouterr().out
    assert "Nothing is being saved. Conversations cannot be saved in " in printed
    assert "AI: I do not know." in printed
    chat.close()


def test_run_line_mode_leaves_a_broken_pipe_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    monkeypatch.setattr(sys, "stdout", GoneOutput("know", errno.EPIPE))
    chat = a_chat(FakeEngine())
    with pytest.raises(BrokenPipeError):
        run_line_mode(chat, {})
    chat.close()


# The functions that the full screen has too.


def test_a_cut_answer_is_written_on_in_its_place(history: History) -> None:
    engine = FakeEngine([Script("Give two", before_piece=interrupt_before(1)), " tablets a day."])
    scene = Scene(history, ["Dose?", "/continue"], engine)
    assert engine.answers_so_far == ["", "Give"]
    assert engine.asked[1] == engine.asked[0]
    assert stored(history) == [("user", "Dose?", "done"), ("assistant", "Give tablets a day.", "done")]
    assert "There is no unfinished answer here." in Scene(history, ["/continue"], FakeEngine()).text
    assert scene.exit_code == 0


def test_a_continued_answer_that_is_cut_again_keeps_both_parts(history: History) -> None:
    cut = Script("Give two", before_piece=interrupt_before(2))
    more = Script(" tablets a day", before_piece=raise_before(1, Terminated(143)))
    Scene(history, ["Dose?", "/continue"], FakeEngine([cut, more]))
    assert stored(history)[1] == ("assistant", "Give two tablets", "interrupted")


def test_an_edited_question_begins_a_branch_and_other_shows_the_first(history: History) -> None:
    engine = FakeEngine(["First.", "Second."])
    scene = Scene(history, ["Fever?", "/edit High fever?", "/other", "/edit"], engine)
    assert engine.asked[1] == [SYSTEM, ChatMessage("user", "High fever?")]
    assert "(Version 1 of 2.)\nYou: Fever?\nAI (demonstration model, not for patients): First." in scene.text
    assert "The question was: Fever?" in scene.text


def test_the_history_is_listed_searched_and_opened(history: History) -> None:
    engine = FakeEngine(["Drink.", "Rest.", "More."])
    scene = Scene(
        history,
        ["Diarrhoea?", "/new", "Fever?", "/history", "/history drin", "/open 1", "And?", "/open 9"],
        engine,
    )
    assert re.search(
        r"1\. \d{4}-\d\d-\d\d \d\d:\d\d Fever\?\n2\. \d{4}-\d\d-\d\d \d\d:\d\d Diarrhoea\?", scene.text
    )
    assert "...[Drink]." in scene.text
    assert [message.content for message in engine.asked[2][1:]] == ["Diarrhoea?", "Drink.", "And?"]
    assert "There is no number 9 in the list." in scene.text


def test_a_deleted_question_comes_back_with_undo(history: History) -> None:
    engine = FakeEngine(["One.", "Two."])
    scene = Scene(
        history, ["a", "b", "/delete", "/undo", "/delete all", "/undo", "/undo", "/rename T"], engine
    )
    assert [text for _, text, _ in stored(history)] == ["a", "One.", "b", "Two."]
    assert scene.text.count("It is back.") == 2
    assert "Nothing was deleted." in scene.text
    assert history.conversation(1).title == "T"


def test_a_second_edgemed_may_read_but_not_ask_until_the_first_is_closed(history: History) -> None:
    Scene(history, ["first"], FakeEngine())
    second = History.open(paths.history_file())
    engine = FakeEngine()

    def close_the_first() -> str:
        history.close()
        return "asked again"

    scene = Scene(second, ["/history", "/open 1", "refused", close_the_first], engine)
    assert "Another edgemed is open on this computer. Here you can read" in scene.text
    assert "1. " in scene.text
    assert "error: Another edgemed is open on this computer: nothing can be asked" in scene.text
    assert [asked[-1].content for asked in engine.asked] == ["asked again"]
    assert "The other edgemed is closed. From now on this one saves." in scene.text
    assert [m.text for m in scene.chat.messages()][-2:] == ["asked again", "I do not know."]
    scene.chat.close()
