"""Sums of squared activations for an importance matrix, taken while llama.cpp computes (its `cb_eval`).

The rules are those of llama.cpp's llama-imatrix: every matrix product of a layer whose input is float32 and
at least 16 rows long counts; the output head does not. ggml offers no function that gives a product's inputs,
so its `struct ggml_tensor` is laid out here, and proved against ggml's own functions before it is trusted.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemed_convert.errors import LlamaCppError

_MIN_ROWS = 16
_F32 = 0
_LAYER_PREFIX = "blk."
_OPERATIONS = 40
"""ggml has about 100; the two wanted stand in the first 40, and a number too high is read past a table."""
# ggml_tensor_overhead() is the struct and the object header before it, of four pointers' size.
_OBJECT_HEADER_BYTES = 32


class GGMLTensor(ctypes.Structure):
    """ggml's `struct ggml_tensor`."""


GGMLTensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GGMLTensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


@dataclass
class Sums:
    """What one matrix was fed so far."""

    squares: NDArray[np.float64]
    """A sum for each column of the matrix."""
    rows: int


class ActivationCollector:
    """The callback, and what it has summed up."""

    def __init__(self, ggml: Any, callback_type: Callable[[Any], Any]) -> None:
        """Prepare the callback.

        Args:
            ggml: ggml's base library, as ctypes loaded it.
            callback_type: ctypes' type of `ggml_backend_sched_eval_callback`.

        Raises:
            LlamaCppError: this llama.cpp lays out its tensors in another way.
        """
        self.sums: dict[str, Sums] = {}
        self.fault: str | None = None
        """Why nothing more is collected."""
        self._ggml = ggml
        self._layout_proved = False
        self._declare(ggml)
        if ggml.ggml_tensor_overhead() - _OBJECT_HEADER_BYTES != ctypes.sizeof(GGMLTensor):
            raise _other_layout()
        operations = {ggml.ggml_op_name(number): number for number in range(_OPERATIONS)}
        self._product = operations.get(b"MUL_MAT")
        self._expert_product = operations.get(b"MUL_MAT_ID")
        if self._product is None:
            raise _other_layout()
        self.callback = callback_type(self._watch)

    def _declare(self, ggml: Any) -> None:
        try:
            ggml.ggml_tensor_overhead.restype = ctypes.c_size_t
            for function, argument, result in (
                (ggml.ggml_op_name, ctypes.c_int, ctypes.c_char_p),
                (ggml.ggml_get_name, ctypes.c_void_p, ctypes.c_char_p),
                (ggml.ggml_get_data, ctypes.c_void_p, ctypes.c_void_p),
                (ggml.ggml_nrows, ctypes.c_void_p, ctypes.c_int64),
            ):
                function.argtypes, function.restype = [argument], result
        except AttributeError as error:
            raise _other_layout() from error

    def _watch(self, address: int, asks: bool, _user_data: object) -> bool:
        """ggml's question whether it should show this tensor, and then the tensor, computed."""
        if self.fault is not None:
            # "No" to the question goes on without us; "no" to a computed tensor ends the computation.
            return False
        tensor = GGMLTensor.from_address(address)
        if not self._layout_proved:
            self._prove_layout(tensor, address)
            if self.fault is not None:
                return False
        if asks:
            return self._wants(tensor)
        self._add(tensor)
        return self.fault is None

    def _wants(self, tensor: GGMLTensor) -> bool:
        if tensor.op == self._expert_product:
            self.fault = "it is a mixture of experts, for which edgemed collects no importance matrix"
            return False
        if tensor.op != self._product:
            return False
        fed = tensor.src[1].contents
        return (
            fed.ne[1] >= _MIN_ROWS
            and fed.type == _F32
            and _weight_name(tensor.src[0].contents).startswith(_LAYER_PREFIX)
        )

    def _add(self, tensor: GGMLTensor) -> None:
        weight, fed = tensor.src[0].contents, tensor.src[1].contents
        name = _weight_name(weight)
        columns = fed.ne[0]
        rows = fed.ne[1] * fed.ne[2] * fed.ne[3]
        strides = [4, columns * 4, columns * fed.ne[1] * 4, columns * fed.ne[1] * fed.ne[2] * 4]
        if list(fed.nb) != strides or weight.ne[2] * weight.ne[3] != 1 or not fed.data:
            self.fault = f"the input of {name} does not lie in memory as expected"
            return
        values = np.ctypeslib.as_array(ctypes.cast(fed.data, ctypes.POINTER(ctypes.c_float)), (rows, columns))
        squares = np.square(values).sum(axis=0, dtype=np.float64)
        if not np.isfinite(squares).all():
            self.fault = f"{name} is fed numbers that are not finite"
            return
        before = self.sums.get(name)
        if before is None:
            self.sums[name] = Sums(squares, rows)
        elif before.squares.shape != squares.shape:
            self.fault = f"{name} is fed vectors of different lengths"
        else:
            before.squares += squares
            before.rows += rows

    def _prove_layout(self, tensor: GGMLTensor, address: int) -> None:
        ggml = self._ggml
        agrees = (
            ggml.ggml_get_name(address) == tensor.name
            and ggml.ggml_get_data(address) == tensor.data
            and ggml.ggml_nrows(address) == tensor.ne[1] * tensor.ne[2] * tensor.ne[3]
        )
        source = ctypes.cast(tensor.src[0], ctypes.c_void_p).value
        if agrees and source is not None:
            fed = tensor.src[0].contents
            agrees = ggml.ggml_get_name(source) == fed.name and ggml.ggml_nrows(source) == (
                fed.ne[1] * fed.ne[2] * fed.ne[3]
            )
        if not agrees:
            self.fault = "this version of llama.cpp lays out its tensors in another way"
        self._layout_proved = source is not None


def _weight_name(weight: GGMLTensor) -> str:
    """ggml's copies on another device are named 'CPU#blk.0.attn_q.weight#0'."""
    name: str = weight.name.decode("utf-8", "replace")
    parts = name.split("#")
    return parts[1] if len(parts) > 1 else name


def _other_layout() -> LlamaCppError:
    return LlamaCppError(
        "The installed llama.cpp lays out its tensors in another way than edgemed expects.",
        hint="Install the version of llama-cpp-python that edgemed names, or use llama-imatrix.",
    )
