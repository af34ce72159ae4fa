"""All conversations: the list with dates, and the search that shows its hits."""

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from edgemed.chat import Chat
from edgemed.control import Control
from edgemed.errors import EdgemedError
from edgemed.history import ConversationLine, local_time
from edgemed.languages import text as _
from edgemed.terminal_text import clean
from edgemed.tui.dialogs import ExportScreen, TextScreen
from edgemed.tui.parts import Key, KeyLine, Line, shortened

PAGE = 50
NARROW_COLUMNS = 60
SEARCH_SECONDS = 0.15
"""Waited after the last letter."""


class HistoryScreen(Screen[int | None]):
    """Answers with the id of the conversation to open."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)"),
        Binding("down", "move(1)", priority=True),
        Binding("up", "move(-1)", priority=True),
        Binding("pagedown", "move(10)", priority=True),
        Binding("pageup", "move(-10)", priority=True),
        Binding("f4", "rename"),
        Binding("f5", "export"),
        Binding("f8", "delete"),
        Binding("f9", "undo"),
    ]

    def __init__(self, control: Control) -> None:
        super().__init__()
        self._control = control
        self._chat: Chat = control.chat
        self._lines: list[ConversationLine] = []
        self._has_more = False

    def compose(self) -> ComposeResult:
        """Build the screen."""
        yield Line(" " + _("Conversations"), id="header")
        search = Input(placeholder=_("Type words to search for"), max_length=200)
        search.cursor_blink = False
        yield search
        yield OptionList()
        yield Line(id="activity")
        yield KeyLine()

    def on_mount(self) -> None:
        """List all."""
        self.query_one(KeyLine).show_keys(
            Key("enter", "Enter", _("open")),
            Key("escape", "Esc", _("back")),
            Key("f5", "F5", _("export")),
            Key("f8", "F8", _("delete")),
            Key("f4", "F4", _("rename")),
            Key("f9", "F9", _("undo")),
            Key("down", "↑↓", _("choose")),
        )
        self.query_one(OptionList).can_focus = False
        self.query_one(Input).focus()
        self._list()

    def on_input_changed(self, _event: Input.Changed) -> None:
        """Search when the typing pauses."""
        self._pause = self.set_timer(SEARCH_SECONDS, self._list)

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        """Open the highlighted conversation."""
        self._list_now_if_typed()
        if (line := self._highlighted) is not None:
            self.dismiss(line.id)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Open the one that was clicked."""
        self.dismiss(self._lines[event.option_index].id)

    def on_resize(self, _event: events.Resize) -> None:
        """Fit the titles."""
        if self._lines:
            self._show(0)

    def action_move(self, step: int) -> None:
        """Highlight another line; the next page comes when the end is near."""
        options = self.query_one(OptionList)
        if not self._lines:
            return
        place = min(max(0, (options.highlighted or 0) + step), len(self._lines) - 1)
        if self._has_more and place >= len(self._lines) - 5:
            self._more()
        options.highlighted = place

    def action_rename(self) -> None:
        """Ask for another title."""
        line = self._highlighted
        if line is None:
            return

        def rename(title: str | None) -> None:
            if title:
                self._try(lambda: self._chat.rename(title, line.id))
                self._list()

        self.app.push_screen(TextScreen(_("Rename"), _("The new title:"), line.title), rename)

    def action_export(self) -> None:
        """Ask where to, and write."""
        line = self._highlighted
        if line is None:
            return

        def export(chosen: object) -> None:
            if isinstance(chosen, tuple):
                place, format_ = chosen
                self._try(
                    lambda: self._say(_("Written to {path}", path=self._chat.export(place, format_, line.id)))
                )

        self.app.push_screen(ExportScreen(line.title, self._control.export_places()), export)

    def action_delete(self) -> None:
        """Delete; F9 brings it back."""
        line = self._highlighted
        if line is not None and self._try(lambda: self._chat.delete_conversation(line.id)):
            self._list()
            self._say(_("Deleted: {title}. F9 brings it back.", title=line.title))

    def action_undo(self) -> None:
        """Bring back what was deleted last."""
        if self._try(lambda: self._say(_("It is back.") if self._chat.undo() else _("Nothing was deleted."))):
            self._list()

    @property
    def _highlighted(self) -> ConversationLine | None:
        place = self.query_one(OptionList).highlighted
        return self._lines[place] if place is not None and place < len(self._lines) else None

    @property
    def _words(self) -> str:
        return self.query_one(Input).value

    def _list_now_if_typed(self) -> None:
        pause = getattr(self, "_pause", None)
        if pause is not None and pause._active.is_set() and self._words:
            self._list()

    def _list(self) -> None:
        def find() -> None:
            self._lines = self._chat.history.conversations(search=self._words, limit=PAGE)
            self._has_more = len(self._lines) == PAGE

        if self._try(find):
            self._show(0)
            if not self._lines:
                self._say(
                    _("Nothing was found.") if self._words else _("There is no saved conversation yet.")
                )
            elif self.query_one("#activity", Line).text in (_("Nothing was found."),):
                self._say("")

    def _more(self) -> None:
        def find() -> None:
            page = self._chat.history.conversations(
                search=self._words, limit=PAGE, before=self._lines[-1].activity
            )
            self._has_more = len(page) == PAGE
            self._lines += page
            self.query_one(OptionList).add_options(self._option(line) for line in page)

        self._try(find)

    def _show(self, highlighted: int) -> None:
        options = self.query_one(OptionList)
        options.set_options([self._option(line) for line in self._lines])
        options.highlighted = highlighted if self._lines else None

    def _option(self, line: ConversationLine) -> Option:
        width = max(10, self.size.width - 2)
        # On a narrow screen the title needs the room.
        when = local_time(line.created_at, "%Y-%m-%d %H:%M" if width >= NARROW_COLUMNS else "%Y-%m-%d")
        text = Text(f" {when}  {clean(line.title)}", no_wrap=True, end="")
        text = shortened(text, width)
        if line.hit is not None:
            hit = Text(line.hit.text, no_wrap=True, end="")
            for begin, end in line.hit.spans:
                hit.stylize("bold underline", begin, end)
            first = line.hit.spans[0][0] if line.hit.spans else 0
            # The word that was found must be in sight.
            hit = hit[max(0, first - width // 3) :]
            shown = Text("   ", end="") + hit
            shown.truncate(width)
            text = text + "\n" + shown
        return Option(text)

    def _say(self, sentence: str) -> None:
        self.query_one("#activity", Line).show(" " + sentence)

    def _try(self, action: object) -> bool:
        assert callable(action)
        try:
            action()
            return True
        except EdgemedError as error:
            self._say(f"{error.message} {error.hint}")
            return False
