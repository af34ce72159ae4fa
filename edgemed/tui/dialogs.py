"""Screens with one question: recovery, leaving, a new title, where to export; and the help."""

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from edgemed.history import SavedMessage
from edgemed.history_export import Format
from edgemed.languages import plural
from edgemed.languages import text as _
from edgemed.terminal_text import clean
from edgemed.tui.parts import Key, KeyLine, Line

SHOWN_LINES = 6


class ChoiceScreen(Screen[str | None]):
    """A few words, at most a handful of answers, each with its letter."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss_with('')")]

    def __init__(
        self, title: str, text: str, choices: dict[str, str], *, on_escape: str | None = None
    ) -> None:
        """Ask.

        Args:
            choices: letter → words, the most likely first.
            on_escape: what Esc answers.
        """
        super().__init__()
        self._title, self._text, self._choices, self._on_escape = title, text, choices, on_escape

    def compose(self) -> ComposeResult:
        """Build the screen."""
        yield Line(f" {self._title}", id="header")
        yield Line(clean(self._text), classes="text")
        yield Line()
        options = [
            Option(Text(f" {letter.upper()}  {words}"), id=letter) for letter, words in self._choices.items()
        ]
        yield OptionList(*options)
        yield KeyLine()

    def on_mount(self) -> None:
        """Show the keys."""
        self.query_one(KeyLine).show_keys(
            Key("enter", "Enter", _("take this")), Key("escape", "Esc", _("back")), Key("f1", "F1", _("help"))
        )
        self.query_one(OptionList).focus()

    def on_key(self, event: object) -> None:
        """Take the letter of a choice."""
        key = getattr(event, "key", "")
        if key in self._choices:
            self.dismiss(key)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Take the highlighted choice."""
        self.dismiss(event.option.id)

    def action_dismiss_with(self, _letter: str) -> None:
        """Take what Esc means."""
        self.dismiss(self._on_escape)


def recovery_screen(question: str, answer: SavedMessage, when: str) -> ChoiceScreen:
    """Ask what to do with an answer that a power cut left unfinished."""
    lines = clean(answer.text).strip().split("\n")[-SHOWN_LINES:]
    words = len(answer.text.split())
    text = "\n".join(
        [
            _("Your question is saved: {question}", question=" ".join(clean(question).split())[:200]),
            plural(
                "{count} word of the answer is saved, marked NOT FINISHED:",
                "{count} words of the answer are saved, marked NOT FINISHED:",
                words,
            ),
            "",
            *(f"  {line[:200]}" for line in lines),
        ]
    )
    return ChoiceScreen(
        _("The computer stopped ({when}) while an answer was being written", when=when),
        text,
        {
            "c": _("Continue writing from here"),
            "a": _("Ask again from the start"),
            "k": _("Keep it as it is; it stays marked NOT FINISHED"),
            "d": _("Delete the unfinished answer"),
        },
        on_escape="k",
    )


class TextScreen(Screen[str | None]):
    """One line of text to type."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)")]

    def __init__(self, title: str, label: str, value: str) -> None:
        super().__init__()
        self._title, self._label, self._value = title, label, value

    def compose(self) -> ComposeResult:
        """Build the screen."""
        yield Line(f" {self._title}", id="header")
        yield Line(self._label, classes="text")
        text_input = Input(self._value, max_length=200)
        text_input.cursor_blink = False
        yield text_input
        yield VerticalScroll(classes="body", can_focus=False)
        yield KeyLine()

    def on_mount(self) -> None:
        """Show the keys."""
        self.query_one(KeyLine).show_keys(Key("enter", "Enter", _("save")), Key("escape", "Esc", _("back")))
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take what is typed."""
        self.dismiss(clean(event.value).strip())


class ExportScreen(Screen[tuple[Path, Format] | None]):
    """Where a conversation is written, and as what."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)"),
        Binding("m", "change_format"),
    ]

    def __init__(self, title: str, places: list[tuple[str, Path]]) -> None:
        super().__init__()
        self._title, self._places = title, places
        self._format: Format = "text"

    def compose(self) -> ComposeResult:
        """Build the screen."""
        yield Line(" " + _("Save for printing: {title}", title=clean(self._title)), id="header")
        yield Line(id="format")
        yield Line()
        yield OptionList(*(Option(Text(f" {label}   {place}")) for label, place in self._places))
        yield KeyLine()

    def on_mount(self) -> None:
        """Show the keys."""
        self.query_one(KeyLine).show_keys(
            Key("enter", "Enter", _("write")),
            Key("m", "M", _("text or Markdown")),
            Key("escape", "Esc", _("back")),
        )
        self._show_format()
        self.query_one(OptionList).focus()

    def action_change_format(self) -> None:
        """Take the other format."""
        self._format = "markdown" if self._format == "text" else "text"
        self._show_format()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Take the highlighted place."""
        self.dismiss((self._places[event.option_index][1], self._format))

    def _show_format(self) -> None:
        words = _("plain text, ready to print") if self._format == "text" else _("Markdown")
        self.query_one("#format", Line).show(" " + _("Written as: {format}", format=words))


class HelpScreen(Screen[None]):
    """The keys of the screen below, and what edgemed is."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,enter,q", "dismiss(None)")]

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def compose(self) -> ComposeResult:
        """Build the screen."""
        yield Line(" " + _("Help"), id="header")
        with VerticalScroll(classes="body"):
            for line in self._lines:
                yield Line(line, classes="text")
        yield KeyLine()

    def on_mount(self) -> None:
        """Show the keys."""
        self.query_one(KeyLine).show_keys(Key("escape", "Esc", _("back")), Key("down", "↑↓", _("scroll")))
        self.query_one(VerticalScroll).focus()
