"""The full-screen app: themes, the keys that work everywhere, and every way it can end."""

import os
import sys
import threading
import time
import traceback
from typing import Any, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.widgets import TextArea

from edgemed import languages, operating_system, paths
from edgemed.control import Control
from edgemed.languages import text as _
from edgemed.tui.chat_screen import ChatScreen
from edgemed.tui.driver import forgiving_driver
from edgemed.tui.themes import STYLES, all_themes, theme_name

END_SECONDS = 3.0
"""How long an answer's last words may take when the app must end."""
FAILED_EXIT_CODE = 1


class ChatApp(App[int]):
    """The chat in a full screen."""

    CSS = STYLES
    TITLE = "edgemed"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", priority=True),
        Binding("f10,ctrl+q", "leave", priority=True),
        Binding("ctrl+c", "interrupt", priority=True),
    ]

    def __init__(self, control: Control, *, first_start: bool | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._control = control
        if first_start is None:
            first_start = not paths.settings_file().exists() and control.chat.model is None
        self.chat_screen = ChatScreen(control, first_start=first_start)
        self.failure: Exception | None = None
        self.animation_level = "none"

    def on_mount(self) -> None:
        """Show the chat."""
        for theme in all_themes():
            self.register_theme(theme)
        self.theme = theme_name(self._control.settings)
        self.set_class(languages.right_to_left(), "right-to-left")
        self.push_screen(self.chat_screen)

    def settings_changed(self) -> None:
        """Let the theme and the rest work at once."""
        self.theme = theme_name(self._control.settings)
        self.set_class(languages.right_to_left(), "right-to-left")
        self.chat_screen.settings_changed()

    # Keys that work everywhere.

    def action_help(self) -> None:
        """Show the keys."""
        from edgemed.tui.dialogs import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(help_lines()))

    def action_interrupt(self) -> None:
        """Ctrl+C: copy what is selected, stop an answer, and never lose anything."""
        focused = self.focused
        if isinstance(focused, TextArea) and focused.selected_text:
            self.copy_to_clipboard(focused.selected_text)
        elif self.chat_screen.is_answering:
            self.chat_screen.action_stop()
        else:
            self.action_leave()

    def action_leave(self) -> None:
        """Ask, for a habit key must not end anything."""
        from edgemed.tui.dialogs import ChoiceScreen

        if isinstance(self.screen, ChoiceScreen):
            return

        def leave(letter: str | None) -> None:
            if letter == "l":
                self.chat_screen.end(END_SECONDS)
                self.exit(0)

        stopped = _("The answer that is being written will be stopped; what is written is kept.")
        self.push_screen(
            ChoiceScreen(
                _("Leave edgemed?"),
                stopped if self.chat_screen.is_answering else _("Everything is saved."),
                {"l": _("Leave"), "b": _("Back to the chat")},
            ),
            leave,
        )

    # Other ends.

    def end_by_system(self, exit_code: int) -> None:
        """SIGTERM, SIGHUP or a closed window: save, then end, whether or not the terminal still listens."""

        def end() -> None:
            self.chat_screen.end(END_SECONDS)
            if self.is_running:
                self.call_later(self.exit, exit_code)
            # A terminal that is gone can hold up the writing of the last screen for ever.
            time.sleep(END_SECONDS)
            self._control.chat.close()
            os._exit(exit_code)

        threading.Thread(target=end, daemon=True).start()

    def _handle_exception(self, error: Exception) -> None:
        # Textual would print a traceback with local variables: words of patients among them.
        self.failure = error
        self._return_code = FAILED_EXIT_CODE
        if self._exception is None:
            self._exception = error
            self._exception_event.set()
        self._close_messages_no_wait()


def run_full_screen(control: Control) -> int:
    """Run the chat on this terminal; return the exit code."""
    app = ChatApp(control, driver_class=forgiving_driver())
    operating_system.on_termination(app.end_by_system)
    operating_system.prepare_for_child_processes()
    threading.excepthook = lambda failed: _write_down(failed.exc_value)
    exit_code = app.run()
    if app.failure:
        return _report_failure(app)
    return FAILED_EXIT_CODE if exit_code is None else exit_code


def _report_failure(app: ChatApp) -> int:
    app.chat_screen.end(END_SECONDS)
    sys.stderr.write(
        _(
            "error: The full screen failed; what was typed and said is saved. {where}",
            where=_write_down(app.failure),
        )
        + "\n"
        + _("hint: Start again, or use line mode: edgemed chat --plain")
        + "\n"
    )
    return FAILED_EXIT_CODE


def _write_down(error: BaseException | None) -> str:
    """Write down where the program failed; return the file's path, or nothing."""
    if error is None:
        return ""
    file = paths.logs_folder() / "full-screen-failure.txt"
    # Where, not what: the last line of a traceback can quote a question.
    frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        operating_system.write_atomically(file, "\n".join([type(error).__name__, *frames]).encode())
    except OSError:
        return ""
    return str(file)


def help_lines() -> list[str]:
    """Return the help, for every screen."""
    return [
        _(" Type a question and press Enter. Esc stops the answer. Nothing is lost:"),
        _(" what you type and what the AI writes is saved as you go."),
        "",
        _(" Enter    ask                         Ctrl+J  a new line in the question"),
        _(" Esc      stop the answer, or go back  Tab    to the messages and back"),
        _(" F2       new conversation             F5     save the conversation as a file"),
        _(" F6       all conversations, search    F7     settings"),
        _(" F9       choose a model               F10    leave"),
        _(" Page Up, Page Down  scroll            ↑      last question, in an empty line"),
        "",
        _(" Tab goes to the messages. There ↑ ↓ choose one, and:"),
        _(" A  ask again      C  continue a cut answer    E  edit the question"),
        _(" Y  copy           D  delete   U  undo         ← →  other versions"),
        "",
        _(" AI text can be wrong. You decide. The AI knows only what you type and what it"),
        _(" learned when it was made; it can invent. It never uses a network."),
        _(" Line mode, for screen readers: edgemed chat --plain"),
    ]
