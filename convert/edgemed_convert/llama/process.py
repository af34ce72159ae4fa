"""The tool's side of the llama.cpp process: starts it, asks it, outlives it.

llama.cpp aborts or crashes on some files. The tool then says which file and why in one sentence, and the next
request starts a new process.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgemed import errors as edgemed_errors
from edgemed import machine
from edgemed.errors import ModelUnsupported
from edgemed.ggml_types import GGML_TYPES
from edgemed.gguf_header import read_shards
from edgemed_convert.llama.connection import Connection, OnProgress
from edgemed_convert.llama.messages import (
    ActivationSums,
    CollectActivations,
    ComputeLogits,
    Finished,
    Generate,
    Generated,
    Load,
    Loaded,
    LogitsPart,
    Quantize,
    ReadVocabulary,
    Render,
    Rendered,
    Tokenize,
    Tokenized,
    VocabularyPart,
)

FloatArray = NDArray[np.float32]

LOAD_LIMIT_SECONDS = 900.0
COMPUTE_LIMIT_SECONDS = 3600.0
"""For one batch of 512 tokens or one tensor, far beyond what the largest models need on two cores."""
TOKENIZE_LIMIT_SECONDS = 60.0
_TOKENIZED_BYTES_PER_SECOND = 10_000
_ATTRIBUTE_UNKNOWN, _ATTRIBUTE_CONTROL = 1 << 0, 1 << 3


@dataclass(frozen=True)
class TokenTable:
    """The vocabulary as llama.cpp sees it; every sequence is indexed by token id."""

    texts: list[bytes]
    """The vocabulary's own spelling."""
    pieces: list[bytes]
    """What a token writes, control tokens included."""
    attributes: NDArray[np.int32]
    """llama.cpp's LLAMA_TOKEN_ATTR bits."""
    is_eog: NDArray[np.bool_]
    """Tokens that end an answer."""

    @property
    def is_control(self) -> NDArray[np.bool_]:
        """Control and unknown tokens: never part of ordinary text."""
        return (self.attributes & (_ATTRIBUTE_CONTROL | _ATTRIBUTE_UNKNOWN)).astype(np.bool_)


class LlamaProcess:
    """llama.cpp at arm's length. A context manager; not for several threads at once."""

    def __init__(self, *, threads: int | None = None) -> None:
        """Nothing is started before the first request.

        Args:
            threads: for computing; None: the machine's physical cores.
        """
        self.threads = threads or machine.physical_cores()
        self._connection = Connection()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def process_id(self) -> int | None:
        """The process's id, while there is one."""
        return self._connection.process_id

    def close(self) -> None:
        """End the process. May be called twice."""
        self._connection.close()

    def load(
        self,
        path: Path,
        *,
        vocabulary_only: bool = False,
        adapter: Path | None = None,
        adapter_scale: float = 1.0,
        context_length: int = 2048,
        kv_type: str = "F32",
        on_progress: OnProgress | None = None,
    ) -> Loaded:
        """Load a GGUF file, in the place of the one before.

        Args:
            vocabulary_only: for tokenizing; the file may hold no tensors.
            adapter: a LoRA GGUF to attach.
            kv_type: what keys and values are kept in: F32, F16, or another type of ggml.

        Raises:
            ModelCorrupt, ModelUnsupported: the file cannot be loaded.
            AdapterError: the adapter does not belong to it.
            LlamaCppError: llama.cpp failed or died.
        """
        self._connection.subject = path.name if adapter is None else f"{path.name} with {adapter.name}"
        # llama.cpp aborts on some damaged files; this reader does not.
        first = read_shards(path)[0]
        if adapter is not None:
            read_shards(adapter)
        if first.architecture == "clip":
            raise ModelUnsupported(f"{path.name} holds no language model.", hint="Name the model's own file.")
        request = Load(
            path=str(first.path),
            vocabulary_only=vocabulary_only,
            adapter_path=None if adapter is None else str(adapter),
            adapter_scale=adapter_scale,
            context_length=context_length,
            kv_type_number=_type_number(kv_type),
            threads=self.threads,
        )
        for reply in self._connection.ask(request, LOAD_LIMIT_SECONDS, on_progress):
            if isinstance(reply, Loaded):
                return reply
        raise self._connection.no_answer()

    def tokenize(
        self, texts: Sequence[str], *, add_special: bool = False, parse_special: bool = False
    ) -> list[list[int]]:
        """Return the token ids of each text.

        Args:
            add_special: begin with BOS and end with EOS where the vocabulary says so.
            parse_special: text that looks like a control token becomes one.
        """
        encoded = [text.encode("utf-8", "replace") for text in texts]
        limit_seconds = TOKENIZE_LIMIT_SECONDS + sum(map(len, encoded)) / _TOKENIZED_BYTES_PER_SECOND
        request = Tokenize(texts=encoded, add_special=add_special, parse_special=parse_special)
        for reply in self._connection.ask(request, limit_seconds):
            if isinstance(reply, Tokenized):
                return reply.token_ids
        raise self._connection.no_answer()

    def render_chats(
        self,
        conversations: Sequence[Sequence[tuple[str, str]]],
        *,
        for_answer: bool = False,
        template: str | None = None,
    ) -> tuple[list[str | None], list[str]]:
        """Render each conversation with the model's chat template, as the app does.

        Args:
            conversations: (role, content) of each message; roles are system, user and assistant.
            for_answer: go on to where the model's answer begins, instead of ending with the last answer.
            template: instead of the one that the file carries.

        Returns:
            The texts, None where the template refused; and the reasons, one for each None.

        Raises:
            ModelUnsupported: there is no template, or it is not valid.
            LlamaCppError: the template did not come to its end.
        """
        request = Render(
            conversations=[list(conversation) for conversation in conversations],
            for_answer=for_answer,
            template=template,
        )
        limit_seconds = TOKENIZE_LIMIT_SECONDS + 0.1 * len(conversations)
        for reply in self._connection.ask(request, limit_seconds):
            if isinstance(reply, Rendered):
                return reply.texts, reply.faults
        raise self._connection.no_answer()

    def token_attributes(self) -> TokenTable:
        """Return every token of the loaded model."""
        texts: list[bytes] = []
        pieces: list[bytes] = []
        attributes: list[int] = []
        is_eog: list[bool] = []
        for reply in self._connection.ask(ReadVocabulary(), TOKENIZE_LIMIT_SECONDS):
            if isinstance(reply, VocabularyPart):
                texts += reply.texts
                pieces += reply.pieces
                attributes += reply.attributes
                is_eog += reply.is_eog
        return TokenTable(texts, pieces, np.array(attributes, np.int32), np.array(is_eog, np.bool_))

    def logits(self, token_ids: Sequence[int], *, start: int = 0) -> FloatArray:
        """Return the logits after each token from position `start` on: (positions, vocabulary size), float32.

        Every call reads its tokens from an empty KV cache, in batches of 512.
        """
        return np.concatenate(list(self.logits_in_parts(token_ids, start=start)))

    def logits_in_parts(self, token_ids: Sequence[int], *, start: int = 0) -> Iterator[FloatArray]:
        """Yield what `logits` returns in parts of some rows, at most 32 MiB each.

        Read it to its end: what is left unread is thrown away by the next request.
        """
        request = ComputeLogits(token_ids=list(token_ids), start=start)
        for reply in self._connection.ask(request, COMPUTE_LIMIT_SECONDS):
            if isinstance(reply, LogitsPart):
                yield np.frombuffer(reply.data, dtype="<f4").reshape(reply.rows, -1).astype(np.float32)

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Return the `count` likeliest tokens one after the other; fewer if the last one ends an answer."""
        request = Generate(token_ids=list(token_ids), count=count)
        for reply in self._connection.ask(request, COMPUTE_LIMIT_SECONDS):
            if isinstance(reply, Generated):
                return reply.token_ids
        raise self._connection.no_answer()

    def collect_imatrix(
        self, token_chunks: Sequence[Sequence[int]], on_progress: OnProgress | None = None
    ) -> dict[str, tuple[FloatArray, int]]:
        """Return for each matrix of the loaded model's layers: sums of its squared inputs, and their number.

        Args:
            token_chunks: each is read from an empty KV cache.

        Returns:
            Tensor name → (float32 array of one sum for each column, how many vectors were summed up).

        Raises:
            LlamaCppError: the model's products cannot be watched.
        """
        request = CollectActivations(chunks=[list(chunk) for chunk in token_chunks])
        sums: dict[str, tuple[FloatArray, int]] = {}
        for reply in self._connection.ask(request, COMPUTE_LIMIT_SECONDS, on_progress):
            if isinstance(reply, ActivationSums):
                values = np.frombuffer(reply.sums, dtype="<f4").astype(np.float32)
                sums[reply.name] = (values, reply.rows)
        return sums

    def quantize(
        self,
        source: Path,
        target: Path,
        type_name: str,
        *,
        imatrix: Mapping[str, FloatArray] | None = None,
        metadata: Mapping[str, str | int] | None = None,
        output_type: str | None = None,
        embedding_type: str | None = None,
        tensor_types: Sequence[tuple[str, str]] = (),
        pure: bool = False,
        allow_requantize: bool = False,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
    ) -> list[str]:
        """Write a quantized copy of a GGUF file with llama.cpp's own quantizer; return its log lines.

        Args:
            target: written as it is named, and left behind half written on a failure.
            imatrix: tensor name → mean squared input of each column.
            metadata: keys that the copy gets besides the source's, such as the matrix's origin.
            tensor_types: pairs of a regular expression on tensor names and a tensor type.
            dry_run: write nothing; the log tells what would be written.

        Raises:
            UsageError: no such type, or source and target are one file.
            ModelCorrupt, ModelUnsupported: the source is damaged.
            LlamaCppError: llama.cpp refused, and the message is its reason alone; or it died.
        """
        if target.exists() and target.samefile(source):
            # llama.cpp would cut the file that it has mapped, and die.
            raise edgemed_errors.UsageError(
                f"{source.name} cannot be quantized onto itself.", hint="Name another output file."
            )
        self._connection.subject = f"{source.name} to {type_name}"
        # As in `load`: llama.cpp aborts on some damaged files.
        read_shards(source)
        request = Quantize(
            source=str(source),
            target=str(target),
            type_name=type_name,
            importance=None
            if imatrix is None
            else {name: values.astype("<f4").tobytes() for name, values in imatrix.items()},
            metadata=dict(metadata or {}),
            output_type_number=None if output_type is None else _type_number(output_type),
            embedding_type_number=None if embedding_type is None else _type_number(embedding_type),
            tensor_types=[(pattern, _type_number(name)) for pattern, name in tensor_types],
            pure=pure,
            allow_requantize=allow_requantize,
            dry_run=dry_run,
            threads=self.threads,
        )
        for reply in self._connection.ask(request, COMPUTE_LIMIT_SECONDS, on_progress):
            if isinstance(reply, Finished):
                return reply.log
        raise self._connection.no_answer()


def _type_number(type_name: str) -> int:
    for number, (name, _, _) in GGML_TYPES.items():
        if name == type_name.upper():
            return number
    raise edgemed_errors.UsageError(
        f"There is no tensor type {type_name}.", hint=f"Types: {', '.join(t[0] for t in GGML_TYPES.values())}"
    )
