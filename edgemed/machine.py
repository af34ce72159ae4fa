"""What this computer has and what is free of it: cores, memory, disk, battery. The only user of psutil.

Called by the engine's child (threads), by the memory check before a model is loaded, by the doctor, and by
`machine_counters.py`, which adds what Linux tells in files.
"""

import dataclasses
import os
import platform
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from edgemed import operating_system

CPU_INFO = Path("/proc/cpuinfo")
"""Exists on Linux only."""
_CPUS = Path("/sys/devices/system/cpu")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_CGROUP_V2_FILES = ("memory.max", "memory.current", "inactive_file", "active_file")
_CGROUP_V1_FILES = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
    "total_active_file",
)
_SHORTEST_SAMPLE_SECONDS = 0.05
_MEDIA_FOLDERS = ("/media/", "/run/media/", "/mnt/")
_MEDIUM_SECONDS = 0.5
# The first that a machine has is its processor's; `acpitz` is near it on many laptops.
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "acpitz")
# Guest time is part of user time already. On Windows "system" holds interrupts too.
_BUSY_FIELDS = ("user", "nice", "system", "irq", "softirq", "steal")


# The processor.


def physical_cores() -> int:
    """Return the number of physical cores that this process may use, at least 1."""
    cpus = _affinity()
    siblings = [_read(_CPUS / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpus]
    if siblings and all(siblings):
        return len(set(siblings))
    in_all = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return max(1, min(in_all, len(cpus) or in_all))


def _affinity() -> list[int]:
    """Return the logical processors that this process may use; empty when the system does not tell."""
    if sys.platform in ("linux", "win32"):
        try:
            return list(psutil.Process().cpu_affinity() or [])
        except (psutil.Error, OSError):
            return []
    return []


def logical_cores() -> int:
    """Return the number of logical processors that this process may use, at least 1."""
    return len(_affinity()) or psutil.cpu_count() or 1


def cpu_model() -> str:
    """Return the processor's (or the board's) name."""
    names = dict(reversed(list(_cpu_info())))
    # The boards of Raspberry Pi name themselves in "Model" and have no "model name".
    named = names.get("model name") or names.get("Model") or operating_system.windows_cpu_model()
    return named or platform.processor() or platform.machine() or "unknown"


def cpu_features() -> frozenset[str]:
    """Return the instruction sets by Linux's names (`avx2`, `asimddp`); empty if not known."""
    for name, value in _cpu_info():
        if name in ("flags", "Features"):
            return frozenset(value.lower().split())
    return operating_system.windows_cpu_features()


def _cpu_info() -> Iterator[tuple[str, str]]:
    for line in (_read(CPU_INFO) or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()


# Memory and disk.


def available_memory_bytes() -> int:
    """Return the memory that programs can still take: the system's, or less in a limited group (cgroup)."""
    available = psutil.virtual_memory().available
    return max(0, min([available, *(limit - used for limit, used in _memory_limits())]))


def total_memory_bytes() -> int:
    """Return all memory, or the limit of a limited group (cgroup)."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_limits())])


def peak_rss_bytes(process_id: int | None = None) -> int | None:
    """Return the largest resident set that a process (None: this one) ever had; None if not known."""
    try:
        memory = psutil.Process(process_id).memory_info()
    except (psutil.Error, OSError):
        return None
    peak = getattr(memory, "peak_wset", None)  # Windows
    if peak is not None:
        return int(peak)
    status = _read(Path(f"/proc/{process_id or 'self'}/status")) or ""
    for line in status.splitlines():
        name, _colon, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    return None


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield limit and use of each memory cgroup around this process, inside to outside."""
    for line in (_read(_OWN_CGROUPS) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, files = _CGROUP_ROOT, _CGROUP_V2_FILES
        elif "memory" in controllers.split(","):
            root, files = _CGROUP_ROOT / "memory", _CGROUP_V1_FILES
        else:
            continue
        innermost = root / path.lstrip("/")
        # Inside a container the path is the host's: only the root of the file system is there.
        for folder in (innermost, *innermost.parents):
            if not folder.is_relative_to(root):
                break
            pair = _memory_limit(folder, *files)
            if pair is not None:
                yield pair


def _memory_limit(folder: Path, limit_file: str, use_file: str, *cache: str) -> tuple[int, int] | None:
    limit, used = _read(folder / limit_file), _read(folder / use_file)
    if not (limit and used and limit.isdigit() and used.isdigit()):
        return None  # "max", or the root
    statistics = dict(line.split(" ", 1) for line in (_read(folder / "memory.stat") or "").splitlines())
    # Pages of files, such as the model of the last start, give way to new needs.
    reclaimable = sum(int(statistics.get(name, 0)) for name in cache)
    return int(limit), max(0, int(used) - reclaimable)


def swap_bytes() -> tuple[int, int] | None:
    """Return all swap and what of it is in use; None when the system does not tell."""
    try:
        with warnings.catch_warnings():
            # psutil warns where it cannot count what goes in and out, which is not asked here.
            warnings.simplefilter("ignore", RuntimeWarning)
            swap = psutil.swap_memory()
    except (OSError, psutil.Error):
        return None
    return int(swap.total), int(swap.used)


def free_disk_bytes(path: Path) -> int:
    """Return what may still be written to the disk that holds `path`, which need not exist yet."""
    folders = (path.absolute(), *path.absolute().parents)
    # Not even the drive: the system says so in its own words.
    existing = next((folder for folder in folders if folder.exists()), path)
    return shutil.disk_usage(existing).free


# The battery, and the other programs.


@dataclasses.dataclass(frozen=True)
class Medium:
    """A stick, a card or another disk that somebody plugged in."""

    path: Path
    label: str
    free_bytes: int
    """0 when nothing can be written."""


def mounted_media() -> list[Medium]:
    """Return the plugged-in media; one that does not answer at once is left out."""
    try:
        partitions = psutil.disk_partitions()
    except (OSError, psutil.Error):
        return []
    media: list[Medium] = []
    for partition in partitions:
        if not _is_plugged_in(partition.mountpoint, partition.opts):
            continue
        # A stick that was pulled without a word can hold up whoever asks for it.
        asking = threading.Thread(target=_add_medium, args=(partition.mountpoint, media), daemon=True)
        asking.start()
        asking.join(_MEDIUM_SECONDS)
    return list(media)


def _is_plugged_in(mountpoint: str, options: str) -> bool:
    if sys.platform == "win32":
        return "removable" in options.split(",")
    return mountpoint.startswith(_MEDIA_FOLDERS)


def _add_medium(mountpoint: str, media: list[Medium]) -> None:
    path = Path(mountpoint)
    try:
        writable = os.access(path, os.W_OK)
        media.append(Medium(path, path.name or mountpoint, shutil.disk_usage(path).free if writable else 0))
    except OSError:
        return


def battery_percent() -> float | None:
    """Return the charge of the battery; None without one."""
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, psutil.Error):
        return None  # psutil has no function for it where it knows no battery
    return None if battery is None else float(battery.percent)


def on_mains() -> bool | None:
    """Whether the charger is plugged in; None without a battery, and when the system does not tell."""
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, psutil.Error):
        return None
    return None if battery is None else battery.power_plugged


def temperature_celsius() -> float | None:
    """Return the processor's temperature, the hottest of its sensors; None where the system has none.

    Windows tells no program.
    """
    try:
        chips = psutil.sensors_temperatures()
    except (AttributeError, OSError, psutil.Error):
        return None
    for name in _CPU_SENSORS:
        readings = [float(each.current) for each in chips.get(name, []) if each.current is not None]
        if readings:
            return max(readings)
    return None


def frequency_hertz() -> float | None:
    """Return the cores' mean clock rate now; None when the system does not tell."""
    try:
        frequency = psutil.cpu_freq()
    except (AttributeError, OSError, NotImplementedError, psutil.Error):
        return None
    return float(frequency.current) * 1e6 if frequency is not None and frequency.current else None


class CpuSeconds(NamedTuple):
    """What the processors that this process may use have done since the system's start."""

    busy: float
    """Seconds of work, for any program; of all processors together."""
    stolen: float
    """Seconds that a hypervisor gave to others."""
    cpus: int


def cpu_seconds() -> CpuSeconds | None:
    """Return the processors' counters; their steps are 10 ms. None when the system does not tell."""
    try:
        times = psutil.cpu_times(percpu=True)
    except (OSError, psutil.Error):
        return None
    chosen = [times[cpu] for cpu in _affinity() if cpu < len(times)] or times
    stolen = sum(float(getattr(each, "steal", 0.0)) for each in chosen)
    return CpuSeconds(sum(map(_busy, chosen)) - stolen, stolen, len(chosen))


class ProcessCounters(NamedTuple):
    """What one process has used."""

    cpu_seconds: float
    rss_bytes: int
    stopped: bool
    """It stands still because somebody told the system so."""
    major_faults: int | None = None
    """How often it waited for a page from the disk; None where the system does not tell it apart."""


def process_counters(process_id: int) -> ProcessCounters | None:
    """Return what a process has used by now; None if there is none."""
    try:
        process = psutil.Process(process_id)
        with process.oneshot():
            times = process.cpu_times()
            stopped = process.status() == psutil.STATUS_STOPPED
            return ProcessCounters(
                float(times.user) + float(times.system), int(process.memory_info().rss), stopped
            )
    except (psutil.Error, OSError):
        return None


class OtherProcessesLoad:
    """Measures how many cores other processes keep busy."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.perf_counter,
        busy_seconds: Callable[[], float] | None = None,
        own_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        """Start unmeasured; the arguments are for tests."""
        cpus = _affinity()
        self._clock = clock
        self._busy_seconds = busy_seconds or (lambda: _busy_seconds(cpus))
        self._own_seconds = own_seconds
        self._before: tuple[float, float, float] | None = None

    def sample(self) -> float | None:
        """Return the cores (1.02, say) that others kept busy since the last call that gave a number.

        None the first time, sooner than 0.05 s after that call, and when the system does not tell.
        """
        try:
            now = (self._clock(), self._busy_seconds(), self._own_seconds())
        except (OSError, psutil.Error):
            return None
        before, self._before = self._before, now
        if before is None:
            return None
        # Counters may run backwards: idle ticks, a hypervisor's, a processor that was switched off.
        elapsed, busy, own = (new - old for new, old in zip(now, before, strict=True))
        if 0 <= elapsed < _SHORTEST_SAMPLE_SECONDS:
            self._before = before
            return None
        return max(0.0, busy - max(0.0, own)) / elapsed if elapsed > 0 else None


def _busy_seconds(cpus: list[int]) -> float:
    """Return the seconds that these logical processors (all, if none are named) were busy since the start."""
    times = psutil.cpu_times(percpu=True)
    chosen = [times[cpu] for cpu in cpus if cpu < len(times)] or times
    return sum(map(_busy, chosen))


def _busy(times: object) -> float:
    return sum(float(getattr(times, field, 0.0)) for field in _BUSY_FIELDS)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
