"""The run itself: block after block, question after question, each on the disk before the next.

Whatever happens (Ctrl+C, a dead engine, a model that is gone, a full disk, a cut of the power) costs the
question in flight at most; `resume` goes on behind it.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from edgemed import machine
from edgemed.errors import EdgemedError, EngineDied, QuestionTooLong, StorageError, Terminated
from edgemed.records import Energy, Load, Machine, RunEnd, RunEvent, Sample, Telemetry, Validity
from edgemed_benchmarks.agenda import Agenda
from edgemed_benchmarks.asking import WARM_UP, BenchedEngine, ask_engine, warm_up_ask
from edgemed_benchmarks.asks import Ask, Speed, key_of
from edgemed_benchmarks.estimate import ask_seconds, has_time_to_idle, warm_up_seconds
from edgemed_benchmarks.forecast import Forecast
from edgemed_benchmarks.interruption import Interruption
from edgemed_benchmarks.journal import Journal
from edgemed_benchmarks.outcome import Outcome
from edgemed_benchmarks.plan import Block, Plan, idle_seconds_of, lasting_seconds, plan_seconds
from edgemed_benchmarks.run_settings import Material, Settings
from edgemed_benchmarks.telemetry import Point

DEATHS_IN_A_ROW = 3


class Surroundings(Protocol):
    """The machine around the engine; `machine_side.MachineSide` is the real one."""

    def describe(self, llama_cpp_build: str, model_sha256: str) -> dict[str, Any]:
        """Return the fields of a `records.Machine`."""

    def begin(self, engine_process_id: int | None) -> None:
        """Begin to watch one answer."""

    def end(
        self,
        *,
        wall_ns: int,
        engine_cpu_ns: int | None,
        threads: int,
        expected_busy_cores: float,
        from_disk: bool,
        engine_died: bool,
    ) -> Validity:
        """Return whether the times since `begin` may be trusted."""

    def telemetry(self) -> Sequence[Point]:
        """Return what was seen since the last call."""

    def changes(self) -> Sequence[tuple[str, str]]:
        """Return kind and detail of what a reader must know since the last call."""

    def measure_idle(self, seconds: float) -> None:
        """Learn what energy the machine uses while it does nothing."""

    def open_window(self) -> None:
        """Begin to measure energy."""

    def close_window(self) -> Energy | None:
        """Return the energy since `open_window`; None where it cannot be known."""

    @property
    def energy_refusal(self) -> str:
        """Why the last window gave no number; empty if it did."""


class BenchArm(NamedTuple):
    """One arm, ready to be loaded."""

    label: str
    material: Material
    speed: Speed
    start: Callable[[], BenchedEngine]
    """Start to load it.

    Raises ModelError: the model is gone, changed, or does not fit into memory any more.
    """


class Progress(NamedTuple):
    """How far a run is."""

    done: int
    """Questions."""
    share: float
    """Of the whole run's time, from 0 to 1."""
    seconds_left: float
    what: str


class Runner:
    """Carries out a plan."""

    def __init__(
        self,
        journal: Journal,
        settings: Settings,
        plan: Plan,
        arms: Sequence[BenchArm],
        surroundings: Surroundings,
        *,
        keep_texts: bool = True,
        before: Sequence[Sample] = (),
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """`before` are the samples that are in the journal already."""
        self._journal, self._settings, self._plan, self._arms = journal, settings, plan, arms
        self._around, self._keep_texts, self._on_progress = surroundings, keep_texts, on_progress
        self._done = {key_of(sample) for sample in before if not sample.warm_up}
        self._verdicts = [sample.validity.verdict for sample in before if not sample.warm_up]
        self._before = before
        self._deaths = 0
        self._described = self._has_idled = self._window_is_open = False
        # What a run that goes on has left to do is less, but its time is the same: it may have slept before.
        self._ends_at = time.monotonic() + settings.minutes * 60
        self._forecast = Forecast()
        for number, block in enumerate(plan.blocks):
            self._forecast.expect(*self._block_seconds(number, block))
        self._whole_seconds = plan_seconds(
            settings, plan, [arm.material for arm in arms], [arm.speed for arm in arms]
        )

    def run(self, interruption: Interruption) -> bool:
        """Ask everything that is not in the journal yet; return whether the plan came to its end.

        Raises:
            KeyboardInterrupt, Terminated: as somebody wished; the record says so.
            EdgemedError: a model is gone, the engine cannot go on, or the disk is full; `resume` goes on.
        """
        try:
            finished = all(
                self._run_block(number, block, interruption)
                for number, block in enumerate(self._plan.blocks)
                if self._agenda(number, block).peek()
            )
        except KeyboardInterrupt:
            self._note("interrupted", "from the keyboard")
            raise
        except Terminated:
            self._note("interrupted", "by the system")
            raise
        except StorageError:
            raise
        except EngineDied as error:
            self._note("engine_died", error.message)
            raise _with_resume(error, self._journal) from error
        except EdgemedError as error:
            self._note("model_changed", type(error).__name__)
            raise _with_resume(error, self._journal) from error
        if not finished:
            self._note("stopped_early", "the time was over")
        self._journal.append(
            RunEnd,
            finished=finished,
            actual_seconds=self._journal.now_ns() / 1e9,
            ok=self._verdicts.count("ok"),
            suspect=self._verdicts.count("suspect"),
            invalid=self._verdicts.count("invalid"),
        )
        return finished

    def _agenda(self, number: int, block: Block) -> Agenda:
        """Return what is left to ask in a block."""
        arm = self._arms[block.arm]
        lasting = lasting_seconds(self._settings, block, arm.material, arm.speed)
        before = [each for each in self._before if (each.block, each.arm) == (number, block.arm)]
        if any(each.energy or each.suite == "endurance" for each in before):
            # A window that was not closed is worth nothing; one that was closed is not opened again.
            lasting = {suite: 0.0 if suite == "energy" else seconds for suite, seconds in lasting.items()}
        if "endurance" in lasting:
            spent = sum(
                each.times.end_ns / 1e9 + arm.speed.overhead_seconds
                for each in before
                if each.suite == "endurance"
            )
            lasting["endurance"] = max(0.0, lasting["endurance"] - spent)
        done = {ask for block_number, _arm, ask in self._done if block_number == number}
        return Agenda(block.asks, lasting, done, lambda ask: self._seconds(ask, arm))

    def _block_seconds(self, number: int, block: Block) -> tuple[float, float]:
        """Return what is left of a block: what stands on the probe, and what lasts in any case."""
        agenda, arm = self._agenda(number, block), self._arms[block.arm]
        if agenda.peek() is None:
            return 0.0, 0.0
        asking, lasting = agenda.seconds()
        loading = arm.speed.load_seconds + warm_up_seconds(self._settings, arm.material, arm.speed)
        return loading + asking, lasting + idle_seconds_of(self._settings, block)

    def _run_block(self, number: int, block: Block, interruption: Interruption) -> bool:
        """Return whether there was time for all of it."""
        arm, agenda = self._arms[block.arm], self._agenda(number, block)
        self._has_idled = self._window_is_open = False
        self._show(f"{arm.label}, loading")
        with contextlib.ExitStack() as stack:
            with interruption.waiting():
                started = time.monotonic_ns()
                engine = arm.start()
                stack.callback(engine.close)
                engine.wait_until_ready()
            self._journal.append(
                Load,
                arm=block.arm,
                load_ns=time.monotonic_ns() - started,
                peak_rss_bytes=machine.peak_rss_bytes(engine.process_id) if engine.process_id else None,
            )
            self._forecast.passed(arm.speed.load_seconds)
            self._describe(engine, arm)
            warm_up = warm_up_ask(arm.material)
            while ask := agenda.peek():
                if warm_up and not ask.condition.startswith("cold"):
                    # The cold question comes before anything else.
                    ask, warm_up = warm_up, None
                if self._is_late(ask, arm):
                    return False
                self._show(f"{arm.label}, {ask.suite}")
                self._ask(engine, number, block.arm, ask, agenda, interruption)
        return True

    def _describe(self, engine: BenchedEngine, arm: BenchArm) -> None:
        """Write what the machine is, once: only a loaded engine knows its build."""
        if not self._described:
            model_sha256 = arm.material.manifest.sha256
            self._journal.append(Machine, **self._around.describe(engine.llama_cpp_build, model_sha256))
            self._described = True

    def _is_late(self, ask: Ask, arm: BenchArm) -> bool:
        return time.monotonic() + self._seconds(ask, arm) > self._ends_at

    def _seconds(self, ask: Ask, arm: BenchArm) -> float:
        if ask.condition == WARM_UP:
            return warm_up_seconds(self._settings, arm.material, arm.speed)
        return ask_seconds(self._settings, ask, arm.material, arm.speed)

    def _ask(
        self,
        engine: BenchedEngine,
        number: int,
        arm_number: int,
        ask: Ask,
        agenda: Agenda,
        interruption: Interruption,
    ) -> None:
        """Ask one question and write what came of it."""
        arm = self._arms[arm_number]
        if ask.suite == "energy":
            self._open_window(interruption)
        if ask.condition != WARM_UP:
            agenda.take()
        self._around.begin(engine.process_id)
        started = time.monotonic_ns()
        try:
            with interruption.asking(engine.stop):
                outcome = ask_engine(engine, ask, arm.material, self._settings)
        except QuestionTooLong:
            self._note("skipped_item", f"{ask.item_id} is too long for {arm.label}")
            self._done.add((number, arm_number, ask))
            agenda.leave_out(ask)
            return
        except EngineDied as error:
            self._died(error)
            return
        finally:
            if agenda.lasts(ask):
                self._forecast.lasted((time.monotonic_ns() - started) / 1e9)
            else:
                self._forecast.passed(self._seconds(ask, arm))
        validity = self._around.end(
            wall_ns=time.monotonic_ns() - started,
            engine_cpu_ns=outcome.times.cpu_ns,
            threads=outcome.threads,
            expected_busy_cores=float("busy:1" in ask.condition.split()),
            from_disk="cold" in ask.condition.split(),
            engine_died=outcome.stop_reason == "engine_died",
        )
        interruption.raise_if_wished()
        energy = None
        if self._window_is_open and self._closes_window(agenda):
            with interruption.waiting():
                energy = self._around.close_window()
            self._window_is_open = False
            if energy is None:
                self._note("no_energy", self._around.energy_refusal)
        self._write(number, arm_number, ask, outcome, validity, energy)
        if outcome.stop_reason == "engine_died":
            self._died(EngineDied(outcome.explanation))
        else:
            self._deaths = 0

    def _open_window(self, interruption: Interruption) -> None:
        needs = self._settings.energy
        if isinstance(needs, str) or self._window_is_open:
            return
        with interruption.waiting():
            if not self._has_idled and has_time_to_idle(self._settings):
                self._around.measure_idle(needs.idle_seconds)
                self._forecast.lasted(needs.idle_seconds)
            self._around.open_window()
        self._has_idled = self._window_is_open = True

    def _closes_window(self, agenda: Agenda) -> bool:
        needs, following = self._settings.energy, agenda.peek()
        return isinstance(needs, str) or needs.each_answer or following is None or following.suite != "energy"

    def _write(
        self,
        number: int,
        arm_number: int,
        ask: Ask,
        outcome: Outcome,
        validity: Validity,
        energy: Energy | None,
    ) -> None:
        for point in self._around.telemetry():
            self._journal.append(Telemetry, at_ns=point.at_ns, durable=False, **point.fields)
        for kind, detail in self._around.changes():
            self._journal.append(RunEvent, kind=kind, detail=detail)
        is_warm_up = ask.condition == WARM_UP
        fields = outcome._asdict()
        if not self._keep_texts:
            fields["text"] = None
        sample = self._journal.append(
            Sample,
            suite=ask.suite,
            arm=arm_number,
            block=number,
            repetition=ask.repetition,
            warm_up=is_warm_up,
            validity=validity,
            energy=energy,
            **{**fields, "condition": ask.condition},
        )
        if not is_warm_up:
            self._done.add((number, arm_number, ask))
            self._verdicts.append(sample.validity.verdict)

    def _died(self, error: EngineDied) -> None:
        self._deaths += 1
        if self._deaths == DEATHS_IN_A_ROW:
            raise error
        self._note("engine_died", error.message)

    def _note(self, kind: str, detail: str) -> None:
        # The disk may be what fails; then the error that brought us here says more.
        with contextlib.suppress(StorageError):
            self._journal.append(RunEvent, kind=kind, detail=detail)

    def _show(self, what: str) -> None:
        if self._on_progress:
            left = self._forecast.seconds_left()
            share = 1 - min(1.0, self._forecast.planned_left() / max(self._whole_seconds, 1e-9))
            self._on_progress(Progress(len(self._done), share, left, what))


def _with_resume(error: EdgemedError, journal: Journal) -> EdgemedError:
    """Return the same error with the way on in its hint."""
    hint = f"{error.hint} Then: edgemed-bench resume {journal.path}".strip()
    return type(error)(error.message, hint=hint)
