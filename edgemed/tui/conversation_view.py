"""The conversation on the screen: one widget that draws lines, however long it grows.

While an answer comes, only its last lines are folded and drawn anew; a finished one is Markdown, once.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from edgemed import languages
from edgemed.history import SavedMessage, local_time
from edgemed.history_export import unfinished_mark
from edgemed.languages import text as _
from edgemed.terminal_text import clean
from edgemed.tui.plain_lines import plain_lines

MESSAGES_AT_ONCE = 40
"""Of a long conversation; the earlier ones come when one scrolls up to them."""
MARGIN = 2

_BOLD = Style(bold=True)
_PLAIN = Style.null()


class ShownMessage(NamedTuple):
    """A message, and which of how many versions it is."""

    message: SavedMessage
    number: int
    versions: int


Lines = list[list[Segment]]


class ConversationView(ScrollView, can_focus=True):
    """The messages of one branch, and the answer that is being written."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "choose(-1)"),
        Binding("down", "choose(1)"),
        Binding("left", "screen.version(-1)"),
        Binding("right", "screen.version(1)"),
        Binding("a", "screen.again"),
        Binding("c", "screen.continue_answer"),
        Binding("e", "screen.edit"),
        Binding("y", "screen.copy"),
        Binding("d,delete", "screen.delete"),
        Binding("u", "screen.undo"),
    ]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._messages: Sequence[ShownMessage] = ()
        self._first = 0
        self._cache: dict[tuple[object, ...], Lines] = {}
        self._lines: Lines = []
        self._starts: list[int] = []
        self._live: _LiveText | None = None
        self._empty_text = ""
        self._spacious = False
        self.chosen: int | None = None
        """Place of the message that the keys work on; None while nothing is chosen."""

    # What is shown.

    def show_messages(self, messages: Sequence[ShownMessage], *, empty_text: str = "") -> None:
        """Show a conversation from its end."""
        self._messages, self._empty_text = messages, clean(empty_text)
        self._first = max(0, len(messages) - MESSAGES_AT_ONCE)
        self._live = None
        if self.chosen is not None:
            self.chosen = len(messages) - 1 if messages else None
        self._lay_out()
        self._go_to(self._line_count())

    def set_spacious(self, spacious: bool) -> None:
        """Leave an empty line after each line, for eyes that need it."""
        if spacious != self._spacious:
            self._spacious = spacious
            self._lay_out()

    def begin_answer(self, text: str = "", *, notice: str | None = None) -> None:
        """Show that an answer begins, or goes on after `text`; it grows with `add`."""
        self._live = _LiveText(self._text_width, _answer_heading(notice))
        self._live.add(text)
        self._lay_out()
        self._go_to(self._line_count())

    def add(self, text: str) -> None:
        """Show more of the answer that is being written; follow it unless the user scrolled up."""
        if self._live is None:
            return
        follows = self.follows
        before = self._line_count()
        changed = self._live.add(text)
        after = self._line_count()
        if after != before:
            self.virtual_size = Size(self.size.width, after)
        if follows:
            self._go_to(self._line_count())
        top = max(0, (len(self._lines) + changed) * self._step - round(self.scroll_y))
        bottom = min(self.size.height, after - round(self.scroll_y))
        if bottom > top:
            # No more than what changed: an empty line below costs as many bytes as a full one.
            self.refresh(Region(0, top, self.size.width, bottom - top))

    @property
    def follows(self) -> bool:
        """Whether the end is in sight."""
        return self.scroll_y >= self._line_count() - self.size.height - 1

    @property
    def chosen_message(self) -> SavedMessage | None:
        """The message that the keys work on: the chosen one, else the last."""
        if not self._messages:
            return None
        place = len(self._messages) - 1 if self.chosen is None else min(self.chosen, len(self._messages) - 1)
        return self._messages[place].message

    # Drawing.

    def render_line(self, y: int) -> Strip:
        """Return one line of what is in sight."""
        width, style = self.size.width, self.rich_style
        row = y + round(self.scroll_y)
        index, rest = divmod(row, self._step)
        segments: list[Segment] = []
        marked = self._is_chosen(index)
        if not rest:
            if index < len(self._lines):
                segments = self._lines[index]
            elif self._live is not None and index - len(self._lines) < len(self._live.lines):
                segments = self._live.lines[index - len(self._lines)]
        margin = Segment("> " if marked and index in self._starts else "│ " if marked else "  ")
        strip = Strip([margin, *segments])
        if languages.right_to_left() and segments:
            strip = Strip([Segment(" " * max(0, width - strip.cell_length - 1)), *segments, margin])
        return strip.adjust_cell_length(width).apply_style(style)

    @property
    def _step(self) -> int:
        return 2 if self._spacious else 1

    @property
    def _text_width(self) -> int:
        return max(8, self.size.width - MARGIN - 1)

    def _line_count(self) -> int:
        return (len(self._lines) + (len(self._live.lines) if self._live else 0)) * self._step

    def _lay_out(self) -> None:
        if not self.size.width:
            return
        width = self._text_width
        self._lines, self._starts = [], []
        if self._first:
            self._lines += [[Segment(_("(Page Up shows what was said before.)"))], []]
        for shown in self._messages[self._first :]:
            self._starts.append(len(self._lines))
            self._lines += self._message_lines(shown, width)
        if not self._messages and self._live is None:
            self._lines += plain_lines(self._empty_text, width)
        if self._live is not None:
            self._live.fold(width)
        self.virtual_size = Size(self.size.width, self._line_count())
        self.refresh()

    def _message_lines(self, shown: ShownMessage, width: int) -> Lines:
        message = shown.message
        key = (message.id, message.status, len(message.text), shown.number, shown.versions, width)
        if key not in self._cache:
            if len(self._cache) > 4 * MESSAGES_AT_ONCE:
                self._cache.clear()
            text = clean(message.text).strip()
            body = plain_lines(text, width) if message.role == "user" else _markdown(text, width)
            self._cache[key] = [*_heading(shown, width), *body, []]
        return self._cache[key]

    def _is_chosen(self, index: int) -> bool:
        if self.chosen is None or not self.has_focus:
            return False
        place = self.chosen - self._first
        if not 0 <= place < len(self._starts) or index >= len(self._lines):
            return False
        end = self._starts[place + 1] if place + 1 < len(self._starts) else len(self._lines)
        return self._starts[place] <= index < end - 1

    # Moving.

    def action_choose(self, step: int) -> None:
        """Choose the next message."""
        if not self._messages:
            return
        place = len(self._messages) - 1 if self.chosen is None else self.chosen + step
        self.chosen = min(max(0, place), len(self._messages) - 1)
        if self.chosen < self._first:
            self.show_earlier()
        top = self._starts[self.chosen - self._first] * self._step
        self._go_to(top - 1)
        self.refresh()

    def show_earlier(self) -> None:
        """Bring more of a long conversation in, without moving what is in sight."""
        if not self._first:
            return
        from_end = self._line_count() - self.scroll_y
        self._first = max(0, self._first - MESSAGES_AT_ONCE)
        self._lay_out()
        self._go_to(self._line_count() - from_end)

    def turn_page(self, step: int) -> None:
        """Scroll by a page."""
        if step < 0 and self.scroll_y <= self.size.height:
            self.show_earlier()
        self._go_to(self.scroll_y + step * max(1, self.size.height - 1))

    def _go_to(self, y: float) -> None:
        # Forced: textual allows no scrolling before the next layout has seen that there is more than fits.
        y = min(max(0, y), max(0, self._line_count() - self.size.height))
        self.scroll_to(y=y, animate=False, immediate=True, force=True)

    def on_focus(self) -> None:
        """Choose the last message."""
        self.chosen = len(self._messages) - 1 if self._messages else None
        self.refresh()

    def on_blur(self) -> None:
        """Choose nothing."""
        self.chosen = None
        self.refresh()

    def on_resize(self, _event: events.Resize) -> None:
        """Fold everything anew."""
        follows = self.follows
        self._lay_out()
        if follows:
            self._go_to(self._line_count())


class _LiveText:
    """Text that grows: only its last paragraph is folded anew."""

    def __init__(self, width: int, heading: str) -> None:
        self._width, self._heading = width, heading
        self._paragraphs: list[str] = [""]
        self.lines: Lines = []
        self._ready: Lines = _bold_lines(heading, width)

    def add(self, text: str) -> int:
        """Add text; return the first line that changed."""
        first = len(self._ready)
        *whole, last = (self._paragraphs[-1] + text).split("\n")
        for paragraph in whole:
            self._paragraphs[-1] = paragraph
            self._ready += plain_lines(paragraph, self._width)
            self._paragraphs.append("")
        self._paragraphs[-1] = last
        tail = plain_lines(last, self._width)
        self.lines = [*self._ready, *tail]
        return first + (max(0, len(tail) - 2) if not whole else 0)

    def fold(self, width: int) -> None:
        """Fold all of it for another width."""
        if width != self._width:
            text = "\n".join(self._paragraphs)
            self.__init__(width, self._heading)  # type: ignore[misc]
            self.add(text)


def _markdown(text: str, width: int) -> Lines:
    from edgemed.tui.markdown_lines import markdown_lines

    return markdown_lines(text, width)


def _heading(shown: ShownMessage, width: int) -> Lines:
    message = shown.message
    who = _("You") if message.role == "user" else _answer_heading(message.notice)
    parts = [who, local_time(message.created_at, "%H:%M")]
    if shown.versions > 1:
        parts.append(_("version {number} of {count}", number=shown.number, count=shown.versions))
    if mark := unfinished_mark(message):
        parts.append(mark)
    return _bold_lines("  ".join(parts), width)


def _answer_heading(notice: str | None) -> str:
    return f"{_('AI')}  ({' '.join(clean(notice).split())})" if notice else _("AI")


def _bold_lines(text: str, width: int) -> Lines:
    return [[Segment(line[0].text, _BOLD)] for line in plain_lines(text, width)]
