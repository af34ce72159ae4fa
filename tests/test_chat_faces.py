"""What a user can do, done in line mode and in the full screen: one set of scenarios for both."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from edgemed import machine, settings
from edgemed.engine.messages import ChatMessage
from edgemed.errors import EngineDied, QuestionTooLong, StorageError
from edgemed.history import History
from edgemed.paths import history_file
from tests.faces import FACES, NOTICE, SYSTEM, Face, a_control
from tests.fakes import FakeEngine, Script

Scenario = Callable[[Face, FakeEngine], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMED_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(machine, "mounted_media", list)


@pytest.fixture(params=FACES)
def play(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Run a scenario in one face."""

    def run(engine: FakeEngine, scenario: Scenario, **options: Any) -> None:
        async def in_face() -> None:
            async with FACES[request.param](a_control(engine, **options)) as face:
                await scenario(face, engine)

        asyncio.run(in_face())

    return run


Play = Callable[..., None]


def said(face: Face) -> list[tuple[str, str]]:
    return [(message.text, message.status) for message in face.control.chat.messages()]


def test_an_answer_is_shown_with_its_notice_and_saved(play: Play) -> None:
    async def scenario(face: Face, engine: FakeEngine) -> None:
        await face.ask("What is anaemia?")
        assert "Too little haemoglobin." in face.text()
        assert NOTICE in face.text()
        assert "You decide" in face.text() or "Done. 3 words" in face.text()
        assert engine.asked == [[SYSTEM, ChatMessage("user", "What is anaemia?")]]
        assert said(face) == [("What is anaemia?", "done"), ("Too little haemoglobin.", "done")]

    play(FakeEngine(["Too little haemoglobin."]), scenario)


def test_a_stopped_answer_is_kept_marked_and_written_on(play: Play) -> None:
    async def scenario(face: Face, engine: FakeEngine) -> None:
        await face.ask_and_stop("Dose?", engine)
        assert said(face)[-1] == ("Give two", "stopped")
        assert "Stopped. What was written is kept." in face.text()
        await face.go_on()
        assert engine.answers_so_far == ["", "Give two"]
        assert said(face) == [("Dose?", "done"), ("Give two tablets a day.", "done")]
        assert "tablets a day." in face.text()

    engine = FakeEngine()
    engine.scripts = [Script("Give two three", before_piece=engine.waits_at(2)), " tablets a day."]
    play(engine, scenario)


def test_asking_again_keeps_both_answers_and_one_can_go_back(play: Play) -> None:
    async def scenario(face: Face, engine: FakeEngine) -> None:
        await face.ask("Fever?")
        await face.again()
        assert engine.asked[0] == engine.asked[1]
        assert said(face) == [("Fever?", "done"), ("Second.", "done")]
        await face.other_version()
        assert said(face) == [("Fever?", "done"), ("First.", "done")]
        assert "ersion 1 of 2" in face.text()

    play(FakeEngine(["First.", "Second."]), scenario)


def test_an_edited_question_begins_a_branch(play: Play) -> None:
    async def scenario(face: Face, engine: FakeEngine) -> None:
        await face.ask("Fever?")
        await face.edit("High fever?")
        assert engine.asked[1] == [SYSTEM, ChatMessage("user", "High fever?")]
        question = face.control.chat.messages()[0]
        assert face.control.chat.place(question) == (2, 2)
        assert said(face) == [("High fever?", "done"), ("Second.", "done")]

    play(FakeEngine(["First.", "Second."]), scenario)


def test_an_old_conversation_is_found_by_a_word_of_its_answer_and_goes_on(play: Play) -> None:
    async def scenario(face: Face, engine: FakeEngine) -> None:
        await face.ask("Diarrhoea?")
        await face.new()
        await face.ask("Fever?")
        shown = await face.search_and_open("zinc")
        assert "Diarrhoea?" in shown
        assert "zinc" in shown
        assert "Fever?" not in shown
        await face.ask("And then?")
        assert [message.content for message in engine.asked[2][1:]] == [
            "Diarrhoea?",
            "Give zinc.",
            "And then?",
        ]

    play(FakeEngine(["Give zinc.", "Rest.", "More."]), scenario)


def test_a_conversation_is_renamed(play: Play) -> None:
    async def scenario(face: Face, _engine: FakeEngine) -> None:
        await face.ask("q")
        await face.rename("Child of 3")
        assert face.control.chat.history.conversation(1).title == "Child of 3"

    play(FakeEngine(), scenario)


def test_a_deleted_question_comes_back_with_undo(play: Play) -> None:
    async def scenario(face: Face, _engine: FakeEngine) -> None:
        await face.ask("one")
        await face.ask("two")
        await face.delete()
        assert [text for text, _ in said(face)] == ["one", "A."]
        await face.undo()
        assert [text for text, _ in said(face)] == ["one", "A.", "two", "B."]

    play(FakeEngine(["A.", "B."]), scenario)


def test_a_conversation_is_exported_as_plain_text(play: Play, tmp_path: Path) -> None:
    async def scenario(face: Face, _engine: FakeEngine) -> None:
        await face.ask("What is anaemia?")
        await face.export(tmp_path / "home")
        (file,) = (tmp_path / "home").glob("*.txt")
        assert "Too little haemoglobin." in file.read_text(encoding="utf-8")
        assert "Written to" in face.text()

    play(FakeEngine(["Too little haemoglobin."]), scenario)


def test_a_changed_temperature_works_at_once_and_is_kept_in_the_file(play: Play) -> None:
    async def scenario(face: Face, engine: FakeEngine) -> None:
        await face.cooler()
        assert engine.samplings[-1].temperature == 0.0
        assert settings.read_settings()[0].temperature == 0.0

    play(FakeEngine(), scenario)


def test_a_dead_engine_is_explained_each_time_and_the_chat_goes_on(play: Play) -> None:
    async def scenario(face: Face, _engine: FakeEngine) -> None:
        for number in range(3):
            await face.ask(f"q{number}")
            assert "It crashed. Ask again." in face.text()
            assert said(face)[-1] == ("Half an", "engine_died")
        await face.ask("once more")
        assert said(face)[-1] == ("Whole.", "done")

    died = Script("Half an", stop_reason="engine_died", explanation="It crashed. Ask again.")
    play(FakeEngine([died, died, died, "Whole."]), scenario)


def test_an_engine_that_cannot_start_again_loses_no_question(play: Play) -> None:
    async def scenario(face: Face, _engine: FakeEngine) -> None:
        await face.ask("Dose?")
        assert "stopped 3 times in a row" in face.text()
        assert said(face) == [("Dose?", "done")]
        await face.again()
        assert said(face)[-1] == ("Two.", "done")

    refused = Script(refused_with=EngineDied("The engine stopped 3 times in a row.", hint="Close programs."))
    play(FakeEngine([refused, "Two."]), scenario)


def test_a_question_that_is_too_long_is_kept_and_explained(play: Play) -> None:
    async def scenario(face: Face, _engine: FakeEngine) -> None:
        await face.ask("long")
        assert "Too long. " in face.text() or "Too long.\n" in face.text()
        assert said(face) == [("long", "done")]

    play(FakeEngine([Script(refused_with=QuestionTooLong("Too long.", hint="Shorter."))]), scenario)


def test_a_disk_that_is_full_in_mid_answer_is_told_and_nothing_on_the_screen_is_lost(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(face: Face, _engine: FakeEngine) -> None:
        disk = face.control.chat.history

        def refuse(*_: object) -> None:
            raise StorageError("The disk is full.", hint="Free some space.")

        monkeypatch.setattr(disk, "finish_answer", refuse)
        await face.ask("q")
        text = " ".join(face.text().split())
        assert "The disk is full. The chat goes on, but nothing more is saved." in text
        assert said(face)[-1] == ("one two three", "done")
        assert not face.control.chat.history.saves

    play(FakeEngine(["one two three"]), scenario)


def test_nothing_that_a_terminal_obeys_comes_through(play: Play) -> None:
    async def scenario(face: Face, _engine: FakeEngine) -> None:
        await face.ask("q")
        await face.rename("t")
        face.control.chat.history._execute("UPDATE conversation SET title = ?", ("a\x1b]0;own\x07b\x9b2J",))
        shown = await face.search_and_open("take")
        for text in (face.text(), shown):
            assert "\x1b" not in text
            assert "\x9b" not in text
            assert "]0;" not in text
        assert "Take rest." in face.text()

    play(FakeEngine([Script(pieces=["Take \x1b", "]0;own\x07re", "\x1b[31mst\u202e."])]), scenario)


def test_after_a_power_cut_the_answer_is_offered_and_written_on(play: Play) -> None:
    before = History.open(history_file())
    conversation_id = before.start_conversation("m", "0" * 64)
    answer_id = before.begin_answer(before.add_question(conversation_id, "How much?"), NOTICE)
    before.save_partial(answer_id, "Give 5")
    before.close()

    async def scenario(face: Face, engine: FakeEngine) -> None:
        text = " ".join(face.text().split())
        assert "not finished" in text or "while an answer was being written" in text
        if "Continue writing" in text:
            assert "Give 5" in text
            await face.press("c")  # type: ignore[attr-defined]
        else:
            await face.go_on()
        assert engine.answers_so_far == ["Give 5"]
        assert said(face) == [("How much?", "done"), ("Give 5 ml.", "done")]

    play(FakeEngine([" ml."]), scenario)


def test_a_second_edgemed_reads_only_and_says_so(play: Play) -> None:
    first = History.open(history_file())
    conversation_id = first.start_conversation("m", "0" * 64)
    first.finish_answer(
        first.begin_answer(first.add_question(conversation_id, "Zinc?"), None), "Yes.", "done"
    )

    async def scenario(face: Face, engine: FakeEngine) -> None:
        assert "Another edgemed is open" in face.text()
        assert "Zinc?" in await face.search_and_open("zinc")
        await face.ask("refused")
        assert engine.asked == []
        assert len(said(face)) == 2
        first.close()
        await face.ask("taken")
        assert len(engine.asked) == 1
        assert len(said(face)) == 4

    play(FakeEngine(), scenario)


def test_every_method_of_a_face_is_used_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    methods = [name for name, _ in inspect.getmembers(Face, inspect.isfunction) if not name.startswith("_")]
    assert [name for name in methods if f"face.{name}(" not in source] == []
