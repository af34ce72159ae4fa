"""Where the question is typed: Enter sends, Ctrl+J begins a line, a huge paste is refused."""

from textual import events
from textual.message import Message
from textual.widgets import TextArea

from edgemed.chat import LONGEST_DRAFT, readable
from edgemed.languages import text as _
from edgemed.terminal_text import clean

_PASTED_SECONDS = 0.005
"""Nobody types Enter so soon after another key: a terminal without bracketed paste is sending lines."""


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

    async def _on_key(self, event: events.Key) -> None:
        last, self._typed_at = self._typed_at, event.time
        if event.key == "enter" and event.time - last > _PASTED_SECONDS:
            event.stop()
            event.prevent_default()
            text = clean(readable(self.text)).strip()
            if text:
                self.post_message(self.Sent(text))
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
