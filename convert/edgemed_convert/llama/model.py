"""One loaded model on llama.cpp's own calls, for exact numbers: one sequence, no flash attention, no tricks.

Lives in the child process; the library comes as a parameter, for only `child.py` imports it.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import ModelCorrupt, ModelUnsupported, UsageError
from edgemed_convert.errors import AdapterError, LlamaCppError
from edgemed_convert.llama.log import Log
from edgemed_convert.llama.messages import Load, Loaded

BATCH_TOKENS = 512
"""What llama-perplexity computes at a time: equal batches give equal numbers."""
_FLASH_ATTENTION_OFF = 0
_NO_VOCABULARY = 0


class Model:
    """A model with its vocabulary, and a context unless only the vocabulary was wanted."""

    def __init__(
        self,
        lib: Any,
        log: Log,
        request: Load,
        *,
        on_progress: Callable[[float], None],
        eval_callback: Any = None,
    ) -> None:
        """Load.

        Args:
            lib: the module llama_cpp.llama_cpp.
            on_progress: called with the fraction that is loaded.
            eval_callback: a C callback that llama.cpp shows every tensor it computes.

        Raises:
            ModelCorrupt, ModelUnsupported: llama.cpp cannot load the file.
            AdapterError: it does not take the adapter.
            LlamaCppError: there is no room for the context.
        """
        self._lib = lib
        self._log = log
        self.name = Path(request.path).name
        self._model: Any = None
        self._context: Any = None
        self._adapter: Any = None
        self.request = request
        self._load(request, on_progress)
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        self.vocabulary_size: int = lib.llama_vocab_n_tokens(self._vocabulary)
        if self.vocabulary_size <= 0 or lib.llama_vocab_type(self._vocabulary) == _NO_VOCABULARY:
            raise ModelUnsupported(
                f"{self.name} has no vocabulary.", hint="Export the model again with its tokenizer."
            )
        self.context_length = 0
        if not request.vocabulary_only:
            self._make_context(request, eval_callback)
            if request.adapter_path is not None:
                self._attach(Path(request.adapter_path), request.adapter_scale)

    def close(self) -> None:
        """Give the memory back."""
        if self._context:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
        if self._adapter:
            self._lib.llama_adapter_lora_free(self._adapter)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._adapter = self._model = None

    def describe(self) -> Loaded:
        """Return what the other side wants to know of the model."""
        lib, vocabulary = self._lib, self._vocabulary
        template: bytes | None = lib.llama_model_chat_template(self._model, None)
        return Loaded(
            n_vocab=self.vocabulary_size,
            vocabulary_type=lib.llama_vocab_type(vocabulary),
            bos=_id(lib.llama_vocab_bos(vocabulary)),
            eos=_id(lib.llama_vocab_eos(vocabulary)),
            eot=_id(lib.llama_vocab_eot(vocabulary)),
            add_bos=bool(lib.llama_vocab_get_add_bos(vocabulary)),
            add_eos=bool(lib.llama_vocab_get_add_eos(vocabulary)),
            eog_ids=[token for token in range(self.vocabulary_size) if self.is_end(token)],
            chat_template=template.decode("utf-8", "replace") if template else None,
            trained_context_length=lib.llama_model_n_ctx_train(self._model),
            context_length=self.context_length,
            warnings=self._log.warnings(),
        )

    # The vocabulary.

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the token ids of a text in UTF-8."""
        room = len(text) + 8
        while True:
            ids = (self._lib.llama_token * room)()
            count = self._lib.llama_tokenize(
                self._vocabulary, text, len(text), ids, room, add_special, parse_special
            )
            if count >= 0:
                return list(ids[:count])
            if -count <= room:
                raise LlamaCppError(f"{self.name}: llama.cpp cannot tokenize a text of {len(text):,} bytes.")
            room = -count

    def text_of(self, token: int) -> bytes:
        """Return the vocabulary's own spelling of a token."""
        text: bytes | None = self._lib.llama_vocab_get_text(self._vocabulary, token)
        return text or b""

    def piece_of(self, token: int) -> bytes:
        """Return the bytes that a token writes, control tokens included."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._lib.llama_token_to_piece(self._vocabulary, token, buffer, size, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def attributes_of(self, token: int) -> int:
        """Return llama.cpp's attribute bits of a token."""
        return int(self._lib.llama_vocab_get_attr(self._vocabulary, token))

    def is_end(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(self._lib.llama_vocab_is_eog(self._vocabulary, token))

    def is_control(self, token: int) -> bool:
        """Whether a token is a control, unknown or end-of-generation token."""
        mask = self._lib.LLAMA_TOKEN_ATTR_CONTROL | self._lib.LLAMA_TOKEN_ATTR_UNKNOWN
        return bool(self.attributes_of(token) & mask) or self.is_end(token)

    def is_user_defined(self, token: int) -> bool:
        """Whether a token was added to the vocabulary as a whole."""
        return bool(self.attributes_of(token) & self._lib.LLAMA_TOKEN_ATTR_USER_DEFINED)

    # Numbers.

    def logits(self, token_ids: Sequence[int], *, start: int = 0) -> Iterator[NDArray[np.float32]]:
        """Read tokens from an empty KV cache; yield the logits from position `start` on, batch by batch.

        Each array has shape (positions of the batch, vocabulary size) and is valid until the next one.
        """
        self._check(token_ids)
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        for first in range(0, len(token_ids), self._batch_tokens):
            part = token_ids[first : first + self._batch_tokens]
            outputs = self._decode(part, first, start)
            if outputs:
                yield self._outputs(outputs)

    def read(self, token_ids: Sequence[int]) -> None:
        """Read tokens from an empty KV cache with every output computed; for a callback that watches."""
        for _ in self.logits(token_ids):
            pass

    def generate(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Return up to `count` new tokens, always the likeliest; an end-of-generation token is the last."""
        if len(token_ids) + count > self.context_length:
            raise _too_long(self.name, len(token_ids) + count, self.context_length)
        last = list(self.logits(token_ids, start=len(token_ids) - 1))[-1]
        generated: list[int] = []
        position = len(token_ids)
        while len(generated) < count:
            token = int(last[-1].argmax())
            generated.append(token)
            if self.is_end(token) or len(generated) == count:
                break
            self._decode([token], position, position)
            last = self._outputs(1)
            position += 1
        return generated

    def _load(self, request: Load, on_progress: Callable[[float], None]) -> None:
        lib = self._lib
        self._log.clear()
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        # Repacked weights and AMX tiles round differently, and some processors announce what they cannot run.
        parameters.use_extra_bufts = False
        parameters.vocab_only = request.vocabulary_only

        def progress(fraction: float, _user_data: object) -> bool:
            on_progress(fraction)
            return True

        # Held while llama.cpp calls it.
        parameters.progress_callback = callback = lib.llama_progress_callback(progress)
        self._model = lib.llama_model_load_from_file(request.path.encode(), parameters)
        del callback
        if not self._model:
            raise self._load_error()

    def _make_context(self, request: Load, eval_callback: Any) -> None:
        lib = self._lib
        if not lib.llama_model_has_decoder(self._model) or lib.llama_model_has_encoder(self._model):
            raise ModelUnsupported(
                f"{self.name} is not a model that writes text.", hint="Use a decoder-only language model."
            )
        settings = lib.llama_context_default_params()
        settings.n_ctx = request.context_length
        settings.n_batch = settings.n_ubatch = min(BATCH_TOKENS, request.context_length)
        settings.n_threads = settings.n_threads_batch = request.threads
        settings.flash_attn_type = _FLASH_ATTENTION_OFF
        settings.type_k = settings.type_v = request.kv_type_number
        settings.offload_kqv = settings.op_offload = False
        settings.no_perf = True
        if eval_callback is not None:
            settings.cb_eval = eval_callback
        self._context = lib.llama_init_from_model(self._model, settings)
        if not self._context:
            raise LlamaCppError(
                f"{self.name}: there is no room for {request.context_length:,} tokens of context: "
                f"{self._log.first_error()}.",
                hint="Close other programs, or use shorter texts.",
            )
        self._batch_tokens = int(lib.llama_n_batch(self._context))
        self._batch = lib.llama_batch_init(self._batch_tokens, 0, 1)
        self.context_length = int(lib.llama_n_ctx(self._context))

    def _attach(self, path: Path, scale: float) -> None:
        lib = self._lib
        self._log.clear()
        self._adapter = lib.llama_adapter_lora_init(self._model, str(path).encode())
        if not self._adapter:
            raise AdapterError(
                f"{path.name} is no adapter for {self.name}: {self._log.first_error()}.",
                hint="Use the adapter with the base model it was made for.",
            )
        handles = (lib.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        if lib.llama_set_adapters_lora(self._context, handles, 1, (ctypes.c_float * 1)(scale)):
            raise LlamaCppError(f"llama.cpp cannot attach {path.name} to {self.name}.")

    def _check(self, token_ids: Sequence[int]) -> None:
        if self._context is None:
            raise LlamaCppError(f"{self.name} was loaded for its vocabulary alone.")
        if not token_ids:
            raise UsageError("There are no tokens to read.")
        if len(token_ids) > self.context_length:
            raise _too_long(self.name, len(token_ids), self.context_length)
        for token in token_ids:
            if not 0 <= token < self.vocabulary_size:
                raise UsageError(f"{self.name} has no token {token}: it has {self.vocabulary_size:,}.")

    def _decode(self, part: Sequence[int], first: int, start: int) -> int:
        """Read one batch whose first token stands at position `first`; return how many outputs it gave."""
        batch = self._batch
        batch.n_tokens = len(part)
        outputs = 0
        for index, token in enumerate(part):
            wanted = first + index >= start
            batch.token[index] = token
            batch.pos[index] = first + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = wanted
            outputs += wanted
        code = self._lib.llama_decode(self._context, batch)
        if code:
            raise LlamaCppError(
                f"{self.name}: llama.cpp failed with code {code} while it read {len(part)} tokens: "
                f"{self._log.first_error()}."
            )
        return outputs

    def _outputs(self, rows: int) -> NDArray[np.float32]:
        pointer = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (rows, self.vocabulary_size))

    def _load_error(self) -> ModelCorrupt | ModelUnsupported:
        reason = self._log.first_error()
        if "unknown model architecture" in reason:
            return ModelUnsupported(
                f"llama.cpp does not know the architecture of {self.name}: {reason}.",
                hint="Export a model of a supported architecture.",
            )
        return ModelCorrupt(
            f"llama.cpp cannot load {self.name}: {reason}.", hint="Export or copy the file again."
        )


def _id(token: int) -> int | None:
    return token if token >= 0 else None


def _too_long(name: str, tokens: int, context_length: int) -> UsageError:
    return UsageError(
        f"{tokens:,} tokens do not fit into the {context_length:,} that {name} was loaded with."
    )
