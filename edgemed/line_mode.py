"""The chat in line mode: plain lines, nothing redrawn, for screen readers, simple terminals and slow links.

`edgemed chat` runs it. Words in round brackets are the app's own; an answer begins with "AI: ".
"""

import contextlib
import difflib
import errno
import os
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TextIO, TypeVar

from edgemed import __version__, models, paths
from edgemed.engine.messages import (
    Answer,
    ChatMessage,
    Engine,
    Event,
    Finished,
    Piece,
    Reading,
    StopReason,
    TurnsLeftOut,
)
from edgemed.errors import EdgemedError, EngineError, ModelError, StorageError, Terminated
from edgemed.history import Conversation, FinalStatus, History, NoHistory, SavedMessage
from edgemed.operating_system import enable_line_editing, fsync_file
from edgemed.session import Session, interrupt_stops
from edgemed.terminal_text import StreamCleaner, clean

SAVE_SECONDS = 1.0
"""A power cut takes away at most this much of an answer."""
PROGRESS_SECONDS = 2.0
FAILURES_BEFORE_LEAVING = 2
INTERRUPTED_EXIT_CODE = 130
BROKEN_PIPE_EXIT_CODE = 141

# Nobody reads the output any more. Windows says EINVAL for a broken pipe; EIO is a terminal that was closed.
_NO_READER = {errno.EPIPE: BROKEN_PIPE_EXIT_CODE, errno.EINVAL: BROKEN_PIPE_EXIT_CODE, errno.EIO: 129}
_STATUSES: dict[StopReason, FinalStatus] = {
    "end_of_turn": "done",
    "length": "length",
    "cancelled": "stopped",
    "engine_died": "engine_died",
}

_SURROGATE = re.compile("[\ud800-\udfff]")

T = TypeVar("T")


class ModelDescription(NamedTuple):
    """What the chat tells the user, the history and the engine of the model."""

    name: str
    sha256: str
    notice: str | None
    """Words that stand beside everything the model writes."""
    opening: Sequence[ChatMessage]
    """What stands before the first question."""


class _Turn(NamedTuple):
    question: str
    answer: str
    """Empty: nothing came. Such a turn is not sent to the engine again."""


class _Writing:
    """The answer that is being received."""

    def __init__(self, question: str, asked_at: float) -> None:
        self.question = question
        self.asked_at = self.saved_at = self.progress_at = asked_at
        self.message_id: int | None = None
        self.pieces: list[str] = []
        self.cleaner = StreamCleaner()
        self.answer: Answer | None = None
        self.last_visible = ""
        """What was shown last; empty while nothing was."""

    @property
    def text(self) -> str:
        """The answer so far; many models begin with a space or an empty line."""
        return (self.answer.text if self.answer else "".join(self.pieces)).lstrip()


class LineChat:
    """A conversation with one model, line by line.

    Args:
        read_line: like `input`: shows the prompt, returns a line, raises EOFError at the end.
        interactive: a person types: show prompts, and progress when reading takes long.
        model_names: the installed models, for /models.
    """

    def __init__(
        self,
        engine: Engine,
        model: ModelDescription,
        *,
        history: History,
        read_line: Callable[[str], str],
        output: TextIO,
        max_tokens: int,
        interactive: bool = True,
        model_names: Callable[[], Sequence[str]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._model = model
        self._history = history
        self._read_line = read_line
        self._output = output
        self._max_tokens = max_tokens
        self._interactive = interactive
        self._model_names = model_names
        self._clock = clock
        self._conversation: Conversation | None = None
        self._turns: list[_Turn] = []
        self._writing: _Writing | None = None
        self._unfinished: SavedMessage | None = None
        self._exit_code: int | None = None
        self._interrupts_in_a_row = 0
        self._failures_in_a_row = 0
        self._told_of_bad_characters = False
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._show_help, "shows this list"),
            "/new": (self._begin_anew, "begins a new conversation"),
            "/again": (self._answer_again, "writes another answer to the last question"),
            "/export": (self._export, "writes the conversation into a file: /export or /export FILE.txt"),
            "/models": (self._show_models, "lists the installed models"),
            "/last": (self._show_last, "shows the last saved question and answer"),
            "/quit": (self._quit, "leaves the chat"),
        }

    @property
    def history(self) -> History:
        """The store in use: another than at the beginning once the disk took no more."""
        return self._history

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
            self._keep_partial_answer("interrupted")
            if error.errno not in _NO_READER:
                raise
            return _NO_READER[error.errno]

    # Lines.

    def _greet(self) -> None:
        notice = f": {self._model.notice}" if self._model.notice else ""
        self._say(f"edgemed {__version__}, offline. Model {self._model.name}{notice}.")
        self._say("AI text can be wrong. You decide.")
        self._say(f"Commands: {' '.join(self._commands)}")
        if self._history.opening_note:
            self._say(self._history.opening_note)
        unfinished = self._stored(lambda history: history.unfinished_answers())
        if unfinished:
            self._unfinished = unfinished[-1]
            self._stored(lambda history: history.mark_interrupted(unfinished))
            when = datetime.fromisoformat(unfinished[-1].created_at).astimezone().strftime("%d %b %H:%M")
            self._say(f"The last answer ({when}) was not finished; it is saved. /last shows it.")

    def _take_line(self) -> None:
        try:
            line = self._read_line("You> " if self._interactive else "")
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
                self._say("\nType /quit to leave.")

    def _handle(self, line: str) -> None:
        text = self._readable(line)
        if text.startswith("//"):
            self._ask_new(text[1:])
        elif text.startswith("/"):
            name, _, argument = text.partition(" ")
            self._command(name.lower(), argument.strip())
        elif text:
            self._ask_new(text)
        elif self._interactive:
            self._say("Type a question, or /help.")

    def _readable(self, line: str) -> str:
        # Bytes that were no UTF-8 arrive as lone surrogates or as U+FFFD.
        line = _SURROGATE.sub("\ufffd", line)
        if "\ufffd" in line and not self._told_of_bad_characters:
            self._told_of_bad_characters = True
            self._say("(Some characters could not be read.)")
        return clean(line).strip()

    def _command(self, name: str, argument: str) -> None:
        if name in self._commands:
            self._commands[name][0](argument)
            return
        near = difflib.get_close_matches(name, self._commands, n=1, cutoff=0.5)
        question = f" Did you mean {near[0]}?" if near else ""
        self._say(f"error: There is no command {name}.{question}")
        self._say("hint: /help lists the commands. A question that begins with / is typed with //.")

    # Questions and answers.

    def _ask_new(self, question: str) -> None:
        if self._conversation is None:
            self._conversation = self._stored(self._start_conversation)
        self._stored(lambda history: history.add_question(self._conversation_id, question))
        self._answer(question, self._turns)

    def _answer_again(self, _argument: str) -> None:
        if not self._turns:
            self._say("There is no question yet.")
            return
        last = self._turns[-1]
        self._answer(last.question, self._turns[:-1], seed=random.getrandbits(32))
        if last.answer and not self._turns[-1].answer:
            self._turns[-1] = last

    def _answer(self, question: str, earlier: list[_Turn], seed: int | None = None) -> None:
        writing = self._writing = _Writing(question, self._clock())
        # What fails is kept as a turn without an answer, for /again.
        self._turns = [*earlier, _Turn(question, "")]
        try:
            with interrupt_stops(self._engine):
                self._receive(writing, self._messages(earlier, question), seed)
                self._conclude(writing)
            self._failures_in_a_row = 0
        except EdgemedError as error:
            self._finish(writing, "engine_died")
            self._report(error)
        except KeyboardInterrupt:
            # A second Ctrl+C, while the end of the answer was being told.
            self._keep_partial_answer("stopped")
        self._turns[-1] = _Turn(question, writing.text)
        self._writing = None

    def _messages(self, earlier: list[_Turn], question: str) -> list[ChatMessage]:
        messages = list(self._model.opening)
        for turn in earlier:
            if turn.answer.strip():
                messages += [ChatMessage("user", turn.question), ChatMessage("assistant", turn.answer)]
        return [*messages, ChatMessage("user", question)]

    def _receive(self, writing: _Writing, messages: list[ChatMessage], seed: int | None) -> None:
        events = self._engine.ask(messages, max_tokens=self._max_tokens, seed=seed)
        while True:
            try:
                event = next(events, None)
                if event is None:
                    return
                self._take_event(writing, event)
            except KeyboardInterrupt:
                # Where `interrupt_stops` could not step in. The rest of the events may be lost, or not.
                self._engine.stop()

    def _take_event(self, writing: _Writing, event: Event) -> None:
        if writing.message_id is None:
            # Not before the engine accepted the question: what it refuses has no answer.
            writing.message_id = self._stored(
                lambda history: history.begin_answer(self._conversation_id, self._model.notice)
            )
        match event:
            case TurnsLeftOut(turns):
                subject = (
                    "The oldest question no longer fits and is"
                    if turns == 1
                    else f"The oldest {turns} questions no longer fit and are"
                )
                self._say(f"({subject} not read by the AI.)")
            case Reading():
                self._show_progress(writing, event)
            case Piece(text):
                writing.pieces.append(text)
                self._show(writing, writing.cleaner.feed(text))
                self._save_partial(writing)
            case Finished(answer):
                writing.answer = answer

    def _show_progress(self, writing: _Writing, reading: Reading) -> None:
        now = self._clock()
        if (
            self._interactive
            and reading.read_tokens < reading.prompt_tokens
            and now - writing.progress_at >= PROGRESS_SECONDS
        ):
            writing.progress_at = now
            self._say(f"(reading the question: {reading.read_tokens} of {reading.prompt_tokens} tokens)")

    def _show(self, writing: _Writing, visible: str) -> None:
        if not writing.last_visible:
            visible = visible.lstrip()
            if not visible:
                return
            self._write("AI: ")
        if visible:
            writing.last_visible = visible
            self._write(visible)

    def _save_partial(self, writing: _Writing) -> None:
        now = self._clock()
        if now - writing.saved_at >= SAVE_SECONDS and writing.message_id is not None:
            message_id, text = writing.message_id, writing.text
            self._stored(lambda history: history.save_partial(message_id, text))
            writing.saved_at = now

    def _conclude(self, writing: _Writing) -> None:
        seconds = self._clock() - writing.asked_at
        self._show(writing, writing.cleaner.flush())
        if writing.last_visible and not writing.last_visible.endswith("\n"):
            self._write("\n")
        stop_reason = writing.answer.stop_reason if writing.answer else "cancelled"
        self._finish(writing, _STATUSES[stop_reason])
        if not writing.last_visible and stop_reason in ("end_of_turn", "length"):
            self._say("AI: (no answer)")
        if stop_reason == "cancelled":
            self._say("(Stopped. What was written is kept.)" if writing.last_visible else "(Stopped.)")
        elif stop_reason == "length":
            self._say("(The answer reached its longest length and is cut.)")
        elif stop_reason == "engine_died" and writing.answer:
            self._say(f"error: {writing.answer.explanation}")
        if writing.last_visible:
            words = len(writing.text.split())
            notice = f"; {self._model.notice}" if self._model.notice else ""
            self._say(f"({words} word{'' if words == 1 else 's'} in {seconds:.1f} s{notice})")

    def _finish(self, writing: _Writing, status: FinalStatus) -> None:
        if writing.message_id is not None:
            message_id, text = writing.message_id, writing.text
            self._stored(lambda history: history.finish_answer(message_id, text, status))

    def _report(self, error: EdgemedError) -> None:
        if self._writing is not None and self._writing.last_visible:
            self._write("\n")
        self._say(f"error: {error.message}")
        if error.hint:
            self._say(f"hint: {error.hint}")
        if isinstance(error, ModelError | EngineError):
            self._failures_in_a_row += 1
            if self._failures_in_a_row == FAILURES_BEFORE_LEAVING:
                self._exit_code = error.exit_code

    # Endings that nobody typed.

    def _end_by_system(self, exit_code: int) -> int:
        answering = self._writing is not None
        self._keep_partial_answer("interrupted")
        saved = ""
        if self._history.saves:
            saved = " The question and the answer so far are saved." if answering else " Everything is saved."
        # With its window closed nobody reads this.
        with contextlib.suppress(OSError):
            self._say(f"\nEnded by the system.{saved}")
        return exit_code

    def _keep_partial_answer(self, status: FinalStatus) -> None:
        if self._writing is None:
            return
        self._engine.stop()
        answer = self._writing.answer
        # Saving may have something to say, to an output that is gone.
        with contextlib.suppress(OSError):
            self._finish(self._writing, _STATUSES[answer.stop_reason] if answer else status)

    # Saving.

    @property
    def _conversation_id(self) -> int:
        assert self._conversation is not None, "a question begins a conversation"
        return self._conversation.id

    def _start_conversation(self, history: History) -> Conversation:
        return history.conversation(history.start_conversation(self._model.name, self._model.sha256))

    def _stored(self, action: Callable[[History], T]) -> T:
        """Do something with the history; when the disk takes no more, go on in memory and say so once."""
        try:
            return action(self._history)
        except StorageError as error:
            if not self._history.saves:
                raise
            disk = self._history
            self._history = (
                NoHistory() if self._conversation is None else NoHistory.continuing(disk, self._conversation)
            )
            disk.close()
            between = "\n" if self._writing is not None and self._writing.last_visible else ""
            self._say(f"{between}({error.message} The chat goes on, but nothing more is saved. {error.hint})")
            return action(self._history)

    # Commands.

    def _show_help(self, _argument: str) -> None:
        for name, (_, purpose) in self._commands.items():
            self._say(f"{name} {purpose}.")
        self._say(
            "Ctrl+C stops an answer and keeps what was written. // begins a question that starts with /."
        )

    def _begin_anew(self, _argument: str) -> None:
        self._conversation, self._turns = None, []
        self._say("A new conversation. The AI does not know what was said before.")

    def _show_models(self, _argument: str) -> None:
        for name in dict.fromkeys([self._model.name, *self._model_names()]):
            self._say(f"{name} (in use)" if name == self._model.name else name)
        self._say("To change: leave with /quit, then run: edgemed models use NAME")

    def _show_last(self, _argument: str) -> None:
        answer = self._unfinished or self._stored(lambda history: history.latest_answer())
        if answer is None:
            self._say("There is no saved answer yet.")
            return
        messages = self._stored(lambda history: history.messages(answer.conversation_id))
        questions = [message for message in messages if message.role == "user" and message.id < answer.id]
        if questions:
            self._say(f"You: {questions[-1].text}")
        mark = "" if answer.status == "done" else "NOT FINISHED. "
        notice = f" ({answer.notice})" if answer.notice else ""
        self._say(f"AI{notice}: {mark}{answer.text or '(nothing was written)'}")
        self._unfinished = None

    def _quit(self, _argument: str) -> None:
        self._exit_code = 0

    def _export(self, argument: str) -> None:
        if self._conversation is None:
            self._say("There is nothing to export yet.")
            return
        name = f"edgemed-{self._conversation.created_at[:10]}-{self._conversation.id}.md"
        try:
            target = Path(argument.strip("\"'")).expanduser() if argument else Path(name)
            if target.is_dir():
                target /= name
            as_text = target.suffix.lower() == ".txt"
            text = self._stored(
                lambda history: (history.export_text if as_text else history.export_markdown)(
                    self._conversation_id
                )
            )
            self._say(f"Written to {_write_new_file(target, text).absolute()}")
        except (OSError, RuntimeError, ValueError) as error:
            # expanduser knows no such user: RuntimeError. A NUL in the name: ValueError.
            reason = error.strerror if isinstance(error, OSError) else None
            self._say(
                f"error: The conversation could not be written to {argument or name}: {reason or error}."
            )
            self._say("hint: Name a file in a folder that exists and can be written: /export FOLDER/NAME.md")

    # Output.

    def _say(self, line: str) -> None:
        self._write(clean(line) + "\n")

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()


def run_line_mode(session: Session, *, max_tokens: int) -> int:
    """Run the chat on this process's standard input and output; return the exit code."""
    interactive = sys.stdin.isatty()
    try:
        history = History.open(paths.history_file())
    except StorageError as error:
        history = NoHistory(f"{error.message} {error.hint}")
    manifest = session.model.manifest
    chat = LineChat(
        session.engine,
        ModelDescription(session.model.name, manifest.sha256, manifest.notice, session.opening),
        history=history,
        read_line=_typed_line if interactive else _piped_line,
        output=sys.stdout,
        max_tokens=max_tokens,
        interactive=interactive,
        model_names=lambda: [model.name for model in models.list_models("model").models],
    )
    try:
        exit_code = chat.run()
    finally:
        chat.history.close()
    if exit_code == BROKEN_PIPE_EXIT_CODE:
        # `cli.main` knows how a process ends whose reader is gone.
        raise BrokenPipeError
    return exit_code


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


def _write_new_file(wanted: Path, text: str) -> Path:
    """Write a file that was not there, adding -2, -3, ... to its name where one was; return its path."""
    target, number = wanted, 1
    while True:
        try:
            file = target.open("x", encoding="utf-8", newline="\n")
            break
        except FileExistsError:
            number += 1
            target = wanted.with_stem(f"{wanted.stem}-{number}")
    try:
        with file:
            file.write(text)
            file.flush()
            # People pull a stick as soon as they read "Written".
            fsync_file(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            target.unlink()
        raise
    return target
