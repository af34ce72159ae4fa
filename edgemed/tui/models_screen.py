"""Which model: at the first start, and whenever the user wants another one."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from edgemed import machine, paths
from edgemed.control import Control, ModelChoice, describe_model
from edgemed.errors import EdgemedError
from edgemed.languages import text as _
from edgemed.tui.parts import Key, KeyLine, Line, in_background


class ModelsScreen(Screen[str | None]):
    """Answers with the name of an installed model to use."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave"),
        Binding("r", "look"),
    ]

    def __init__(self, control: Control, *, first_start: bool = False, reason: str = "") -> None:
        """List the models.

        Args:
            reason: why the user is asked, such as a model that is gone.
        """
        super().__init__()
        self._control, self._first_start, self._reason = control, first_start, reason
        self._choices: list[ModelChoice] = []
        self._installing = False

    def compose(self) -> ComposeResult:
        """Build the screen."""
        title = _("First start: choose a model") if self._first_start else _("Models")
        yield Line(f" edgemed   {title}", id="header")
        yield Line(f" {self._reason}" if self._reason else "", classes="text", id="reason")
        yield Line(id="computer", classes="text")
        yield Line()
        yield OptionList()
        yield Line(_("Nothing is downloaded. Nothing leaves this computer."), classes="text")
        yield Line(id="activity", classes="text")
        yield KeyLine()

    def on_mount(self) -> None:
        """Look for models."""
        self.query_one(KeyLine).show_keys(
            Key("enter", "Enter", _("use this")),
            Key("escape", "Esc", _("leave") if self._first_start else _("back")),
            Key("r", "R", _("look again")),
            Key("f1", "F1", _("help")),
            Key("down", "↑↓", _("choose")),
        )
        self.query_one(OptionList).focus()
        self.action_look()

    def action_look(self) -> None:
        """Measure the memory and look for models again."""
        if self._installing:
            return
        gib = 2**30
        self.query_one("#computer", Line).show(
            _(
                "This computer: {cores} cores, {free:.1f} of {memory:.1f} GB memory free, "
                "{disk:.0f} GB disk free",
                cores=machine.physical_cores(),
                free=machine.available_memory_bytes() / gib,
                memory=machine.total_memory_bytes() / gib,
                disk=machine.free_disk_bytes(paths.data_folder()) / gib,
            )
        )
        self._say(_("Looking for models..."))
        in_background(self.app, self._control.model_choices, self._show, self._report)

    def action_leave(self) -> None:
        """Go back; at the first start there is nothing to go back to."""
        if self._first_start and self._control.chat.model is None and not self._choices:
            self.app.action_leave()  # type: ignore[attr-defined]
        else:
            self.dismiss(None)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Use the highlighted model, from its medium if it must be."""
        choice = self._choices[event.option_index]
        if self._installing:
            return
        if choice.problem:
            self._say(_("This model is damaged. Copy it again from the kit."))
        elif not choice.fits:
            self._say(
                _(
                    "{name} needs {need:.1f} GB of memory. Close other programs and press R, "
                    "or choose a smaller model.",
                    name=choice.name,
                    need=choice.need_bytes / 2**30,
                )
            )
        elif choice.source is None:
            self.dismiss(choice.name)
        else:
            self._install(choice)

    def _install(self, choice: ModelChoice) -> None:
        self._installing = True
        shown = -1

        def progress(done: int, all_bytes: int) -> None:
            nonlocal shown
            percent = 100 * done // max(1, all_bytes)
            if percent != shown and self.app.is_running:
                shown = percent
                sentence = _("Copying and checking {name}: {percent} %", name=choice.name, percent=percent)
                self.app.call_later(self._say, sentence)

        in_background(
            self.app,
            lambda: self._control.install(choice, progress),
            lambda _nothing: self._installed(choice),
            self._report,
        )

    def _installed(self, choice: ModelChoice) -> None:
        self._installing = False
        self.dismiss(choice.name)

    def _show(self, choices: list[ModelChoice]) -> None:
        if not self.is_attached:
            return
        self._choices = choices
        recommended = self._control.recommended(choices)
        options = self.query_one(OptionList)
        options.set_options([Option(self._line(choice, choice is recommended)) for choice in choices])
        if choices:
            options.highlighted = choices.index(recommended) if recommended else 0
            self._say("")
        else:
            self._say(_("No model was found. Plug in the stick of the kit and press R."))

    def _line(self, choice: ModelChoice, recommended: bool) -> Text:
        text = describe_model(choice) + (" - " + _("recommended") if recommended else "")
        return Text(f" {text}")

    def _report(self, error: EdgemedError) -> None:
        self._installing = False
        self._say(f"{error.message} {error.hint}")

    def _say(self, sentence: str) -> None:
        if self.is_attached:
            self.query_one("#activity", Line).show(" " + sentence)
