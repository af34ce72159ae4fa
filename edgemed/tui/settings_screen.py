"""The settings: one line each, the arrow keys change them, and they work at once."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from edgemed import paths
from edgemed.control import SETTING_NAMES, Control
from edgemed.errors import EdgemedError
from edgemed.languages import text as _
from edgemed.tui.parts import Key, KeyLine, Line

LABEL_WIDTH = 18


class SettingsScreen(Screen[bool]):
    """Answers whether the model must be loaded again."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "done"),
        Binding("left", "change(-1)"),
        Binding("right", "change(1)"),
    ]

    def __init__(self, control: Control) -> None:
        super().__init__()
        self._control = control
        self._must_load = False

    def compose(self) -> ComposeResult:
        """Build the screen."""
        yield Line(" " + _("Settings"), id="header")
        yield Line()
        yield OptionList(*(Option(self._line(name), id=name) for name in SETTING_NAMES))
        yield Line(" " + _("Kept in {path}", path=paths.settings_file()), classes="text")
        yield Line(id="activity", classes="text")
        yield KeyLine()

    def on_mount(self) -> None:
        """Show the keys."""
        self.query_one(KeyLine).show_keys(
            Key("right", "← →", _("change")),
            Key("escape", "Esc", _("done")),
            Key("down", "↑↓", _("choose")),
            Key("f1", "F1", _("help")),
        )
        self.query_one(OptionList).focus()

    def action_done(self) -> None:
        """Go back."""
        self.dismiss(self._must_load)

    def on_option_list_option_selected(self, _event: OptionList.OptionSelected) -> None:
        """Enter takes the next value."""
        self.action_change(1)

    def action_change(self, step: int) -> None:
        """Take the next or the previous value of the highlighted setting."""
        options = self.query_one(OptionList)
        place = options.highlighted
        if place is None:
            return
        name = SETTING_NAMES[place]
        choices = self._control.choices(name)
        values = [choice.value for choice in choices]
        chosen = choices[(values.index(self._control.value(name)) + step) % len(choices)]
        say = ""
        try:
            self._control.change(**{name: chosen.value})
        except EdgemedError as error:
            say = f"{error.message} {error.hint}"
        self._must_load = self._must_load or self._control.needs_loading(name)
        if not say and self._control.needs_loading(name):
            say = _("This works when you leave the settings: the model is loaded again.")
        if not say and name == "text_size":
            say = _("Letters themselves grow in the terminal's own settings, mostly with Ctrl and +.")
        self.app.settings_changed()  # type: ignore[attr-defined]
        for index, each in enumerate(SETTING_NAMES):
            options.replace_option_prompt_at_index(index, self._line(each))
        self.query_one("#activity", Line).show(" " + say)

    def _line(self, name: str) -> Text:
        labels = {
            "model": _("Model"),
            "adapter": _("Adapter"),
            "context_length": _("Context length"),
            "temperature": _("Temperature"),
            "text_size": _("Text size"),
            "theme": _("Theme"),
            "language": _("Language"),
        }
        return Text(f" {labels[name]:<{LABEL_WIDTH}} < {self._control.label(name)} >", no_wrap=True)
