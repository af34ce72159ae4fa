"""Every screen of the full-screen chat, in every theme and size, as pictures: `python -m tests.screens`.

The pictures are in docs/screens; tests/test_screens.py compares them with what the code draws now.
"""

import asyncio
import contextlib
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from edgemed import machine, settings
from edgemed.control import Control, ModelChoice
from edgemed.history import History
from edgemed.paths import history_file
from edgemed.tui import chat_screen, conversation_view, history_screen
from tests.faces import NOTICE, ScreenFace, a_control, screen_face
from tests.fakes import FakeEngine, Script

FOLDER = Path(__file__).resolve().parent.parent / "docs/screens"
SIZES = {"80x24": (80, 24), "40x12": (40, 12)}
THEMES: tuple[settings.Theme, ...] = ("dark", "light", "high-contrast", "console")

ANSWER = """Signs of **severe dehydration** in a child:

- sleepy, or cannot be woken
- sunken eyes
- drinks poorly, or not at all
- skin goes back *very* slowly after a pinch

1. Two of these signs mean: refer **at once**.
2. On the way: frequent sips of ORS.

| weight | ORS in 4 hours |
|--------|----------------|
| 6 kg   | 450 ml         |
"""


class Picture(NamedTuple):
    """One screen as it stands."""

    name: str
    svg: str
    text: str


async def pictures(theme: settings.Theme, size_name: str) -> list[Picture]:
    """Walk through all screens and take a picture of each."""
    taken: list[Picture] = []
    with _fixed_world(theme) as now:
        engine = FakeEngine()
        engine.scripts = [
            Script(ANSWER),
            Script("Give ORS after each loose stool. " * 9, before_piece=engine.waits_at(30)),
        ]
        control = a_control(engine, clock=lambda: 0.0)
        control.model_choices = lambda: MODELS  # type: ignore[method-assign]
        async with screen_face(control, SIZES[size_name], first_start=True) as face:

            async def take(name: str, *keys: str) -> None:
                await face.press(*keys)
                await face.pilot.pause()
                svg = face.app.export_screenshot(title="edgemed")
                taken.append(Picture(f"{name}-{size_name}-{theme}", _stable(svg), face.text()))

            await take("first-start")
            await take("empty", "enter")
            await face.type("Danger signs of dehydration in a child?")
            await take("answered", "enter")
            await _write_half(face, engine, now)
            await face.pilot.pause(0.1)
            svg = face.app.export_screenshot(title="edgemed")
            taken.append(Picture(f"writing-{size_name}-{theme}", _stable(svg), face.text()))
            await face.pilot.press("escape")
            engine.go_on.set()
            await face.settle()
            await take("stopped")
            await take("messages", "tab")
            await take("history", "escape", "f6")
            await face.press(*"loose")
            await face.pilot.pause(0.4)
            await take("search")
            await take("export", "escape", "f5")
            await take("settings", "escape", "f7")
            await take("help", "escape", "f1")
            await take("leave", "escape", "f10")
    with _fixed_world(theme):
        _leave_unfinished()
        async with screen_face(a_control(FakeEngine()), SIZES[size_name]) as face:
            svg = face.app.export_screenshot(title="edgemed")
            taken.append(Picture(f"recovery-{size_name}-{theme}", _stable(svg), face.text()))
    return taken


MODELS = [
    ModelChoice("medlm-3b-Q4_K_M", 2_900_000_000, 3_100_000_000, True, False, None, None, "", ""),
    ModelChoice("tiny-medical", 9_000_000, 80_000_000, True, False, NOTICE, None, "", ""),
    ModelChoice("medlm-7b", 5_600_000_000, 6_000_000_000, False, False, None, Path("E:/"), "EDGEMED-KIT", ""),
    ModelChoice("old", 0, 0, False, False, None, None, "", "Its manifest is not valid."),
]


async def _write_half(face: ScreenFace, engine: FakeEngine, now: list[float]) -> None:
    await face.type("How much ORS?")
    await face.pilot.press("enter")
    await asyncio.to_thread(engine.reached.wait, 20)
    now[0] += 8.0
    await face.pilot.pause(0.1)


def _leave_unfinished() -> None:
    history = History.open(history_file())
    conversation_id = history.start_conversation("m", "0" * 64)
    answer_id = history.begin_answer(history.add_question(conversation_id, "How much ORS?"), NOTICE)
    history.save_partial(answer_id, "After each loose stool:\n- under 2 years: 50 to 100 ml\n- 2 ye")
    history._execute("UPDATE message SET created_at = '2026-03-01T09:14:00+00:00'")
    history.close()


@contextlib.contextmanager
def _fixed_world(theme: settings.Theme) -> Iterator[list[float]]:
    """A computer, a clock and a data folder that are the same everywhere."""
    now = [1000.0]
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        os.chdir(folder)
        stack.callback(os.chdir, before)
        stack.enter_context(mock.patch.dict(os.environ, {"EDGEMED_HOME": "data", "TZ": "UTC"}))
        settings.change_settings(theme=theme)
        for target, name, value in _FIXED:
            stack.enter_context(mock.patch.object(target, name, value))
        clock = SimpleNamespace(monotonic=lambda: now[0])
        stack.enter_context(mock.patch.object(chat_screen, "time", clock))
        stack.enter_context(
            mock.patch.object(
                Control, "export_places", lambda _: [("EDGEMED-KIT", Path("E:/")), ("home", Path("C:/"))]
            )
        )
        # The models of the picture are on no disk.
        stack.enter_context(mock.patch.object(Control, "use_model", lambda self, _name: self.load()))
        stack.enter_context(mock.patch("edgemed.history._now", lambda: "2026-03-01T09:14:00+00:00"))
        yield now


def _in_utc(created_at: str, pattern: str) -> str:
    return datetime.fromisoformat(created_at).strftime(pattern)


_FIXED: list[tuple[Any, str, Any]] = [
    (machine, "mounted_media", list),
    (machine, "physical_cores", lambda: 4),
    (machine, "available_memory_bytes", lambda: 5 * 2**30),
    (machine, "total_memory_bytes", lambda: 8 * 2**30),
    (machine, "free_disk_bytes", lambda _path: 61 * 2**30),
    # A computer in any time zone draws the same.
    (conversation_view, "local_time", _in_utc),
    (chat_screen, "local_time", _in_utc),
    (history_screen, "local_time", _in_utc),
]


def _stable(svg: str) -> str:
    """Take out what differs from run to run, and the fonts that would be loaded from a network."""
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    svg = re.sub(r"terminal-\d+", "terminal", svg)
    return re.sub(r"[ \t]+\n", "\n", svg)


def main() -> None:
    """Draw all pictures anew."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.svg"):
        old.unlink()
    for theme, size_name in itertools.product(THEMES, SIZES):
        for picture in asyncio.run(pictures(theme, size_name)):
            (FOLDER / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8", newline="\n")
    sys.stdout.write(f"{FOLDER}\n")


if __name__ == "__main__":
    main()
