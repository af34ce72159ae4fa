"""The process that owns llama.cpp. Started by `client.py`; a crash in here never ends the app.

Reads requests from one pipe, writes replies to another, and watches one shared byte: the stop.
"""

import codecs
import contextlib
import ctypes
import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from edgemed import languages, machine, operating_system
from edgemed.engine import kernels, prefix_state, probabilities
from edgemed.engine.chat_template import ChatTemplate, without_oldest_turn
from edgemed.engine.llama import ContextFull, Llama, Stopped, llama_cpp_build
from edgemed.engine.messages import (
    AdapterFile,
    AdapterRequest,
    AskRequest,
    ChatMessage,
    ChildTimes,
    DistributionsRequest,
    Done,
    Failure,
    LastWords,
    Loading,
    LoadRequest,
    Reading,
    Ready,
    Rendered,
    Rendering,
    Reply,
    Request,
    ScoreRequest,
    Scores,
    StopReason,
    Text,
    TurnsLeftOut,
)
from edgemed.engine.threads import FixedThreads, ThreadController
from edgemed.errors import EdgemedError, EngineError, ModelUnsupported, QuestionTooLong, UsageError
from edgemed.languages import text as _

SPIN_COUNT = "100000"
"""Bounds how long a thread of libgomp spins for the others; measured in docs/experiments.md. The
parent sets it as `GOMP_SPINCOUNT`: on Windows libgomp sees the environment of the process's start alone."""
_LOOK_WHILE_IDLE_SECONDS = 1.0
_PROGRESS_SECONDS = 0.1


def main(requests: Connection, replies: Connection, stop_byte: Any, load_request: bytes) -> None:
    """Load one model, then answer until the pipe closes."""
    os.environ["GGML_NO_BACKTRACE"] = "1"  # an abort must not start a debugger
    operating_system.ignore_termination_signals()
    operating_system.send_stderr_to_null()
    operating_system.lower_priority_for_memory_pressure()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    request = msgspec.msgpack.decode(load_request, type=LoadRequest)
    languages.use_language(request.language)
    if request.forbid_sockets:
        from edgemed.offline import forbid_sockets

        forbid_sockets()
    child = _Child(replies, request, ctypes.addressof(stop_byte))
    try:
        if child.load():
            child.serve(requests)
    except BrokenPipeError:
        return  # the parent is gone
    except Exception as error:
        # The type only: a message could quote the question.
        child.send(LastWords(type(error).__name__))
        raise


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Child:
    def __init__(self, replies: Connection, request: LoadRequest, stop_byte_address: int) -> None:
        self._replies = replies
        self._encoder = msgspec.msgpack.Encoder()
        self._request = request
        self._stop_byte_address = stop_byte_address
        self._load_monitor = machine.OtherProcessesLoad()
        self._threads = (
            FixedThreads(request.threads)
            if request.threads
            else ThreadController(machine.physical_cores(), self._load_monitor.sample)
        )
        self._progress_at = 0.0
        self._read_text = ""
        """The rendered text of the conversation so far, last answer included."""
        self._read_ids: list[int] = []
        """Its token ids as they were read and written."""

    def send(self, reply: Reply) -> None:
        self._replies.send_bytes(self._encoder.encode(reply))

    def fail(self, error: EdgemedError) -> None:
        self.send(Failure(kind=type(error).__name__, message=error.message, hint=error.hint))

    def load(self) -> bool:
        started = time.perf_counter()
        try:
            _report_last_words(self.send)
            self._build = llama_cpp_build()
            proved = kernels.recall(Path(self._request.kernels_file), self._build, self._request.model_sha256)
            self._kernels: kernels.Kernels = "plain" if self._request.plain_kernels else proved or "full"
            self._llama = Llama(
                self._request,
                self._threads,
                self._stop_byte_address,
                plain_kernels=self._kernels == "plain",
                on_progress=self._report_loading,
            )
            self._template = self._make_template()
            self._use_adapter(self._request.adapter)
            with contextlib.suppress(Stopped):
                self._llama.warm_up(prove_kernels=proved is None)
        except EdgemedError as error:
            self.fail(error)
            return False
        seconds = time.perf_counter() - started
        self.send(Ready(load_seconds=seconds, llama_cpp_build=self._build, kernels=self._kernels))
        return True

    def _report_loading(self, fraction: float) -> None:
        now = time.perf_counter()
        if fraction >= 1 or now - self._progress_at >= _PROGRESS_SECONDS:
            self._progress_at = now
            self.send(Loading(fraction))

    def serve(self, requests: Connection) -> None:
        decoder = msgspec.msgpack.Decoder(Request)
        while True:
            # Looking at the load while the person types, so that the first batch has the right threads.
            while not requests.poll(_LOOK_WHILE_IDLE_SECONDS):
                self._threads.look()
            try:
                request = decoder.decode(requests.recv_bytes())
            except EOFError:
                return
            try:
                match request:
                    case AskRequest():
                        self._answer(request)
                    case AdapterRequest():
                        self._use_adapter(request.adapter)
                        self.send(Ready(load_seconds=0.0, llama_cpp_build=self._build))
                    case ScoreRequest():
                        self._score(request)
                    case DistributionsRequest():
                        self._tell_distributions(request)
            except EdgemedError as error:
                self.fail(error)

    def _make_template(self) -> ChatTemplate:
        source = self._llama.chat_template() or self._request.chat_template
        if not source:
            raise ModelUnsupported(
                _(
                    "{name} has no chat template: it cannot be used for chat.",
                    name=Path(self._request.model_path).name,
                ),
                hint=_(
                    "Name its template in the manifest (chat_template), or export the model again with it."
                ),
            )
        texts = [
            "" if token is None else self._llama.text_of(token)
            for token in (self._llama.bos_token, self._llama.eos_token)
        ]
        return ChatTemplate(source, self._llama, bos_text=texts[0], eos_text=texts[1])

    def _use_adapter(self, adapter: AdapterFile | None) -> None:
        self._llama.use_adapter(adapter)
        self._read_text = ""
        scale = "" if adapter is None else f"{adapter.sha256}*{adapter.scale}"
        self._identity = [self._request.model_sha256, scale, self._build, self._kernels]
        self._prefixes: dict[tuple[ChatMessage, ...], list[int]] = {}

    # One answer.

    def _answer(self, request: AskRequest) -> None:
        started = time.perf_counter()
        cpu_started = time.process_time_ns()
        text, prompt, prefix = self._fit(request)
        reused = 0
        stop_reason: StopReason = "cancelled"
        generated: list[int] = []
        token_times: list[int] = []
        first_at = last_at = prefilled_at = 0.0
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        written: list[str] = []
        llama = self._llama
        try:
            if request.reuse != "all":
                llama.forget()
            if request.reuse == "nothing":
                prefix = []
            reused = self._reuse(prompt, prefix)
            started = time.perf_counter()
            self._read_prompt(prompt, prefix)
            prefilled_at = time.perf_counter()
            stop_reason = "length"
            room = min(request.max_tokens, llama.context_length - len(prompt))
            for token in llama.write(request.sampling, request.seed, room, past_end=request.past_end):
                last_at = time.perf_counter()
                first_at = first_at or last_at
                generated.append(token)
                if request.asked_at_ns:
                    token_times.append(time.perf_counter_ns())
                if piece := decoder.decode(llama.bytes_of(token)):
                    written.append(piece)
                    self.send(Text(piece, len(generated)))
            if len(generated) < room:
                stop_reason = "end_of_turn"
        except Stopped:
            stop_reason = "cancelled"
        except ContextFull:
            stop_reason = "length"
        if rest := decoder.decode(b"", final=True):
            written.append(rest)
            self.send(Text(rest, len(generated)))
        self._read_text = text + "".join(written) if prefilled_at else ""
        self._read_ids = prompt + generated
        times = None
        if request.asked_at_ns:
            times = ChildTimes(
                first_token_ns=token_times[0] - request.asked_at_ns if token_times else None,
                token_ns=[later - earlier for earlier, later in itertools.pairwise(token_times)],
                prefill_ns=round(((prefilled_at or time.perf_counter()) - started) * 1e9),
                cpu_ns=time.process_time_ns() - cpu_started,
                peak_rss_bytes=machine.peak_rss_bytes(),
                prompt_ids_sha256=probabilities.prompt_ids_sha256(prompt),
            )
        self.send(
            Done(
                stop_reason=stop_reason,
                prompt_tokens=len(prompt),
                reused_tokens=reused,
                generated_tokens=len(generated),
                prefill_seconds=(prefilled_at or time.perf_counter()) - started,
                decode_seconds=last_at - first_at,
                threads=self._threads.threads,
                times=times,
            )
        )

    # Scores and distributions.

    def _score(self, request: ScoreRequest) -> None:
        started, cpu_started = time.perf_counter(), time.process_time()
        llama = self._llama
        if request.text is None:
            prompt = self._template.token_ids(self._render(request.messages))
            prefix = self._prefix_ids(request.messages)
            prefix = prefix if prompt[: len(prefix)] == prefix and len(prefix) < len(prompt) else []
            continuations = [self._template.plain_ids(each) for each in request.continuations]
        else:
            pairs = [
                probabilities.split_continuation(llama, request.text, each) for each in request.continuations
            ]
            prompt, prefix = pairs[0][0] if pairs else [], []
            continuations = [ids for _prompt, ids in pairs]
        if not prompt or not continuations or not all(continuations):
            raise UsageError(_("There is nothing to score: the text or a continuation is empty."))
        self._check_room(len(prompt) + max(map(len, continuations)))
        try:
            scores = probabilities.score_continuations(llama, prompt, prefix, continuations)
        except (Stopped, ContextFull):
            llama.forget()
            raise EngineError(_("The scoring was stopped."), hint=_("Start it again.")) from None
        self.send(
            Scores(
                continuations=scores,
                prompt_tokens=len(prompt),
                prompt_ids_sha256=probabilities.prompt_ids_sha256(prompt),
                seconds=time.perf_counter() - started,
                cpu_seconds=time.process_time() - cpu_started,
            )
        )

    def _tell_distributions(self, request: DistributionsRequest) -> None:
        ids, first = request.token_ids, request.first
        if ids is None:
            prompt = self._template.token_ids(self._render(request.messages))
            ids = prompt + self._template.plain_ids(request.answer)
            first = len(prompt) - 1 if first is None else first
        first = first or 0
        positions, wanted = len(ids) - first, request.wanted
        if first < 0 or positions < 1 or (wanted is not None and len(wanted) != positions):
            raise UsageError(_("The positions asked for do not fit the text."))
        size = self._llama.vocabulary_size
        if not all(0 <= token < size for token in itertools.chain(ids, *(wanted or []))):
            raise UsageError(_("A token asked for is not in the model's vocabulary."))
        self._check_room(len(ids))
        try:
            reply = probabilities.token_distributions(self._llama, ids, first, top=request.top, wanted=wanted)
        except (Stopped, ContextFull):
            self._llama.forget()
            raise EngineError(_("The scoring was stopped."), hint=_("Start it again.")) from None
        self.send(reply)

    def _render(self, messages: list[ChatMessage]) -> str:
        self.send(Rendering())
        text = self._template.render(messages)
        self.send(Rendered())
        return text

    def _check_room(self, tokens: int) -> None:
        if tokens > self._llama.context_length:
            raise QuestionTooLong(
                _(
                    "The question needs {len} tokens, and the model can take {value}.",
                    len=tokens,
                    value=self._llama.context_length,
                ),
                hint=_("Ask a shorter question, or use a longer context: --context-length."),
            )

    def _fit(self, request: AskRequest) -> tuple[str, list[int], list[int]]:
        """Return the rendered text, its ids and the ids of the shared prefix, oldest turns left out."""
        self.send(Rendering())
        messages, left_out = list(request.messages), 0
        reserve = min(request.max_tokens, self._llama.context_length // 4)
        while True:
            text = self._template.render(messages)
            prompt = self._prompt_ids(text, request.answer_so_far)
            if len(prompt) + reserve <= self._llama.context_length:
                break
            shorter = without_oldest_turn(messages)
            if shorter is None and request.answer_so_far:
                raise QuestionTooLong(
                    _(
                        "The question and the answer so far need {len} tokens, "
                        "and the model can take {value}.",
                        len=len(prompt),
                        value=self._llama.context_length - reserve,
                    ),
                    hint=_("Ask for the rest in a new conversation, or use a longer context."),
                )
            if shorter is None:
                raise QuestionTooLong(
                    _(
                        "The question needs {len} tokens, and the model can take {value}.",
                        len=len(prompt),
                        value=self._llama.context_length - reserve,
                    ),
                    hint=_("Ask a shorter question, or use a longer context: --context-length."),
                )
            left_out += 1
            messages = shorter
        prefix = self._prefix_ids(messages)
        self.send(Rendered())
        if left_out:
            self.send(TurnsLeftOut(left_out))
        if prompt[: len(prefix)] != prefix or len(prefix) >= len(prompt):
            prefix = []
        return text + request.answer_so_far, prompt, prefix

    def _prompt_ids(self, text: str, answer_so_far: str) -> list[int]:
        written = self._read_text[len(text) :] if self._read_text.startswith(text) else ""
        # The app keeps an answer without the space that many models begin with.
        if answer_so_far and written.lstrip() == answer_so_far.lstrip():
            return self._read_ids
        ids = self._template.continued_ids(self._read_ids, self._read_text, text) or self._template.token_ids(
            text
        )
        return ids + self._template.plain_ids(answer_so_far)

    def _prefix_ids(self, messages: list[ChatMessage]) -> list[int]:
        system = tuple(message for message in messages[:-1] if message.role == "system")
        if not system:
            return []
        if system not in self._prefixes:
            ids = self._template.shared_prefix_ids(system)
            self._prefixes = {system: ids if len(ids) >= prefix_state.MINIMUM_TOKENS else []}
        return self._prefixes[system]

    def _reuse(self, prompt: list[int], prefix: list[int]) -> int:
        """Take what the KV cache or the saved prefix state already holds; return how many tokens."""
        kept = self._llama.keep_prefix(prompt)
        if kept >= len(prefix):
            return kept
        folder = Path(self._request.prefix_states_folder)
        key = prefix_state.state_key(self._identity, prefix)
        state = prefix_state.load_state(folder, key)
        if state is None:
            return kept
        if self._llama.restore(state, prefix):
            return len(prefix)
        prefix_state.forget_state(folder, key)
        return 0

    def _read_prompt(self, prompt: list[int], prefix: list[int]) -> None:
        llama = self._llama
        total = len(prompt)
        self.send(Reading(len(llama.tokens), total))

        def on_progress(held: int) -> None:
            self.send(Reading(held, total))

        if len(llama.tokens) < len(prefix):
            # Read by itself, cold or restored, so that both give the same batches and the same words.
            llama.read(prefix[len(llama.tokens) :], on_progress)
            key = prefix_state.state_key(self._identity, prefix)
            prefix_state.save_state(Path(self._request.prefix_states_folder), key, llama.state())
        llama.read(prompt[len(llama.tokens) :], on_progress)


def _report_last_words(send: Callable[[Reply], None]) -> None:
    """Tell the parent why llama.cpp aborts, before it does."""
    import llama_cpp._ggml as ggml

    try:
        set_callback = ggml.libggml.ggml_set_abort_callback
    except AttributeError:
        return
    callback_type = ctypes.CFUNCTYPE(None, ctypes.c_char_p)

    def on_abort(message: bytes | None) -> None:
        # "/path/of/the/build/file.cpp:123: GGML_ASSERT(…) failed": the path helps nobody.
        text = (message or b"").decode("utf-8", "replace").replace("\\", "/")
        send(LastWords(text.rsplit("/", 1)[-1][:300]))

    _kept.append(callback_type(on_abort))
    set_callback.argtypes, set_callback.restype = [callback_type], ctypes.c_void_p
    set_callback(_kept[-1])


_kept: list[Any] = []
"""ctypes frees a callback that nobody holds."""
