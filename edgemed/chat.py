"""A conversation with a model, without a screen: what line mode and the full screen do in the same way.

Everything said goes through the history first: a question is saved before the engine sees it, an answer each
second while it comes. When the disk takes no more, the conversation goes on in memory and says so once.
"""

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from edgemed import history_export, paths
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
from edgemed.errors import EdgemedError, ModelError, StorageError, UsageError
from edgemed.history import Conversation, Deletion, FinalStatus, History, NoHistory, SavedMessage
from edgemed.languages import text as _
from edgemed.terminal_text import StreamCleaner

SAVE_SECONDS = 1.0
"""A power cut takes away at most this much of an answer."""
LONGEST_DRAFT = 64 * 1024
"""Characters; no model in use takes more (`client.CHARACTERS_PER_TOKEN_AT_MOST` x 4,096 tokens)."""

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


class Asked(NamedTuple):
    """The question is saved; from now on only its answer can fail."""

    question_id: int


class Visible(NamedTuple):
    """New text of the answer, harmless for a terminal."""

    text: str


class Note(NamedTuple):
    """Something the user must be told in the middle of an answer."""

    text: str


Happening = Asked | TurnsLeftOut | Reading | Visible | Note


class Outcome(NamedTuple):
    """How an answer ended."""

    stop_reason: StopReason
    text: str
    """The whole answer, also what was there before it was continued; as the model wrote it."""
    is_visible: bool
    """Whether anything was shown."""
    seconds: float
    tokens_per_second: float | None
    """Of writing; None where too little was written to say."""
    explanation: str

    @property
    def words(self) -> int:
        """Return how many words the answer has."""
        return len(self.text.split())


class Show(Protocol):
    """How the face of the chat learns what happens; called in the thread that asks."""

    def __call__(self, happening: Happening, /) -> None:
        """Show it."""


class _Writing:
    """The answer that is being received."""

    def __init__(self, asked_at: float, answer: SavedMessage | None) -> None:
        self.asked_at = self.saved_at = asked_at
        self.answer_id = answer.id if answer else None
        self.before = answer.text if answer else ""
        self.pieces: list[str] = []
        self.cleaner = StreamCleaner()
        self.answer: Answer | None = None
        self.is_visible = self.begun = False

    @property
    def text(self) -> str:
        """The answer so far; many models begin with a space or an empty line."""
        new = self.answer.text if self.answer else "".join(self.pieces)
        return self.before + new if self.before else new.lstrip()


class Chat:
    """One conversation at a time with one model.

    One thread asks, continues or edits; `stop` and the drafts may be used from another meanwhile.
    """

    def __init__(
        self,
        history: History,
        *,
        max_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._history = history
        self._max_tokens = max_tokens
        self._clock = clock
        self._engine: Engine | None = None
        self._model: ModelDescription | None = None
        self._conversation: Conversation | None = None
        self._writing: _Writing | None = None
        self._deletions: list[Deletion] = []
        self._note = ""
        self._stopped_by_system = False

    # The model.

    def use(self, engine: Engine, model: ModelDescription) -> None:
        """Answer with this engine from now on; the one before is closed."""
        self.let_go()
        self._engine, self._model = engine, model

    def let_go(self) -> None:
        """Close the engine; questions are refused until another is in use."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @property
    def engine(self) -> Engine:
        """The engine in use.

        Raises:
            ModelError: there is none.
        """
        if self._engine is None:
            raise ModelError(
                _("No model is loaded."), hint=_("Choose a model. The question is kept where it was typed.")
            )
        return self._engine

    @property
    def model(self) -> ModelDescription | None:
        """The model in use, or the last one that was."""
        return self._model

    # What is said.

    @property
    def history(self) -> History:
        """The store in use: another than at the beginning once the disk took no more."""
        return self._history

    @property
    def conversation(self) -> Conversation | None:
        """The conversation in use; None before its first question."""
        return self._conversation

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being read or written."""
        return self._writing is not None

    @property
    def answer_so_far(self) -> str:
        """The text of the answer that is being written, that of its first part included."""
        writing = self._writing
        return writing.text if writing else ""

    def messages(self) -> list[SavedMessage]:
        """Return the questions and answers of the branch in use, the oldest first."""
        conversation = self._conversation
        if conversation is None:
            return []
        return self._stored(lambda history: history.messages(conversation.id))

    def take_note(self) -> str:
        """Return, once, what the user must be told of the store; mostly empty."""
        note, self._note = self._note, ""
        return note

    # Asking.

    def ask(self, question: str, show: Show) -> Outcome:
        """Save a question, then answer it.

        Raises:
            StorageError: another edgemed is open; nothing was asked.
            EdgemedError: as `Engine.ask` says; the question is saved.
        """
        self._write_allowed()
        question = readable(question)
        model = self._model_in_use()
        if self._conversation is None:
            self._conversation = self._stored(
                lambda history: history.conversation(history.start_conversation(model.name, model.sha256))
            )
        earlier = self.messages()
        question_id = self._stored(lambda history: history.add_question(self._conversation_id, question))
        return self._answer(earlier, question_id, question, show)

    def edit(self, question_id: int, question: str, show: Show) -> Outcome:
        """Ask another question in place of one, on a branch of its own. Raises as `ask` does."""
        self._write_allowed()
        question = readable(question)
        earlier = self._before(question_id)
        new_id = self._stored(
            lambda history: history.add_question(self._conversation_id, question, instead_of=question_id)
        )
        return self._answer(earlier, new_id, question, show)

    def ask_again(self, show: Show, question_id: int | None = None) -> Outcome:
        """Write another answer to a question, the last one if none is named. Raises as `ask` does."""
        self._write_allowed()
        messages = self.messages()
        questions = [m for m in messages if m.role == "user" and question_id in (None, m.id)]
        if not questions:
            raise UsageError(_("There is no question yet."), hint=_("Type a question first."))
        question = questions[-1]
        answers = [m for m in messages if m.parent_id == question.id and m.text.strip()]
        try:
            outcome = self._answer(
                self._before(question.id), question.id, question.text, show, seed=random.getrandbits(32)
            )
        except EdgemedError:
            self._back_to(answers)
            raise
        if not outcome.text:
            self._back_to(answers)
        return outcome

    def continue_answer(self, show: Show) -> Outcome:
        """Write on where the last answer was cut. Raises as `ask` does."""
        self._write_allowed()
        messages = self.messages()
        if not messages or messages[-1].role != "assistant" or messages[-1].status == "done":
            raise UsageError(_("There is no unfinished answer here."), hint=_("Ask a question."))
        *earlier, question, answer = messages
        if not answer.text.strip():
            return self.ask_again(show)
        return self._answer(earlier, question.id, question.text, show, answer=answer)

    def stop(self, *, by_system: bool = False) -> None:
        """End the answer that is being read or written; may be called from any thread.

        Args:
            by_system: nobody wanted it; the answer is marked as interrupted, not as stopped.
        """
        self._stopped_by_system = by_system
        if self._engine is not None:
            self._engine.stop()

    # The conversation.

    def begin_anew(self) -> None:
        """Leave the conversation; the next question begins another."""
        self._conversation = None

    def open_conversation(self, conversation_id: int) -> None:
        """Go on with a saved conversation.

        Raises:
            StorageError: there is none of this number.
        """
        self._conversation = self._history.conversation(conversation_id)

    def rename(self, title: str, conversation_id: int | None = None) -> None:
        """Give a conversation another title; the one in use if none is named."""
        self._write_allowed()
        chosen = self._conversation_id if conversation_id is None else conversation_id
        self._stored(lambda history: history.rename(chosen, title))
        if self._conversation is not None and chosen == self._conversation.id:
            self._conversation = self._stored(lambda history: history.conversation(chosen))

    def delete_message(self, message_id: int) -> None:
        """Delete a question with its answers, or one answer, with all that follows; `undo` brings it back."""
        self._write_allowed()
        self._deletions.append(self._stored(lambda history: history.delete_message(message_id)))

    def delete_conversation(self, conversation_id: int) -> None:
        """Delete a conversation; `undo` brings it back until edgemed is closed."""
        self._write_allowed()
        self._deletions.append(self._stored(lambda history: history.delete_conversation(conversation_id)))
        if self._conversation is not None and self._conversation.id == conversation_id:
            self._conversation = None

    def undo(self) -> bool:
        """Bring back what was deleted last; False if nothing was."""
        self._write_allowed()
        if not self._deletions:
            return False
        deletion = self._deletions.pop()
        self._stored(lambda history: history.undo(deletion))
        if deletion.message_id is None and self._conversation is None:
            self._conversation = self._history.conversation(deletion.conversation_id)
        return True

    def place(self, message: SavedMessage) -> tuple[int, int]:
        """Return which of how many versions of a message this is: (1, 1) where there is but one."""
        siblings = self._stored(lambda history: history.siblings(message))
        return (siblings.index(message.id) + 1, len(siblings)) if message.id in siblings else (1, 1)

    def other_version(self, message: SavedMessage, step: int) -> None:
        """Show the next (1) or the previous (-1) version of a message, and what follows it."""
        siblings = self._stored(lambda history: history.siblings(message))
        chosen = siblings[(siblings.index(message.id) + step) % len(siblings)]
        if chosen != message.id and not self._history.read_only:
            self._stored(lambda history: history.choose_branch(chosen))

    def export(
        self,
        wanted: Path,
        format: history_export.Format | None = None,  # noqa: A002
        conversation_id: int | None = None,
    ) -> Path:
        """Write a conversation into a new file; return its path.

        Raises:
            StorageError: the place cannot be written, or there is no conversation yet.
        """
        chosen = conversation_id or (self._conversation.id if self._conversation else None)
        if chosen is None:
            raise StorageError(_("There is nothing to export yet."), hint=_("Ask a question first."))
        return history_export.write_export(
            wanted, self._history.conversation(chosen), self._history.messages(chosen), format
        )

    # After a power cut.

    def take_unfinished(self) -> SavedMessage | None:
        """Open the conversation whose answer was cut last, and mark all such answers; None: there is none."""
        unfinished = self._stored(lambda history: history.unfinished_answers())
        if not unfinished:
            return None
        self._stored(lambda history: history.mark_interrupted(unfinished))
        answer = unfinished[-1]
        try:
            self.open_conversation(answer.conversation_id)
            self._stored(lambda history: history.choose_branch(answer.id))
        except StorageError:
            return None
        return answer

    # Drafts.

    def draft(self) -> str:
        """Return what was typed in this conversation and not sent; mostly empty."""
        return self._stored(lambda history: history.draft(self._draft_place))

    def save_draft(self, text: str) -> None:
        """Keep what is typed and not sent yet."""
        if not self._history.read_only:
            self._stored(lambda history: history.save_draft(self._draft_place, readable(text)))

    def close(self) -> None:
        """End the engine and close the store."""
        self.let_go()
        self._history.close()

    # One answer.

    def _answer(
        self,
        earlier: Sequence[SavedMessage],
        question_id: int,
        question: str,
        show: Show,
        *,
        seed: int | None = None,
        answer: SavedMessage | None = None,
    ) -> Outcome:
        model, engine = self._model_in_use(), self.engine
        # Its first question gave it its title.
        self._conversation = self._stored(lambda history: history.conversation(self._conversation_id))
        show(Asked(question_id))
        self._stopped_by_system = False
        writing = self._writing = _Writing(self._clock(), answer)
        status: FinalStatus = "interrupted"
        try:
            messages = [*model.opening, *_turns(earlier), ChatMessage("user", question)]
            events = engine.ask(
                messages, max_tokens=self._max_tokens, seed=seed, answer_so_far=writing.before
            )
            self._receive(writing, events, question_id, show)
            _show_text(writing, writing.cleaner.flush(), show)
            stop_reason = writing.answer.stop_reason if writing.answer else "cancelled"
            status = _STATUSES[stop_reason]
            if status == "stopped" and self._stopped_by_system:
                status = "interrupted"
        except EdgemedError:
            status = "engine_died"
            raise
        except KeyboardInterrupt:
            # A second Ctrl+C, while the end of the answer was being told.
            status, stop_reason = "stopped", "cancelled"
        except BaseException:
            engine.stop()
            if writing.answer is not None:
                status = _STATUSES[writing.answer.stop_reason]
            raise
        finally:
            self._writing = None
            if writing.begun and writing.answer_id is not None:
                answer_id, text = writing.answer_id, writing.text
                self._stored(lambda history: history.finish_answer(answer_id, text, status))
        return _outcome(writing, stop_reason, self._clock() - writing.asked_at)

    def _receive(self, writing: _Writing, events: Iterator[Event], question_id: int, show: Show) -> None:
        while True:
            try:
                event = next(events, None)
                if event is None:
                    return
                if not writing.begun:
                    # Not before the engine accepted the question: what it refuses has no answer.
                    self._begin(writing, question_id)
                self._take(writing, event, show)
                if self._note:
                    show(Note(self.take_note()))
            except KeyboardInterrupt:
                # The rest of the events may be lost, or not.
                self.stop()

    def _begin(self, writing: _Writing, question_id: int) -> None:
        writing.begun = True
        answer_id = writing.answer_id
        if answer_id is None:
            notice = self._model_in_use().notice
            writing.answer_id = self._stored(lambda history: history.begin_answer(question_id, notice))
        else:
            self._stored(lambda history: history.continue_answer(answer_id))

    def _take(self, writing: _Writing, event: Event, show: Show) -> None:
        match event:
            case TurnsLeftOut() | Reading():
                show(event)
            case Piece(text):
                writing.pieces.append(text)
                _show_text(writing, writing.cleaner.feed(text), show)
                self._save_partial(writing)
            case Finished(answer):
                writing.answer = answer

    def _save_partial(self, writing: _Writing) -> None:
        now = self._clock()
        if now - writing.saved_at >= SAVE_SECONDS and writing.answer_id is not None:
            answer_id, text = writing.answer_id, writing.text
            self._stored(lambda history: history.save_partial(answer_id, text))
            writing.saved_at = now

    def _before(self, question_id: int) -> list[SavedMessage]:
        messages = self.messages()
        return messages[: [message.id for message in messages].index(question_id)]

    def _back_to(self, answers: Sequence[SavedMessage]) -> None:
        """Show the answer that was there before the new one came to nothing."""
        if answers:
            self._stored(lambda history: history.choose_branch(answers[-1].id))

    # The store.

    @property
    def _conversation_id(self) -> int:
        if self._conversation is None:
            raise UsageError(_("There is no conversation yet."), hint=_("Ask a question first."))
        return self._conversation.id

    @property
    def _draft_place(self) -> int | None:
        return self._conversation.id if self._conversation else None

    def _model_in_use(self) -> ModelDescription:
        _engine = self.engine
        assert self._model is not None, "an engine comes with its model"
        return self._model

    def _write_allowed(self) -> None:
        """Make sure that this is the edgemed that writes.

        Raises:
            StorageError: another one is open.
        """
        if not self._history.read_only:
            return
        opened = History.open(self._history.path)
        if opened.read_only:
            opened.close()
            raise StorageError(
                _("Another edgemed is open on this computer: nothing can be asked or changed here."),
                hint=_("Ask in the other one, or close it and try again. What you typed stays."),
            )
        self._history.close()
        self._history = opened
        self._note = _("The other edgemed is closed. From now on this one saves.")

    def _stored(self, action: Callable[[History], T]) -> T:
        """Do something with the history; when the disk takes no more, go on in memory and say so once."""
        try:
            return action(self._history)
        except StorageError as error:
            disk = self._history
            if disk.read_only or not disk.saves:
                raise
            self._history = (
                NoHistory() if self._conversation is None else NoHistory.continuing(disk, self._conversation)
            )
            disk.close()
            self._deletions = []
            self._note = " ".join(
                [error.message, _("The chat goes on, but nothing more is saved."), error.hint]
            )
            return action(self._history)


def open_history() -> History:
    """Return the saved conversations; in memory, with a note, where the disk does not take them."""
    try:
        return History.open(paths.history_file())
    except StorageError as error:
        return NoHistory(f"{error.message} {error.hint}")


def readable(text: str) -> str:
    """Return typed text with what was no UTF-8 replaced, so that it can be saved and sent."""
    return _SURROGATE.sub("\ufffd", text)


def _turns(earlier: Sequence[SavedMessage]) -> Iterator[ChatMessage]:
    """Yield the questions that were answered, each with its answer."""
    question = None
    for message in earlier:
        if message.role == "user":
            question = message
        elif question is not None and message.text.strip():
            yield ChatMessage("user", question.text)
            yield ChatMessage("assistant", message.text)
            question = None


def _show_text(writing: _Writing, visible: str, show: Show) -> None:
    if not writing.is_visible and not writing.before:
        visible = visible.lstrip()
    if visible:
        writing.is_visible = True
        show(Visible(visible))


def _outcome(writing: _Writing, stop_reason: StopReason, seconds: float) -> Outcome:
    answer, rate = writing.answer, None
    if answer is not None and answer.generated_tokens > 1 and answer.decode_seconds > 0:
        rate = (answer.generated_tokens - 1) / answer.decode_seconds
    return Outcome(
        stop_reason=stop_reason,
        text=writing.text,
        is_visible=writing.is_visible,
        seconds=seconds,
        tokens_per_second=rate,
        explanation=answer.explanation if answer else "",
    )
