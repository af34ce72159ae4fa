"""One loaded model on llama.cpp's own calls: the only module that meets llama_cpp. Lives in the child.

The low-level calls, not llama-cpp-python's `Llama` class: only they allow to stop while the prompt is read,
to reuse the KV cache as we decide, to attach adapters with mmap on, and to keep control tokens out of user
text. llama_cpp is imported inside the functions: `edgemed --version` must not pay for it.
"""

import collections
import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgemed import operating_system
from edgemed.engine import kernels, memory
from edgemed.engine.chat_template import common_prefix_length
from edgemed.engine.messages import AdapterFile, LoadRequest
from edgemed.engine.plugins import load_best_plugin
from edgemed.errors import EngineError, ModelCorrupt, ModelError, ModelUnsupported
from edgemed.languages import text as _
from edgemed.manifest import Sampling

OUTPUTS_PER_BATCH = 32
"""Logits are wanted for the last token only; llama.cpp would reserve room for 512 of them."""
PENALTY_TOKENS = 64

_SLOW_BATCH_TOKENS = 128
_SLOW_TOKEN_SECONDS = 0.1
"""A machine that needs longer for one token reads in smaller batches: progress shows, threads can follow."""
_ABORTED = 2
_NO_ROOM = 1


class Stopped(Exception):
    """The user's stop arrived while llama.cpp was computing."""


class ContextFull(Exception):
    """No room is left in the KV cache."""


class Threads(Protocol):
    """See `engine/threads.py`."""

    def look(self) -> int:
        """Return the thread count to use now."""


class Llama:
    """A model, its context and its KV cache (one sequence)."""

    def __init__(
        self,
        request: LoadRequest,
        threads: Threads,
        stop_byte_address: int,
        *,
        plain_kernels: bool,
        on_progress: Callable[[float], None] = lambda _fraction: None,
    ) -> None:
        """Load the model.

        Args:
            on_progress: called with the fraction that is loaded, from 0 to 1.
            stop_byte_address: a byte in shared memory; anything but 0 makes llama.cpp stop where it is.

        Raises:
            ModelError: llama.cpp cannot load the file; the message holds its reason.
        """
        import llama_cpp._ggml as ggml
        import llama_cpp.llama_cpp as lib

        self._lib: Any = lib
        self._threads = threads
        self._adapter: Any = None
        self._log = _capture_log(lib)
        self.tokens: list[int] = []
        """What the KV cache holds."""

        load_best_plugin(ggml.libggml, ggml.libggml_base_path)
        lib.llama_backend_init()
        name = Path(request.model_path).name
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.use_extra_bufts = not plain_kernels

        def progress(fraction: float, _user_data: object) -> bool:
            on_progress(fraction)
            return True

        # Held while llama.cpp calls it.
        parameters.progress_callback = callback = lib.llama_progress_callback(progress)
        self._model = lib.llama_model_load_from_file(request.model_path.encode(), parameters)
        del callback
        if not self._model:
            raise self._load_error(name)
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        self._vocabulary_size = lib.llama_vocab_n_tokens(self._vocabulary)
        if self._vocabulary_size <= 0 or lib.llama_vocab_type(self._vocabulary) == 0:
            raise ModelUnsupported(
                _("{name} has no vocabulary.", name=name),
                hint=_("Export the model again with its tokenizer."),
            )
        if not lib.llama_model_has_decoder(self._model) or lib.llama_model_has_encoder(self._model):
            raise ModelUnsupported(
                _("{name} is not a model that writes text.", name=name), hint=_("Use a chat model.")
            )

        settings = lib.llama_context_default_params()
        settings.n_ctx = request.context_length
        settings.n_batch = settings.n_ubatch = memory.BATCH_TOKENS
        settings.n_outputs_max = OUTPUTS_PER_BATCH
        settings.n_threads = settings.n_threads_batch = threads.look()
        settings.no_perf = True
        self._context = lib.llama_init_from_model(self._model, settings)
        if not self._context:
            raise EngineError(
                _(
                    "There is no room for {context_length} tokens of context: {last_log}",
                    context_length=request.context_length,
                    last_log=self._last_log(),
                ),
                hint=_("Use a shorter context: --context-length 1024."),
            )
        self.context_length = min(request.context_length, lib.llama_n_ctx(self._context))
        self._memory = lib.llama_get_memory(self._context)
        self._stop_byte = ctypes.c_uint8.from_address(stop_byte_address)
        # strlen reads 0 as "go on": no Python runs in the child while llama.cpp computes.
        self._strlen = ctypes.cast(operating_system.c_strlen(), lib.ggml_abort_callback)
        lib.llama_set_abort_callback(self._context, self._strlen, stop_byte_address)
        self._batch_tokens = (lib.llama_token * memory.BATCH_TOKENS)()
        self._batch_limit = memory.BATCH_TOKENS

    def warm_up(self, *, prove_kernels: bool) -> None:
        """Touch every weight once, so that the first question does not wait for the disk.

        With `prove_kernels` a batch is read too: see `kernels.py`.
        """
        token = self.bos_token if self.bos_token is not None else 0
        started = time.perf_counter()
        self.read([token])
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        self.forget()
        self.read([token])
        seconds = min(seconds, time.perf_counter() - started)
        self.forget()
        if seconds > _SLOW_TOKEN_SECONDS:
            self._batch_limit = _SLOW_BATCH_TOKENS
        if prove_kernels:
            self.read([token] * min(kernels.PROOF_TOKENS, self.context_length))
            self.forget()

    # Vocabulary: what `chat_template.Vocabulary` asks for.

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""
        return int(self._vocabulary_size)

    @property
    def bos_token(self) -> int | None:
        """The beginning-of-sequence token."""
        token: int = self._lib.llama_vocab_bos(self._vocabulary)
        return token if token >= 0 else None

    @property
    def eos_token(self) -> int | None:
        """The end-of-sequence token."""
        token: int = self._lib.llama_vocab_eos(self._vocabulary)
        return token if token >= 0 else None

    @property
    def adds_bos(self) -> bool:
        """Whether a sequence must begin with BOS."""
        return bool(self._lib.llama_vocab_get_add_bos(self._vocabulary))

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Return token ids, without BOS."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            ids = (self._lib.llama_token * room)()
            count = self._lib.llama_tokenize(
                self._vocabulary, data, len(data), ids, room, False, parse_special
            )
            if count >= 0:
                return list(ids[:count])
            room = -count

    def text_of(self, token: int) -> str:
        """Return the vocabulary's own spelling of a token."""
        text: bytes = self._lib.llama_vocab_get_text(self._vocabulary, token) or b""
        return text.decode("utf-8", "replace")

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes a token writes: possibly a part of a character, nothing for a control token."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._lib.llama_token_to_piece(self._vocabulary, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def is_control(self, token: int) -> bool:
        """Whether a token is a control, unknown or end-of-generation token."""
        attributes = self._lib.llama_vocab_get_attr(self._vocabulary, token)
        mask = self._lib.LLAMA_TOKEN_ATTR_CONTROL | self._lib.LLAMA_TOKEN_ATTR_UNKNOWN
        return bool(attributes & mask) or self.is_end(token)

    def is_user_defined(self, token: int) -> bool:
        """Whether a token was added to the vocabulary as a whole."""
        attributes = self._lib.llama_vocab_get_attr(self._vocabulary, token)
        return bool(attributes & self._lib.LLAMA_TOKEN_ATTR_USER_DEFINED)

    def is_end(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(self._lib.llama_vocab_is_eog(self._vocabulary, token))

    def chat_template(self) -> str | None:
        """Return the template that the file carries."""
        template: bytes | None = self._lib.llama_model_chat_template(self._model, None)
        return template.decode("utf-8", "replace") if template else None

    # The KV cache.

    def keep_prefix(self, tokens: Sequence[int]) -> int:
        """Cut the KV cache back to what it shares with `tokens`; return the length of that.

        The last token is always left to be read: only reading gives logits.
        """
        kept = min(common_prefix_length(self.tokens, tokens), len(tokens) - 1)
        if kept < len(self.tokens) and not self._lib.llama_memory_seq_rm(self._memory, 0, kept, -1):
            # Some architectures cannot forget a part.
            self.forget()
            return 0
        del self.tokens[kept:]
        return kept

    def cut(self, length: int) -> None:
        """Forget what the KV cache holds after the first `length` tokens.

        Raises:
            ModelUnsupported: this architecture cannot forget a part.
        """
        if length < len(self.tokens) and not self._lib.llama_memory_seq_rm(self._memory, 0, length, -1):
            self.forget()
            raise ModelUnsupported(
                _("This model's architecture cannot go back in a text."),
                hint=_("Questions with options cannot be scored with it; all others can."),
            )
        del self.tokens[length:]

    def forget(self) -> None:
        """Empty the KV cache."""
        self._lib.llama_memory_clear(self._memory, True)
        self.tokens.clear()

    def read(self, tokens: Sequence[int], on_progress: Callable[[int], None] | None = None) -> None:
        """Append tokens to the KV cache; `on_progress` is told how many it holds after each batch.

        Raises:
            Stopped: the stop byte was set; the KV cache holds the batches that were whole.
            ContextFull: there is no room.
        """
        for start in range(0, len(tokens), self._batch_limit):
            if self._stop_byte.value:
                raise Stopped
            self._decode(tokens[start : start + self._batch_limit])
            if on_progress:
                on_progress(len(self.tokens))

    def read_with_logits(self, tokens: Sequence[int], first: int) -> Iterator[Any]:
        """Append tokens; yield the float32 logits, of shape (vocabulary,), after each from index `first` on.

        The same tokens are always read in the same batches, which rounding depends on. A yielded array is
        overwritten by the next step.

        Raises:
            Stopped: the stop byte was set.
            ContextFull: there is no room.
        """
        import numpy

        lib = self._lib
        self.read(tokens[:first])
        for start in range(first, len(tokens), OUTPUTS_PER_BATCH):
            if self._stop_byte.value:
                raise Stopped
            part = tokens[start : start + OUTPUTS_PER_BATCH]
            self._decode(part, all_logits=True)
            for index in range(len(part)):
                row = lib.llama_get_logits_ith(self._context, index)
                yield numpy.ctypeslib.as_array(row, shape=(self._vocabulary_size,))

    def write(self, sampling: Sampling, seed: int, limit: int, *, past_end: bool = False) -> Iterator[int]:
        """Yield up to `limit` new tokens; ends at an end-of-generation token, which is not yielded.

        Args:
            past_end: yield that one, too, and go on.

        Raises:
            Stopped: the stop byte was set.
            ContextFull: there is no room.
        """
        lib = self._lib
        chain = self._sampler_chain(sampling, seed)
        try:
            token: int | None = None
            for _ in range(limit):
                if self._stop_byte.value:
                    raise Stopped
                if token is not None:
                    self._decode([token])
                token = lib.llama_sampler_sample(chain, self._context, -1)
                if not past_end and lib.llama_vocab_is_eog(self._vocabulary, token):
                    return
                yield token
        finally:
            lib.llama_sampler_free(chain)

    def state(self) -> bytes:
        """Return the KV cache as bytes for `restore`."""
        size = self._lib.llama_state_seq_get_size(self._context, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = self._lib.llama_state_seq_get_data(self._context, buffer, size, 0)
        return bytes(memoryview(buffer)[:written])

    def restore(self, state: bytes, tokens: Sequence[int]) -> bool:
        """Replace the KV cache by a saved one; False, with an empty cache, if llama.cpp refuses it."""
        self.forget()
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if not self._lib.llama_state_seq_set_data(self._context, buffer, len(state), 0):
            self.forget()
            return False
        self.tokens = list(tokens)
        return True

    def use_adapter(self, adapter: AdapterFile | None) -> None:
        """Attach a LoRA adapter, or none; the base model stays where it is, mmap on.

        Raises:
            ModelError: the adapter cannot be loaded or belongs to another base model.
        """
        lib = self._lib
        loaded = None
        if adapter is not None:
            self._log.clear()
            loaded = lib.llama_adapter_lora_init(self._model, adapter.path.encode())
            if not loaded:
                raise ModelError(
                    _(
                        "{name} is no adapter for this model: {last_log}",
                        name=Path(adapter.path).name,
                        last_log=self._last_log(),
                    ),
                    hint=_("Use the adapter with the base model it was made for."),
                )
        count = 0 if loaded is None else 1
        handles = (lib.llama_adapter_lora_p_ctypes * 1)(loaded)
        scales = (ctypes.c_float * 1)(1.0 if adapter is None else adapter.scale)
        if lib.llama_set_adapters_lora(self._context, handles, count, scales):
            raise EngineError(_("The adapter cannot be attached."), hint=_("Start edgemed again."))
        if self._adapter is not None:
            lib.llama_adapter_lora_free(self._adapter)
        self._adapter = loaded
        self.forget()

    def _decode(self, tokens: Sequence[int], *, all_logits: bool = False) -> None:
        lib = self._lib
        threads = self._threads.look()
        lib.llama_set_n_threads(self._context, threads, threads)
        self._batch_tokens[: len(tokens)] = list(tokens)
        batch = lib.llama_batch_get_one(self._batch_tokens, len(tokens))
        if all_logits:
            batch.logits = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
        code = lib.llama_decode(self._context, batch)
        if code == 0:
            self.tokens.extend(tokens)
            return
        # What the failed batch left behind must go, or the next answer is wrong.
        if not lib.llama_memory_seq_rm(self._memory, 0, len(self.tokens), -1):
            self.forget()
        if code == _ABORTED:
            raise Stopped
        if code == _NO_ROOM:
            raise ContextFull
        raise EngineError(
            _("llama.cpp failed with code {code}: {last_log}", code=code, last_log=self._last_log()),
            hint=_("Ask again."),
        )

    def _sampler_chain(self, sampling: Sampling, seed: int) -> Any:
        lib = self._lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        samplers = []
        if sampling.repetition_penalty != 1.0:
            samplers.append(
                lib.llama_sampler_init_penalties(
                    self._vocabulary_size, PENALTY_TOKENS, sampling.repetition_penalty, 0.0, 0.0
                )
            )
        if sampling.temperature == 0:
            samplers.append(lib.llama_sampler_init_greedy())
        else:
            if sampling.top_k:
                samplers.append(lib.llama_sampler_init_top_k(sampling.top_k))
            if sampling.top_p < 1:
                samplers.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
            if sampling.min_p > 0:
                samplers.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
            samplers.append(lib.llama_sampler_init_temp(sampling.temperature))
            samplers.append(lib.llama_sampler_init_dist(seed))
        for sampler in samplers:
            lib.llama_sampler_chain_add(chain, sampler)
        return chain

    def _load_error(self, name: str) -> ModelError:
        reason = self._last_log()
        if "unknown model architecture" in " ".join(self._log):
            return ModelUnsupported(
                _("{name} cannot be run by this version: {reason}", name=name, reason=reason),
                hint=_("Use another model."),
            )
        return ModelCorrupt(
            _("llama.cpp cannot load {name}: {reason}", name=name, reason=reason),
            hint=_("Copy the model from the kit again."),
        )

    def _last_log(self) -> str:
        """Return the first error that llama.cpp gave since it began: the later ones only repeat it."""
        return next(iter(self._log), "no reason was given")


def llama_cpp_build() -> str:
    """Return what names this build of llama.cpp: its version, its files and the processor's features."""
    import llama_cpp
    import llama_cpp._ggml as ggml
    import llama_cpp.llama_cpp as lib

    # What a portable wheel can do is known once its plug-in is chosen.
    load_best_plugin(ggml.libggml, ggml.libggml_base_path)
    parts = [llama_cpp.__version__, lib.llama_print_system_info().decode("utf-8", "replace").strip()]
    for file in sorted((Path(llama_cpp.__file__).parent / "lib").glob("*ggml*")):
        with contextlib.suppress(OSError):
            parts.append(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}")
    return " | ".join(parts)


def _capture_log(lib: Any) -> collections.deque[str]:
    """Keep llama.cpp's error lines instead of letting it write to the terminal."""
    lines: collections.deque[str] = collections.deque(maxlen=20)

    def keep(level: int, text: bytes | None, _user_data: object) -> None:
        if level == 4 and text:  # GGML_LOG_LEVEL_ERROR in ggml.h
            # "llama_model_load: error loading model: …" → "error loading model: …"
            lines.append(text.decode("utf-8", "replace").strip().split(": ", 1)[-1])

    _kept_callbacks.append(lib.llama_log_callback(keep))
    lib.llama_log_set(_kept_callbacks[-1], None)
    return lines


_kept_callbacks: list[Any] = []
"""ctypes frees a callback that nobody holds; llama.cpp goes on calling it."""
