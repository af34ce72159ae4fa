"""Before a run: what about this machine would spoil it, each in one plain sentence with advice.

`look` gathers, `obstacles_of` judges; the command shows them and lets a person go on in spite of them, which
the record then says.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import edgemed
from edgemed import machine, machine_counters

BUSY_CORES = 0.3
"""A virus scan or an update takes more, a desktop at rest less."""
WAIT_SECONDS = 120.0
LOOK_EVERY_SECONDS = 2.0
BATTERY_PERCENT_PER_HOUR = 30.0
"""What an old laptop under full load uses: most of its charge in some three hours."""
BATTERY_SPARE_PERCENT = 15.0
USED_SWAP_SHARE = 0.25
HOT_CELSIUS = 85.0
RECORD_BYTES = 64 * 2**20
"""More than a record file of one night."""
FIRST_SANE_SECONDS = 1_767_225_600.0
"""2026-01-01: a clock without a battery begins in 1970 or at its last stop."""
_DAY_SECONDS = 86_400.0


class Obstacle(NamedTuple):
    """One thing that would spoil the run."""

    kind: str
    """Stable, for `RunStart.forced`: `battery_low`, `on_battery`, `power_saver`, `little_memory`,
    `swap_in_use`, `busy`, `clock_insane`, `disk_full`, `undervoltage`, `slowed`, `hot`."""
    sentence: str
    advice: str
    stops: bool
    """The run should not begin, unless a person says so."""


class Facts(NamedTuple):
    """The machine now; None is not known."""

    available_memory_bytes: int
    free_disk_bytes: int
    wall_seconds: float
    on_mains: bool | None = None
    battery_percent: float | None = None
    saves_power: bool = False
    power_plan: str | None = None
    swap_bytes: tuple[int, int] | None = None
    """All of it, and what is used."""
    busy_cores: float | None = None
    undervoltage: bool | None = None
    slowed: bool | None = None
    temperature_celsius: float | None = None
    installed_at_seconds: float = 0.0
    """When this edgemed was put here, by the same clock."""


def look(out_folder: Path, *, busy_cores: float | None = None) -> Facts:
    """Gather the facts; `busy_cores` as `wait_until_idle` returns it."""
    slowed = machine_counters.slowed_now()
    return Facts(
        available_memory_bytes=machine.available_memory_bytes(),
        free_disk_bytes=machine.free_disk_bytes(out_folder),
        wall_seconds=time.time(),
        on_mains=machine.on_mains(),
        battery_percent=machine.battery_percent(),
        saves_power=machine_counters.saves_power(),
        power_plan=machine_counters.power_plan(),
        swap_bytes=machine.swap_bytes(),
        busy_cores=busy_cores,
        undervoltage=slowed.undervoltage,
        slowed=slowed.slowed,
        temperature_celsius=machine.temperature_celsius(),
        installed_at_seconds=Path(edgemed.__file__).stat().st_mtime,
    )


def wait_until_idle(
    *,
    limit_seconds: float = WAIT_SECONDS,
    tell: Callable[[float, float], None] = lambda _busy_cores, _seconds_left: None,
    sample: Callable[[], float | None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """Wait until other programs leave the cores alone; return the cores that they keep busy at the end.

    A quiet machine costs 2 s. Call it while no engine works.

    Args:
        limit_seconds: then it is left to the person.
        tell: called with the busy cores and the seconds left, each time it waits on.
        sample: gives the cores kept busy since its last call; for tests.
        sleep: for tests.
    """
    sample = sample or machine.OtherProcessesLoad().sample
    sample()
    left = limit_seconds
    while True:
        sleep(LOOK_EVERY_SECONDS)
        left -= LOOK_EVERY_SECONDS
        busy = sample()
        if busy is None or busy < BUSY_CORES or left <= 0:
            return busy
        tell(busy, left)


def obstacles_of(
    facts: Facts,
    *,
    need_memory_bytes: int,
    planned_seconds: float,
    on_battery_on_purpose: bool = False,
) -> list[Obstacle]:
    """Return what would spoil the run; the worst first.

    Args:
        facts: as `look` gives them.
        need_memory_bytes: of the largest model with its context.
        planned_seconds: the estimate of the run.
        on_battery_on_purpose: the run measures what the battery gives.
    """
    found = [
        *_of_memory_and_disk(facts, need_memory_bytes),
        *_of_power(facts, planned_seconds, on_battery_on_purpose),
        *_of_speed(facts),
        *_of_the_clock(facts),
    ]
    return sorted(found, key=lambda obstacle: not obstacle.stops)


def _of_memory_and_disk(facts: Facts, need_bytes: int) -> Sequence[Obstacle]:
    found = []
    if facts.available_memory_bytes < need_bytes:
        found.append(
            Obstacle(
                "little_memory",
                f"The model needs {_mib(need_bytes)} of memory; "
                f"{_mib(facts.available_memory_bytes)} is free.",
                "Close other programs, or measure a smaller model.",
                True,
            )
        )
    if facts.swap_bytes and facts.swap_bytes[1] > USED_SWAP_SHARE * facts.swap_bytes[0]:
        found.append(
            Obstacle(
                "swap_in_use",
                f"{_mib(facts.swap_bytes[1])} of memory were moved to the disk (swap).",
                "Close other programs, or start the computer anew.",
                False,
            )
        )
    if facts.free_disk_bytes < RECORD_BYTES:
        found.append(
            Obstacle(
                "disk_full",
                f"The disk has {_mib(facts.free_disk_bytes)} left; a run writes up to {_mib(RECORD_BYTES)}.",
                "Delete files, or choose another place with --out.",
                True,
            )
        )
    return found


def _of_power(facts: Facts, planned_seconds: float, on_purpose: bool) -> Sequence[Obstacle]:
    found = []
    percent = facts.battery_percent
    needed = BATTERY_SPARE_PERCENT + BATTERY_PERCENT_PER_HOUR * planned_seconds / 3600
    if facts.on_mains is False and percent is not None and percent < needed:
        found.append(
            Obstacle(
                "battery_low",
                f"The battery has {percent:.0f} %; a run of {planned_seconds / 60:.0f} minutes may need "
                f"{min(needed, 100):.0f} %.",
                "Plug in the charger, or choose a shorter run with --minutes.",
                True,
            )
        )
    elif facts.on_mains is False and not on_purpose:
        found.append(
            Obstacle(
                "on_battery",
                "The computer runs on its battery; many are slower then.",
                "Plug in the charger, unless you want to know how it is without.",
                False,
            )
        )
    if facts.saves_power:
        found.append(
            Obstacle(
                "power_saver",
                f"The system saves power ({facts.power_plan or 'power saver'}) and holds the processor back.",
                "Choose the balanced or the high performance mode in the power settings.",
                False,
            )
        )
    if facts.undervoltage:
        found.append(
            Obstacle(
                "undervoltage",
                "The power supply is too weak for this board.",
                "Use the maker's power supply and its short, thick cable.",
                True,
            )
        )
    return found


def _of_speed(facts: Facts) -> Sequence[Obstacle]:
    found = []
    if facts.busy_cores is not None and facts.busy_cores >= BUSY_CORES:
        found.append(
            Obstacle(
                "busy",
                f"Other programs keep {facts.busy_cores:.1f} processor cores busy.",
                "Close them, or wait until an update or a virus scan is done.",
                True,
            )
        )
    if facts.slowed:
        found.append(
            Obstacle(
                "slowed",
                "The board runs slower than it could, because of heat or its power supply.",
                "Let it cool down, give it air, and use the maker's power supply.",
                False,
            )
        )
    if facts.temperature_celsius is not None and facts.temperature_celsius >= HOT_CELSIUS:
        found.append(
            Obstacle(
                "hot",
                f"The processor is at {facts.temperature_celsius:.0f} °C and will soon slow down.",
                "Let it cool down, free its air vents, and put it on a hard, flat place.",
                False,
            )
        )
    return found


def _of_the_clock(facts: Facts) -> Sequence[Obstacle]:
    # A file cannot be older than the clock that dated it.
    installed_in_future = facts.installed_at_seconds - facts.wall_seconds > _DAY_SECONDS
    if facts.wall_seconds >= FIRST_SANE_SECONDS and not installed_in_future:
        return []
    date = time.strftime("%Y-%m-%d", time.gmtime(max(0.0, facts.wall_seconds)))
    return [
        Obstacle(
            "clock_insane",
            f"The computer's date is {date}, which cannot be right.",
            "Set date and time; the speeds would be right all the same, the record's dates would not.",
            False,
        )
    ]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"
