"""The app's side of the engine: starts, asks, stops and restarts the child process.

The child may crash, abort inside llama.cpp or be ended by the kernel for want of memory. The app never does:
it keeps the text so far, says in plain words what happened, and has a new child loading already.
"""

import contextlib
import multiprocessing
import os
import random
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from edgemed import errors, operating_system
from edgemed.engine import child as engine_child
from edgemed.engine import kernels
from edgemed.engine.messages import (
    AdapterFile,
    AdapterRequest,
    Answer,
    AskRequest,
    ChatMessage,
    Distributions,
    DistributionsRequest,
    Done,
    Event,
    Failure,
    Finished,
    LastWords,
    Loading,
    LoadRequest,
    Measurement,
    Piece,
    Reading,
    Ready,
    Rendered,
    Rendering,
    Reply,
    Request,
    Reuse,
    ScoreRequest,
    Scores,
    Text,
    TurnsLeftOut,
)
from edgemed.errors import EngineDied, EngineError, ModelUnsupported, QuestionTooLong
from edgemed.languages import text as _
from edgemed.manifest import Sampling

RENDER_LIMIT_SECONDS = 10.0
"""A chat template that takes longer does not end; an honest one needs milliseconds."""
DEATHS_BEFORE_GIVING_UP = 3
LOADS_BEFORE_GIVING_UP = 2
CHARACTERS_PER_TOKEN_AT_MOST = 16
"""No language has more; a longer question is refused before it is tokenized."""
_CLOSE_SECONDS = 2.0
_WAIT_SLICE_SECONDS = 0.2


class _ChildDied(Exception):
    """The pipe closed."""


class ChildEngine:
    """An engine whose llama.cpp lives in a child process. Implements `messages.Engine`.

    One thread asks; `stop` may be called from any other or from a signal handler.
    """

    def __init__(self, request: LoadRequest, sampling: Sampling) -> None:
        """Start loading at once; `wait_until_ready` tells when it is done."""
        self._request = request
        self._sampling = sampling
        self._spawn = multiprocessing.get_context("spawn")
        # Two bytes: the second ends the string that the child's strlen reads.
        self._stop_byte = self._spawn.RawArray("B", 2)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Reply)
        self._deaths = 0
        self._last_words = ""
        self._process: Any = None
        self.load_seconds = 0.0
        self.load_fraction = 0.0
        self.llama_cpp_build = ""
        self._start()

    @property
    def process_id(self) -> int | None:
        """The child's process id, while there is one."""
        return None if self._process is None else self._process.pid

    def wait_until_ready(self) -> None:
        """Block until the model is loaded. See `messages.Engine`."""
        deaths_while_loading = 0
        while not self._ready:
            if self._process is None:
                self._start()
            try:
                self._expect_ready()
            except _ChildDied:
                was_plain = self._request.plain_kernels
                explanation = self._after_death(loading=True)
                if self._request.plain_kernels and not was_plain:
                    continue
                deaths_while_loading += 1
                if deaths_while_loading == LOADS_BEFORE_GIVING_UP:
                    self.close()
                    raise EngineDied(
                        _("The engine could not load the model: {explanation}.", explanation=explanation),
                        hint=_("Use a smaller model, close other programs, or run: edgemed models verify"),
                    ) from None

    def use_adapter(self, adapter: AdapterFile | None) -> None:
        """Attach a LoRA adapter to the loaded base model, or none, without loading the base again.

        Raises:
            ModelError: it cannot be read or belongs to another base; the one before stays in use.
            EngineError: the engine failed.
        """
        self.wait_until_ready()
        try:
            self._send(AdapterRequest(adapter=adapter))
            self._expect_ready()
        except _ChildDied:
            raise EngineDied(
                _(
                    "The engine stopped while it read the adapter: {after_death}.",
                    after_death=self._after_death(),
                ),
                hint=_("Copy the adapter from the kit again."),
            ) from None
        self._request = msgspec.structs.replace(self._request, adapter=adapter)

    def use_sampling(self, sampling: Sampling) -> None:
        """Choose tokens like this from the next question on."""
        self._sampling = sampling

    def ask(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        seed: int | None = None,
        answer_so_far: str = "",
    ) -> Iterator[Event]:
        """Answer the last message. See `messages.Engine`."""
        self._check_length(messages)
        request = AskRequest(
            messages=list(messages),
            max_tokens=max_tokens,
            sampling=self._sampling,
            seed=random.getrandbits(32) if seed is None else seed,
            answer_so_far=answer_so_far,
        )
        self._stop_byte[0] = 0
        return self._events(request, asked_at=time.perf_counter())

    def measure(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        seed: int = 0,
        reuse: Reuse = "all",
        past_end: bool = False,
        sampling: Sampling | None = None,
    ) -> Iterator[Event]:
        """Answer as `ask` does; the answer carries its `Measurement`.

        Args:
            reuse: what may be taken from earlier reading.
            past_end: write on where the answer ends, up to `max_tokens`.
            sampling: None is what the app uses with this model.

        Raises:
            EdgemedError: as `wait_until_ready` and `ask` say; loading is over when the time begins.
        """
        self._check_length(messages)
        self.wait_until_ready()
        self._stop_byte[0] = 0
        request = AskRequest(
            messages=list(messages),
            max_tokens=max_tokens,
            sampling=sampling or self._sampling,
            seed=seed,
            reuse=reuse,
            past_end=past_end,
            asked_at_ns=time.perf_counter_ns(),
        )
        return self._events(request, asked_at=time.perf_counter())

    def score(
        self,
        continuations: Sequence[str],
        *,
        messages: Sequence[ChatMessage] = (),
        text: str | None = None,
    ) -> Scores:
        """Return how probable each continuation is after a conversation (the app's way) or a plain text.

        Raises:
            UsageError: the text or a continuation is empty, or both together are too long.
            EngineDied: the engine process ended; a new one is loading.
        """
        reply = self._request_one(
            ScoreRequest(messages=list(messages), text=text, continuations=list(continuations))
        )
        assert isinstance(reply, Scores)
        return reply

    def distributions(
        self,
        *,
        messages: Sequence[ChatMessage] = (),
        answer: str = "",
        token_ids: Sequence[int] | None = None,
        first: int | None = None,
        top: int = 32,
        wanted: Sequence[Sequence[int]] | None = None,
    ) -> Distributions:
        """Return what may follow each token of a conversation with this answer, or of these tokens.

        Args:
            first: the first token's index; None is the last one before the answer.
            top: the number of most probable tokens that are told at each position.
            wanted: ids to tell of in their place, one list a position.

        Raises:
            UsageError: the positions do not fit, or the text is too long.
            EngineDied: the engine process ended; a new one is loading.
        """
        request = DistributionsRequest(
            messages=list(messages),
            answer=answer,
            token_ids=None if token_ids is None else list(token_ids),
            first=first,
            top=top,
            wanted=None if wanted is None else [list(ids) for ids in wanted],
        )
        reply = self._request_one(request)
        assert isinstance(reply, Distributions)
        return reply

    def stop(self) -> None:
        """End the answer that is being read or written."""
        self._stop_byte[0] = 1

    def close(self) -> None:
        """End the child."""
        process, self._process = self._process, None
        self._ready = False
        if process is None:
            return
        self.stop()
        for pipe in (self._requests, self._replies):
            pipe.close()
        process.join(_CLOSE_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        process.close()

    def _request_one(self, request: ScoreRequest | DistributionsRequest) -> Scores | Distributions:
        """Send a request that has one reply, and wait for it."""
        self._stop_byte[0] = 0
        self._begin(request)
        rendering = False
        try:
            while True:
                reply = self._receive(RENDER_LIMIT_SECONDS if rendering else None)
                if isinstance(reply, Rendering | Rendered):
                    rendering = isinstance(reply, Rendering)
                if isinstance(reply, Failure):
                    self._deaths = 0
                    raise _planned_error(reply)
                if isinstance(reply, Scores | Distributions):
                    self._deaths = 0
                    return reply
        except _ChildDied:
            raise EngineDied(
                _("The engine stopped while it scored: {explanation}.", explanation=self._after_death()),
                hint=_("Close other programs, use a smaller model, or run: edgemed doctor"),
            ) from None
        except ModelUnsupported:
            if self._process is not None and self._process.exitcode is not None:
                self._after_death()
            raise

    def _check_length(self, messages: Sequence[ChatMessage]) -> None:
        limit = CHARACTERS_PER_TOKEN_AT_MOST * self._request.context_length
        if len(messages[-1].content) > limit:
            raise QuestionTooLong(
                _(
                    "The question has {len} characters, and the model can take {limit} at the very most.",
                    len=len(messages[-1].content),
                    limit=limit,
                ),
                hint=_("Ask a shorter question."),
            )

    def _events(self, request: AskRequest, *, asked_at: float) -> Iterator[Event]:
        answer = _Answering(asked_at, request.asked_at_ns)
        finished = tried_again = False
        try:
            self._begin(request)
            while not finished:
                try:
                    reply = self._receive(RENDER_LIMIT_SECONDS if answer.rendering else None)
                except _ChildDied:
                    explanation = self._after_death()
                    if not answer.heard and not tried_again:
                        # It was dead already when the question came: nothing is lost, nothing to tell.
                        tried_again = True
                        self._begin(request)
                        continue
                    finished = True
                    yield Finished(answer.died(explanation))
                    return
                answer.heard = True
                if isinstance(reply, Failure):
                    finished = True
                    self._deaths = 0
                    raise _planned_error(reply)
                event = answer.take(reply)
                if isinstance(event, Finished):
                    finished = True
                    self._deaths = 0
                if event is not None:
                    yield event
        finally:
            if not finished:
                self._abandon()

    def _begin(self, request: Request) -> None:
        """Hand the question over; a child that died since the last answer is replaced without a word."""
        for _unused in range(DEATHS_BEFORE_GIVING_UP):
            self.wait_until_ready()
            try:
                self._send(request)
                if self._process.exitcode is None:
                    return
                self._after_death()
            except _ChildDied:
                self._after_death()
        raise EngineDied(
            _("The engine stopped {deaths} times in a row.", deaths=self._deaths),
            hint=_("Close other programs, use a smaller model, or run: edgemed doctor"),
        )

    def _abandon(self) -> None:
        """The caller does not want the rest: stop, and empty the pipe for the next question."""
        if self._process is None or not self._ready:
            return
        self.stop()
        try:
            while not isinstance(self._receive(RENDER_LIMIT_SECONDS), Done | Failure):
                pass
        except (_ChildDied, ModelUnsupported):
            self._after_death()

    def _start(self) -> None:
        self._ready = False
        self._last_words = ""
        # One-way pipes: on Linux a two-way one is a socket pair, and no socket is this app's promise.
        child_requests, self._requests = self._spawn.Pipe(duplex=False)
        self._replies, child_replies = self._spawn.Pipe(duplex=False)
        process = self._spawn.Process(
            target=engine_child.main,
            args=(child_requests, child_replies, self._stop_byte, self._encoder.encode(self._request)),
            name="edgemed-engine",
            daemon=True,
        )
        os.environ.setdefault("GOMP_SPINCOUNT", engine_child.SPIN_COUNT)
        try:
            process.start()
        except OSError as error:
            raise EngineError(
                _("The engine process cannot be started: {reason}.", reason=error.strerror),
                hint=_("Close other programs."),
            ) from error
        finally:
            child_requests.close()
            child_replies.close()
        self._process = process

    def _expect_ready(self) -> None:
        while True:
            reply = self._receive(None)
            if isinstance(reply, Loading):
                self.load_fraction = reply.fraction
            if isinstance(reply, Ready):
                self.load_fraction = 1.0
                if not self._ready:
                    kernels.remember(
                        Path(self._request.kernels_file),
                        reply.llama_cpp_build,
                        self._request.model_sha256,
                        reply.kernels,
                    )
                self._ready = True
                self.llama_cpp_build = reply.llama_cpp_build
                self.load_seconds = reply.load_seconds or self.load_seconds
                return
            if isinstance(reply, Failure):
                if not self._ready:
                    self.close()
                raise _planned_error(reply)

    def _send(self, request: Request) -> None:
        try:
            self._requests.send_bytes(self._encoder.encode(request))
        except OSError:
            raise _ChildDied from None

    def _receive(self, limit_seconds: float | None) -> Reply:
        replies: Connection = self._replies
        while True:
            try:
                if not self._wait(replies, limit_seconds):
                    self._process.kill()
                    raise ModelUnsupported(
                        _(
                            "The model's chat template did not come to its end in {limit_seconds:.0f} s.",
                            limit_seconds=limit_seconds,
                        ),
                        hint=_("Use another model, or export this one again with a working template."),
                    )
                reply: Reply = self._decoder.decode(replies.recv_bytes())
            except (EOFError, OSError, msgspec.DecodeError):
                raise _ChildDied from None
            if not isinstance(reply, LastWords):
                return reply
            self._last_words = reply.text

    def _wait(self, replies: Connection, limit_seconds: float | None) -> bool:
        # In slices: Windows runs no signal handler while a wait is under way, and Ctrl+C must stop an answer.
        waited = 0.0
        while not replies.poll(_WAIT_SLICE_SECONDS):
            waited += _WAIT_SLICE_SECONDS
            if limit_seconds is not None and waited >= limit_seconds:
                return False
        return True

    def _after_death(self, *, loading: bool = False) -> str:
        """Clean up after a child that ended, start the next, and return in words what happened."""
        process, self._process = self._process, None
        self._ready = False
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                pipe.close()
        process.join(_CLOSE_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        explanation = operating_system.describe_exit(process.exitcode)
        if loading and operating_system.is_crash(process.exitcode):
            self._request = msgspec.structs.replace(self._request, plain_kernels=True)
        if self._last_words:
            explanation += f" ({self._last_words})"
        process.close()
        self._deaths += 1
        if self._deaths < DEATHS_BEFORE_GIVING_UP:
            self._start()
        return explanation


class _Answering:
    """An answer as it grows."""

    def __init__(self, asked_at: float, asked_at_ns: int) -> None:
        self._asked_at = asked_at
        self._asked_at_ns = asked_at_ns
        self._first_text_ns: int | None = None
        self._pieces: list[str] = []
        self._generated_tokens = 0
        self._prompt_tokens = 0
        self._reused_tokens = 0
        self._ttft_seconds: float | None = None
        self._first_at = self._last_at = 0.0
        self._reading_began = False
        self.rendering = False
        self.heard = False
        """Whether the child said anything since the question."""

    def take(self, reply: Reply) -> Event | None:
        """Note a reply of the child; return what the caller should see of it."""
        match reply:
            case Rendering():
                self.rendering = True
            case Rendered():
                self.rendering = False
            case TurnsLeftOut():
                return reply
            case Reading():
                if not self._reading_began:
                    self._reused_tokens, self._reading_began = reply.read_tokens, True
                self._prompt_tokens = reply.prompt_tokens
                return reply
            case Text():
                now = time.perf_counter()
                if self._ttft_seconds is None:
                    self._ttft_seconds = now - self._asked_at
                    self._first_at = now
                self._last_at = now
                self._generated_tokens = reply.generated_tokens
                self._pieces.append(reply.text)
                if self._first_text_ns is None and reply.text.strip():
                    self._first_text_ns = time.perf_counter_ns() - self._asked_at_ns
                return Piece(reply.text)
            case Done():
                return Finished(
                    Answer(
                        text="".join(self._pieces),
                        stop_reason=reply.stop_reason,
                        prompt_tokens=reply.prompt_tokens,
                        reused_tokens=reply.reused_tokens,
                        generated_tokens=reply.generated_tokens,
                        ttft_seconds=self._ttft_seconds,
                        prefill_seconds=reply.prefill_seconds,
                        decode_seconds=reply.decode_seconds,
                        threads=reply.threads,
                        measurement=self._measurement(reply),
                    )
                )
        return None

    def _measurement(self, done: Done) -> Measurement | None:
        if done.times is None:
            return None
        return Measurement(
            first_text_ns=self._first_text_ns,
            end_ns=time.perf_counter_ns() - self._asked_at_ns,
            **msgspec.structs.asdict(done.times),
        )

    def died(self, explanation: str) -> Answer:
        """Return the partial answer of a child that ended."""
        return Answer(
            text="".join(self._pieces),
            stop_reason="engine_died",
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            generated_tokens=self._generated_tokens,
            ttft_seconds=self._ttft_seconds,
            prefill_seconds=(self._first_at or time.perf_counter()) - self._asked_at,
            decode_seconds=self._last_at - self._first_at,
            threads=0,
            explanation=_(
                "The engine stopped in the middle of the answer: {explanation}. "
                "What was written is kept. The engine starts again by itself: ask again.",
                explanation=explanation,
            ),
        )


def _planned_error(failure: Failure) -> errors.EdgemedError:
    kind = getattr(errors, failure.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.EdgemedError)):
        kind = EngineError
    return kind(failure.message, hint=failure.hint)
