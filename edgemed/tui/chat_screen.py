"""The chat itself: the conversation, what is happening now, and the line where a question is typed.

The answer comes in a thread of its own, through a queue that the screen empties four times a second: a slow
terminal or an old processor is never asked for more. Nothing is drawn while nothing happens.
"""

import gc
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.screen import Screen
from textual.timer import Timer

from edgemed.chat import Asked, Chat, Happening, Note, Outcome, Show, Visible
from edgemed.control import Control
from edgemed.engine.messages import Reading, TurnsLeftOut
from edgemed.errors import EdgemedError, EngineError, ModelError, StorageError
from edgemed.history import SavedMessage, local_time
from edgemed.history_export import Format
from edgemed.languages import plural
from edgemed.languages import text as _
from edgemed.terminal_text import clean
from edgemed.tui.conversation_view import ConversationView, ShownMessage
from edgemed.tui.parts import Key, KeyLine, Line
from edgemed.tui.question_input import QuestionInput

DRAIN_SECONDS = 0.25
DRAFT_SECONDS = 1.0
SMALL_LINES, NARROW_COLUMNS = 9, 100
FAILURES_BEFORE_ADVICE = 3
FIRST_DRAWING_SECONDS = 2.0
"""A terminal that is slower than this gets its model all the same."""
SAID_SECONDS = 4.0
"""How long a sentence stands before what is happening now takes its place."""

T = TypeVar("T")


class _Ended(NamedTuple):
    """The answering thread is done."""

    outcome: Outcome | None
    error: EdgemedError | None


class _Loaded(NamedTuple):
    """The loading thread is done."""

    error: EdgemedError | None
    seconds: float


class ChatScreen(Screen[None]):
    """The one screen that is always there; the others open above it."""

    AUTO_FOCUS = "#question"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f2", "new", priority=True),
        Binding("f5", "export", priority=True),
        Binding("f6", "history", priority=True),
        Binding("f7", "settings", priority=True),
        Binding("f9", "models", priority=True),
        Binding("escape", "stop", priority=True),
        Binding("pageup", "page(-1)", priority=True),
        Binding("pagedown", "page(1)", priority=True),
        Binding("tab", "other_focus", priority=True),
    ]

    def __init__(self, control: Control, *, first_start: bool) -> None:
        super().__init__()
        self._control = control
        self._chat: Chat = control.chat
        self._first_start = first_start
        self._queue: queue.SimpleQueue[Happening | _Ended | _Loaded] = queue.SimpleQueue()
        self._drain_timer: Timer | None = None
        self._answering: threading.Thread | None = None
        self._loading: threading.Thread | None = None
        self._since = 0.0
        self._now_doing = ""
        self._pieces = 0
        self._first_piece_at = 0.0
        self._sent = ""
        self._waiting: str | None = None
        """A question that was sent while the model was still loading."""
        self._said_at = 0.0
        self._shown_activity = (0, "", True)
        self._must_load = False
        self._editing: SavedMessage | None = None
        self._draft_is_saved = True
        self._draft_lock = threading.Lock()
        self._failures_in_a_row = 0
        self._text_before = ""
        self._after_loading: Callable[[], None] | None = None
        self._is_drawn = threading.Event()

    # Building.

    def compose(self) -> ComposeResult:
        """Build the screen."""
        yield Line(id="header")
        yield Line(id="banner")
        with Horizontal(id="middle"):
            yield ConversationView(id="conversation")
            yield Container(id="evidence")
        yield Line(id="activity")
        yield QuestionInput(id="question")
        yield KeyLine()

    def on_mount(self) -> None:
        """Begin: what was left unfinished, then the model."""
        self._drain_timer = self.set_interval(DRAIN_SECONDS, self._drain, pause=True)
        self.set_interval(DRAFT_SECONDS, self._save_draft_if_changed)
        self._input.focus()
        self._show_header()
        history = self._chat.history
        self.show_banner(" ".join([history.opening_note, *self._control.problems]).strip())
        unfinished = self._guarded(self._chat.take_unfinished)
        self._tell_note()
        self._reload()
        self._load_draft()
        self._show_keys()
        self.call_after_refresh(self._drawn)
        if unfinished is not None:
            self._offer_recovery(unfinished)
        elif self._first_start:
            self._choose_model(first_start=True)
        else:
            self.load_model()

    def _drawn(self) -> None:
        # What is there by now stays until the end.
        gc.freeze()
        gc.enable()
        self._is_drawn.set()

    def on_resize(self, event: events.Resize) -> None:
        """Leave out what a small screen has no room for."""
        self.set_class(event.size.height < SMALL_LINES, "small")
        self.set_class(event.size.width < NARROW_COLUMNS, "narrow")
        self._show_header()

    def show_banner(self, text: str) -> None:
        """Show words above the conversation that must not be overlooked; none hides them."""
        banner = self.query_one("#banner", Line)
        banner.show(f" {text}" if text else "")
        banner.set_class(bool(text), "shown")

    def settings_changed(self) -> None:
        """Let text size and language work at once."""
        self._view.set_spacious(self._control.settings.text_size == "large")
        self._show_header()
        self._show_keys()
        self._reload()

    # The model.

    def load_model(self, name: str | None = None) -> None:
        """Load the chosen model in the background; questions can be typed, and wait."""
        if self._loading is not None or self._answering is not None:
            self._must_load = True
            return
        self._must_load = False
        started = time.monotonic()

        def load() -> None:
            error: EdgemedError | None = _our_mistake()
            # What loads a model is a lot of code to import, and the first screen goes before it.
            self._is_drawn.wait(FIRST_DRAWING_SECONDS)
            try:
                if name is None:
                    self._control.load()
                else:
                    self._control.use_model(name)
                self._chat.engine.wait_until_ready()
                error = None
            except EdgemedError as caught:
                error = caught
            finally:
                self._queue.put(_Loaded(error, time.monotonic() - started))

        self._now_doing = _("Loading the model")
        self._since = started
        self._loading = threading.Thread(target=load, daemon=True)
        self._loading.start()
        self._resume_draining()
        self._show_activity()

    def _choose_model(self, *, first_start: bool = False, reason: str = "") -> None:
        def use(name: str | None) -> None:
            if name is not None:
                self.load_model(name)
            elif self._chat.model is None:
                self.load_model()

        from edgemed.tui.models_screen import ModelsScreen

        self.app.push_screen(ModelsScreen(self._control, first_start=first_start, reason=reason), use)

    def _loaded(self, loaded: _Loaded) -> None:
        self._loading = None
        self._now_doing = ""
        self._show_header()
        if self._must_load:
            self.load_model()
            return
        if loaded.error is not None:
            self._restore(self._waiting or "")
            self._waiting = None
            self._say(f"{loaded.error.message} {loaded.error.hint}")
            self._choose_model(reason=f"{loaded.error.message} {loaded.error.hint}")
            return
        self._say(_("Ready. The model was loaded in {seconds:.1f} s.", seconds=loaded.seconds))
        self._reload()
        question, self._waiting = self._waiting, None
        after, self._after_loading = self._after_loading, None
        if after is not None:
            after()
        elif question is not None:
            self._ask(question)

    # Asking.

    def on_question_input_sent(self, message: QuestionInput.Sent) -> None:
        """Ask what was typed."""
        if self._answering is not None:
            self._say(_("The AI is still writing. Esc stops it. What you typed stays."))
            return
        self._input.text = ""
        if self._loading is not None:
            self._waiting = message.text
            self._say(_("The question waits until the model is loaded."))
            return
        self._ask(message.text)

    def on_question_input_refused(self, message: QuestionInput.Refused) -> None:
        """Say why."""
        self._say(message.sentence)

    def on_question_input_recalled(self, _message: QuestionInput.Recalled) -> None:
        """Bring the last question back into the empty input, or an example."""
        questions = [m for m in self._guarded(self._chat.messages) or [] if m.role == "user"]
        self._restore(questions[-1].text if questions else example_question())

    def on_text_area_changed(self) -> None:
        """Remember that the draft on the disk is old."""
        self._draft_is_saved = False

    def _ask(self, question: str) -> None:
        editing, self._editing = self._editing, None
        if editing is None:
            self._answer(lambda show: self._chat.ask(question, show), question)
        else:
            self._answer(lambda show: self._chat.edit(editing.id, question, show), question)

    def _answer(self, ask: Callable[[Show], Outcome], sent: str = "", text_before: str = "") -> None:
        if self._answering is not None or self._loading is not None:
            self._say(_("Please wait, or press Esc to stop."))
            return
        self._sent, self._pieces, self._first_piece_at = sent, 0, 0.0
        self._text_before = text_before
        self._since = time.monotonic()
        self._now_doing = _("Saving the question")

        def answer() -> None:
            ended = _Ended(None, _our_mistake())
            try:
                ended = _Ended(ask(self._queue.put), None)
            except EdgemedError as error:
                ended = _Ended(None, error)
            finally:
                self._queue.put(ended)

        self._answering = threading.Thread(target=answer, daemon=True)
        self._answering.start()
        self._resume_draining()
        self._show_keys()

    def _drain(self) -> None:
        text: list[str] = []
        while True:
            try:
                happening = self._queue.get_nowait()
            except queue.Empty:
                break
            match happening:
                case Asked(question_id):
                    self._sent = ""
                    self._reload(until=question_id)
                    model = self._chat.model
                    self._view.begin_answer(self._text_before, notice=model.notice if model else None)
                    self._now_doing = _("Reading the question")
                case Reading(read, all_tokens):
                    if read < all_tokens:
                        self._now_doing = _("Reading {read} of {all} tokens", read=read, all=all_tokens)
                case TurnsLeftOut(turns):
                    self.show_banner(
                        plural(
                            "The oldest question no longer fits and is not read by the AI.",
                            "The oldest {count} questions no longer fit and are not read by the AI.",
                            turns,
                        )
                    )
                case Visible(piece):
                    text.append(piece)
                    self._pieces += 1
                    self._first_piece_at = self._first_piece_at or time.monotonic()
                case Note(sentence):
                    self.show_banner(sentence)
                case _Ended():
                    self._flush(text)
                    self._ended(happening)
                case _Loaded():
                    self._loaded(happening)
        self._flush(text)
        self._show_activity()

    def _flush(self, text: list[str]) -> None:
        if text:
            self._now_doing = _("Writing")
            self._view.add("".join(text))
            text.clear()

    def _ended(self, ended: _Ended) -> None:
        self._answering = None
        self._now_doing = ""
        self._tell_note()
        self._reload()
        if ended.error is not None:
            self._failed(ended.error)
        elif ended.outcome is not None:
            self._say(self._in_words(ended.outcome))
        self._show_keys()

    def _failed(self, error: EdgemedError) -> None:
        # What was never saved goes back to where it was typed.
        self._restore(self._sent)
        self._say(f"{error.message} {error.hint}")
        if isinstance(error, ModelError):
            self._choose_model(reason=f"{error.message} {error.hint}")

    def _in_words(self, outcome: Outcome) -> str:
        if outcome.stop_reason == "engine_died":
            self._failures_in_a_row += 1
            advice = ""
            if self._failures_in_a_row >= FAILURES_BEFORE_ADVICE:
                advice = " " + _("F9 chooses a smaller model.")
            return outcome.explanation + advice
        self._failures_in_a_row = 0
        if outcome.stop_reason == "cancelled":
            return _("Stopped. What was written is kept. Tab, then C writes on.")
        if not outcome.is_visible:
            return _("The AI gave no answer. Tab, then A asks again.")
        if outcome.stop_reason == "length":
            return _("The answer reached its longest length and is cut. Tab, then C writes on.")
        words = plural("{count} word", "{count} words", outcome.words)
        rate = outcome.tokens_per_second
        if rate is None:
            return _("Done. {words} in {seconds:.1f} s.", words=words, seconds=outcome.seconds)
        return _(
            "Done. {words} in {seconds:.1f} s, {rate:.1f} tokens/s.",
            words=words,
            seconds=outcome.seconds,
            rate=rate,
        )

    # Keys.

    def action_stop(self) -> None:
        """Stop the answer; else go back to the question."""
        if self._answering is not None:
            self._chat.stop()
            self._now_doing = _("Stopping")
            self._show_activity()
        elif self._waiting is not None:
            self._restore(self._waiting)
            self._waiting = None
        else:
            self._editing = None
            # It was read; its room is for the conversation.
            self.show_banner("")
            self._input.focus()

    def action_other_focus(self) -> None:
        """Go between the question and the messages."""
        if self._view.has_focus:
            self._input.focus()
        else:
            self._view.focus()

    def on_descendant_focus(self) -> None:
        """Show the keys that work there."""
        self._show_keys()

    def action_page(self, step: int) -> None:
        """Scroll the conversation."""
        self._view.turn_page(step)

    def action_new(self) -> None:
        """Begin another conversation."""
        if self._is_not_answering():
            self._save_draft()
            self._chat.begin_anew()
            self._editing = None
            self._reload()
            self._load_draft()
            self._input.focus()
            self._say(_("A new conversation. The AI does not know what was said before."))

    def action_again(self) -> None:
        """Write another answer to the chosen question."""
        message = self._view.chosen_message
        if message is not None and self._is_free():
            question_id = message.id if message.role == "user" else message.parent_id
            self._answer(lambda show: self._chat.ask_again(show, question_id))
            self._input.focus()

    def action_continue_answer(self) -> None:
        """Write on where the last answer was cut."""
        if self._is_free():
            messages = self._guarded(self._chat.messages)
            before = messages[-1].text if messages else ""
            self._answer(self._chat.continue_answer, text_before=clean(before))
            self._input.focus()

    def action_edit(self) -> None:
        """Bring the chosen question into the input, to be asked in other words."""
        message = self._view.chosen_message
        messages = self._guarded(self._chat.messages) or []
        if message is not None and message.role == "assistant":
            message = next((each for each in messages if each.id == message.parent_id), None)
        if message is not None and self._is_free():
            self._editing = message
            self._restore(message.text)
            self._say(_("Change the question and press Enter. The old one is kept as another version."))

    def action_copy(self) -> None:
        """Copy the chosen message, where the terminal allows it."""
        message = self._view.chosen_message
        if message is not None:
            self.app.copy_to_clipboard(clean(message.text))
            self._say(_("Copied, if this terminal allows it. F5 writes a file in any case."))

    def action_delete(self) -> None:
        """Delete the chosen message and what follows."""
        message = self._view.chosen_message
        if message is not None and self._is_free():
            self._guarded(lambda: self._chat.delete_message(message.id))
            self._reload()
            self._say(_("Deleted, with what followed. U brings it back until you leave."))

    def action_undo(self) -> None:
        """Bring back what was deleted."""
        if self._is_free():
            back = self._guarded(self._chat.undo)
            self._reload()
            self._say(_("It is back.") if back else _("Nothing was deleted."))

    def action_version(self, step: int) -> None:
        """Show the other version of the chosen message."""
        message = self._view.chosen_message
        if message is not None and self._is_free():
            self._guarded(lambda: self._chat.other_version(message, step))
            self._reload()

    def action_export(self) -> None:
        """Write the conversation into a file."""
        conversation = self._chat.conversation
        if conversation is None:
            self._say(_("There is nothing to export yet."))
            return

        def export(chosen: tuple[Path, Format] | None) -> None:
            if chosen is not None:
                path = self._guarded(lambda: self._chat.export(*chosen))
                if path is not None:
                    self._say(_("Written to {path}", path=path))

        from edgemed.tui.dialogs import ExportScreen

        self.app.push_screen(ExportScreen(conversation.title, self._control.export_places()), export)

    def action_history(self) -> None:
        """Show all conversations."""
        if not self._is_not_answering():
            return
        self._save_draft()

        def opened(conversation_id: int | None) -> None:
            if conversation_id is not None:
                self._guarded(lambda: self._chat.open_conversation(conversation_id))
            self._editing = None
            self._reload()
            self._load_draft()
            self._input.focus()

        from edgemed.tui.history_screen import HistoryScreen

        self.app.push_screen(HistoryScreen(self._control), opened)

    def action_settings(self) -> None:
        """Change settings."""

        def changed(must_load: bool | None) -> None:
            self.settings_changed()
            if must_load:
                self.load_model()

        if self._is_not_answering():
            from edgemed.tui.settings_screen import SettingsScreen

            self.app.push_screen(SettingsScreen(self._control), changed)

    def action_models(self) -> None:
        """Choose a model."""
        if self._is_free():
            self._choose_model()

    # The end.

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being read or written."""
        return self._answering is not None

    def end(self, seconds: float) -> None:
        """Stop and save everything, from any thread; wait at most so long for the answer's last words."""
        answering = self._answering
        if answering is not None:
            self._chat.stop(by_system=True)
            answering.join(seconds)
        self._save_draft()

    # Showing.

    @property
    def _view(self) -> ConversationView:
        return self.query_one(ConversationView)

    @property
    def _input(self) -> QuestionInput:
        return self.query_one(QuestionInput)

    def _reload(self, *, until: int | None = None) -> None:
        """Show the branch in use; up to a question whose answer is being written, if one is named."""
        messages = self._guarded(self._chat.messages) or []
        ids = [message.id for message in messages]
        if until in ids:
            messages = messages[: ids.index(until) + 1]
        shown = []
        for message in messages:
            number, count = self._chat.place(message)
            shown.append(ShownMessage(message, number, count))
        self._view.set_spacious(self._control.settings.text_size == "large")
        self._view.show_messages(shown, empty_text=self._welcome())
        self._show_header()

    def _welcome(self) -> str:
        lines = [
            _("AI text can be wrong. You decide."),
            "",
            _("Type a question below and press Enter."),
            _("↑ brings an example: {question}", question=example_question()),
            "",
            _("Nothing you type leaves this computer. Everything is saved as you go."),
        ]
        return "\n".join(lines)

    def _show_header(self) -> None:
        model = self._chat.model
        name = model.name if model else _("no model")
        notice = f" ({model.notice})" if model and model.notice else ""
        conversation = self._chat.conversation
        title = f"   {conversation.title}" if conversation else ""
        self.query_one("#header", Line).show(f" edgemed   {name}{notice}{title}")

    def _show_keys(self) -> None:
        keys = [Key("f1", "F1", _("help"))]
        if self._answering is not None:
            keys = [Key("escape", "Esc", _("STOP")), *keys]
        elif self._view.has_focus:
            keys = [
                Key("a", "A", _("again")),
                Key("c", "C", _("continue")),
                Key("e", "E", _("edit")),
                Key("y", "Y", _("copy")),
                Key("d", "D", _("delete")),
                Key("u", "U", _("undo")),
                Key("right", "←→", _("version")),
                Key("escape", "Esc", _("back")),
                *keys,
            ]
        else:
            keys += [
                Key("f10", "F10", _("leave")),
                Key("f2", "F2", _("new")),
                Key("f6", "F6", _("history")),
                Key("tab", "Tab", _("messages")),
                Key("f5", "F5", _("export")),
                Key("f7", "F7", _("settings")),
                Key("f9", "F9", _("models")),
            ]
        self.query_one(KeyLine).show_keys(*keys)

    def _show_activity(self) -> None:
        if not self._now_doing:
            if self._answering is None and self._loading is None and self._drain_timer is not None:
                self._drain_timer.pause()
            return
        now = time.monotonic()
        if now < self._said_at + SAID_SECONDS:
            return
        elapsed = int(now - self._since)
        activity = (elapsed, self._now_doing, self._view.follows)
        if activity == self._shown_activity and self._loading is None:
            # Once a second is enough, and four times as often costs bytes on a slow line.
            return
        self._shown_activity = activity
        doing = self._now_doing
        if self._loading is not None:
            doing += f" {100 * self._control.load_fraction:.0f} %"
        parts = [f" {doing}", f"{elapsed // 60:02}:{elapsed % 60:02}"]
        if self._pieces > 1 and now > self._first_piece_at + 1:
            parts.append(_("{rate:.1f} tokens/s", rate=(self._pieces - 1) / (now - self._first_piece_at)))
        if not self._view.follows:
            parts.append(_("(more below)"))
        self.query_one("#activity", Line).show("   ".join(parts))

    def _say(self, sentence: str) -> None:
        self._said_at = time.monotonic()
        self._shown_activity = (0, "", True)
        self.query_one("#activity", Line).show(f" {sentence}")

    def _tell_note(self) -> None:
        if note := self._chat.take_note():
            self.show_banner(note)

    def _resume_draining(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.resume()

    def _is_not_answering(self) -> bool:
        if self._answering is not None:
            self._say(_("The AI is still writing. Esc stops it."))
        return self._answering is None

    def _is_free(self) -> bool:
        if self._answering is not None or self._loading is not None:
            self._say(_("Please wait, or press Esc to stop."))
            return False
        return True

    def _guarded(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except EdgemedError as error:
            self._say(f"{error.message} {error.hint}")
            return None

    # Drafts and recovery.

    def _restore(self, text: str) -> None:
        if text:
            self._input.text = text
            self._input.move_cursor(self._input.document.end)
            self._input.focus()

    def _load_draft(self) -> None:
        self._input.text = self._guarded(self._chat.draft) or ""
        self._input.move_cursor(self._input.document.end)
        self._draft_is_saved = True

    def _save_draft_if_changed(self) -> None:
        if not self._draft_is_saved and not self._draft_lock.locked():
            # In a thread: a slow card takes a tenth of a second, and typing must not wait.
            threading.Thread(target=self._save_draft, daemon=True).start()

    def _save_draft(self) -> None:
        with self._draft_lock:
            if not self._draft_is_saved:
                self._draft_is_saved = True
                try:
                    self._chat.save_draft(self._waiting or self._sent or self._input.text)
                except StorageError:
                    # The disk takes nothing; the next answer's note says so.
                    return

    def _offer_recovery(self, answer: SavedMessage) -> None:
        messages = self._guarded(self._chat.messages) or []
        question = next((m.text for m in messages if m.id == answer.parent_id), "")

        def chosen(letter: str | None) -> None:
            match letter:
                case "d":
                    self._guarded(lambda: self._chat.delete_message(answer.id))
                    self._reload()
                case "c":
                    self._after_loading = self.action_continue_answer
                case "a":
                    self._after_loading = self.action_again
            self.load_model()

        from edgemed.tui.dialogs import recovery_screen

        self.app.push_screen(
            recovery_screen(question, answer, local_time(answer.created_at, "%d %b %H:%M")), chosen
        )


def _our_mistake() -> EdgemedError:
    return EngineError(
        _("An error inside edgemed; what was typed and said is saved."), hint=_("Start edgemed again.")
    )


def example_question() -> str:
    """Return a question for somebody who does not know what to ask."""
    return _("What are the danger signs of dehydration in a child?")
