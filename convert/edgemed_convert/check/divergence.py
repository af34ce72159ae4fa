"""How far a quantized file's words are from those of its own unquantized parent, over windows of text.

The definition is llama-perplexity's (`--kl-divergence`): windows of 512 tokens, each read from an empty KV
cache, BOS in the place of a window's first token where the model wants one, and only the predictions of its
second half counted, less the last; KL(parent‖quantized) sums over tokens of the parent's log-probability
above -16. That tool keeps the parent's logits in 16 bits, none more than 16 below the likeliest, and its KV
cache as F16; here both are float32. Mean divergences agree within 1 %; its perplexity of the parent comes out
a few percent low, for improbable words are lifted by that floor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edgemed.errors import ModelUnsupported, UsageError
from edgemed_convert.llama.messages import Loaded
from edgemed_convert.llama.process import FloatArray, LlamaProcess
from edgemed_convert.llama.token_windows import spread, windows_of
from edgemed_convert.output import Progress, no_progress

WINDOW_TOKENS = 512
MINIMUM_WINDOWS = 2
"""llama-perplexity's own minimum."""
_LOG_PROBABILITY_FLOOR = -16.0
_KEPT_BYTES = 2**30
"""The parent's logits are kept for the next file when they take no more than this."""
_CONTEXT_TOKENS = 24
_ROWS_AT_A_TIME = 32


@dataclass(frozen=True)
class WorstToken:
    """The position where the two files disagree most."""

    window: int
    position: int
    kl: float
    before: str
    """The text before it."""
    text: str
    """The token that really follows."""
    parent_choice: str
    quantized_choice: str


@dataclass(frozen=True)
class Divergence:
    """KL in nats, over all counted positions."""

    path: Path
    windows: int
    positions: int
    mean_kl: float
    mean_kl_uncertainty: float
    """Standard error of the mean, positions taken as independent."""
    median_kl: float
    kl_99: float
    """The 99th percentile."""
    max_kl: float
    top1_agreement: float
    """Share of positions where both have the same likeliest token."""
    parent_perplexity: float
    perplexity: float
    worst: WorstToken


class DivergenceMeter:
    """Measures files against one parent. A context manager: it holds two llama.cpp processes."""

    def __init__(
        self,
        parent: Path,
        text: str,
        *,
        windows: int | None = None,
        threads: int | None = None,
        kv_type: str = "F32",
        progress: Progress = no_progress,
    ) -> None:
        """Load the parent and cut the text.

        Args:
            parent: the unquantized file.
            text: at least 1,024 tokens of it.
            windows: how many windows of 512 tokens to use at most, spread evenly; None: all.

        Raises:
            ModelError: the parent cannot be loaded.
            UsageError: the text is too short.
        """
        self._parent = parent
        self._progress = progress
        self._kv_type = kv_type
        self._parent_process = LlamaProcess(threads=threads)
        self._process = LlamaProcess(threads=threads)
        try:
            self._loaded = self._load(self._parent_process, parent)
            self._windows = self._cut(text, windows)
            self._pieces = self._parent_process.token_attributes().pieces
        except BaseException:
            self.close()
            raise
        self._kept: list[FloatArray] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End both processes."""
        self._parent_process.close()
        self._process.close()

    def measure(self, path: Path) -> Divergence:
        """Compare one file with the parent.

        Raises:
            ModelError: the file cannot be loaded, or has another vocabulary.
            LlamaCppError: llama.cpp failed or died.
        """
        loaded = self._load(self._process, path)
        if (loaded.n_vocab, loaded.add_bos) != (self._loaded.n_vocab, self._loaded.add_bos):
            raise ModelUnsupported(
                f"{path.name} has another vocabulary than {self._parent.name}: they cannot be compared.",
                hint="Compare a quantized file with the file that it was made of.",
            )
        compared = [self._compare(number, window, path) for number, window in enumerate(self._windows)]
        return self._summary(path, compared)

    def _load(self, process: LlamaProcess, path: Path) -> Loaded:
        return process.load(path, context_length=WINDOW_TOKENS, kv_type=self._kv_type)

    def _cut(self, text: str, count: int | None) -> list[list[int]]:
        # llama-perplexity puts a BOS before the text, too, and does not read control tokens in it.
        (ids,) = self._parent_process.tokenize([text], add_special=True)
        windows = windows_of(ids, WINDOW_TOKENS, self._loaded)
        if len(windows) < MINIMUM_WINDOWS:
            raise UsageError(
                f"The text has {len(ids):,} tokens for {self._parent.name}; "
                f"at least {MINIMUM_WINDOWS * WINDOW_TOKENS:,} are needed.",
                hint="Give more text.",
            )
        return spread(windows, count) if count is not None else windows

    def _compare(self, number: int, window: list[int], path: Path) -> "_Compared":
        first = WINDOW_TOKENS // 2
        # The token behind the last position is not in the window.
        parent = self._parent_logits(number, window)[: WINDOW_TOKENS - 1 - first]
        other = self._process.logits(window, start=first)[: WINDOW_TOKENS - 1 - first]
        compared = compare_logits(parent, other, window[first + 1 :])
        self._progress(path.name, number + 1, len(self._windows), "windows")
        return compared

    def _parent_logits(self, number: int, window: list[int]) -> FloatArray:
        if number < len(self._kept):
            return self._kept[number]
        logits = self._parent_process.logits(window, start=WINDOW_TOKENS // 2)
        if number == len(self._kept) and logits.nbytes * len(self._windows) <= _KEPT_BYTES:
            self._kept.append(logits)
        return logits

    def _summary(self, path: Path, compared: "Sequence[_Compared]") -> Divergence:
        kl = np.concatenate([part.kl for part in compared])
        positions = len(kl)
        return Divergence(
            path=path,
            windows=len(compared),
            positions=positions,
            mean_kl=float(kl.mean()),
            mean_kl_uncertainty=float(kl.std() / np.sqrt(positions - 1)),
            median_kl=float(np.median(kl)),
            kl_99=float(np.quantile(kl, 0.99)),
            max_kl=float(kl.max()),
            top1_agreement=float(np.mean(np.concatenate([part.same_choice for part in compared]))),
            parent_perplexity=float(np.exp(np.mean(np.concatenate([part.parent_nll for part in compared])))),
            perplexity=float(np.exp(np.mean(np.concatenate([part.nll for part in compared])))),
            worst=self._worst(compared, int(kl.argmax())),
        )

    def _worst(self, compared: "Sequence[_Compared]", index: int) -> WorstToken:
        window, row = divmod(index, len(compared[0].kl))
        position = WINDOW_TOKENS // 2 + row
        ids = self._windows[window]
        part = compared[window]
        return WorstToken(
            window=window,
            position=position,
            kl=float(part.kl[row]),
            before=self._text(ids[max(0, position + 1 - _CONTEXT_TOKENS) : position + 1]),
            text=self._text(ids[position + 1 : position + 2]),
            parent_choice=self._text([int(part.parent_choice[row])]),
            quantized_choice=self._text([int(part.choice[row])]),
        )

    def _text(self, ids: Sequence[int]) -> str:
        return b"".join(self._pieces[token] for token in ids).decode("utf-8", "replace")


@dataclass(frozen=True)
class _Compared:
    """Arrays over the positions of one window."""

    kl: NDArray[np.float64]
    nll: NDArray[np.float64]
    parent_nll: NDArray[np.float64]
    choice: NDArray[np.intp]
    parent_choice: NDArray[np.intp]

    @property
    def same_choice(self) -> NDArray[np.bool_]:
        return np.asarray(self.choice == self.parent_choice)


def compare_logits(parent: FloatArray, other: FloatArray, next_ids: Sequence[int]) -> _Compared:
    """Compare the predictions of two files at the same positions.

    Args:
        parent, other: logits, (positions, vocabulary size).
        next_ids: the token that really follows each position.
    """
    parts = list(_compared_rows(parent, other, np.asarray(next_ids)))
    return _Compared(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _compared_rows(
    parent: FloatArray, other: FloatArray, next_ids: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.float64], ...]]:
    for start in range(0, len(parent), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        parent_log, other_log = _log_softmax(parent[rows]), _log_softmax(other[rows])
        terms = np.exp(parent_log) * (parent_log - other_log)
        kl = np.where(parent_log > _LOG_PROBABILITY_FLOOR, terms, 0.0).sum(axis=1)
        at = np.arange(len(kl)), next_ids[rows]
        yield kl, -other_log[at], -parent_log[at], other[rows].argmax(axis=1), parent[rows].argmax(axis=1)


def _log_softmax(logits: FloatArray) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values
