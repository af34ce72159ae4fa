"""Whether a sample's times may be trusted: ok, suspect or invalid, with the reasons.

On a busy machine an answer is not a little slower but can be a thousand times slower, and a stopped process,
a sleeping laptop or weights that must be read from the disk again look like a slow model. So the runner puts
a `watch.Watch` around each sample; `judge` turns what it counted into a verdict.

The limits are reasoned below and tried with real disturbances (tests/measurements/validity_detection.py).
"""

from typing import NamedTuple

from edgemed.records import Counters, Validity, Verdict


class Limit(NamedTuple):
    """From where on a count makes a sample suspect, or invalid; None: never."""

    suspect: float
    invalid: float | None


OTHER_CORES = Limit(0.2, 0.5)
"""Cores that other programs kept busy. llama.cpp's threads wait for the slowest: half a core costs half the
speed or more. An idle system needs a few hundredths."""
STEAL_SHARE = Limit(0.05, 0.15)
PRESSURE_CPU_SHARE = Limit(0.3, 0.6)
"""PSI sees our own two processes wait for each other, too: it must be much before it says anything."""
PRESSURE_MEMORY_SHARE = Limit(0.02, 0.1)
MAJOR_FAULTS_PER_SECOND = Limit(2, 20)
"""Of the engine, beyond one: parts of the model that the system had dropped are read from the disk again. A
warm engine has none. One costs 0.1 ms (SSD) to 10 ms (card, hard disk), and may read 128 KiB or all of it."""
SWAPPED_BYTES_PER_SECOND = Limit(2**20, 8 * 2**20)
LOW_MEMORY_SHARE = 0.02
"""Of all memory: so little left and the system is dropping what programs will need."""
CANARY_RATIO = Limit(1.25, 2.0)
VIRTUAL_CANARY_RATIO = Limit(2.0, 3.0)
"""In a virtual machine a neighbour on the same core makes the canary 1.7 times slower in bursts while answers
keep their speed (docs/experiments.md): there only more than that says anything."""
CPU_EFFICIENCY = Limit(0.5, 0.25)
"""Lower is worse. Free machines have 0.7 to 1: template, tokenizing and choosing a token use one core."""
STOPPED_NS = Limit(20e6, 200e6)
LEAST_WINDOW_NS = 500_000_000
"""Processor time is counted in steps of 10 ms: the share of other programs is taken over no shorter time."""
LEAST_JUDGED_NS = 200_000_000
"""Below, efficiency and pressure are chance."""
_TICK_SECONDS = 0.01
_ORDER: list[Verdict] = ["ok", "suspect", "invalid"]


class Circumstances(NamedTuple):
    """What one must know of a sample to judge its counters."""

    wall_ns: int
    cpus: int = 1
    """Logical processors that the machine has for us."""
    total_memory_bytes: int | None = None
    window_ns: int | None = None
    """Over which `other_cpu_share` and `steal_share` were counted; None: the sample's own time."""
    expected_busy_cores: float = 0.0
    """Kept busy on purpose."""
    from_disk: bool = False
    """The model is read from the disk on purpose: the first answer after a cold load."""
    engine_died: bool = False
    virtual_machine: bool = False


def judge(counters: Counters, circumstances: Circumstances) -> Validity:
    """Return the verdict on one sample; a counter that the system does not have judges nothing."""
    findings = [
        *_disturbed_by_others(counters, circumstances),
        *_short_of_memory(counters, circumstances),
        *_slowed_down(counters, circumstances),
        *_stood_still(counters),
    ]
    if circumstances.engine_died:
        findings.append(("engine_died", "invalid"))
    if not any(verdict == "invalid" for _reason, verdict in findings):
        findings.extend(_inefficient(counters, circumstances))
    verdicts = [verdict for _reason, verdict in findings]
    return Validity(
        verdict=max(verdicts, key=_ORDER.index, default="ok"),
        reasons=list(dict.fromkeys(reason for reason, _verdict in findings)),
        counters=counters,
    )


Findings = list[tuple[str, Verdict]]


def _disturbed_by_others(counters: Counters, circumstances: Circumstances) -> Findings:
    found: Findings = []
    wall_ns = circumstances.wall_ns
    if counters.other_cpu_share is not None:
        window_seconds = (circumstances.window_ns or wall_ns) / 1e9
        # What the steps of the counters alone can make of nothing.
        unsure = 2 * _TICK_SECONDS * circumstances.cpus / max(window_seconds, _TICK_SECONDS)
        cores = counters.other_cpu_share * circumstances.cpus - circumstances.expected_busy_cores
        found += _over(cores - unsure, OTHER_CORES, "cpu_busy")
    if wall_ns >= LEAST_JUDGED_NS and not circumstances.expected_busy_cores:
        found += _over(counters.pressure_cpu_share, PRESSURE_CPU_SHARE, "cpu_busy")
    if (circumstances.window_ns or wall_ns) >= LEAST_WINDOW_NS:
        found += _over(counters.steal_share, STEAL_SHARE, "stolen")
    return found


def _short_of_memory(counters: Counters, circumstances: Circumstances) -> Findings:
    found: Findings = []
    seconds = max(circumstances.wall_ns, LEAST_JUDGED_NS) / 1e9
    swapped = (counters.swapped_in_bytes or 0) + (counters.swapped_out_bytes or 0)
    found += _over(swapped / seconds, SWAPPED_BYTES_PER_SECOND, "swapping")
    if not circumstances.from_disk:
        found += _over(
            ((counters.major_faults or 0) - 1) / seconds, MAJOR_FAULTS_PER_SECOND, "memory_pressure"
        )
        if circumstances.wall_ns >= LEAST_JUDGED_NS:
            found += _over(counters.pressure_memory_share, PRESSURE_MEMORY_SHARE, "memory_pressure")
    left, total = counters.available_memory_bytes, circumstances.total_memory_bytes
    if left is not None and total and left < total * LOW_MEMORY_SHARE:
        found.append(("memory_pressure", "suspect"))
    return found


def _slowed_down(counters: Counters, circumstances: Circumstances) -> Findings:
    limit = VIRTUAL_CANARY_RATIO if circumstances.virtual_machine else CANARY_RATIO
    found = _over(counters.canary_ratio, limit, "slow_canary")
    # True for this machine when it is hot, and no measure of it when it is cool: no more than suspect.
    if counters.throttle_events:
        found.append(("throttled", "suspect"))
    if counters.undervoltage:
        found.append(("undervoltage", "suspect"))
    return found


def _stood_still(counters: Counters) -> Findings:
    found = _over(counters.suspended_ns, STOPPED_NS, "suspended")
    # The times are of another clock and stay right; the date beside them does not.
    if counters.clock_step_ns:
        found.append(("clock_step", "suspect"))
    return found


def _inefficient(counters: Counters, circumstances: Circumstances) -> Findings:
    """The net under all others: the engine had less processor time than it should, and nobody says why."""
    efficiency = counters.cpu_efficiency
    explained = circumstances.from_disk or circumstances.expected_busy_cores
    if efficiency is None or explained or circumstances.wall_ns < LEAST_JUDGED_NS:
        return []
    if CPU_EFFICIENCY.invalid is not None and efficiency < CPU_EFFICIENCY.invalid:
        return [("low_cpu_efficiency", "invalid")]
    return [("low_cpu_efficiency", "suspect")] if efficiency < CPU_EFFICIENCY.suspect else []


def _over(value: float | None, limit: Limit, reason: str) -> Findings:
    if value is None or value < limit.suspect:
        return []
    return [(reason, "invalid" if limit.invalid is not None and value >= limit.invalid else "suspect")]
