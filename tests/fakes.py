"""Stand-ins for the slow parts: an engine that says what a test tells it to say."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from edgemed.engine.messages import (
    Answer,
    ChatMessage,
    Event,
    Finished,
    Piece,
    Reading,
    StopReason,
    TurnsLeftOut,
)
from edgemed.errors import EdgemedError
from edgemed.manifest import Sampling


@dataclass(frozen=True)
class Script:
    """One answer of a `FakeEngine`."""

    text: str = ""
    """Told word by word."""
    pieces: Sequence[str] = ()
    """Told in exactly these pieces, in place of `text`."""
    stop_reason: StopReason = "end_of_turn"
    """`engine_died` and `length` end the answer after its last piece."""
    explanation: str = ""
    turns_left_out: int = 0
    reading: Sequence[tuple[int, int]] = ((3, 3),)
    """Tokens read and tokens of the prompt, one pair for each progress event."""
    refused_with: EdgemedError | None = None
    """Raised by `ask` itself, as for a question that is too long."""
    fails_with: EdgemedError | None = None
    """Raised after the last piece."""
    before_piece: Callable[[int], None] | None = None
    """Called with 0, 1, ... before each piece and once after the last; what it raises ends the answer."""


@dataclass
class FakeEngine:
    """Implements `edgemed.engine.messages.Engine` without a model; the last script is used for ever."""

    scripts: Sequence[Script | str] = ("I do not know.",)
    delay_seconds: float = 0.0
    """Waited before each piece."""
    load_fails_with: EdgemedError | None = None
    asked: list[list[ChatMessage]] = field(default_factory=list)
    seeds: list[int | None] = field(default_factory=list)
    answers_so_far: list[str] = field(default_factory=list)
    max_tokens: list[int] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    stops: int = 0
    finished: int = 0
    """Answers whose caller waited for the last event."""
    load_fraction: float = 1.0
    closed: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    """Set by `waits_at`: the answer is where the test wants it."""
    go_on: threading.Event = field(default_factory=threading.Event)
    _stopped: bool = False

    def waits_at(self, number: int) -> Callable[[int], None]:
        """Return a `before_piece` that waits before this piece until the test sets `go_on`."""

        def wait(piece: int) -> None:
            if piece == number:
                self.reached.set()
                self.go_on.wait(20)

        return wait

    def wait_until_ready(self) -> None:
        """Fail where the test wants it."""
        if self.load_fails_with is not None:
            raise self.load_fails_with

    def ask(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        seed: int | None = None,
        answer_so_far: str = "",
    ) -> Iterator[Event]:
        """Tell the next script and note what was asked."""
        script = self.scripts[min(len(self.asked), len(self.scripts) - 1)]
        if isinstance(script, str):
            script = Script(script)
        self.asked.append(list(messages))
        self.seeds.append(seed)
        self.answers_so_far.append(answer_so_far)
        self.max_tokens.append(max_tokens)
        self._stopped = False
        if script.refused_with is not None:
            raise script.refused_with
        return self._events(script)

    def use_sampling(self, sampling: Sampling) -> None:
        """Note it."""
        self.samplings.append(sampling)

    def stop(self) -> None:
        """End the answer before its next piece."""
        self.stops += 1
        self._stopped = True

    def close(self) -> None:
        """Note it."""
        self.closed = True

    def _events(self, script: Script) -> Iterator[Event]:
        self.wait_until_ready()
        if script.turns_left_out:
            yield TurnsLeftOut(script.turns_left_out)
        for read_tokens, prompt_tokens in script.reading:
            yield Reading(read_tokens, prompt_tokens)
        pieces = list(script.pieces) or re.findall(r"\s*\S+", script.text)
        told = []
        for number, piece in enumerate([*pieces, None]):
            if script.before_piece is not None:
                script.before_piece(number)
            if self._stopped or piece is None:
                break
            if self.delay_seconds:
                time.sleep(self.delay_seconds)
            told.append(piece)
            yield Piece(piece)
        if script.fails_with is not None and not self._stopped:
            raise script.fails_with
        self.finished += 1
        yield Finished(
            Answer(
                text="".join(told),
                stop_reason="cancelled" if self._stopped else script.stop_reason,
                prompt_tokens=script.reading[-1][1] if script.reading else 0,
                reused_tokens=0,
                generated_tokens=len(told),
                ttft_seconds=0.1 if told else None,
                prefill_seconds=0.1,
                decode_seconds=0.1,
                threads=1,
                explanation=script.explanation,
            )
        )
