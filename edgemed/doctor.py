"""Checks of this computer, each with a remedy that a nurse or the clinic's IT staff can act on.

Called by `edgemed doctor`. A check never raises: what goes wrong inside it is what it reports.
"""

import datetime
import functools
import locale
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import msgspec

from edgemed import machine, models, operating_system, paths, reference_packs
from edgemed.engine.memory import memory_need
from edgemed.errors import EdgemedError, ModelCorrupt
from edgemed.offline import OfflineViolation, forbid_sockets
from edgemed.session import DEFAULT_CONTEXT_LENGTH
from edgemed.terminal_text import clean

EARLIEST_DATE = datetime.date(2026, 11, 1)
"""No computer can truly run this version before that day."""
PROOF_QUESTION = "What is anaemia?"

_GIB = 2**30
_MIB = 2**20
_LOW_MEMORY_BYTES = 2 * _GIB
_LOW_DISK_BYTES = _GIB
_LEAST_DISK_BYTES = 200 * _MIB
_LEAST_COLUMNS, _LEAST_LINES = 80, 24
_ENGINE_SECONDS = 60
_ENGINE_PROGRAM = """
import sys, llama_cpp, llama_cpp._ggml as ggml
from edgemed.engine.plugins import load_best_plugin
load_best_plugin(ggml.libggml, ggml.libggml_base_path)
info = llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip()
sys.stdout.buffer.write(f"\\n{llama_cpp.__version__}\\t{info}".encode())
"""
_WIDTH = 80
_INSTALL_AGAIN = "Install edgemed again from the kit made for this kind of computer."


class Check(msgspec.Struct, frozen=True):
    """What was looked at, what was found, and what to do about it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


class _Answered(Protocol):
    """What the proof needs to know of an answer."""

    @property
    def text(self) -> str: ...
    @property
    def stop_reason(self) -> str: ...
    @property
    def explanation(self) -> str: ...


def run_checks() -> list[Check]:
    """Run all checks, the cheap ones first; takes some seconds."""
    looks: list[tuple[str, Callable[[], Check]]] = [
        ("processor", _processor),
        ("cores", _cores),
        ("memory", _memory),
        ("disk", _disk),
        ("data folder", _data_folder),
        ("clock", _clock),
        ("terminal", _terminal),
        ("llama.cpp", _llama_cpp),
    ]
    return [*(_guarded(name, look) for name, look in looks), *_models(), *_references()]


def exit_code(checks: Sequence[Check]) -> int:
    """Return 1 if anything failed, else 0: a warning does not stop a script."""
    return int(any(check.status == "fail" for check in checks))


def render_text(checks: Sequence[Check]) -> str:
    """Return the checks as aligned text of 80 columns that needs no colour."""
    name_width = min(24, max((len(clean(check.name)) for check in checks), default=0))
    indent = " " * (6 + name_width + 2)
    wrap = functools.partial(textwrap.fill, width=_WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    lines = []
    for check in checks:
        label = check.status if check.status == "ok" else check.status.upper()
        lines.append(wrap(f"{label:<6}{clean(check.name):<{name_width}}  {clean(check.detail)}"))
        if check.remedy:
            lines.append(wrap(f"To do: {clean(check.remedy)}", initial_indent=indent))
    return "\n".join(lines)


def prove_offline(ask: Callable[[str], _Answered]) -> Check:
    """Ask one whole question with every use of the network refused, and say what that proves.

    Args:
        ask: answers a question with an engine whose child refuses the network too.
    """
    name = "offline"
    report = "Report this as a fault of edgemed, with this text; no data can have left: it was refused."
    with forbid_sockets() as guard:
        try:
            answer = ask(PROOF_QUESTION)
        except OfflineViolation:
            answer = None  # recorded
        except EdgemedError as error:
            if not guard.violations:
                return Check(name, "fail", f"The question could not be asked: {error.message}", error.hint)
            answer = None
        except OSError as error:
            if not guard.violations:
                return Check(name, "fail", _refused(error), "Run: edgemed doctor")
            answer = None
    if guard.violations or answer is None:
        return Check(name, "fail", f"edgemed tried to use the network: {'; '.join(guard.violations)}", report)
    if answer.stop_reason not in ("end_of_turn", "length") or not answer.text.strip():
        problem = answer.explanation or f"it ended with {answer.stop_reason}."
        return Check(
            name, "fail", f"The answer is not whole, so nothing is proved: {problem}", "Run: edgemed doctor"
        )
    return Check(
        name,
        "ok",
        f"A whole question was asked and answered ({len(answer.text)} characters). Every use of the network "
        "by Python was refused in the app and in its engine process, and none was tried. Not seen by this: "
        "what C code such as llama.cpp could do by itself, without Python. To be sure of that too, pull the "
        "network cable, switch off the wireless network, and ask again.",
    )


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except EdgemedError as error:
        return Check(name, "fail", error.message, error.hint or "Run the check again.")
    except OSError as error:
        return Check(
            name,
            "warn",
            f"Could not be checked. {_refused(error)}",
            "Run the check again as the user who works with edgemed.",
        )


def _refused(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"The system refused: {error.strerror or error}{where}."


# This computer.


def _processor() -> Check:
    name, model = "processor", machine.cpu_model()
    features = machine.cpu_features()
    kind = platform.machine().lower()
    if kind in ("x86_64", "amd64"):
        if not features:
            return Check(name, "ok", f"{model}; the system does not tell its instruction sets")
        if "sse4_2" not in features:
            return Check(
                name,
                "fail",
                f"{model} has no SSE4.2: the engine cannot run on it",
                "Use a computer made after 2009.",
            )
        if "avx2" not in features:
            return Check(
                name,
                "warn",
                f"{model} has no AVX2: answers come several times slower",
                "Use the smallest model, or a computer made after 2014. In a virtual machine, let it have "
                "the host's processor type.",
            )
        return Check(name, "ok", f"{model}, with {'AVX-512' if 'avx512f' in features else 'AVX2'}")
    if kind in ("aarch64", "arm64"):
        if features and "asimddp" not in features:
            return Check(
                name,
                "warn",
                f"{model} has no dot product instructions: answers come several times slower",
                "Use the smallest model, or a newer board such as the Raspberry Pi 5.",
            )
        return Check(name, "ok", f"{model}{', with dot product instructions' if features else ''}")
    return Check(
        name,
        "warn",
        f"{model} ({kind or 'unknown'}) is a kind of processor on which edgemed was never tried",
        "Use a 64-bit Intel or AMD computer, or a 64-bit Raspberry Pi system.",
    )


def _cores() -> Check:
    cores = machine.physical_cores()
    if cores < 2:
        return Check(
            "cores",
            "warn",
            "1 core: answers come slowly, and more slowly while other programs work",
            "Close other programs. In a virtual machine, give it more processors.",
        )
    return Check("cores", "ok", f"{cores} cores")


def _memory() -> Check:
    available, total = machine.available_memory_bytes(), machine.total_memory_bytes()
    detail = f"{_size(available)} free of {_size(total)}"
    if available < _LOW_MEMORY_BYTES:
        return Check(
            "memory", "warn", detail, "Close other programs, the web browser first, or use a smaller model."
        )
    return Check("memory", "ok", detail)


def _disk() -> Check:
    free = machine.free_disk_bytes(paths.data_folder())
    detail = f"{_size(free)} free where edgemed keeps its data"
    remedy = (
        "Delete files that are not needed or remove models (edgemed models remove NAME), or set EDGEMED_HOME "
        "to a folder on a larger disk."
    )
    if free < _LEAST_DISK_BYTES:
        return Check("disk", "fail", f"{detail}: conversations may not be saved", remedy)
    if free < _LOW_DISK_BYTES:
        return Check("disk", "warn", f"{detail}: little room for models", remedy)
    return Check("disk", "ok", detail)


def _data_folder() -> Check:
    folder = paths.data_folder()
    probe = os.urandom(1024)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(probe)
            file.flush()
            operating_system.fsync_file(file.fileno())
            file.seek(0)
            same = file.read() == probe
    except OSError as error:
        return Check(
            "data folder",
            "fail",
            f"Nothing can be written to {folder}. {_refused(error)}",
            "Let this user write to that folder, or set EDGEMED_HOME to a folder where it may.",
        )
    if not same:
        return Check(
            "data folder",
            "fail",
            f"{folder} gives back other bytes than were written: its disk is failing",
            "Copy what is on that disk to another, and replace it.",
        )
    return Check("data folder", "ok", f"{folder} can be written to")


def _clock(today: Callable[[], datetime.date] = datetime.date.today) -> Check:
    now = today()
    if now < EARLIEST_DATE:
        how = (
            "Settings > Time & language > Date & time"
            if sys.platform == "win32"
            else "sudo timedatectl set-ntp false, then sudo timedatectl set-time 'YYYY-MM-DD HH:MM:SS'"
        )
        return Check(
            "clock",
            "warn",
            f"The clock says {now}, which is past: notes will carry a wrong date",
            f"Set date and time: {how}. If it is wrong again after the next start, the small battery of the "
            "computer's clock is empty; a Raspberry Pi needs one to be added.",
        )
    return Check("clock", "ok", f"The clock says {now}")


def _terminal() -> Check:
    name = "terminal"
    if not sys.stdout.isatty():
        return Check(name, "ok", "The output goes to a file or another program: not checked")
    if sys.platform != "win32" and os.environ.get("TERM", "dumb") == "dumb":
        return Check(
            name,
            "warn",
            "This terminal can only print lines (TERM=dumb): the chat screen cannot work in it",
            "Use the system's own terminal program, or ask questions with: edgemed ask",
        )
    encoding = "utf-8" if sys.platform == "win32" else locale.getencoding()
    if encoding.lower().replace("-", "") != "utf8":
        return Check(
            name,
            "warn",
            f"The system's text encoding is {encoding}, not UTF-8: letters may look wrong",
            "Choose a UTF-8 language setting, for example: export LANG=C.UTF-8",
        )
    columns, lines = shutil.get_terminal_size()
    if columns < _LEAST_COLUMNS or lines < _LEAST_LINES:
        return Check(
            name,
            "warn",
            f"The window shows {columns} columns and {lines} lines",
            f"Make the window larger or its letters smaller: {_LEAST_COLUMNS} columns and {_LEAST_LINES} "
            "lines are needed.",
        )
    return Check(name, "ok", f"{columns} columns, {lines} lines, UTF-8")


# The engine and its models.


def _llama_cpp() -> Check:
    name = "llama.cpp"
    # In a process of its own: a build for another processor ends whoever loads it.
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", _ENGINE_PROGRAM],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ENGINE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(
            name,
            "fail",
            f"The engine did not load within {_ENGINE_SECONDS} s",
            "Close other programs and check again. If a virus scanner is at work, let it finish once.",
        )
    if ended.returncode:
        last_line = ended.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        words = operating_system.describe_exit(ended.returncode)
        return Check(
            name, "fail", f"The engine cannot be loaded: {words}. {last_line}".strip(), _INSTALL_AGAIN
        )
    version, _, info = ended.stdout.decode("utf-8", "replace").rpartition("\n")[2].partition("\t")
    detail = f"llama-cpp-python {version}; {info}"
    if "OPENMP = 1" not in info:
        return Check(
            name,
            "warn",
            f"Built without OpenMP: answers come far slower while other programs work. {detail}",
            _INSTALL_AGAIN,
        )
    if "avx2" in machine.cpu_features() and "AVX2 = 1" not in info:
        return Check(
            name,
            "warn",
            f"Built without AVX2, which this processor has: answers come several times slower. {detail}",
            _INSTALL_AGAIN,
        )
    return Check(name, "ok", detail)


def _models() -> Iterator[Check]:
    try:
        found = models.list_models()
    except (EdgemedError, OSError) as error:
        yield Check(
            "models", "fail", f"The models cannot be listed: {error}", "Let this user read the data folder."
        )
        return
    if not found.models:
        yield Check("models", "fail", "No model is installed", "Run: edgemed models install FILE")
    for damaged in found.damaged:
        yield Check(
            f"model {damaged.name}",
            "fail",
            f"It cannot be used: {damaged.problem}",
            f"Run: edgemed models remove {damaged.name}. Then install it again from the kit.",
        )
    for model in found.models:
        name = f"{model.manifest.kind} {model.name}"
        yield _guarded(name, functools.partial(_model, name, model))


def _model(name: str, model: models.InstalledModel) -> Check:
    models.check_unchanged(model)
    manifest = model.manifest
    place = "comes with edgemed" if model.embedded else "installed"
    if manifest.kind == "adapter":
        return Check(name, "ok", f"{place}, {_size(manifest.size_bytes)}")
    length = min(manifest.context_length, DEFAULT_CONTEXT_LENGTH)
    need = memory_need(manifest.shape, manifest.size_bytes, length).total_bytes
    detail = f"{place}; needs {_size(need)} of memory at a context of {length} tokens"
    if need > machine.total_memory_bytes():
        return Check(
            name,
            "warn",
            f"{detail}, more than this computer has",
            "Use a smaller model on this computer, or this one on a computer with more memory.",
        )
    free = machine.available_memory_bytes()
    if need > free:
        return Check(
            name,
            "warn",
            f"{detail}, and {_size(free)} is free now",
            "Close other programs before you use it, or use a smaller model.",
        )
    return Check(name, "ok", detail)


def _references() -> Iterator[Check]:
    """Libraries and rule sets; none is no fault."""
    found = reference_packs.list_packs()
    for damaged in found.damaged:
        problem = f"It cannot be used: {damaged.problem}"
        yield Check(f"pack {damaged.name}", "fail", problem, reference_packs.REPAIR)
    for pack in found.packs:
        kind = "library" if pack.manifest.kind == "library" else "rule set"
        name = f"{kind} {pack.manifest.name}"
        yield _guarded(name, functools.partial(_reference, name, pack))


def _reference(name: str, pack: reference_packs.InstalledPack) -> Check:
    try:
        reference_packs.check_or_verify(pack)
    except ModelCorrupt as error:
        return Check(name, "fail", f"version {pack.manifest.version}: {error.message}", error.hint)
    manifest, in_use = pack.manifest, pack.name in reference_packs.names_chosen()
    return Check(
        name,
        "ok",
        f"version {manifest.version}, {'in use' if in_use else 'not in use'}: {manifest.title}, edition "
        f"{manifest.edition}, language {manifest.language}, {_size(manifest.size_bytes)}",
    )


def _size(size_bytes: int) -> str:
    if size_bytes < _MIB:
        return f"{size_bytes / 1024:.0f} KiB"
    return f"{size_bytes / _MIB:.0f} MiB" if size_bytes < _GIB else f"{size_bytes / _GIB:.1f} GiB"
