"""Weights that are computed while they are read: base plus adapter, in float32, rounded by nobody here.

Each class wraps the tensor before it, so several adapters make a chain. The products are taken in pieces of
one fixed height, so that a row has the same bits however the reader cuts its blocks.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgemed_convert.safetensors_file import FloatArray, Rows, StoredTensor, Tensor, read_whole, row_blocks

_PIECE_ROWS = 256

Layout = Literal["rows_are_outputs", "rows_are_inputs"]
"""Of a weight on the disk: Linear has a row for each output, Conv1D and embeddings one for each input."""


class Computed:
    """What all computed weights share."""

    def read_stored(self, _rows: Rows) -> None:
        """Return None: the numbers exist only once they are computed."""
        return


@dataclass(frozen=True)
class LoraWeight(Computed):
    """A weight plus scaling · B·A; as DoRA, then brought to the norms that were trained."""

    before: Tensor
    a: StoredTensor
    """Shape (r, inputs)."""
    b: StoredTensor
    """Shape (outputs, r)."""
    scaling: float
    layout: Layout
    magnitude: StoredTensor | None = None
    """Of DoRA: one norm for each output."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight before it."""
        return self.before.shape

    @property
    def type_name(self) -> str:
        """The type of the weight before it."""
        return self.before.type_name

    def read(self, rows: Rows) -> FloatArray:
        """Return rows of the adapted weight."""
        total = self._sum(rows)
        if self.magnitude is None:
            return total
        magnitude = _factor(self.magnitude)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.layout == "rows_are_outputs":
                total *= (magnitude[rows] / _row_norms(total))[:, None]
            else:
                total *= magnitude / self._column_norms
        return total

    def _sum(self, rows: Rows) -> FloatArray:
        total = self.before.read(rows)
        a, b = _factor(self.a), _factor(self.b)
        left, right = (b, a) if self.layout == "rows_are_outputs" else (a.T, b.T)
        scaling = np.float32(self.scaling)
        piece = np.zeros((_PIECE_ROWS, left.shape[1]), dtype=np.float32)
        for start in range(0, len(total), _PIECE_ROWS):
            chosen = left[_part_of(rows, start, min(start + _PIECE_ROWS, len(total)))]
            piece[: len(chosen)] = chosen
            delta = piece @ right
            delta *= scaling
            total[start : start + len(chosen)] += delta[: len(chosen)]
        return total

    @cached_property
    def _column_norms(self) -> FloatArray:
        squares = np.zeros(self.shape[1])
        for rows in row_blocks(self.shape):
            total = self._sum(rows)
            for start in range(0, len(total), _PIECE_ROWS):
                piece = total[start : start + _PIECE_ROWS].astype(np.float64)
                squares += np.einsum("ij,ij->j", piece, piece)
        return np.sqrt(squares).astype(np.float32)


@dataclass(frozen=True)
class ShiftedBias(Computed):
    """A bias plus scaling times the bias of B."""

    before: Tensor
    shift: StoredTensor
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the bias before it."""
        return self.before.shape

    @property
    def type_name(self) -> str:
        """The type of the bias before it."""
        return self.before.type_name

    def read(self, rows: Rows) -> FloatArray:
        """Return elements of the shifted bias."""
        return self.before.read(rows) + self.shift.read(rows) * np.float32(self.scaling)


@dataclass(frozen=True)
class Replaced(Computed):
    """A weight that was trained as a whole, stored from now on as the one that it replaces."""

    trained: StoredTensor
    type_name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape it was trained in, which may have more rows than the one it replaces."""
        return self.trained.shape

    def read(self, rows: Rows) -> FloatArray:
        """Return rows of the trained weight."""
        return self.trained.read(rows)


@dataclass(frozen=True)
class Resized(Computed):
    """A weight with another number of rows: those it had, then the adapter's."""

    before: Tensor
    saved: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the adapter was trained on."""
        return self.saved.shape

    @property
    def type_name(self) -> str:
        """The type of the weight before it."""
        return self.before.type_name

    def read(self, rows: Rows) -> FloatArray:
        """Return rows of the resized weight."""
        numbers = np.arange(self.shape[0], dtype=np.intp)[rows]
        values = self.saved.read(rows)
        kept = np.flatnonzero(numbers < self.before.shape[0])
        values[kept] = self.before.read(numbers[kept])
        return values


@dataclass(frozen=True)
class Blended(Computed):
    """A weight that goes only a part of the way from the one before it to the adapted one."""

    before: Tensor
    after: Tensor
    weight: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of both."""
        return self.before.shape

    @property
    def type_name(self) -> str:
        """The type of the weight before it."""
        return self.before.type_name

    def read(self, rows: Rows) -> FloatArray:
        """Return rows of before + weight · (after - before)."""
        before = self.before.read(rows)
        change = self.after.read(rows)
        change -= before
        change *= np.float32(self.weight)
        change += before
        return change


def _part_of(rows: Rows, start: int, stop: int) -> Rows:
    if isinstance(rows, slice):
        first = rows.start or 0
        return slice(first + start, first + stop)
    return rows[start:stop]


def _row_norms(numbers: FloatArray) -> FloatArray:
    squares = np.empty(len(numbers))
    for start in range(0, len(numbers), _PIECE_ROWS):
        piece = numbers[start : start + _PIECE_ROWS].astype(np.float64)
        squares[start : start + _PIECE_ROWS] = np.einsum("ij,ij->i", piece, piece)
    return np.sqrt(squares).astype(np.float32)


@lru_cache(maxsize=4)
def _factor(tensor: StoredTensor) -> NDArray[np.float32]:
    """A small tensor of the adapter as a whole; kept while the blocks of one weight are read."""
    return read_whole(tensor)
