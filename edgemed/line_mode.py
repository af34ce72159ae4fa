"""The chat in line mode: plain lines, nothing redrawn, for screen readers, simple terminals and slow links.

`edgemed chat --plain` runs it. Words in round brackets are the app's own; an answer begins with "AI: ".
"""

import base64
import contextlib
import difflib
import errno
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from edgemed import __version__
from edgemed.chat import Chat, Happening, Note, Outcome, Show, Visible, readable
from edgemed.engine.messages import Reading, TurnsLeftOut
from edgemed.errors import EdgemedError, EngineError, ModelError, StorageError, Terminated
from edgemed.history import ConversationLine, SavedMessage, local_time
from edgemed.history_export import unfinished_mark
from edgemed.languages import plural
from edgemed.languages import text as _
from edgemed.operating_system import enable_line_editing
from edgemed.session import interrupt_stops
from edgemed.terminal_text import clean

PROGRESS_SECONDS = 2.0
FAILURES_BEFORE_LEAVING = 2
CONVERSATIONS_LISTED = 20
INTERRUPTED_EXIT_CODE = 130
BROKEN_PIPE_EXIT_CODE = 141

# Nobody reads the output any more. Windows says EINVAL for a broken pipe; EIO is a terminal that was closed.
_NO_READER = {errno.EPIPE: BROKEN_PIPE_EXIT_CODE, errno.EINVAL: BROKEN_PIPE_EXIT_CODE, errno.EIO: 129}

Command = Callable[[str], None]
Say = Callable[[str], None]
MoreCommands = dict[str, tuple[Callable[[Say, str], None], str]]
"""Name → what it does, given how to say a line and what stands behind the name; and its purpose."""


class LineChat:
    """A conversation, line by line.

    Args:
        read_line: like `input`: shows the prompt, returns a line, raises EOFError at the end.
        interactive: a person types: show prompts, and progress when reading takes long.
        more_commands: for what lies outside the conversation.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        read_line: Callable[[str], str],
        output: TextIO,
        interactive: bool = True,
        more_commands: MoreCommands | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chat = chat
        self._read_line = read_line
        self._output = output
        self._interactive = interactive
        self._clock = clock
        self._exit_code: int | None = None
        self._interrupts_in_a_row = 0
        self._failures_in_a_row = 0
        self._told_of_bad_characters = False
        self._listed: list[ConversationLine] = []
        self._last_shown = ""
        """What was shown last of the answer; empty while nothing was."""
        self._progress_at = 0.0
        self._was_answering = False
        self._commands: dict[str, tuple[Command, str]] = {
            "/help": (self._show_help, _("shows this list")),
            "/new": (self._begin_anew, _("begins a new conversation")),
            "/again": (self._answer_again, _("writes another answer to the last question")),
            "/continue": (self._continue, _("writes on where an answer was cut")),
            "/edit": (self._edit, _("asks the last question in other words: /edit NEW QUESTION")),
            "/other": (self._other, _("shows the other version of the last question or answer")),
            "/last": (self._show_last, _("shows the last saved question and answer")),
            "/copy": (self._copy, _("copies the last answer, where the terminal allows it")),
            "/history": (self._show_history, _("lists the conversations; /history WORDS searches them")),
            "/open": (self._open, _("opens a conversation of that list: /open NUMBER")),
            "/rename": (self._rename, _("gives this conversation a title: /rename TITLE")),
            "/delete": (self._delete, _("deletes the last question; /delete all the conversation")),
            "/undo": (self._undo, _("brings back what was deleted")),
            "/export": (
                self._export,
                _("writes the conversation into a file: /export or /export FILE.txt"),
            ),
        }
        for name, (action, purpose) in (more_commands or {}).items():
            self._commands[name] = (functools.partial(action, self._say), purpose)
        self._commands["/quit"] = (self._quit, _("leaves the chat"))

    def run(self) -> int:
        """Talk until the user leaves; return the exit code."""
        try:
            self._greet()
            while self._exit_code is None:
                self._take_line()
            return self._exit_code
        except Terminated as termination:
            return self._end_by_system(termination.exit_code)
        except OSError as error:
            # Only reading and writing the user's lines comes here; files and the engine have their own words.
            if error.errno not in _NO_READER:
                raise
            return _NO_READER[error.errno]

    # Lines.

    def _greet(self) -> None:
        model = self._chat.model
        name = model.name if model else _("none")
        notice = f": {model.notice}" if model and model.notice else ""
        self._say(_("edgemed {version}, offline. Model {name}.", version=__version__, name=name + notice))
        self._say(_("AI text can be wrong. You decide."))
        self._say(_("Commands: {names}", names=" ".join(self._commands)))
        if self._chat.history.opening_note:
            self._say(self._chat.history.opening_note)
        unfinished = self._chat.take_unfinished()
        self._tell_note()
        if unfinished is not None:
            self._offer(unfinished)
        if self._interactive and (draft := self._chat.draft()):
            self._say(_("(Typed and not sent: {draft})", draft=draft))

    def _offer(self, unfinished: SavedMessage) -> None:
        when = local_time(unfinished.created_at, "%d %b %H:%M")
        self._say(_("The last answer ({when}) was not finished; it is saved. /last shows it.", when=when))
        self._say(
            _(
                "/continue writes on. /again asks again. /delete deletes the question. "
                "Anything else keeps it as it is."
            )
        )

    def _take_line(self) -> None:
        try:
            line = self._read_line(_("You> ") if self._interactive else "")
            self._interrupts_in_a_row = 0
            self._handle(line)
        except EOFError:
            if self._interactive:
                self._say("")
            self._exit_code = 0
        except KeyboardInterrupt:
            self._interrupts_in_a_row += 1
            if self._interrupts_in_a_row > 1:
                self._say("")
                self._exit_code = INTERRUPTED_EXIT_CODE
            else:
                self._say("\n" + _("Type /quit to leave."))

    def _handle(self, line: str) -> None:
        text = self._readable(line)
        if text.startswith("/") and not text.startswith("//"):
            name, _space, argument = text.partition(" ")
            self._command(name.lower(), argument.strip())
        elif text:
            question = text[1:] if text.startswith("//") else text
            self._answer(lambda show: self._chat.ask(question, show))
        elif self._interactive:
            self._say(_("Type a question, or /help."))

    def _readable(self, line: str) -> str:
        # Bytes that were no UTF-8 arrive as lone surrogates or as U+FFFD.
        line = readable(line)
        if "\ufffd" in line and not self._told_of_bad_characters:
            self._told_of_bad_characters = True
            self._say(_("(Some characters could not be read.)"))
        return clean(line).strip()

    def _command(self, name: str, argument: str) -> None:
        if name in self._commands:
            try:
                self._commands[name][0](argument)
            except EdgemedError as error:
                self._say_error(error)
            self._tell_note()
            return
        near = difflib.get_close_matches(name, self._commands, n=1, cutoff=0.5)
        question = " " + _("Did you mean {name}?", name=near[0]) if near else ""
        self._say(_("error: There is no command {name}.", name=name) + question)
        self._say(_("hint: /help lists the commands. A question that begins with / is typed with //."))

    # Questions and answers.

    def _answer(self, ask: Callable[[Show], Outcome]) -> None:
        self._last_shown, self._progress_at = "", self._clock()
        self._was_answering = True
        try:
            with self._interrupts_stop():
                self._conclude(ask(self._show))
            self._failures_in_a_row = 0
        except EdgemedError as error:
            self._report(error)
        except KeyboardInterrupt:
            # A second Ctrl+C, while the end of the answer was being told.
            self._say("")
        self._was_answering = False

    def _interrupts_stop(self) -> contextlib.AbstractContextManager[None]:
        try:
            return interrupt_stops(self._chat.engine)
        except ModelError:
            return contextlib.nullcontext()

    def _show(self, happening: Happening) -> None:
        match happening:
            case TurnsLeftOut(turns):
                self._say(
                    plural(
                        "(The oldest question no longer fits and is not read by the AI.)",
                        "(The oldest {count} questions no longer fit and are not read by the AI.)",
                        turns,
                    )
                )
            case Reading():
                self._show_progress(happening)
            case Visible(text):
                if not self._last_shown:
                    self._write(_("AI: "))
                self._last_shown = text
                self._write(text)
            case Note(text):
                self._begin_line()
                self._say(f"({text})")

    def _show_progress(self, reading: Reading) -> None:
        now = self._clock()
        if (
            self._interactive
            and reading.read_tokens < reading.prompt_tokens
            and now - self._progress_at >= PROGRESS_SECONDS
        ):
            self._progress_at = now
            self._say(
                _(
                    "(reading the question: {read} of {all} tokens)",
                    read=reading.read_tokens,
                    all=reading.prompt_tokens,
                )
            )

    def _conclude(self, outcome: Outcome) -> None:
        self._begin_line()
        self._tell_note()
        shown = bool(self._last_shown)
        if not shown and outcome.stop_reason in ("end_of_turn", "length"):
            self._say(_("AI: (no answer)"))
        if outcome.stop_reason == "cancelled":
            self._say(_("(Stopped. What was written is kept.)") if shown else _("(Stopped.)"))
        elif outcome.stop_reason == "length":
            self._say(_("(The answer reached its longest length and is cut. /continue writes on.)"))
        elif outcome.stop_reason == "engine_died":
            self._say(_("error: {sentence}", sentence=outcome.explanation))
        if shown:
            model = self._chat.model
            notice = f"; {model.notice}" if model and model.notice else ""
            words = plural("{count} word", "{count} words", outcome.words)
            self._say(
                "(" + _("{words} in {seconds:.1f} s", words=words, seconds=outcome.seconds) + f"{notice})"
            )

    def _report(self, error: EdgemedError) -> None:
        self._begin_line()
        self._say_error(error)
        if isinstance(error, ModelError | EngineError):
            self._failures_in_a_row += 1
            if self._failures_in_a_row == FAILURES_BEFORE_LEAVING:
                self._exit_code = error.exit_code

    def _begin_line(self) -> None:
        if self._last_shown and not self._last_shown.endswith("\n"):
            self._write("\n")
            self._last_shown = "\n"

    def _end_by_system(self, exit_code: int) -> int:
        saved = ""
        if self._chat.history.saves:
            saved = " " + (
                _("The question and the answer so far are saved.")
                if self._was_answering
                else _("Everything is saved.")
            )
        # With its window closed nobody reads this.
        with contextlib.suppress(OSError):
            self._say("\n" + _("Ended by the system.") + saved)
        return exit_code

    # Commands.

    def _show_help(self, _argument: str) -> None:
        for name, (_action, purpose) in self._commands.items():
            self._say(f"{name} {purpose}.")
        self._say(
            _("Ctrl+C stops an answer and keeps what was written. // begins a question that starts with /.")
        )

    def _begin_anew(self, _argument: str) -> None:
        self._chat.begin_anew()
        self._say(_("A new conversation. The AI does not know what was said before."))

    def _answer_again(self, _argument: str) -> None:
        self._answer(self._chat.ask_again)

    def _continue(self, _argument: str) -> None:
        self._answer(self._chat.continue_answer)

    def _edit(self, argument: str) -> None:
        questions = [message for message in self._chat.messages() if message.role == "user"]
        if not questions:
            self._say(_("There is no question yet."))
        elif not argument:
            self._say(_("The question was: {question}", question=questions[-1].text))
            self._say(_("Ask it in other words: /edit NEW QUESTION"))
        else:
            self._answer(lambda show: self._chat.edit(questions[-1].id, argument, show))

    def _other(self, _argument: str) -> None:
        for message in reversed(self._chat.messages()):
            number, count = self._chat.place(message)
            if count > 1:
                self._chat.other_version(message, 1)
                self._say(_("(Version {number} of {count}.)", number=number % count + 1, count=count))
                self._show_messages(self._chat.messages()[-2:])
                return
        self._say(_("There is no other version."))

    def _show_last(self, _argument: str) -> None:
        answer = self._chat.history.latest_answer()
        if answer is None:
            self._say(_("There is no saved answer yet."))
            return
        messages = self._chat.history.messages(answer.conversation_id)
        questions = [message for message in messages if message.id == answer.parent_id]
        self._show_messages([*questions, answer])

    def _show_messages(self, messages: list[SavedMessage]) -> None:
        for message in messages:
            if message.role == "user":
                self._say(_("You: {text}", text=message.text))
                continue
            mark = f"{unfinished_mark(message)}. " if unfinished_mark(message) else ""
            notice = f" ({message.notice})" if message.notice else ""
            self._say(_("AI{notice}: {text}", notice=notice, text=mark + (message.text or _("(nothing)"))))

    def _copy(self, _argument: str) -> None:
        answers = [message for message in self._chat.messages() if message.role == "assistant"]
        if not answers:
            self._say(_("There is no answer yet."))
            return
        if self._interactive:
            # OSC 52; a terminal that does not know it ignores it.
            content = base64.b64encode(clean(answers[-1].text).encode()).decode()
            self._write(f"\x1b]52;c;{content}\x07")
        self._say(_("Copied, if this terminal allows it. /export writes a file in any case."))

    def _show_history(self, argument: str) -> None:
        self._listed = self._chat.history.conversations(search=argument, limit=CONVERSATIONS_LISTED)
        if not self._listed:
            self._say(_("Nothing was found.") if argument else _("There is no saved conversation yet."))
            return
        for number, line in enumerate(self._listed, 1):
            self._say(f"{number}. {local_time(line.created_at)} {line.title}")
            if line.hit is not None:
                self._say(f"   ...{_marked(line)}")
        self._say(_("/open NUMBER opens one."))

    def _open(self, argument: str) -> None:
        listed = self._listed or self._chat.history.conversations(limit=CONVERSATIONS_LISTED)
        if not argument.isdecimal() or not 1 <= int(argument) <= len(listed):
            self._say(_("error: There is no number {number} in the list.", number=argument or "?"))
            self._say(_("hint: /history shows the list."))
            return
        self._chat.open_conversation(listed[int(argument) - 1].id)
        conversation = self._chat.conversation
        self._say(_("Opened: {title}", title=conversation.title if conversation else ""))
        self._show_messages(self._chat.messages()[-2:])

    def _rename(self, argument: str) -> None:
        if not argument:
            self._say(_("Type the title, too: /rename TITLE"))
            return
        self._chat.rename(argument)
        conversation = self._chat.conversation
        self._say(_("The title is now: {title}", title=conversation.title if conversation else ""))

    def _delete(self, argument: str) -> None:
        conversation, messages = self._chat.conversation, self._chat.messages()
        questions = [message for message in messages if message.role == "user"]
        if conversation is None or not questions:
            self._say(_("There is nothing to delete."))
        elif argument.lower() in ("all", _("all")):
            self._chat.delete_conversation(conversation.id)
            self._say(_("The conversation is deleted. /undo brings it back until you leave."))
        else:
            self._chat.delete_message(questions[-1].id)
            self._say(_("The last question is deleted. /undo brings it back until you leave."))

    def _undo(self, _argument: str) -> None:
        if self._chat.undo():
            self._say(_("It is back."))
            self._show_messages(self._chat.messages()[-2:])
        else:
            self._say(_("Nothing was deleted."))

    def _export(self, argument: str) -> None:
        try:
            wanted = Path(argument.strip("\"'") or ".").expanduser()
        except RuntimeError as error:
            # There is no such user.
            raise StorageError(
                _(
                    "The conversation could not be written to {place}: {reason}.",
                    place=argument,
                    reason=error,
                ),
                hint=_("Name a file in a folder that exists: /export FOLDER/NAME.md"),
            ) from error
        self._say(_("Written to {path}", path=self._chat.export(wanted)))

    def _quit(self, _argument: str) -> None:
        self._exit_code = 0

    # Output.

    def _tell_note(self) -> None:
        if note := self._chat.take_note():
            self._say(f"({note})")

    def _say_error(self, error: EdgemedError) -> None:
        self._say(_("error: {sentence}", sentence=error.message))
        if error.hint:
            self._say(_("hint: {hint}", hint=error.hint))

    def _say(self, line: str) -> None:
        self._write(clean(line) + "\n")

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()


def run_line_mode(chat: Chat, more_commands: MoreCommands) -> int:
    """Run the chat on this process's standard input and output; return the exit code."""
    interactive = sys.stdin.isatty()
    line_chat = LineChat(
        chat,
        read_line=_typed_line if interactive else _piped_line,
        output=sys.stdout,
        interactive=interactive,
        more_commands=more_commands,
    )
    exit_code = line_chat.run()
    if exit_code == BROKEN_PIPE_EXIT_CODE:
        # `cli.main` knows how a process ends whose reader is gone.
        raise BrokenPipeError
    return exit_code


def _marked(line: ConversationLine) -> str:
    assert line.hit is not None
    text, end_of_last = "", 0
    for begin, end in line.hit.spans:
        text += f"{line.hit.text[end_of_last:begin]}[{line.hit.text[begin:end]}]"
        end_of_last = end
    return text + line.hit.text[end_of_last:]


def _typed_line(prompt: str) -> str:
    """Read a line from a person, with the keys for editing where the system has them.

    Without readline, a terminal also cuts a line at 4,095 bytes.
    """
    if os.environ.get("TERM") != "dumb":
        enable_line_editing()
    return input(prompt)


def _piped_line(_prompt: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
