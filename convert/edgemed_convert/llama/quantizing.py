"""llama.cpp's own quantizer, called with everything it takes. Lives in the child process."""

import ctypes
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from edgemed.errors import UsageError
from edgemed_convert.errors import LlamaCppError
from edgemed_convert.llama.log import Log
from edgemed_convert.llama.messages import Progress, Quantize

_TENSOR_LINE = re.compile(r"\[ *(\d+)/ *(\d+)\] (\S+)")
_MAX_VALUE_BYTES = 127
"""llama.cpp's room for a text in the metadata that a caller adds."""

_ROWS_IN_MEMORY_BYTES = 512 * 2**20
"""llama.cpp's own limit is 8 GiB; the rows' bytes do not depend on it."""


def quantize(lib: Any, log: Log, request: Quantize, on_progress: Callable[[Progress], None]) -> list[str]:
    """Write the quantized copy, or only go through the motions for `dry_run`; return llama.cpp's log lines.

    Raises:
        UsageError: llama.cpp has no such type.
        LlamaCppError: it refused; what it had written of the target is left to the caller.
    """
    parameters = lib.llama_model_quantize_default_params()
    parameters.nthread = request.threads
    parameters.ftype = _file_type(lib, request.type_name)
    parameters.allow_requantize = request.allow_requantize
    parameters.pure = request.pure
    parameters.dry_run = request.dry_run
    parameters.max_buf_size = _ROWS_IN_MEMORY_BYTES
    if request.output_type_number is not None:
        parameters.output_tensor_type = request.output_type_number
    if request.embedding_type_number is not None:
        parameters.token_embedding_type = request.embedding_type_number
    kept = _Kept(lib)
    if request.importance is not None:
        parameters.imatrix = kept.importance(request.importance)
    if request.metadata:
        parameters.kv_overrides = kept.metadata(request.metadata)
    if request.tensor_types:
        parameters.tt_overrides = kept.tensor_types(request.tensor_types)

    log.clear()
    log.on_line = lambda line: _report(line, 0, on_progress)
    log.on_text = lambda line: _report(line, 1, on_progress)
    try:
        code = lib.llama_model_quantize(
            request.source.encode(), request.target.encode(), ctypes.byref(parameters)
        )
    finally:
        log.on_line = log.on_text = _ignore
    if code:
        raise LlamaCppError(log.first_error().removeprefix("failed to quantize: "))
    return log.lines()


def _file_type(lib: Any, type_name: str) -> int:
    name = "LLAMA_FTYPE_ALL_F32" if type_name == "F32" else f"LLAMA_FTYPE_MOSTLY_{type_name}"
    number: int | None = getattr(lib, name, None)
    if number is None:
        raise UsageError(f"The installed llama.cpp has no quantization type {type_name}.")
    return number


def _report(line: str, unfinished: int, on_progress: Callable[[Progress], None]) -> None:
    found = _TENSOR_LINE.match(line)
    if found:
        on_progress(Progress(int(found[1]) - unfinished, int(found[2]), found[3]))


def _ignore(_line: str) -> None:
    pass


class _Kept:
    """The arrays that llama.cpp reads while it works: ctypes frees what nobody holds."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._held: list[Any] = []

    def importance(self, weights: dict[str, bytes]) -> Any:
        entries = (self._lib.llama_model_imatrix_data * (len(weights) + 1))()
        for entry, (name, data) in zip(entries, weights.items(), strict=False):
            values = np.frombuffer(data, dtype="<f4").astype(np.float32)
            self._held.append(values)
            entry.name = name.encode()
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = values.size
        return self._pointer(entries, self._lib.llama_model_imatrix_data)

    def metadata(self, pairs: dict[str, str | int]) -> Any:
        lib = self._lib
        entries = (lib.llama_model_kv_override * (len(pairs) + 1))()
        for entry, (key, value) in zip(entries, pairs.items(), strict=False):
            entry.key = key.encode()
            if isinstance(value, int):
                entry.tag = lib.LLAMA_KV_OVERRIDE_TYPE_INT
                entry.value.val_i64 = value
            else:
                entry.tag = lib.LLAMA_KV_OVERRIDE_TYPE_STR
                # Cut between characters, not inside one.
                shortened = value.encode()[:_MAX_VALUE_BYTES].decode("utf-8", "ignore")
                entry.value.val_str = shortened.encode()
        return self._pointer(entries, lib.llama_model_kv_override)

    def tensor_types(self, types: list[tuple[str, int]]) -> Any:
        entries = (self._lib.llama_model_tensor_override * (len(types) + 1))()
        for entry, (pattern, number) in zip(entries, types, strict=False):
            entry.pattern = pattern.encode()
            entry.type = number
        return self._pointer(entries, self._lib.llama_model_tensor_override)

    def _pointer(self, entries: Any, element: Any) -> Any:
        # Each array ends with an empty element.
        self._held.append(entries)
        return ctypes.cast(entries, ctypes.POINTER(element))
