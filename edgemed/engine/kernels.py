"""Which of llama.cpp's kernels this machine can really run, remembered between starts.

A processor may announce instructions that its system does not let programs use: AMX under a hypervisor that
does not keep its tiles ends llama.cpp with SIGILL at the first batch. A child that crashes while it proves
its kernels is started again with the plain ones, and the result is kept for this build of llama.cpp.
"""

import contextlib
import os
from pathlib import Path
from typing import Literal

import msgspec

Kernels = Literal["full", "plain"]

PROOF_TOKENS = 64
"""A batch of one token takes other kernels than a prompt does."""


class _Remembered(msgspec.Struct, frozen=True):
    build: str
    kernels: Kernels
    models: list[str]
    """SHA-256 of the models that the full kernels read a batch of: other tensor types take other kernels."""


def recall(file: Path, build: str, model_sha256: str) -> Kernels | None:
    """Return what was proved for this build and model; None if nothing was."""
    remembered = _read(file, build)
    if remembered is None:
        return None
    if remembered.kernels == "plain":
        return "plain"
    return "full" if model_sha256 in remembered.models else None


def remember(file: Path, build: str, model_sha256: str, kernels: Kernels) -> None:
    """Keep what was proved; a full or read-only disk costs only the next start's time."""
    if recall(file, build, model_sha256) == kernels:
        return
    before = _read(file, build)
    proved = before.models if before and before.kernels == kernels else []
    content = _Remembered(build, kernels, [*proved, model_sha256][-100:])
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(content))
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _read(file: Path, build: str) -> _Remembered | None:
    try:
        remembered = msgspec.json.decode(file.read_bytes(), type=_Remembered)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return remembered if remembered.build == build else None
