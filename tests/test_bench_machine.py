"""What the benchmarks read from the machine: counters, fingerprint, telemetry, energy, obstacles.

The files are those of real computers; tests put them into a folder of their own.
"""

import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgemed_benchmarks import bandwidth, energy_battery, fingerprint, preflight
from edgemed_benchmarks.energy import Meter, choose
from edgemed_benchmarks.energy_emi import (
    GET_MEASUREMENT,
    GET_METADATA,
    GET_METADATA_SIZE,
    GET_VERSION,
    open_emi,
)
from edgemed_benchmarks.energy_manual import MeterReading
from edgemed_benchmarks.energy_rapl import open_rapl
from edgemed_benchmarks.energy_source import EnergySource, NoSource
from edgemed_benchmarks.errors import ItemError
from edgemed_benchmarks.telemetry import Telemetry

from edgemed import machine, machine_counters, models
from edgemed.machine_counters import Battery
from edgemed.records import FIRST_CHAIN, EnergyGrade, Machine
from edgemed.records import Telemetry as TelemetryLine

MIB = 2**20
Files = Callable[[str, dict[str, str]], Path]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Return a function that puts files where one of the module's places is, and returns the folder."""

    def put(place: str, contents: dict[str, str]) -> Path:
        folder = tmp_path / place
        for name, text in contents.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n", encoding="utf-8")
        monkeypatch.setattr(machine_counters, place, folder)
        return folder

    return put


# Counters.


def test_the_time_in_which_somebody_waited_is_read_from_pressure_information(files: Files) -> None:
    files(
        "PRESSURE",
        {
            "cpu": "some avg10=1.00 avg60=2.00 avg300=3.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0",
            "memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=40000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9",
        },
    )
    counters = machine_counters.read_counters()
    assert (counters.cpu_waiting_seconds, counters.memory_waiting_seconds) == (2.5, 0.04)


def test_a_machine_without_these_files_has_no_counts(files: Files) -> None:
    for place in (
        "PRESSURE",
        "VM_STATISTICS",
        "CPUS",
        "POWER_SUPPLIES",
        "HARDWARE_MONITORS",
        "POWER_CAPPING",
    ):
        files(place, {})
    counters = machine_counters.read_counters()
    assert counters[1:] == (None,) * 5
    assert machine_counters.slowed_now() == (None, None)
    assert machine_counters.largest_cache_bytes() is None


def test_throttling_is_the_sum_over_cores_and_packages(files: Files) -> None:
    files(
        "CPUS",
        {
            "cpu0/thermal_throttle/core_throttle_count": "3",
            "cpu0/thermal_throttle/package_throttle_count": "10",
            "cpu1/thermal_throttle/core_throttle_count": "4",
            "cpuidle/thermal_throttle/core_throttle_count": "100",
        },
    )
    assert machine_counters.read_counters().throttle_events == 17


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of processes")
def test_a_process_is_read_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A space or a bracket in the name moves every later field."""
    line = "7 (my (old) prog) T 1 7 7 0 -1 4194304 500 0 42 0 150 50 0 0 20 0 3 0 99 1000000 250 0 0"
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(line, encoding="utf-8")
    monkeypatch.setattr(machine_counters, "PROCESSES", tmp_path)
    found = machine_counters.process_counters(7)
    assert found is not None
    assert (found.cpu_seconds, found.major_faults, found.stopped) == (2.0, 42, True)
    assert machine_counters.process_counters(8) is None


@pytest.mark.parametrize(
    ("flags", "undervoltage", "slowed"),
    [("0", False, False), ("50005", True, True), ("50000", False, False), ("80008", False, True)],
)
def test_a_raspberry_pi_tells_what_holds_it_back_now(
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    undervoltage: bool,
    slowed: bool,
) -> None:
    """Bits 16 and up are what happened since the start, which may be days ago."""
    model = tmp_path / "model"
    model.write_text("Raspberry Pi 4 Model B Rev 1.4\0", encoding="utf-8")
    monkeypatch.setattr(machine_counters, "DEVICE_TREE_MODEL", model)
    files("RASPBERRY_PI_FIRMWARE", {"soc:firmware/get_throttled": flags})
    assert machine_counters.slowed_now() == (undervoltage, slowed)


@pytest.mark.parametrize(
    ("governors", "driver", "preference", "saving"),
    [
        (["powersave", "powersave"], "acpi-cpufreq", None, True),
        (["ondemand", "ondemand"], "cpufreq-dt", None, False),
        (["powersave", "powersave"], "intel_pstate", "balance_performance", False),
        (["powersave", "powersave"], "intel_pstate", "power", True),
        (["performance", "powersave"], "cpufreq-dt", None, True),
    ],
)
def test_intels_powersave_is_its_normal_mode(
    files: Files, governors: list[str], driver: str, preference: str | None, saving: bool
) -> None:
    contents = {f"cpu{cpu}/cpufreq/scaling_governor": name for cpu, name in enumerate(governors)}
    contents["cpu0/cpufreq/scaling_driver"] = driver
    if preference is not None:
        contents["cpu0/cpufreq/energy_performance_preference"] = preference
    files("CPUS", contents)
    assert machine_counters.power_plan() == "+".join(sorted(set(governors)))
    assert machine_counters.saves_power() is saving


# Batteries.

LENOVO = {
    "BAT0/type": "Battery",
    "BAT0/status": "Discharging",
    "BAT0/energy_now": "20000000",
    "BAT0/energy_full": "40000000",
    "BAT0/power_now": "12500000",
    "BAT0/capacity": "50",
    "AC/type": "Mains",
    "AC/online": "0",
}
HP = {
    "BAT1/type": "Battery",
    "BAT1/present": "1",
    "BAT1/status": "Discharging",
    "BAT1/charge_now": "2000000",
    "BAT1/charge_full": "4000000",
    "BAT1/current_now": "1000000",
    "BAT1/voltage_now": "12000000",
    "BAT1/voltage_min_design": "11000000",
    "BAT1/capacity": "50",
}
MOUSE = {"hid/type": "Battery", "hid/scope": "Device", "hid/status": "Discharging", "hid/capacity": "5"}


def test_a_battery_is_read_in_energy_or_in_charge_and_a_mouse_is_none(files: Files) -> None:
    files("POWER_SUPPLIES", {**LENOVO, **MOUSE})
    assert machine_counters.battery() == Battery(True, 72_000.0, 144_000.0, 12.5, 50.0)


def test_a_charge_times_the_makers_voltage_is_an_energy(files: Files) -> None:
    """Today's voltage falls with the load: energy would seem to vanish when an answer begins."""
    files("POWER_SUPPLIES", HP)
    assert machine_counters.battery() == Battery(True, 79_200.0, 158_400.0, 12.0, 50.0)


def test_two_batteries_are_one(files: Files) -> None:
    second = {name.replace("BAT0", "BAT9"): text for name, text in LENOVO.items()}
    files("POWER_SUPPLIES", {**LENOVO, **second, "BAT9/status": "Unknown", "BAT9/energy_now": "40000000"})
    assert machine_counters.battery() == Battery(True, 216_000.0, 288_000.0, 25.0, 75.0)


# Memory bandwidth.


def test_reading_memory_takes_less_than_two_seconds_and_is_possible() -> None:
    began = time.perf_counter()
    rate = bandwidth.memory_bandwidth(buffer_bytes=16 * MIB, limit_seconds=0.2)
    assert time.perf_counter() - began < 2
    # A board's slowest memory and a server's caches.
    assert rate is not None
    assert 5e8 < rate < 1e12


def test_no_bandwidth_is_told_where_so_little_memory_is_free_that_caches_would_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 20 * MIB)
    assert bandwidth.memory_bandwidth() is None


# The fingerprint.


def test_the_fingerprint_is_a_record_and_the_same_machine_has_the_same_word(data_folder: Path) -> None:
    fields = fingerprint.machine_fields(
        llama_cpp_build="0.3.36 | CPU : SSE3 = 1 | AVX2 = 1 | libggml.so 123 1700000000",
        kernels="full",
        measure_bandwidth=False,
    )
    record = Machine(seq=0, chain=FIRST_CHAIN, at_ns=0, utc="2026-01-01T00:00:00Z", **fields)
    assert record.llama_cpp_build == "0.3.36 | CPU : SSE3 = 1 | AVX2 = 1"
    assert record.machine_id == fingerprint.machine_id()
    (data_folder / fingerprint.MACHINE_ID_NAME).unlink()
    assert record.machine_id != fingerprint.machine_id()


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"../../etc", b"dr-mwangi-laptop\n", b"dr.mwangi7", b"a" * 1000]
)
def test_a_damaged_or_chosen_word_is_replaced_by_a_random_one(data_folder: Path, content: bytes) -> None:
    data_folder.mkdir()
    (data_folder / fingerprint.MACHINE_ID_NAME).write_bytes(content)
    word = fingerprint.machine_id()
    assert len(word) == 10
    assert word == fingerprint.machine_id()


def test_nothing_in_the_fingerprint_says_whose_machine_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import getpass
    import platform

    secrets = {platform.node(), getpass.getuser(), str(Path.home()), str(tmp_path)}
    told = " ".join(str(value) for value in fingerprint.machine_fields(measure_bandwidth=False).values())
    # A user called "root" or a host called "vm" would be found in ordinary words.
    assert not [secret for secret in secrets if len(secret) > 4 and secret in told]
    assert "/" not in told.replace("CPU/", "")


def test_the_engines_files_are_known_by_what_is_in_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "lib" / "libggml-base.so.0"
    library.parent.mkdir()
    library.write_bytes(b"one")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: spec)
    before = fingerprint.llama_cpp_files_sha256()
    library.write_bytes(b"two")
    assert before is not None
    assert fingerprint.llama_cpp_files_sha256() != before


def test_an_arm_names_its_model_and_its_template() -> None:
    model = models.find_model(None)
    arm = fingerprint.arm_of(model, label="Q8_0", context_length=512, threads=2)
    assert arm.model_sha256 == model.manifest.sha256
    assert arm.chat_template_sha256 is not None
    assert arm.repetition_penalty == model.manifest.sampling.repetition_penalty
    assert (arm.temperature, arm.threads, arm.context_length) == (0.0, 2, 512)


# Telemetry.


def test_telemetry_is_read_often_kept_seldom_and_taken_once() -> None:
    asked = []
    with Telemetry(
        time.monotonic_ns,
        joules=lambda: asked.append(1) or float(len(asked)),  # type: ignore[func-returns-value]
        read_every_seconds=0.02,
        keep_every_seconds=0.1,
    ) as telemetry:
        time.sleep(0.5)
        points = telemetry.take()
        assert telemetry.take() == []
    assert len(asked) > 2 * len(points) >= 4
    for point in points:
        TelemetryLine(seq=0, chain=FIRST_CHAIN, at_ns=point.at_ns, utc="", **point.fields)
    assert points[1].at_ns - points[0].at_ns >= 80_000_000


# Energy.


def rapl_files(microjoules: int = 1_000_000) -> dict[str, str]:
    """A laptop's counters; those that are part of others are far too large, so that they would show."""
    return {
        "intel-rapl:0/name": "package-0",
        "intel-rapl:0/energy_uj": str(microjoules),
        "intel-rapl:0/max_energy_range_uj": "9999999",
        "intel-rapl:0:0/name": "core",
        "intel-rapl:0:0/energy_uj": str(10**15),
        "intel-rapl:0:1/name": "dram",
        "intel-rapl:0:1/energy_uj": str(microjoules // 10),
        "intel-rapl:0:1/max_energy_range_uj": "9999999",
        "intel-rapl:1/name": "psys",
        "intel-rapl:1/energy_uj": str(10**15),
        "intel-rapl-mmio:0/name": "package-0",
        "intel-rapl-mmio:0/energy_uj": str(10**15),
    }


def test_rapl_adds_packages_and_memory_and_nothing_twice(files: Files) -> None:
    files("POWER_CAPPING", rapl_files(1_000_000))
    source = open_rapl()
    assert not isinstance(source, NoSource)
    assert source.name == "rapl: dram-0 + package-0 (processor and memory)"
    files("POWER_CAPPING", rapl_files(3_000_000))
    assert source.joules() == pytest.approx(2.2)


def test_a_rapl_counter_that_begins_again_loses_nothing(files: Files) -> None:
    folder = files("POWER_CAPPING", rapl_files(9_000_000))
    source = open_rapl()
    assert not isinstance(source, NoSource)
    for name in ("intel-rapl:0", "intel-rapl:0:1"):
        (folder / name / "energy_uj").write_text("500000", encoding="utf-8")
    # 9.0 → 10.0 = 0.0 → 0.5 J, and the memory 0.9 → 0.5 J a turn later.
    assert source.joules() == pytest.approx(1.5 + 9.6)
    assert source.joules() == pytest.approx(1.5 + 9.6)


def test_rapl_without_permission_is_refused_with_the_way_to_it(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files("POWER_CAPPING", rapl_files())
    read_text = Path.read_text

    def refuse(path: Path, encoding: str | None = None, errors: str | None = None) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(path, encoding=encoding, errors=errors)

    monkeypatch.setattr(Path, "read_text", refuse)
    refused = open_rapl()
    assert isinstance(refused, NoSource)
    assert "administrator" in refused.reason
    assert "chmod" in refused.advice


def emi_device(
    version: int, names: list[str], energies: list[int]
) -> Callable[[str, int, int], bytes | None]:
    """A device that answers as emi.h says."""

    def text(name: str) -> bytes:
        return f"{name}\0".encode("utf-16-le")

    if version == 1:
        head = struct.pack("<I64sHH", 0, b"", 1, len(text(names[0])))
        metadata = head + text(names[0])
    else:
        channels = b"".join(struct.pack("<IH", 0, len(text(name))) + text(name) for name in names)
        metadata = struct.pack("<64sHH", b"", 1, len(names)) + channels

    def answer(_device: str, request: int, size: int) -> bytes | None:
        measured = b"".join(struct.pack("<QQ", energy, 5) for energy in energies)
        replies = {
            GET_VERSION: struct.pack("<H", version),
            GET_METADATA_SIZE: struct.pack("<I", len(metadata)),
            GET_METADATA: metadata,
            GET_MEASUREMENT: measured,
        }
        return replies[request][:size]

    return answer


@pytest.mark.parametrize(
    ("version", "names", "picowatt_hours"),
    [
        (2, ["RAPL_Package0_PKG", "RAPL_Package0_PP0", "RAPL_Package0_DRAM"], 1100),
        (2, ["VDDCR_SOC Power", "Current Socket Power", "Apu Power"], 100),
        (1, ["CPU Package"], 1000),
    ],
)
def test_windows_meter_adds_packages_and_memory_and_nothing_twice(
    version: int, names: list[str], picowatt_hours: int
) -> None:
    energies = [10**12, 10**12, 10**12][: len(names)]
    source = open_emi(devices=lambda _class: ["meter"], ask=emi_device(version, names, energies))
    assert not isinstance(source, NoSource)
    energies[:] = [10**12 + more * 10**9 for more in (1000, 100, 100)][: len(names)]
    assert source.joules() == pytest.approx(picowatt_hours * 10**9 * 3.6e-9)


@pytest.mark.parametrize("cut", [0, 1, 10, 70, 80])
def test_a_windows_meter_that_answers_in_part_is_no_source(cut: int) -> None:
    whole = emi_device(2, ["RAPL_Package0_PKG"], [5])

    def answer(device: str, request: int, size: int) -> bytes | None:
        reply = whole(device, request, size)
        return reply[:cut] if reply is not None and request == GET_METADATA else reply

    assert isinstance(open_emi(devices=lambda _class: ["meter"], ask=answer), NoSource)


def battery(joules: float | None, *, discharging: bool = True, percent: float = 80.0) -> Battery:
    full = None if joules is None else 180_000.0
    return Battery(discharging, joules, full, None, percent)


def test_a_charging_battery_is_refused_and_a_percent_alone_needs_its_label() -> None:
    for state, words in (
        (None, "has none"),
        (battery(90_000.0, discharging=False), "charger"),
        (battery(None), "how much it holds"),
    ):
        refused = energy_battery.open_battery(read=lambda state=state: state)  # type: ignore[misc]
        assert isinstance(refused, NoSource)
        assert words in refused.reason


def window(meter: Meter, clock: list[int], seconds: float, then: Callable[[], None]) -> Any:
    meter.start()
    clock[0] += int(seconds * 1e9)
    then()
    return meter.finish()


@pytest.mark.parametrize(
    ("seconds", "points", "known"), [(3600, 12.0, True), (3600, 6.0, False), (60, 12.0, False)]
)
def test_less_than_ten_points_of_a_percent_battery_are_no_measurement(
    seconds: float, points: float, known: bool
) -> None:
    state, clock = [battery(None, percent=80.0)], [0]
    source = energy_battery.open_battery(full_watt_hours=50, read=lambda: state[0])
    assert not isinstance(source, NoSource)
    meter = Meter(source, clock_ns=lambda: clock[0])
    measured = window(meter, clock, seconds, lambda: state.insert(0, battery(None, percent=80.0 - points)))
    if known:
        assert measured.joules == pytest.approx(0.12 * 50 * 3600)
        assert (measured.grade, measured.window_ns) == ("C", 3600 * 10**9)
    else:
        assert measured is None
        assert meter.refusal


def test_plugging_in_the_charger_in_the_middle_gives_no_number() -> None:
    state, clock = [battery(90_000.0)], [0]
    source = energy_battery.open_battery(read=lambda: state[0])
    assert not isinstance(source, NoSource)
    meter = Meter(source, clock_ns=lambda: clock[0])
    assert window(meter, clock, 3600, lambda: state.insert(0, battery(80_000.0, discharging=False))) is None
    assert "charger" in meter.refusal


class Counter:
    """A source that a test moves."""

    def __init__(self, grade: EnergyGrade = "A") -> None:
        self.name, self.grade, self.least_joules, self.least_seconds = "test", grade, 0.1, 0.1
        self.used: float | None = 0.0

    def joules(self) -> float | None:
        """Return what the test says."""
        return self.used

    def uses(self, joules: float) -> None:
        """Use energy."""
        assert self.used is not None
        self.used += joules


def test_the_idle_machines_share_is_told_beside_and_not_taken_off() -> None:
    source, clock = Counter(), [0]
    meter = Meter(source, clock_ns=lambda: clock[0])

    def idle(seconds: float) -> None:
        clock[0] += int(seconds * 1e9)
        source.uses(4.0 * seconds)

    assert meter.measure_idle(sleep=idle) == pytest.approx(4.0)
    measured = window(meter, clock, 10.0, lambda: source.uses(150.0))
    assert (measured.joules, measured.idle_joules) == (pytest.approx(150.0), pytest.approx(40.0))


def test_the_most_trustworthy_source_is_chosen_and_the_others_reasons_are_kept() -> None:
    sources: list[EnergySource] = [Counter("B"), Counter("A"), Counter("C")]
    openers = [lambda source=source: source for source in sources]
    chosen = choose(openers=[lambda: NoSource("x", "None here."), *openers])
    assert chosen.source is sources[1]
    assert [refused.reason for refused in chosen.refused] == ["None here."]
    assert choose(openers=[lambda: NoSource("x", "None here.")]).source is None


def test_a_persons_meter_is_as_fine_as_its_decimals() -> None:
    reading = MeterReading("1234.5")
    assert reading.least_joules == pytest.approx(10 * 0.1 * 3600)
    reading.read("1240,5 Wh")
    assert reading.joules() == pytest.approx(6 * 3600)
    assert MeterReading("0.123 kWh").least_joules == pytest.approx(10 * 1.0 * 3600)


@pytest.mark.parametrize("typed", ["", "twelve", "12 W", "-3", "1e9", "1.2.3", "1234"])
def test_what_is_no_reading_or_goes_back_is_asked_for_again(typed: str) -> None:
    reading = MeterReading("2000")
    with pytest.raises(ItemError):
        reading.read(typed)
    assert reading.joules() == 0


# Before the run.

GOOD = preflight.Facts(
    available_memory_bytes=4000 * MIB,
    free_disk_bytes=10_000 * MIB,
    wall_seconds=1_795_000_000.0,
    on_mains=True,
    battery_percent=80.0,
    swap_bytes=(2000 * MIB, 0),
    busy_cores=0.05,
    temperature_celsius=55.0,
    installed_at_seconds=1_790_000_000.0,
)


def obstacles(facts: preflight.Facts, **more: Any) -> list[preflight.Obstacle]:
    return preflight.obstacles_of(facts, need_memory_bytes=1000 * MIB, planned_seconds=1800, **more)


def test_a_good_machine_has_no_obstacle_and_an_unknown_one_none_either() -> None:
    assert obstacles(GOOD) == []
    assert obstacles(preflight.Facts(4000 * MIB, 10_000 * MIB, GOOD.wall_seconds)) == []


@pytest.mark.parametrize(
    ("change", "kind", "stops"),
    [
        ({"available_memory_bytes": 500 * MIB}, "little_memory", True),
        ({"free_disk_bytes": MIB}, "disk_full", True),
        ({"busy_cores": 1.0}, "busy", True),
        ({"on_mains": False, "battery_percent": 20.0}, "battery_low", True),
        ({"on_mains": False}, "on_battery", False),
        ({"undervoltage": True}, "undervoltage", True),
        ({"saves_power": True}, "power_saver", False),
        ({"swap_bytes": (2000 * MIB, 900 * MIB)}, "swap_in_use", False),
        ({"slowed": True}, "slowed", False),
        ({"temperature_celsius": 95.0}, "hot", False),
        ({"wall_seconds": 0.0}, "clock_insane", False),
        ({"wall_seconds": 1_780_000_000.0}, "clock_insane", False),
    ],
)
def test_each_obstacle_has_a_sentence_and_advice(change: dict[str, Any], kind: str, stops: bool) -> None:
    [found] = obstacles(GOOD._replace(**change))
    assert (found.kind, found.stops) == (kind, stops)
    assert found.sentence.endswith(".")
    assert found.advice.endswith((".", "--minutes.", "--out."))


def test_a_long_run_needs_a_fuller_battery_and_one_on_purpose_is_not_advised_against() -> None:
    on_battery = GOOD._replace(on_mains=False, battery_percent=60.0)
    assert obstacles(on_battery, on_battery_on_purpose=True) == []
    [found] = preflight.obstacles_of(on_battery, need_memory_bytes=0, planned_seconds=3 * 3600)
    assert found.kind == "battery_low"


def test_what_stops_a_run_comes_first() -> None:
    found = obstacles(GOOD._replace(slowed=True, busy_cores=2.0, swap_bytes=(100, 90)))
    assert [obstacle.stops for obstacle in found] == [True, False, False]


def test_a_busy_machine_is_waited_for_and_a_quiet_one_is_not() -> None:
    slept: list[float] = []
    loads = iter([None, 1.5, 0.9, 0.1])
    assert preflight.wait_until_idle(sample=lambda: next(loads), sleep=slept.append) == 0.1
    assert len(slept) == 3
    told: list[tuple[float, float]] = []
    busy = preflight.wait_until_idle(
        sample=lambda: 2.0, sleep=slept.append, tell=lambda cores, left: told.append((cores, left))
    )
    assert busy == 2.0
    assert len(told) == 59


def test_what_this_machine_is_can_be_gathered(tmp_path: Path) -> None:
    facts = preflight.look(tmp_path / "not" / "there" / "yet")
    assert facts.free_disk_bytes > 0
    assert not [found for found in obstacles(facts) if found.kind == "clock_insane"]
