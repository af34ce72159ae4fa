"""The two faces of the chat, driven the same way: what a user does, and what can be read afterwards."""

import asyncio
import contextlib
import io
import queue
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from textual.pilot import Pilot

from edgemed.chat import Chat, open_history
from edgemed.control import Control, Options
from edgemed.engine.messages import ChatMessage
from edgemed.line_commands import line_commands
from edgemed.line_mode import LineChat
from edgemed.manifest import Sampling
from edgemed.tui import chat_screen, history_screen
from edgemed.tui.app import ChatApp
from edgemed.tui.history_screen import HistoryScreen
from edgemed.tui.question_input import QuestionInput
from tests.fakes import FakeEngine

NOTICE = "demonstration model, not for patients"
SYSTEM = ChatMessage("system", "Be short.")
PATIENCE_SECONDS = 20.0


def a_control(engine: FakeEngine, **options: Any) -> Control:
    """Return the chat's control over a fake engine."""

    def open_model(name: str | None, **_: object) -> Any:
        manifest = SimpleNamespace(sha256="ab" * 32, notice=NOTICE, sampling=Sampling())
        model = SimpleNamespace(name=name or "tiny-medical", manifest=manifest)
        return SimpleNamespace(engine=engine, model=model, opening=[SYSTEM])

    chat = Chat(open_history(), max_tokens=64, **options)
    return Control(chat, Options(), open_model=open_model)


class Face(Protocol):
    """What a user can do with either face."""

    control: Control

    def text(self) -> str:
        """What can be read now."""

    async def ask(self, question: str) -> None:
        """Type a question and wait for its answer's end."""

    async def ask_and_stop(self, question: str, engine: FakeEngine) -> None:
        """Type a question, and stop its answer when the engine waits for it (see `stopped_after`)."""

    async def again(self) -> None:
        """Have the last question answered again."""

    async def go_on(self) -> None:
        """Have a cut answer written on."""

    async def edit(self, question: str) -> None:
        """Ask the last question in other words."""

    async def other_version(self) -> None:
        """Look at the other version of the last answer."""

    async def new(self) -> None:
        """Begin another conversation."""

    async def search_and_open(self, words: str) -> str:
        """Search, return what is shown, and open the first that is found."""

    async def rename(self, title: str) -> None:
        """Rename the conversation."""

    async def delete(self) -> None:
        """Delete the last question."""

    async def undo(self) -> None:
        """Undo it."""

    async def export(self, folder: Path) -> None:
        """Export as plain text into a folder."""

    async def cooler(self) -> None:
        """Set the temperature to 0."""


class LineFace:
    """Line mode on a thread of its own."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self._output = io.StringIO()
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._waits = threading.Event()
        control.load()
        self._chat = LineChat(
            control.chat,
            read_line=self._read_line,
            output=self._output,
            more_commands=line_commands(control),
        )
        self._thread = threading.Thread(target=self._chat.run, daemon=True)

    def _read_line(self, _prompt: str) -> str:
        self._waits.set()
        line = self._lines.get()
        if line is None:
            raise EOFError
        return line

    async def start(self) -> None:
        self._thread.start()
        await self._ready()

    async def end(self) -> None:
        self._lines.put(None)
        await asyncio.to_thread(self._thread.join, PATIENCE_SECONDS)

    async def _ready(self) -> None:
        assert await asyncio.to_thread(self._waits.wait, PATIENCE_SECONDS), self.text()

    async def _type(self, line: str) -> None:
        self._waits.clear()
        self._lines.put(line)
        await self._ready()

    def text(self) -> str:
        return self._output.getvalue()

    async def ask(self, question: str) -> None:
        await self._type(question)

    async def ask_and_stop(self, question: str, engine: FakeEngine) -> None:
        self._waits.clear()
        self._lines.put(question)
        await asyncio.to_thread(engine.reached.wait, PATIENCE_SECONDS)
        self.control.chat.stop()
        engine.go_on.set()
        await self._ready()

    async def again(self) -> None:
        await self._type("/again")

    async def go_on(self) -> None:
        await self._type("/continue")

    async def edit(self, question: str) -> None:
        await self._type(f"/edit {question}")

    async def other_version(self) -> None:
        await self._type("/other")

    async def new(self) -> None:
        await self._type("/new")

    async def search_and_open(self, words: str) -> str:
        begin = len(self.text())
        await self._type(f"/history {words}")
        shown = self.text()[begin:]
        await self._type("/open 1")
        return shown

    async def rename(self, title: str) -> None:
        await self._type(f"/rename {title}")

    async def delete(self) -> None:
        await self._type("/delete")

    async def undo(self) -> None:
        await self._type("/undo")

    async def export(self, folder: Path) -> None:
        await self._type(f"/export {folder}/out.txt")

    async def cooler(self) -> None:
        await self._type("/set temperature 0.0")


class ScreenFace:
    """The full screen, driven by keys alone."""

    def __init__(self, control: Control, app: ChatApp, pilot: Pilot[int]) -> None:
        self.control, self.app, self.pilot = control, app, pilot

    async def start(self) -> None:
        await self.settle()

    async def settle(self) -> None:
        """Wait until nothing is loading or answering, and all is drawn."""
        screen = self.app.chat_screen
        for _ in range(int(PATIENCE_SECONDS / 0.02)):
            await self.pilot.pause(0.02)
            busy = screen._answering is not None or screen._loading is not None
            if not busy and screen._queue.empty():
                break
        else:
            raise AssertionError(f"still busy:\n{self.text()}")
        await self.pilot.pause()

    def text(self) -> str:
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.settle()

    async def type(self, text: str) -> None:
        self.app.chat_screen.query_one(QuestionInput).text = ""
        await self.pilot.press(*("space" if letter == " " else letter for letter in text))

    async def ask(self, question: str) -> None:
        await self.type(question)
        await self.pilot.pause(0.02)
        await self.press("enter")

    async def ask_and_stop(self, question: str, engine: FakeEngine) -> None:
        await self.type(question)
        await self.pilot.pause(0.02)
        await self.pilot.press("enter")
        await asyncio.to_thread(engine.reached.wait, PATIENCE_SECONDS)
        await self.pilot.press("escape")
        engine.go_on.set()
        await self.settle()

    async def again(self) -> None:
        await self.press("tab", "a")

    async def go_on(self) -> None:
        await self.press("tab", "c")

    async def edit(self, question: str) -> None:
        await self.press("tab", "e")
        await self.ask(question)

    async def other_version(self) -> None:
        await self.press("tab", "left")

    async def new(self) -> None:
        await self.press("f2")

    async def search_and_open(self, words: str) -> str:
        await self.press("f6", *words)
        await self.pilot.pause(history_screen.SEARCH_SECONDS + 0.1)
        shown = self.text()
        await self.press("enter")
        return shown

    async def rename(self, title: str) -> None:
        await self.press("f6", "f4")
        assert not isinstance(self.app.screen, HistoryScreen)
        await self.press(
            "ctrl+u", *("space" if letter == " " else letter for letter in title), "enter", "escape"
        )

    async def delete(self) -> None:
        await self.press("tab", "up", "d")

    async def undo(self) -> None:
        await self.press("u", "escape")

    async def export(self, folder: Path) -> None:
        del folder  # the only place there is: see `face`
        await self.press("f5", "enter")

    async def cooler(self) -> None:
        await self.press("f7", "down", "down", "down", "right", "escape")


@contextlib.asynccontextmanager
async def line_face(control: Control) -> AsyncIterator[LineFace]:
    """Open line mode."""
    face = LineFace(control)
    await face.start()
    try:
        yield face
    finally:
        await face.end()
        control.chat.close()


@contextlib.asynccontextmanager
async def screen_face(
    control: Control, size: tuple[int, int] = (80, 24), *, first_start: bool = False
) -> AsyncIterator[ScreenFace]:
    """Open the full screen."""
    chat_screen.DRAIN_SECONDS = 0.02
    app = ChatApp(control, first_start=first_start)
    try:
        async with app.run_test(size=size) as pilot:
            face = ScreenFace(control, app, pilot)
            await face.start()
            yield face
            app.chat_screen.end(PATIENCE_SECONDS)
    finally:
        control.chat.close()


FACES: dict[str, Callable[[Control], contextlib.AbstractAsyncContextManager[Any]]] = {
    "lines": line_face,
    "screen": screen_face,
}
