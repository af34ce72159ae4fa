"""What differs between operating systems, and only that: each function has its Windows twin beside it.

Everything else in edgemed is written for all of them; `tests/test_portability.py` forbids POSIX-only names
outside this module.
"""

import contextlib
import ctypes
import errno
import io
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from edgemed.errors import FileInUse, StorageError, Terminated
from edgemed.languages import later
from edgemed.languages import text as _

if sys.platform == "win32":
    import msvcrt
    import winreg
else:
    import fcntl

_REPLACE_TRIES = 20
_REPLACE_WAIT_SECONDS = 0.1
_FIRST_KILLED = 800
"""Of 1000: the kernel's choice when memory runs out, long before any other program of the user."""

_ILLEGAL_INSTRUCTION = "it needs an instruction that this processor lacks"
_CRASHES = {
    "SIGSEGV": later("it crashed (signal SIGSEGV)"),
    "SIGABRT": later("it crashed (signal SIGABRT)"),
    "SIGFPE": later("it crashed (signal SIGFPE)"),
    "SIGBUS": later(
        "the model file was changed or removed while it was in use, or its disk failed (signal SIGBUS)"
    ),
    "SIGILL": f"{_ILLEGAL_INSTRUCTION} (signal SIGILL)",
}
_OTHER_SIGNALS = {
    "SIGKILL": later("the system stopped it, most often because memory ran out"),
    "SIGTERM": later("another program ended it"),
}
# NTSTATUS codes; an access violation is also what a vanished memory-mapped file gives.
_WINDOWS_CRASHES = {
    0xC0000005: later("it crashed (0xC0000005, access violation)"),
    0xC0000006: later(
        "the model file was changed or removed while it was in use, or its disk failed (0xC0000006)"
    ),
    0xC000001D: f"{_ILLEGAL_INSTRUCTION} (0xC000001D)",
    0xC00000FD: later("it crashed (0xC00000FD, stack overflow)"),
    0xC0000374: later("it crashed (0xC0000374, heap corruption)"),
    0xC0000409: later("it crashed (0xC0000409, abort)"),
}
_WINDOWS_OTHERS = {
    0xC0000017: later("memory ran out (0xC0000017)"),
    0xC000012D: later("memory ran out (0xC000012D)"),
    0xC000013A: later("its window was closed (0xC000013A)"),
}
# Windows' numbers for what Linux calls by these names (IsProcessorFeaturePresent).
_WINDOWS_CPU_FEATURES = {
    "asimd": 19,
    "ssse3": 36,
    "sse4_1": 37,
    "sse4_2": 38,
    "avx": 39,
    "avx2": 40,
    "avx512f": 41,
    "asimddp": 43,
}


# Files.


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system frees it when the process dies, however it dies.

    Raises:
        FileInUse: another edgemed holds it.
        StorageError: the disk cannot lock.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _cannot_lock(path, error) from error
    try:
        _lock(descriptor, path)
        yield
    finally:
        # Closing also unlocks. The file stays: to remove it would let two processes lock two files.
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    in_use = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in in_use:
            raise FileInUse(
                _("{name} is in use by another edgemed.", name=path.name),
                hint=_(
                    "Wait until it has finished, or close it, then try again. The file is {path}.", path=path
                ),
            ) from error
        raise _cannot_lock(path, error) from error


def _cannot_lock(path: Path, error: OSError) -> StorageError:
    return StorageError(
        _("{path} cannot be locked: {reason}.", path=path, reason=error.strerror),
        hint=_("Use a data folder on a local disk that you may write to: set EDGEMED_HOME."),
    )


def fsync_file(file_descriptor: int) -> None:
    """Wait until a file's bytes are on the disk. On Windows, too, `os.fsync` is the way."""
    os.fsync(file_descriptor)


def fsync_folder(path: Path) -> None:
    """Wait until a folder's entries are on the disk. Windows has no call for it."""
    if sys.platform != "win32":
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network and FUSE file systems know no fsync of folders.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise
        finally:
            os.close(descriptor)


def replace_file(source: Path, target: Path) -> None:
    """Put `source` in the place of `target` so that a power cut leaves one of them whole."""
    if sys.platform == "win32":
        # Virus scanners hold a new file open for a moment.
        for _ in range(_REPLACE_TRIES - 1):
            with contextlib.suppress(PermissionError):
                source.replace(target)
                return
            time.sleep(_REPLACE_WAIT_SECONDS)
    source.replace(target)
    fsync_folder(target.parent)


# Signals and the ends of processes.


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until its bytes are on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        fsync_file(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that its name stands for the old bytes or for the new ones, never for a part."""
    written = path.with_name(f"{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        write_durably(written, data)
        replace_file(written, path)
    finally:
        written.unlink(missing_ok=True)


def on_termination(handler: Callable[[int], None]) -> None:
    """Call `handler` with the exit code when the system or a closed window asks this process to end.

    Main thread only. A SIGHUP that was ignored from the start (nohup) stays ignored.
    """

    def handle(signal_number: int, _frame: FrameType | None) -> None:
        handler(128 + signal_number)

    if sys.platform == "win32":
        # Windows gives Python a closed console window as SIGBREAK, like Ctrl+Break.
        signals = [signal.SIGTERM, signal.SIGBREAK]
    else:
        signals = [signal.SIGTERM, signal.SIGHUP]
    for number in signals:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)


def raise_on_termination() -> None:
    """Raise `Terminated` in the main thread when the system or a closed window asks this process to end."""

    def end(exit_code: int) -> None:
        raise Terminated(exit_code)

    on_termination(end)


def ignore_termination_signals() -> None:
    """Leave Ctrl+C and the wish to end to the parent process. For the engine's child, in its main thread."""
    if sys.platform == "win32":
        signals = [signal.SIGINT, signal.SIGBREAK]
    else:
        signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    for number in signals:
        signal.signal(number, signal.SIG_IGN)


def describe_exit(exit_code: int | None) -> str:
    """Say in plain words how a child process ended: a clause without capital and full stop.

    Args:
        exit_code: as `multiprocessing.Process.exitcode` gives it: minus the signal on POSIX.
    """
    if exit_code is None:
        return _("it did not end")
    windows_code = exit_code & 0xFFFFFFFF
    name = _signal_name(exit_code)
    words = (
        _CRASHES.get(name)
        or _OTHER_SIGNALS.get(name)
        or _WINDOWS_CRASHES.get(windows_code)
        or _WINDOWS_OTHERS.get(windows_code)
    )
    if words:
        return _(words)
    if name:
        return _("it was ended by signal {name}", name=name)
    shown = f"0x{windows_code:08X}" if windows_code >= 0xC0000000 else str(exit_code)
    return _("it ended with exit code {code}", code=shown)


def is_crash(exit_code: int | None) -> bool:
    """Whether a child ended by a fault of its own code, not by another's will, memory or a plain exit."""
    if exit_code is None:
        return False
    return _signal_name(exit_code) in _CRASHES or exit_code & 0xFFFFFFFF in _WINDOWS_CRASHES


def _signal_name(exit_code: int) -> str:
    """Return the name of the signal that ended a process, or nothing."""
    if not -64 <= exit_code < 0:
        return ""
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return str(-exit_code)


def prepare_for_child_processes() -> None:
    """Start what `multiprocessing` needs besides a child, while the standard streams are still the real ones.

    Its resource tracker inherits standard error; a full screen puts something without a number in its place.
    """
    if sys.platform != "win32":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()


def lower_priority_for_memory_pressure() -> None:
    """Let the kernel end this process first when memory runs out: the engine's child, not the app.

    Only Linux can be told; elsewhere this does nothing.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(_FIRST_KILLED), encoding="ascii")


# Streams and C.


def send_stderr_to_null() -> None:
    """Throw away what this process and its C libraries write to standard output and standard error."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
    finally:
        if null > 2:
            os.close(null)


def utf8_standard_streams() -> None:
    """Read and write UTF-8 whatever the locale or code page says; output never fails for one character.

    Bytes that are no UTF-8 arrive from standard input as lone surrogates, so that a caller can tell.
    """
    for stream, on_error in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "replace"),
        (sys.stderr, "backslashreplace"),
    ):
        # None without a console; a test's replacement is no TextIOWrapper.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=on_error)


def enable_line_editing() -> None:
    """Give `input` its keys for editing. Windows' console has its own."""
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - loading it is all it takes


def c_strlen() -> Any:
    """Return C's `strlen` as a ctypes function: llama.cpp's abort callback, which then needs no Python."""
    if sys.platform == "win32":
        return ctypes.cdll.msvcrt.strlen
    return ctypes.CDLL(None).strlen


# Clocks.


def awake_ns() -> int:
    """Return a clock that never goes back and stands still while the machine sleeps."""
    if sys.platform == "win32":
        return _windows_interrupt_time_ns("QueryUnbiasedInterruptTimePrecise")
    return time.monotonic_ns()


def since_boot_ns() -> int:
    """Return a clock that never goes back and goes on while the machine sleeps.

    Where the system has none it is the same as `awake_ns`: a sleep then shows in the wall clock alone.
    """
    if sys.platform == "win32":
        return _windows_interrupt_time_ns("QueryInterruptTimePrecise")
    if sys.platform == "linux":
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.monotonic_ns()


def _windows_interrupt_time_ns(function: str) -> int:
    if sys.platform == "win32":
        ticks = ctypes.c_ulonglong()
        # Since Windows 10; in units of 100 ns.
        getattr(ctypes.WinDLL("kernelbase"), function)(ctypes.byref(ticks))
        return ticks.value * 100
    raise NotImplementedError(function)


# What Windows knows of the processor; `machine.py` reads the same from Linux's files.


def windows_cpu_model() -> str | None:
    """Return the processor's name from the registry; None on other systems."""
    if sys.platform == "win32":
        try:
            with winreg.OpenKey(
                winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
            ) as key:
                return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        except OSError:
            return None
    return None


def windows_cpu_features() -> frozenset[str]:
    """Return the processor's features by Linux's names; empty elsewhere, and where Windows is too old."""
    if sys.platform == "win32":
        present = ctypes.windll.kernel32.IsProcessorFeaturePresent
        return frozenset(name for name, number in _WINDOWS_CPU_FEATURES.items() if present(number))
    return frozenset()


# What Windows knows of power; `machine_counters.py` reads the same from Linux's files.

_SYSTEM_BATTERY_STATE = 5
_WINDOWS_POWER_PLANS = {
    "a1841308-3541-4fab-bc81-f71556f20b4a": "power saver",
    "381b4222-f694-41f0-9685-ff5bb260df2e": "balanced",
    "8c5e7fda-e8bf-4a96-9a85-a6e23a8c635c": "high performance",
    "e9a42b02-d5df-448d-aa00-03f14749eb61": "ultimate performance",
}
_DEVICES_PRESENT = 0
_OPEN_EXISTING = 3
_GENERIC_READ = 0x80000000
_SHARED = 3


class _BatteryState(ctypes.Structure):
    """SYSTEM_BATTERY_STATE of winnt.h."""

    _fields_: ClassVar = [
        ("ac_on_line", ctypes.c_ubyte),
        ("battery_present", ctypes.c_ubyte),
        ("charging", ctypes.c_ubyte),
        ("discharging", ctypes.c_ubyte),
        ("spare", ctypes.c_ubyte * 4),
        ("full_milliwatt_hours", ctypes.c_uint32),
        ("left_milliwatt_hours", ctypes.c_uint32),
        ("milliwatts", ctypes.c_int32),
        ("left_seconds", ctypes.c_uint32),
        ("default_alerts", ctypes.c_uint32 * 2),
    ]


def windows_battery() -> tuple[int, int, int, bool] | None:
    """Return what the battery holds (mWh), holds when full (mWh), gives (mW), and whether it discharges.

    None on other systems, without a battery, and where the battery counts in other units.
    """
    if sys.platform == "win32":
        state = _BatteryState()
        failed = ctypes.windll.powrprof.CallNtPowerInformation(
            _SYSTEM_BATTERY_STATE, None, 0, ctypes.byref(state), ctypes.sizeof(state)
        )
        unknown = state.left_milliwatt_hours == 0xFFFFFFFF or not state.full_milliwatt_hours
        if failed or not state.battery_present or unknown:
            return None
        return (
            state.left_milliwatt_hours,
            state.full_milliwatt_hours,
            abs(state.milliwatts),
            bool(state.discharging),
        )
    return None


def windows_power_plan() -> str | None:
    """Return the name of the power plan in use, `other` for one that a person made; None elsewhere."""
    if sys.platform == "win32":
        scheme = ctypes.POINTER(ctypes.c_ubyte * 16)()
        if ctypes.windll.powrprof.PowerGetActiveScheme(None, ctypes.byref(scheme)):
            return None
        try:
            name = str(uuid.UUID(bytes_le=bytes(scheme.contents)))
        finally:
            ctypes.windll.kernel32.LocalFree(scheme)
        return _WINDOWS_POWER_PLANS.get(name, "other")
    return None


def windows_devices(interface_class: str) -> list[str]:
    """Return the names under which the devices of a class (its GUID) can be opened; empty elsewhere."""
    if sys.platform == "win32":
        manager = ctypes.WinDLL("cfgmgr32")
        guid = (ctypes.c_ubyte * 16)(*uuid.UUID(interface_class).bytes_le)
        size = ctypes.c_uint32()
        if manager.CM_Get_Device_Interface_List_SizeW(
            ctypes.byref(size), ctypes.byref(guid), None, _DEVICES_PRESENT
        ):
            return []
        names = ctypes.create_unicode_buffer(size.value)
        if manager.CM_Get_Device_Interface_ListW(ctypes.byref(guid), None, names, size, _DEVICES_PRESENT):
            return []
        return [name for name in ctypes.wstring_at(names, size.value).split("\0") if name]
    return []


def windows_device_request(device: str, request: int, reply_bytes: int) -> bytes | None:
    """Ask a device's driver for something that needs no input; None if it refuses, and elsewhere."""
    if sys.platform == "win32":
        kernel = ctypes.WinDLL("kernel32")
        kernel.CreateFileW.restype = ctypes.c_void_p
        handle = kernel.CreateFileW(
            ctypes.c_wchar_p(device), ctypes.c_uint32(_GENERIC_READ), _SHARED, None, _OPEN_EXISTING, 0, None
        )
        if handle is None or handle == ctypes.c_void_p(-1).value:
            return None
        reply, returned = ctypes.create_string_buffer(reply_bytes), ctypes.c_uint32()
        try:
            done = kernel.DeviceIoControl(
                ctypes.c_void_p(handle), request, None, 0, reply, reply_bytes, ctypes.byref(returned), None
            )
        finally:
            kernel.CloseHandle(ctypes.c_void_p(handle))
        return reply.raw[: returned.value] if done else None
    return None
