"""Energy of the processor and the memory from RAPL, the counters of Intel's and AMD's processors; grade A.

It does not see the screen, the disk or what the charger loses. Linux shows it in files that only the
administrator may read since 2020.
"""

from collections.abc import Callable
from pathlib import Path

from edgemed import machine_counters
from edgemed.records import EnergyGrade
from edgemed_benchmarks.energy_source import NoSource

LEAST_JOULES = 0.1
"""The counter's step is at most 61 µJ."""
LEAST_SECONDS = 0.1
"""It is renewed each millisecond: 1 % of it."""
_DEFAULT_RANGE_MICROJOULES = 2**32


class Rapl:
    """The sum of the processors' packages and of their memory. Overlapping domains are left out.

    A package holds its cores and its graphics already; `psys` holds the package; `intel-rapl-mmio` is the
    same counter again. Memory (`dram`) is not part of the package.
    """

    grade: EnergyGrade = "A"
    least_joules = LEAST_JOULES
    least_seconds = LEAST_SECONDS

    def __init__(self, domains: dict[str, "_Domain"]) -> None:
        """Use `open_rapl`."""
        self._domains = domains
        parts = " + ".join(domains)
        covers = "processor and memory" if "dram" in parts else "processor alone"
        self.name = f"rapl: {parts} ({covers})"

    def joules(self) -> float | None:
        """Return the energy since the source was opened; at least once an hour, or a turn is missed."""
        used = [domain.microjoules() for domain in self._domains.values()]
        known = [value for value in used if value is not None]
        return sum(known) / 1e6 if len(known) == len(used) else None


class _Domain:
    """One counter, which begins again at 0 when it is full."""

    def __init__(self, read: Callable[[], int | None], full_at: int) -> None:
        self._read = read
        self._full_at = full_at
        self._before = read()
        self._used = 0

    def microjoules(self) -> int | None:
        """Return what was counted since the start."""
        now = self._read()
        if now is None or self._before is None:
            return None
        self._used += (now - self._before) % self._full_at
        self._before = now
        return self._used


def open_rapl() -> Rapl | NoSource:
    """Return the counters, or why they cannot be used."""
    way = "the processor's energy counter (RAPL)"
    folders = dict(sorted(_domain_folders()))
    if not folders:
        return NoSource(way, "This processor or system shows none.")
    domains = {}
    files = machine_counters.POWER_CAPPING / "intel-rapl:*"
    for name, folder in folders.items():
        try:
            int((folder / "energy_uj").read_text(encoding="ascii"))
        except PermissionError:
            return NoSource(
                way,
                "Only the administrator may read it.",
                f"Until the next start: sudo chmod a+r {files}/energy_uj {files}:*/energy_uj",
            )
        except (OSError, ValueError):
            return NoSource(way, "It is there, but cannot be read.")
        domains[name] = _Domain(_reader(folder), _full_at(folder))
    return Rapl(domains)


def _domain_folders() -> list[tuple[str, Path]]:
    """Return name and folder of the packages (`intel-rapl:0`) and of the memory below (`intel-rapl:0:1`)."""
    found = []
    for folder in machine_counters.POWER_CAPPING.glob("intel-rapl:*"):
        try:
            name = (folder / "name").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        is_package = folder.name.count(":") == 1 and name.startswith("package-")
        if is_package:
            found.append((name, folder))
        elif name == "dram" and folder.name.count(":") == 2:
            found.append((f"dram-{folder.name.split(':')[1]}", folder))
    return found


def _reader(folder: Path) -> Callable[[], int | None]:
    def read() -> int | None:
        try:
            return int((folder / "energy_uj").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    return read


def _full_at(folder: Path) -> int:
    try:
        return int((folder / "max_energy_range_uj").read_text(encoding="ascii")) + 1
    except (OSError, ValueError):
        return _DEFAULT_RANGE_MICROJOULES
