"""What the computer has and what is free of it, read from files as real computers give them."""

import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgemed import machine, operating_system
from edgemed.machine import OtherProcessesLoad

LAPTOP = """\
processor\t: 0
model name\t: Intel(R) Core(TM) i5-4210U CPU @ 1.70GHz
flags\t\t: fpu sse4_1 sse4_2 avx avx2 fma

processor\t: 1
model name\t: Intel(R) Core(TM) i5-4210U CPU @ 1.70GHz
flags\t\t: fpu sse4_1 sse4_2 avx avx2 fma
"""
RASPBERRY_PI = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 atomics asimdhp asimddp
CPU part\t: 0xd0b

Revision\t: d04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


@pytest.fixture
def cpu_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that gives this test a processor of its own."""

    def use(text: str) -> None:
        file = tmp_path / "cpuinfo"
        file.write_text(text, encoding="utf-8")
        monkeypatch.setattr(machine, "CPU_INFO", file)

    return use


# The processor.


@pytest.mark.parametrize(
    ("text", "model", "feature"),
    [
        (LAPTOP, "Intel(R) Core(TM) i5-4210U CPU @ 1.70GHz", "avx2"),
        (RASPBERRY_PI, "Raspberry Pi 5 Model B Rev 1.0", "asimddp"),
    ],
)
def test_the_processor_is_named_with_its_features(
    cpu_info: Callable[[str], None], text: str, model: str, feature: str
) -> None:
    cpu_info(text)
    assert machine.cpu_model() == model
    assert feature in machine.cpu_features()


def test_a_system_that_tells_nothing_has_a_name_and_no_features(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr(operating_system, "windows_cpu_features", frozenset)
    assert machine.cpu_model()
    assert machine.cpu_features() == frozenset()


def with_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, siblings: dict[int, str]) -> None:
    """Let the process use these logical processors, each with the list of those on the same core."""
    for cpu, listed in siblings.items():
        file = tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(f"{listed}\n", encoding="utf-8")
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    monkeypatch.setattr(machine, "_affinity", lambda: list(siblings))


def test_hyper_threads_are_no_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_cpus(monkeypatch, tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert machine.physical_cores() == 2


def test_a_core_that_this_process_may_not_use_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_cpus(monkeypatch, tmp_path, {0: "0,2", 2: "0,2"})
    assert machine.physical_cores() == 1


@pytest.mark.parametrize(
    ("physical", "logical", "affinity", "cores"),
    [(2, 4, [0, 1, 2, 3], 2), (4, 8, [0], 1), (4, 8, [], 4), (None, 2, [0, 1], 2), (None, None, [], 1)],
)
def test_without_a_topology_the_cores_are_still_counted(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    physical: int | None,
    logical: int | None,
    affinity: list[int],
    cores: int,
) -> None:
    """`None` is what psutil says on some boards and virtual machines."""
    monkeypatch.setattr(machine, "_CPUS", tmp_path / "missing")
    monkeypatch.setattr(machine, "_affinity", lambda: affinity)
    counted = {True: logical, False: physical}
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: counted[logical])
    assert machine.physical_cores() == cores


@pytest.mark.skipif(sys.platform != "linux", reason="binds a process as Linux does")
def test_a_process_bound_to_one_processor_has_one_core() -> None:
    program = """
        import psutil
        from edgemed import machine, operating_system
        psutil.Process().cpu_affinity(psutil.Process().cpu_affinity()[:1])
        print(machine.physical_cores())
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True, timeout=30
    )
    assert ended.stdout.strip() == b"1"


# Memory and disk.

MIB = 2**20


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets the system's memory (1000 of 4000 MiB free) and its cgroups."""
    root = tmp_path / "cgroup"
    own = tmp_path / "own_cgroups"
    system = types.SimpleNamespace(available=1000 * MIB, total=4000 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: system)
    monkeypatch.setattr(machine, "_CGROUP_ROOT", root)
    monkeypatch.setattr(machine, "_OWN_CGROUPS", own)

    def use(own_cgroups: str, **files: str) -> None:
        own.write_text(own_cgroups, encoding="utf-8")
        for name, content in files.items():
            # memory__max: a keyword cannot have a dot, a "/" is "___".
            file = root / name.replace("___", "/").replace("__", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")

    return use


def test_memory_is_the_systems_where_nothing_limits_it(memory: Callable[..., None]) -> None:
    memory("0::/user\n", user___memory__max="max\n", user___memory__current="123\n")
    assert machine.available_memory_bytes() == 1000 * MIB
    assert machine.total_memory_bytes() == 4000 * MIB


def test_a_limited_group_has_only_what_its_limit_leaves(memory: Callable[..., None]) -> None:
    memory(
        "0::/clinic/app\n",
        clinic___memory__max=f"{600 * MIB}\n",
        clinic___memory__current=f"{500 * MIB}\n",
        clinic___app___memory__max="max\n",
        clinic___app___memory__current=f"{10 * MIB}\n",
    )
    assert machine.available_memory_bytes() == 100 * MIB
    assert machine.total_memory_bytes() == 600 * MIB


def test_a_models_pages_from_the_last_start_are_not_lost_memory(memory: Callable[..., None]) -> None:
    """Else the second start of a model that just fits would be refused."""
    memory(
        "0::/app\n",
        app___memory__max=f"{600 * MIB}\n",
        app___memory__current=f"{500 * MIB}\n",
        app___memory__stat=f"anon {100 * MIB}\ninactive_file {300 * MIB}\nactive_file {100 * MIB}\n",
    )
    assert machine.available_memory_bytes() == 500 * MIB


def test_a_group_of_the_first_kind_inside_a_container_is_found_at_the_root(
    memory: Callable[..., None],
) -> None:
    memory(
        "9:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n",
        memory___memory__limit_in_bytes=f"{600 * MIB}\n",
        memory___memory__usage_in_bytes=f"{450 * MIB}\n",
        memory___memory__stat=f"cache 5\ntotal_inactive_file {50 * MIB}\n",
    )
    assert machine.available_memory_bytes() == 200 * MIB


def test_a_group_over_its_limit_has_nothing_left(memory: Callable[..., None]) -> None:
    memory("0::/app\n", app___memory__max="1000\n", app___memory__current="2000\n")
    assert machine.available_memory_bytes() == 0


def test_this_machine_has_memory_and_disk(tmp_path: Path) -> None:
    assert 0 < machine.available_memory_bytes() <= machine.total_memory_bytes()
    assert machine.free_disk_bytes(tmp_path / "not" / "yet" / "there") > 0


@pytest.mark.parametrize(("battery", "percent"), [(None, None), (types.SimpleNamespace(percent=42), 42.0)])
def test_the_battery_is_told_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, battery: object, percent: float | None
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert machine.battery_percent() == percent


def test_a_system_without_batteries_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert machine.battery_percent() is None


# The other programs.


class Counters:
    """Counters that a test moves."""

    def __init__(self) -> None:
        self.now = self.busy = self.own = 100.0

    def load(self) -> OtherProcessesLoad:
        return OtherProcessesLoad(
            clock=lambda: self.now, busy_seconds=lambda: self.busy, own_seconds=lambda: self.own
        )

    def pass_by(self, seconds: float, *, busy: float, own: float) -> None:
        self.now, self.busy, self.own = self.now + seconds, self.busy + busy, self.own + own


def test_the_load_is_what_others_used_since_the_last_look() -> None:
    counters = Counters()
    load = counters.load()
    assert load.sample() is None
    counters.pass_by(0.5, busy=1.5, own=1.0)
    assert load.sample() == pytest.approx(1.0)
    counters.pass_by(2.0, busy=0.5, own=0.0)
    assert load.sample() == pytest.approx(0.25)


def test_looks_in_quick_succession_give_no_number_and_lose_nothing() -> None:
    counters = Counters()
    load = counters.load()
    load.sample()
    for _ in range(4):
        counters.pass_by(0.01, busy=0.01, own=0.0)
        assert load.sample() is None
    counters.pass_by(0.06, busy=0.06, own=0.0)
    assert load.sample() == pytest.approx(1.0)


def test_counters_that_run_backwards_give_no_nonsense() -> None:
    counters = Counters()
    load = counters.load()
    load.sample()
    counters.pass_by(1.0, busy=-5.0, own=0.5)
    assert load.sample() == 0.0
    counters.pass_by(-3.0, busy=1.0, own=0.5)
    assert load.sample() is None
    counters.pass_by(1.0, busy=1.0, own=-0.5)
    assert load.sample() == pytest.approx(1.0)


def test_a_system_that_refuses_its_counters_gives_no_number() -> None:
    def refuse() -> float:
        raise PermissionError

    assert OtherProcessesLoad(busy_seconds=refuse).sample() is None


def test_guest_time_counts_once_and_foreign_processors_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux counts a guest's time as user time too."""
    fields: dict[str, Any] = {"user": 5.0, "nice": 1.0, "system": 2.0, "idle": 90.0, "iowait": 9.0}
    linux = types.SimpleNamespace(**fields, irq=0.25, softirq=0.25, steal=0.5, guest=4.0, guest_nice=1.0)
    windows = types.SimpleNamespace(user=5.0, system=2.0, idle=90.0, interrupt=1.0, dpc=1.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [linux, windows])
    assert machine._busy_seconds([0]) == 9.0
    assert machine._busy_seconds([1]) == 7.0
    assert machine._busy_seconds([]) == 16.0
    assert machine._busy_seconds([1, 7]) == 7.0  # a processor that was switched off


def test_this_machines_counters_can_be_read() -> None:
    load = OtherProcessesLoad()
    assert load.sample() is None
    assert load._before is not None
