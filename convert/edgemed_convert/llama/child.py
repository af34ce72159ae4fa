"""The process that owns llama.cpp, and the only module here that meets llama_cpp. Started by `process.py`.

Reads requests from standard input and writes replies to what was standard output; whatever llama.cpp prints
goes to standard error. A crash in here never ends the tool.
"""

import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from edgemed import operating_system
from edgemed.engine.messages import ChatMessage
from edgemed.engine.plugins import load_best_plugin
from edgemed.errors import EdgemedError
from edgemed_convert.errors import LlamaCppError
from edgemed_convert.llama.activations import ActivationCollector
from edgemed_convert.llama.log import Log
from edgemed_convert.llama.messages import (
    ActivationSums,
    CollectActivations,
    ComputeLogits,
    Failure,
    Finished,
    Generate,
    Generated,
    Load,
    LogitsPart,
    Progress,
    Quantize,
    ReadVocabulary,
    Render,
    Rendered,
    Reply,
    Request,
    Tokenize,
    Tokenized,
    VocabularyPart,
    read_frame,
    write_frame,
)
from edgemed_convert.llama.model import Model
from edgemed_convert.llama.quantizing import quantize
from edgemed_convert.llama.rendering import ChatRenderer

SPIN_COUNT = "100"
"""How long a thread of libgomp spins for the others. Next to other work on the same two cores, libgomp's own
choice took 4 times as long for a batch of 512 tokens."""
_PROGRESS_SECONDS = 0.1
_TOKENS_PER_PART = 4096
_LOGITS_BYTES_PER_PART = 32 * 2**20


def main() -> None:
    """Answer requests until standard input closes."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read when libgomp loads, with llama_cpp
    os.environ["GGML_NO_BACKTRACE"] = "1"  # an abort must not start a debugger
    operating_system.ignore_termination_signals()
    operating_system.lower_priority_for_memory_pressure()
    replies = _take_standard_output()
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, requests), daemon=True).start()
    _Child(replies).serve(requests)


def _take_standard_output() -> BinaryIO:
    """Keep standard output for replies: what C code prints there goes to standard error from now on."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def _receive(stream: BinaryIO, requests: "queue.SimpleQueue[bytes]") -> None:
    while (document := read_frame(stream)) is not None:
        requests.put(document)
    # The tool closed the pipe or is gone: nobody waits for what is being computed.
    os._exit(0)


class _Child:
    def __init__(self, replies: BinaryIO) -> None:
        self._replies = replies
        self._encoder = msgspec.msgpack.Encoder()
        self._log = Log()
        self._lib: Any = None
        self._model: Model | None = None
        self._load_request: Load | None = None
        self._progress_at = 0.0

    def serve(self, requests: "queue.SimpleQueue[bytes]") -> None:
        decoder = msgspec.msgpack.Decoder(Request)
        while True:
            request = decoder.decode(requests.get())
            try:
                self._start_llama_cpp()
                self._answer(request)
            except EdgemedError as error:
                self._send(
                    Failure(
                        kind=type(error).__name__,
                        message=error.message,
                        hint=error.hint,
                        log=self._log.lines(),
                    )
                )
            except MemoryError:
                self._send(
                    Failure(
                        kind="LlamaCppError", message="Memory ran out.", hint="Close other programs.", log=[]
                    )
                )

    def _start_llama_cpp(self) -> None:
        if self._lib is not None:
            return
        try:
            import llama_cpp._ggml as ggml
            import llama_cpp.llama_cpp as lib
        except (ImportError, OSError, RuntimeError) as error:
            raise LlamaCppError(
                f"llama-cpp-python cannot be loaded: {error}.",
                hint='Install it again: pip install "edgemed[convert]"',
            ) from error
        # Errors are shown by the tool; what stands on standard error explains a crash.
        self._log.capture(lib)
        load_best_plugin(ggml.libggml, ggml.libggml_base_path)
        lib.llama_backend_init()
        self._lib = lib

    def _answer(self, request: Request) -> None:
        match request:
            case Load():
                self._load(request)
            case Tokenize():
                self._send(
                    Tokenized(
                        [
                            self._loaded().tokenize(
                                text, add_special=request.add_special, parse_special=request.parse_special
                            )
                            for text in request.texts
                        ]
                    )
                )
            case Render():
                self._send(self._rendered(request))
            case ReadVocabulary():
                self._send_vocabulary()
            case ComputeLogits():
                self._send_logits(request)
            case Generate():
                self._send(Generated(self._loaded().generate(request.token_ids, request.count)))
            case CollectActivations():
                self._collect(request)
            case Quantize():
                self._close_model()
                self._send(Finished(log=quantize(self._lib, self._log, request, self._report)))

    def _load(self, request: Load) -> None:
        self._close_model()
        self._load_request = None
        self._model = Model(self._lib, self._log, request, on_progress=self._report_fraction)
        self._load_request = request
        self._send(self._model.describe())

    def _close_model(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.close()

    def _loaded(self) -> Model:
        if self._model is None:
            if self._load_request is None:
                raise LlamaCppError("No model is loaded.")
            # It made room for another task of this process.
            self._model = Model(self._lib, self._log, self._load_request, on_progress=self._report_fraction)
        return self._model

    def _rendered(self, request: Render) -> Rendered:
        renderer = ChatRenderer(self._loaded(), request.template)
        render = renderer.prompt if request.for_answer else renderer.conversation
        texts: list[str | None] = []
        faults: list[str] = []
        for conversation in request.conversations:
            try:
                messages = [
                    msgspec.convert({"role": role, "content": content}, ChatMessage)
                    for role, content in conversation
                ]
                texts.append(render(messages))
            except (EdgemedError, msgspec.ValidationError) as error:
                texts.append(None)
                faults.append(str(error))
        return Rendered(texts, faults)

    def _send_vocabulary(self) -> None:
        model = self._loaded()
        for start in range(0, model.vocabulary_size, _TOKENS_PER_PART):
            tokens = range(start, min(start + _TOKENS_PER_PART, model.vocabulary_size))
            self._send(
                VocabularyPart(
                    texts=[model.text_of(token) for token in tokens],
                    pieces=[model.piece_of(token) for token in tokens],
                    attributes=[model.attributes_of(token) for token in tokens],
                    is_eog=[model.is_end(token) for token in tokens],
                )
            )
        self._send(Finished())

    def _send_logits(self, request: ComputeLogits) -> None:
        model = self._loaded()
        rows_per_part = max(1, _LOGITS_BYTES_PER_PART // (4 * model.vocabulary_size))
        for logits in model.logits(request.token_ids, start=request.start):
            for row in range(0, len(logits), rows_per_part):
                part = logits[row : row + rows_per_part]
                self._send(LogitsPart(len(part), part.astype("<f4").tobytes()))
            self._report(Progress(0, 0))
        self._send(Finished())

    def _collect(self, request: CollectActivations) -> None:
        """Load the model once more with the callback in place, for llama.cpp takes it only at the start."""
        plain = self._loaded().request
        collector = ActivationCollector(self._ggml(), self._lib.ggml_backend_sched_eval_callback)
        self._close_model()
        model = Model(
            self._lib,
            self._log,
            msgspec.structs.replace(plain, context_length=max(map(len, request.chunks))),
            on_progress=self._report_fraction,
            eval_callback=collector.callback,
        )
        try:
            self._read_chunks(model, request, collector)
        finally:
            model.close()
        for name, sums in collector.sums.items():
            self._send(ActivationSums(name=name, sums=sums.squares.astype("<f4").tobytes(), rows=sums.rows))
        self._send(Finished())

    def _read_chunks(self, model: Model, request: CollectActivations, collector: ActivationCollector) -> None:
        for number, chunk in enumerate(request.chunks):
            try:
                model.read(chunk)
            except LlamaCppError:
                if collector.fault is None:
                    raise
            if collector.fault is not None:
                raise LlamaCppError(
                    f"No importance matrix can be made of {Path(model.request.path).name}: {collector.fault}."
                )
            self._report(Progress(number + 1, len(request.chunks)), always=True)

    def _ggml(self) -> Any:
        import llama_cpp
        from llama_cpp import _ctypes_extensions

        folder = Path(llama_cpp.__file__).parent / "lib"
        try:
            return _ctypes_extensions.load_shared_library("ggml-base", folder)
        except (OSError, RuntimeError) as error:
            raise LlamaCppError(f"ggml's base library is not in {folder}: {error}.") from error

    def _report_fraction(self, fraction: float) -> None:
        self._report(Progress(round(fraction * 1000), 1000))

    def _report(self, progress: Progress, *, always: bool = False) -> None:
        now = time.monotonic()
        if always or progress.done == progress.total or now - self._progress_at >= _PROGRESS_SECONDS:
            self._progress_at = now
            self._send(progress)

    def _send(self, reply: Reply) -> None:
        try:
            write_frame(self._replies, self._encoder.encode(reply))
        except OSError:
            os._exit(1)  # the tool is gone


if __name__ == "__main__":
    main()
