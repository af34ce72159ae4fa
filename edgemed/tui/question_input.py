"""Where the question is typed: Enter sends, Ctrl+J begins a line, a huge paste is refused."""

from textual import events
from textual.message import Message
from textual.timer import Timer
from textual.widgets import TextArea

from edgemed.chat import LONGEST_DRAFT, readable
from edgemed.languages import text as _
from edgemed.terminal_text import clean

_TOGETHER_SECONDS = 0.005
"""Keys that come so close together were read at once: by a busy computer, or as lines from a terminal
without bracketed paste."""
_PASTED_KEYS = 12
"""So many at once were not typed: an Enter among them sends nothing."""
_MORE_SECONDS = 0.06
"""Of fewer keys an Enter is the last one, and sends, when nothing follows it."""


class QuestionInput(TextArea):
    """A few lines of text."""

    class Sent(Message):
        """The user wants this asked."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Refused(Message):
        """What was typed or pasted cannot be taken, in words."""

        def __init__(self, sentence: str) -> None:
            super().__init__()
            self.sentence = sentence

    class Recalled(Message):
        """The user wants the last question, or an example, in the empty input."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, compact=True, highlight_cursor_line=False, max_checkpoints=20)
        # A blinking cursor costs 400 bytes a second on a slow line.
        self.cursor_blink = False
        self._typed_at = 0.0
        self._together = 0
        self._enter: Timer | None = None

    async def _on_key(self, event: events.Key) -> None:
        last, self._typed_at = self._typed_at, event.time
        self._together = self._together + 1 if event.time - last <= _TOGETHER_SECONDS else 0
        if self._enter is not None:
            # It was not the last key: a line's end inside a paste.
            self._enter.stop()
            self._enter = None
            self._together = _PASTED_KEYS
            self.insert("\n")
        if event.key == "enter" and self._together < _PASTED_KEYS:
            event.stop()
            event.prevent_default()
            if self._together:
                self._enter = self.set_timer(_MORE_SECONDS, self._send)
            else:
                self._send()
            return
        if event.key in ("ctrl+j", "shift+enter", "alt+enter"):
            event.stop()
            event.prevent_default()
            self.insert("\n")
            return
        if event.key == "up" and not self.text:
            event.stop()
            event.prevent_default()
            self.post_message(self.Recalled())
            return
        await super()._on_key(event)

    def _send(self) -> None:
        self._enter = None
        text = clean(readable(self.text)).strip()
        if text:
            self.post_message(self.Sent(text))

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        text = clean(readable(event.text))
        if len(text) + len(self.text) > LONGEST_DRAFT:
            self.post_message(
                self.Refused(
                    _(
                        "The pasted text has {count} characters, and a question can have {most}. "
                        "Nothing was pasted: paste a shorter part.",
                        count=len(text),
                        most=LONGEST_DRAFT,
                    )
                )
            )
            return
        self.insert(text)
