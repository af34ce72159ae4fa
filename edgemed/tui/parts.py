"""Small parts that all screens are made of: lines of text, the line of keys, work in the background."""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.app import App
from textual.widget import Widget

from edgemed.errors import EdgemedError
from edgemed.terminal_text import clean
from edgemed.tui.plain_lines import plain_lines

_CUT = "..."

T = TypeVar("T")


class Key(NamedTuple):
    """A key that works now, and what it does."""

    key: str
    """As textual names it."""
    name: str
    """As the keyboard says it."""
    action: str


def shortened(text: Text, width: int) -> Text:
    """Return a text of at most `width` cells, with dots at its end where it was longer."""
    if text.cell_len > width > len(_CUT):
        text = text.copy()
        text.truncate(width - len(_CUT))
        # Three letters: a text console has no ellipsis.
        text.append(_CUT)
    return text


class Line(Widget):
    """Plain text, one line or more, from the side where the language begins."""

    DEFAULT_CSS = "Line { height: 1; width: 1fr; }"

    def __init__(self, text: str = "", *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._text = text

    @property
    def text(self) -> str:
        """What it says."""
        return self._text

    def show(self, text: str) -> None:
        """Say something else; nothing is drawn when it is the same."""
        text = clean(text)
        if text != self._text:
            # A new layout of the whole screen only where the number of rows changes.
            layout = self._grows and self._rows(text) != self._rows(self._text)
            self._text = text
            self.refresh(layout=layout)

    def render(self) -> Text:
        """Return what textual draws; what does not fit into one row ends with dots."""
        text = Text(self._text)
        return text if self._grows else shortened(text, self.size.width)

    @property
    def _grows(self) -> bool:
        return self.styles.height is not None and self.styles.height.is_auto

    def _rows(self, text: str) -> int:
        return len(plain_lines(text, max(1, self.size.width)))


class KeyLine(Line):
    """The keys that work now, as many as fit, the most important first; a click presses one."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: Sequence[Key] = ()

    def show_keys(self, *keys: Key) -> None:
        """Show these keys from now on."""
        self._keys = keys
        self.refresh()

    def render(self) -> Text:
        """Return what textual draws."""
        return Text("".join(text for text, _ in self._fitting()), no_wrap=True)

    def _fitting(self) -> list[tuple[str, Key]]:
        fitting, width = [], 0
        for key in self._keys:
            text = f" {key.name} {key.action} "
            width += cell_len(text)
            if width > self.size.width:
                break
            fitting.append((text, key))
        return fitting

    def on_click(self, event: events.Click) -> None:
        """Press the key that is under the mouse."""
        column = 0
        for text, key in self._fitting():
            column += cell_len(text)
            if event.x < column:
                self.app.simulate_key(key.key)
                return


def in_background(
    app: App[int], work: Callable[[], T], done: Callable[[T], None], failed: Callable[[EdgemedError], None]
) -> threading.Thread:
    """Do something slow in a thread of its own, then tell the screen, unless the app has ended."""

    def run() -> None:
        try:
            result = work()
        except EdgemedError as error:
            _tell(app, failed, error)
        else:
            _tell(app, done, result)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _tell(app: App[int], tell: Callable[[T], None], value: T) -> None:
    if app.is_running:
        # Not `call_from_thread`: it would wait for an app that may be ending.
        app.call_later(tell, value)
