"""Is this computer fit to answer questions? Each check says what was found and, if need be, what to do."""

import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from edgemed import machine, models, offline, paths
from edgemed.errors import EdgemedError

EARLIEST_DATE = datetime.date(2026, 11, 1)
"""No clock that is right shows an earlier day: this version did not exist."""
LOW_MEMORY_BYTES = 2 * 2**30
LOW_DISK_BYTES, NO_DISK_BYTES = 2**30, 200 * 2**20
ENGINE_LIMIT_SECONDS = 60

_ENGINE_PROGRAM = """
import json, llama_cpp, llama_cpp.llama_cpp as lib
print(json.dumps([llama_cpp.__version__, lib.llama_print_system_info().decode()]))
"""


class Check(msgspec.Struct, frozen=True):
    """One finding."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


class AskedOnce(Protocol):
    """What `prove_offline` needs of an answer."""

    @property
    def generated_tokens(self) -> int:
        """Tokens written."""


def run_checks() -> list[Check]:
    """Return all findings; no check ends the others."""
    checks: list[Callable[[], list[Check]]] = [
        _processor,
        _memory,
        _disk,
        _data_folder,
        _clock,
        _terminal,
        _engine,
        _models,
    ]
    found = []
    for check in checks:
        try:
            found += check()
        except (EdgemedError, OSError) as error:
            remedy = getattr(error, "hint", "") or "Run edgemed doctor again as the user who uses edgemed."
            found.append(Check(check.__name__.strip("_").replace("_", " "), "fail", str(error), remedy))
    return found


def render_text(checks: list[Check]) -> str:
    """Return the findings as lines that read well without colour."""
    lines = []
    for check in checks:
        lines.append(f"{check.status.upper():<5} {check.name:<12} {check.detail}")
        if check.remedy:
            lines.append(f"{'':<18} -> {check.remedy}")
    return "\n".join(lines)


def exit_code(checks: list[Check]) -> int:
    """Return 1 if anything failed; a warning is no failure."""
    return int(any(check.status == "fail" for check in checks))


def prove_offline(ask: Callable[[str], AskedOnce]) -> Check:
    """Run a whole question while every socket is refused, in this process and in the engine's.

    Args:
        ask: answers a question on an engine that was started with `forbid_sockets`.
    """
    guard = offline.forbid_sockets()
    try:
        tokens = ask("What is fever?").generated_tokens
    except (EdgemedError, offline.OfflineViolation) as error:
        if guard.violations:
            return Check(
                "offline", "fail", f"The network was used: {', '.join(guard.violations)}.", "Report this."
            )
        return Check("offline", "fail", f"The question was not answered: {error}", "Run edgemed doctor.")
    finally:
        guard.stop()
    detail = (
        f"A question was answered ({tokens} tokens) while every socket was refused, in the app and in the "
        "engine. Only the local pipe between them was used. What Python code does was watched, not C code."
    )
    return Check("offline", "ok", detail)


def _processor() -> list[Check]:
    features, cores = machine.cpu_features(), machine.physical_cores()
    detail = f"{machine.cpu_model()}, {cores} physical core(s)"
    kind = platform.machine().lower()
    if not features:
        return [Check("processor", "ok", f"{detail}; its instruction sets are not known")]
    if kind in ("x86_64", "amd64"):
        if "sse4_2" not in features:
            return [Check("processor", "fail", f"{detail}, no SSE4.2", "Use a computer made after 2010.")]
        if "avx2" not in features:
            return [Check("processor", "warn", f"{detail}, no AVX2: slow", "Use a small model (1B or less).")]
        return [Check("processor", "ok", f"{detail}, AVX2")]
    if kind in ("aarch64", "arm64") and "asimddp" not in features:
        return [
            Check("processor", "warn", f"{detail}, no dot product: slow", "Use a small model (1B or less).")
        ]
    return [Check("processor", "ok", detail)]


def _memory() -> list[Check]:
    free, total = machine.available_memory_bytes(), machine.total_memory_bytes()
    detail = f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f} GiB"
    if free < LOW_MEMORY_BYTES:
        return [Check("memory", "warn", detail, "Close other programs, or use a smaller model.")]
    return [Check("memory", "ok", detail)]


def _disk() -> list[Check]:
    free = machine.free_disk_bytes(paths.data_folder())
    detail = f"{free / 2**30:.1f} GiB free for {paths.data_folder()}"
    remedy = "Empty the waste bin, or delete large files that nobody needs."
    if free < NO_DISK_BYTES:
        return [Check("disk", "fail", detail, remedy)]
    if free < LOW_DISK_BYTES:
        return [Check("disk", "warn", detail, remedy)]
    return [Check("disk", "ok", detail)]


def _data_folder() -> list[Check]:
    folder = paths.data_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"edgemed")
    except OSError as error:
        remedy = "Give this user the right to write there, or set EDGEMED_HOME to another folder."
        return [Check("data folder", "fail", f"{folder} cannot be written: {error.strerror}", remedy)]
    return [Check("data folder", "ok", str(folder))]


def _clock() -> list[Check]:
    today = datetime.datetime.now().astimezone().date()
    if today < EARLIEST_DATE:
        remedy = "Set the date and time in the system's settings."
        return [Check("clock", "warn", f"It shows {today}: notes will carry a wrong date.", remedy)]
    return [Check("clock", "ok", str(today))]


def _terminal() -> list[Check]:
    encoding = (sys.stdout.encoding or "unknown").lower()
    if not sys.stdout.isatty():
        return [Check("terminal", "ok", "the output goes to no terminal")]
    size = shutil.get_terminal_size()
    name = os.environ.get("TERM", "")
    detail = f"{size.columns}x{size.lines}, {name or 'no TERM'}, {encoding}"
    if encoding.replace("-", "") != "utf8":
        return [
            Check("terminal", "warn", detail, "Use a terminal with UTF-8, or some letters will be missing.")
        ]
    if size.columns < 80 or size.lines < 24:
        return [Check("terminal", "warn", detail, "Make the window at least 80 columns by 24 lines.")]
    return [Check("terminal", "ok", detail)]


def _engine() -> list[Check]:
    # In a process of its own: a build for another processor would end this one.
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ENGINE_PROGRAM],
            capture_output=True,
            timeout=ENGINE_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        detail = f"llama.cpp did not start in {ENGINE_LIMIT_SECONDS} s"
        return [Check("engine", "fail", detail, "Start the computer again.")]
    if done.returncode:
        from edgemed.operating_system import describe_exit

        detail = f"llama.cpp does not start: {describe_exit(done.returncode)}"
        return [Check("engine", "fail", detail, "Install edgemed again on this computer.")]
    version, features = json.loads(done.stdout)
    if "OPENMP = 1" not in features:
        remedy = "Install a build with OpenMP: answers are slow while other programs are busy."
        return [Check("engine", "warn", f"llama-cpp-python {version}, no OpenMP", remedy)]
    return [Check("engine", "ok", f"llama-cpp-python {version}, OpenMP")]


def _models() -> list[Check]:
    from edgemed.engine.memory import memory_need

    free = machine.available_memory_bytes()
    listed = models.list_models()
    found = []
    for model in listed.models:
        name = f"model {model.name}"
        try:
            models.check_unchanged(model)
        except EdgemedError as error:
            found.append(Check(name, "fail", error.message, error.hint))
            continue
        if model.manifest.kind == "adapter":
            found.append(Check(name, "ok", "adapter, whole"))
            continue
        length = min(model.manifest.context_length, 4096)
        need = memory_need(model.manifest.shape, model.manifest.size_bytes, length).total_bytes
        detail = f"needs {need / 2**30:.2f} GiB of memory"
        if need > free:
            found.append(Check(name, "warn", detail, "Close other programs, or use a smaller model."))
        else:
            notice = f"; {model.manifest.notice}" if model.manifest.notice else ""
            found.append(Check(name, "ok", detail + notice))
    remedy = "Copy the model from the kit again: edgemed models install PATH"
    found += [Check(f"model {bad.name}", "fail", bad.problem, remedy) for bad in listed.damaged]
    return found
