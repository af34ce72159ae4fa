"""The user's own llama.cpp instead of our exporter: its `convert_hf_to_gguf.py`, in a process of its own.

For architectures that we do not export. Nothing it writes is trusted: the same checks apply to its file.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemed import operating_system
from edgemed.errors import StorageError, UsageError
from edgemed.gguf_header import read_header
from edgemed_convert.adapter import MergedCheckpoint
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.errors import LlamaCppError
from edgemed_convert.licence import one_line
from edgemed_convert.merge import write_merged
from edgemed_convert.output import Progress, new_file, no_progress

SCRIPT_NAME = "convert_hf_to_gguf.py"
MERGED_NAME = "merged"
_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "q8_0"}
_OWN_PYTHONS = ("bin/python", "bin/python3", "Scripts/python.exe")
_WAIT_SLICE_SECONDS = 0.2
_LOG_BYTES = 64 * 1024


@dataclass(frozen=True)
class LlamaCppConverter:
    """A folder of llama.cpp's source, and the Python that runs its script."""

    script: Path
    python: Path

    @classmethod
    def find(cls, folder: Path, python: Path | None = None) -> "LlamaCppConverter":
        """Find the script in a copy of llama.cpp.

        Args:
            folder: where llama.cpp's source is.
            python: the interpreter that has what the script needs; None: that of DIR/.venv or DIR/venv, else
                the one that runs this program.

        Raises:
            UsageError: there is no script, or no such interpreter.
        """
        script = folder / SCRIPT_NAME
        if not script.is_file():
            raise UsageError(
                f"{folder} has no {SCRIPT_NAME}.",
                hint="Name the folder of llama.cpp's source: git clone https://github.com/ggml-org/llama.cpp",
            )
        if python is not None and not python.is_file():
            raise UsageError(f"There is no Python interpreter {python}.", hint="Name the program itself.")
        found = (folder / venv / name for venv in (".venv", "venv") for name in _OWN_PYTHONS)
        own = next((path for path in found if path.is_file()), Path(sys.executable))
        return cls(script.absolute(), (python or own).absolute())


def folder_to_export(
    model: Checkpoint | MergedCheckpoint, scratch_folder: Path, progress: Progress = no_progress
) -> Path:
    """Return a folder that holds the model: its own, or one with the adapters merged, written anew.

    Raises:
        CheckpointError: a weight has NaN or Inf.
        StorageError: the disk is full or read-only.
    """
    if not isinstance(model, MergedCheckpoint):
        return model.folder
    folder = scratch_folder / MERGED_NAME
    shutil.rmtree(folder, ignore_errors=True)
    write_merged(model, folder, progress=progress)
    return folder


def export_with_llama_cpp(
    converter: LlamaCppConverter,
    folder: Path,
    target: Path,
    *,
    file_type: str,
    name: str,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Write a model folder, plain or merged, as GGUF with the user's llama.cpp.

    Args:
        file_type: F32, F16, BF16 or Q8_0.
        name: general.name in the file.

    Raises:
        LlamaCppError: the script failed; the message is its last line.
        UsageError: the target exists, or the type cannot be exported.
        StorageError: the disk is full or read-only.
    """
    if file_type not in _TYPES:
        raise UsageError(f"llama.cpp's script exports {', '.join(_TYPES)}, not {file_type}.")
    with new_file(target, replace=overwrite) as written:
        # Its reader wants the ending.
        temporary = written.with_name(written.name + ".gguf")
        try:
            _run(
                [
                    *(str(converter.python), str(converter.script), str(folder.absolute())),
                    *("--outfile", str(temporary.absolute()), "--outtype", _TYPES[file_type]),
                    *("--model-name", name),
                ],
                progress,
            )
            read_header(temporary)
            temporary.rename(written)
        finally:
            temporary.unlink(missing_ok=True)


def _run(command: Sequence[str], progress: Progress) -> None:
    """Run the script to its end; Ctrl+C and a kill of this process end it, too."""
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=_environment()
            )
        except OSError as error:
            raise LlamaCppError(
                f"{command[0]} cannot be started: {error.strerror}.",
                hint="Name an interpreter with --llama-cpp-python.",
            ) from error
        try:
            progress("llama.cpp's script", 0, 1, "files")
            while process.poll() is None:
                try:
                    process.wait(_WAIT_SLICE_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode == 0:
            return
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - _LOG_BYTES))
        lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        raise _failure(lines, process.returncode)


def _failure(lines: Sequence[str], exit_code: int) -> LlamaCppError | StorageError:
    last = one_line(lines[-1]) if lines else operating_system.describe_exit(exit_code)
    if "No space left on device" in last:
        return StorageError(
            "The disk is full: llama.cpp's script could not write its file.",
            hint="Free some space, or name a folder on another disk.",
        )
    hint = "Run the script by hand to see all of its output."
    if "ModuleNotFoundError" in last:
        hint = "Install llama.cpp's requirements, and name that interpreter with --llama-cpp-python."
    return LlamaCppError(f"llama.cpp's {SCRIPT_NAME} failed: {last.rstrip('.')}.", hint=hint)


def _environment() -> dict[str, str]:
    # The script brings its own gguf package; ours, older or newer, must not come before it.
    unwanted = ("NO_LOCAL_GGUF", "PYTHONPATH", "PYTHONHOME")
    kept = {key: value for key, value in os.environ.items() if key not in unwanted}
    return {**kept, "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}
