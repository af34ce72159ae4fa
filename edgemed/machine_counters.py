"""What the machine counts while programs run: waiting, faults, swapping, throttling; power and battery.

Linux tells most of it in files, Windows little; what a system does not tell is None. Read by the benchmarks
about once a sample or once a second. The files' places stand here, so that tests can put others there.
"""

import mmap
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgemed import machine, operating_system
from edgemed.machine import CpuSeconds, ProcessCounters

PRESSURE = Path("/proc/pressure")
"""Pressure stall information: absent from old kernels, and off by default on Raspberry Pi OS (`psi=1`)."""
PROCESSES = Path("/proc")
VM_STATISTICS = Path("/proc/vmstat")
CPUS = Path("/sys/devices/system/cpu")
POWER_SUPPLIES = Path("/sys/class/power_supply")
HARDWARE_MONITORS = Path("/sys/class/hwmon")
POWER_CAPPING = Path("/sys/class/powercap")
"""RAPL, the energy counters of Intel's and AMD's processors."""
RASPBERRY_PI_FIRMWARE = Path("/sys/devices/platform/soc")
DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
DMI = Path("/sys/class/dmi/id")

_VIRTUAL_MAKERS = ("qemu", "kvm", "vmware", "virtualbox", "innotek", "xen", "microsoft corporation virtual")
_PI_UNDERVOLTAGE = 1 << 0
_PI_SLOWED = 1 << 1 | 1 << 2 | 1 << 3
"""Clock rate capped, throttled, soft temperature limit: now."""
_FIRMWARE_SECONDS = 2.0
_TICKS_PER_SECOND = 100
"""Linux's unit in `/proc` for programs, whatever its own is."""
_PAGE_BYTES = mmap.PAGESIZE
"""16 KiB on a Raspberry Pi 5."""


class Counters(NamedTuple):
    """What the whole machine has counted since its start."""

    cpu: CpuSeconds | None
    cpu_waiting_seconds: float | None
    """In which at least one thread waited for a core (PSI)."""
    memory_waiting_seconds: float | None
    """In which at least one thread waited for memory (PSI)."""
    swapped_in_bytes: int | None
    swapped_out_bytes: int | None
    throttle_events: int | None


def read_counters() -> Counters:
    """Read all counters; about 0.3 ms on Linux."""
    swapped_in, swapped_out = _swapped_bytes()
    return Counters(
        cpu=machine.cpu_seconds(),
        cpu_waiting_seconds=_waiting_seconds("cpu"),
        memory_waiting_seconds=_waiting_seconds("memory"),
        swapped_in_bytes=swapped_in,
        swapped_out_bytes=swapped_out,
        throttle_events=_throttle_events(),
    )


def _waiting_seconds(what: str) -> float | None:
    # "some avg10=0.00 avg60=0.00 avg300=0.00 total=123456", in microseconds and exact at each reading.
    for line in (_read(PRESSURE / what) or "").splitlines():
        if line.startswith("some "):
            return int(line.rpartition("total=")[2]) / 1e6
    return None


def _swapped_bytes() -> tuple[int | None, int | None]:
    pages = dict(line.split(" ", 1) for line in (_read(VM_STATISTICS) or "").splitlines() if " " in line)
    if "pswpin" not in pages or "pswpout" not in pages:
        return None, None
    return int(pages["pswpin"]) * _PAGE_BYTES, int(pages["pswpout"]) * _PAGE_BYTES


def _throttle_events() -> int | None:
    counts = [
        int(text)
        for name in ("core_throttle_count", "package_throttle_count")
        for path in CPUS.glob(f"cpu[0-9]*/thermal_throttle/{name}")
        if (text := _read(path)) and text.isdigit()
    ]
    return sum(counts) if counts else None


def largest_cache_bytes() -> int | None:
    """Return the size of the processor's last cache; None when the system does not tell."""
    sizes = [_read(path) or "" for path in CPUS.glob("cpu0/cache/index*/size")]
    return max((int(size[:-1]) * 1024 for size in sizes if size[:-1].isdigit()), default=None)


# One process.


def process_counters(process_id: int) -> ProcessCounters | None:
    """Return what a process has used by now; None if there is none. About 0.04 ms on Linux."""
    if sys.platform != "linux":
        return machine.process_counters(process_id)
    # "pid (name) state ppid …": the name may hold spaces and brackets.
    fields = (_read(PROCESSES / str(process_id) / "stat") or "").rpartition(")")[2].split()
    if len(fields) < 22 or fields[0] in ("Z", "X"):
        return None
    return ProcessCounters(
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND,
        rss_bytes=int(fields[21]) * _PAGE_BYTES,
        stopped=fields[0] in ("T", "t"),
        major_faults=int(fields[9]),
    )


# Raspberry Pi: a weak power supply or heat make it slower.


class SlowedNow(NamedTuple):
    """Whether the board says that it holds itself back."""

    undervoltage: bool | None = None
    slowed: bool | None = None
    """Clock rate capped or throttled."""


def slowed_now() -> SlowedNow:
    """Ask the board's firmware; some milliseconds where `vcgencmd` must be started, on a Pi only."""
    flags = _firmware_flags()
    if flags is not None:
        return SlowedNow(bool(flags & _PI_UNDERVOLTAGE), bool(flags & _PI_SLOWED))
    for monitor in HARDWARE_MONITORS.glob("hwmon*"):
        if _read(monitor / "name") == "rpi_volt":
            alarm = _read(monitor / "in0_lcrit_alarm")
            return SlowedNow(undervoltage=None if alarm is None else alarm != "0")
    return SlowedNow()


def _firmware_flags() -> int | None:
    if "Raspberry Pi" not in (_read(DEVICE_TREE_MODEL) or ""):
        return None
    # A file until the kernel that moved it into a hardware monitor, which knows of the voltage alone.
    texts = [_read(path) for path in RASPBERRY_PI_FIRMWARE.glob("*firmware/get_throttled")]
    text = next((text for text in texts if text), None) or _vcgencmd()
    try:
        return int(text.rpartition("=")[2], 16) if text else None
    except ValueError:
        return None


def _vcgencmd() -> str | None:
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        ended = subprocess.run(
            [program, "get_throttled"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_FIRMWARE_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.decode("utf-8", "replace").strip()  # "throttled=0x50000"


# Power.


class Battery(NamedTuple):
    """What the batteries hold together; energies in joules."""

    discharging: bool
    left_joules: float | None
    """None where the battery tells percent only."""
    full_joules: float | None
    watts: float | None
    percent: float | None


def battery() -> Battery | None:
    """Return the state of the computer's batteries; None without one. A mouse's does not count."""
    told = operating_system.windows_battery()
    if told is not None:
        left, full, milliwatts, discharging = told
        percent = machine.battery_percent()
        return Battery(discharging, left * 3.6, full * 3.6, milliwatts / 1000 or None, percent)
    batteries = [one for folder in sorted(POWER_SUPPLIES.glob("*")) if (one := _battery(folder))]
    if batteries:
        return _together(batteries)
    percent = machine.battery_percent()
    if percent is None:
        return None
    return Battery(machine.on_mains() is False, None, None, None, percent)


def _battery(folder: Path) -> Battery | None:
    if _read(folder / "type") != "Battery" or _read(folder / "scope") == "Device":
        return None
    if _read(folder / "present") == "0":
        return None
    volts = _micro(folder / "voltage_now")
    watts = _micro(folder / "power_now")
    amperes = _micro(folder / "current_now")
    if watts is None and amperes is not None and volts is not None:
        watts = abs(amperes) * volts
    return Battery(
        discharging=_read(folder / "status") == "Discharging",
        left_joules=_watt_hours_in_joules(folder, "now", volts),
        full_joules=_watt_hours_in_joules(folder, "full", volts),
        watts=None if watts is None else abs(watts),
        percent=float(text) if (text := _read(folder / "capacity")) and text.isdigit() else None,
    )


def _watt_hours_in_joules(folder: Path, what: str, volts: float | None) -> float | None:
    watt_hours = _micro(folder / f"energy_{what}")
    if watt_hours is None:
        ampere_hours = _micro(folder / f"charge_{what}")
        # The maker's voltage, not today's: that one falls with the load and the charge.
        volts = _micro(folder / "voltage_min_design") or volts
        watt_hours = None if ampere_hours is None or volts is None else ampere_hours * volts
    return None if watt_hours is None else watt_hours * 3600


def _micro(path: Path) -> float | None:
    try:
        return int(_read(path) or "") / 1e6
    except ValueError:
        return None


def _together(batteries: list[Battery]) -> Battery:
    def total(values: Iterator[float | None]) -> float | None:
        known = list(values)
        return None if None in known else sum(value for value in known if value is not None)

    left, full = total(one.left_joules for one in batteries), total(one.full_joules for one in batteries)
    percents = [one.percent for one in batteries if one.percent is not None]
    percent = sum(percents) / len(percents) if percents else None
    return Battery(
        discharging=any(one.discharging for one in batteries),
        left_joules=left,
        full_joules=full,
        watts=total(one.watts for one in batteries),
        percent=100 * left / full if len(batteries) > 1 and left is not None and full else percent,
    )


def power_plan() -> str | None:
    """Return Linux's frequency governor (`ondemand+powersave` if cores differ) or Windows' power plan."""
    governors = {_read(path) for path in CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {None, ""}
    return "+".join(sorted(str(name) for name in governors)) or operating_system.windows_power_plan()


def saves_power() -> bool:
    """Whether the system was told to be slow for the battery's sake."""
    plan = power_plan() or ""
    # Intel's own driver calls its normal mode `powersave`, and steers by a preference instead.
    if (_read(CPUS / "cpu0/cpufreq/scaling_driver") or "").startswith(("intel_pstate", "amd-pstate-epp")):
        return _read(CPUS / "cpu0/cpufreq/energy_performance_preference") == "power"
    return "powersave" in plan.split("+") or plan == "power saver"


def virtual_machine() -> bool | None:
    """Whether this is a virtual machine; None when the system does not tell."""
    if "hypervisor" in machine.cpu_features():
        return True
    maker = f"{_read(DMI / 'sys_vendor') or ''} {_read(DMI / 'product_name') or ''}".strip().lower()
    if maker:
        return any(name in maker for name in _VIRTUAL_MAKERS)
    return False if _read(DEVICE_TREE_MODEL) and platform.machine() == "aarch64" else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0")
    except OSError:
        return None
