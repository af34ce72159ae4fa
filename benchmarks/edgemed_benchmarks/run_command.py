"""The commands run, resume and verify: from options to a record file."""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edgemed import __version__, operating_system, paths
from edgemed.engine.memory import memory_need
from edgemed.errors import StorageError, Terminated
from edgemed.records import SCHEMA, RunEvent, RunStart
from edgemed_benchmarks import fingerprint
from edgemed_benchmarks.arms import RunOptions, context_length_of, labels_of
from edgemed_benchmarks.asking import BenchedEngine
from edgemed_benchmarks.errors import UnfitEnvironment
from edgemed_benchmarks.interruption import Interruption
from edgemed_benchmarks.journal import Journal, Run, read_run, repair
from edgemed_benchmarks.machine_side import MachineSide
from edgemed_benchmarks.preflight import (
    LOOK_EVERY_SECONDS,
    WAIT_SECONDS,
    look,
    obstacles_of,
    wait_until_idle,
)
from edgemed_benchmarks.resuming import prepare_resume
from edgemed_benchmarks.run_text import ProgressLine, plan_lines, readable_seconds
from edgemed_benchmarks.runner import BenchArm, Runner
from edgemed_benchmarks.starting import Prepared, choose, kept_plan, prepare


class Talk(Protocol):
    """How a command speaks with the tester."""

    def say(self, text: str) -> None:
        """Tell something."""

    def confirm(self, question: str, *, unless_asked: bool) -> bool:
        """Ask whether to go on; where nobody can be asked, return `unless_asked`."""

    def ask(self, question: str) -> str:
        """Ask for a few words."""


def run_new(options: RunOptions, out: Path | None, talk: Talk, line: ProgressLine, *, force: bool) -> Run:
    """Plan a run, say how long it takes, carry it out, and return its record.

    Args:
        out: the record file; None is a new one in the current folder.
        force: start in spite of warnings, and wait for no other program to end.

    Raises:
        UnfitEnvironment: something would spoil the run, and nobody said to go on in spite of it.
        EdgemedError: as `starting.prepare`, `Runner.run` and `Journal.create` say.
        KeyboardInterrupt: Ctrl+C, or the tester did not want to start.
    """
    path = out or Path(time.strftime("edgemed-bench-%Y%m%d-%H%M%S.jsonl"))
    # Refused before minutes are spent.
    choose(options)
    _check_place(path)
    with one_benchmark(), Interruption() as interruption:
        busy_cores = _wait_until_idle(interruption, line, LOOK_EVERY_SECONDS if force else WAIT_SECONDS)
        with _machine_side(options, interruption, talk) as machine:
            prepared = prepare(
                options,
                interruption,
                energy=machine.energy,
                overhead=machine.overhead(path.absolute().parent),
                on_step=line.step,
            )
            line.clear()
            labels = labels_of(prepared.models)
            for text in plan_lines(prepared, labels):
                talk.say(text)
            with interruption.waiting():
                forced, minor = _overcome(prepared, path, busy_cores, talk, force=force)
                if not talk.confirm("Start?", unless_asked=True):
                    raise KeyboardInterrupt
            with Journal.create(path, clock_ns=operating_system.since_boot_ns) as journal:
                journal.append(RunStart, **_start_fields(prepared, labels, forced))
                for sentence in minor:
                    journal.append(RunEvent, kind="preflight", detail=sentence)
                for suite, reason in prepared.plan.skipped.items():
                    journal.append(RunEvent, kind="skipped_suite", detail=f"{suite}: {reason}")
                _carry_out(prepared, labels, journal, machine, interruption, talk, line, before=None)
    return read_run(path)


def resume(path: Path, options: RunOptions, talk: Talk, line: ProgressLine) -> Run:
    """Go on with a run that was cut.

    Raises:
        EdgemedError: as `resuming.prepare_resume`, `read_run` and `Runner.run` say.
        KeyboardInterrupt: Ctrl+C.
    """
    with (
        one_benchmark(),
        Interruption() as interruption,
        _machine_side(options, interruption, talk) as machine,
    ):
        run = read_run(path)
        prepared = prepare_resume(run, options)
        if sentence := repair(run):
            talk.say(sentence)
        run = read_run(path)
        labels = [arm.label for arm in run.arms]
        planned = sum(len(block.asks) for block in prepared.plan.blocks)
        answered = sum(not sample.warm_up for sample in run.samples)
        talk.say(f"{answered} of {planned} questions are answered already.")
        with Journal.reopen(run, clock_ns=operating_system.since_boot_ns) as journal:
            journal.append(RunEvent, kind="resumed", detail=f"{answered} of {planned} were answered")
            _carry_out(prepared, labels, journal, machine, interruption, talk, line, before=run)
    return read_run(path)


class Checked(NamedTuple):
    """What `verify` found."""

    path: str
    whole: bool
    finished: bool
    samples: int
    problem: str
    """Empty when the file is whole."""


def verify(path: Path) -> Checked:
    """Read a record file and tell whether it is whole.

    Raises:
        RecordError: it is no record file, or was changed.
    """
    run = read_run(path)
    samples = sum(not sample.warm_up for sample in run.samples)
    problem = ""
    if run.torn_bytes:
        problem = f"The last line was cut in the middle ({run.torn_bytes} bytes)."
    elif run.end is None:
        problem = "The run has no end: it was cut, or still goes on."
    elif not run.end.finished:
        problem = "The run was ended before its plan was done."
    return Checked(
        path=str(path),
        whole=not run.torn_bytes,
        finished=run.end is not None and run.end.finished,
        samples=samples,
        problem=problem,
    )


@contextlib.contextmanager
def one_benchmark() -> Iterator[None]:
    """Let no second benchmark run on this machine at the same time: both would measure the other.

    Raises:
        FileInUse: another one runs.
        StorageError: the data folder cannot be used.
    """
    folder = paths.data_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be made: {error.strerror}.", hint="Set EDGEMED_HOME to a folder of yours."
        ) from error
    with operating_system.lock_file(folder / "benchmark.lock"):
        yield


def _check_place(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise StorageError(
            f"{path} cannot be written: there is no such folder.", hint="Make the folder, or change --out."
        )
    if path.exists() and (path.is_dir() or path.stat().st_size):
        Journal.create(path)


def _machine_side(options: RunOptions, interruption: Interruption, talk: Talk) -> MachineSide:
    with interruption.waiting():
        return MachineSide(
            battery_watt_hours=options.battery_watt_hours, read_meter=talk.ask if options.meter else None
        )


def _wait_until_idle(interruption: Interruption, line: ProgressLine, limit_seconds: float) -> float | None:
    def tell(busy_cores: float, seconds_left: float) -> None:
        line.step(
            f"Waiting for other programs, which keep {busy_cores:.1f} cores busy: "
            f"at most {readable_seconds(seconds_left)} more"
        )

    with interruption.waiting():
        return wait_until_idle(limit_seconds=limit_seconds, tell=tell)


def _overcome(
    prepared: Prepared, path: Path, busy_cores: float | None, talk: Talk, *, force: bool
) -> tuple[list[str], list[str]]:
    """Say what would spoil the run; return what the tester goes on in spite of, and what is only told."""
    needs = [
        memory_need(
            model.manifest.shape,
            model.manifest.size_bytes,
            context_length_of(model, prepared.options.context_length),
        )
        for model in prepared.models
    ]
    obstacles = obstacles_of(
        look(path.absolute().parent, busy_cores=busy_cores),
        need_memory_bytes=max(need.total_bytes for need in needs),
        planned_seconds=prepared.seconds,
        on_battery_on_purpose="energy" in prepared.plan.counts,
    )
    for obstacle in obstacles:
        talk.say(f"{'WARNING' if obstacle.stops else 'note'}: {obstacle.sentence} {obstacle.advice}")
    stopping = [obstacle for obstacle in obstacles if obstacle.stops]
    if stopping and not force and not talk.confirm("Start in spite of that?", unless_asked=False):
        raise UnfitEnvironment(stopping[0].sentence, hint=f"{stopping[0].advice} Or start with --force.")
    return (
        [f"{obstacle.kind}: {obstacle.sentence}" for obstacle in stopping],
        [f"{obstacle.kind}: {obstacle.sentence}" for obstacle in obstacles if not obstacle.stops],
    )


def _carry_out(
    prepared: Prepared,
    labels: Sequence[str],
    journal: Journal,
    machine: MachineSide,
    interruption: Interruption,
    talk: Talk,
    line: ProgressLine,
    *,
    before: Run | None,
) -> None:
    machine.start(journal.now_ns)
    runner = Runner(
        journal,
        prepared.settings,
        prepared.plan,
        [
            BenchArm(label, material, speed, _opener(prepared, number))
            for number, (label, material, speed) in enumerate(
                zip(labels, prepared.materials, prepared.speeds, strict=True)
            )
        ],
        machine,
        keep_texts=prepared.options.keep_texts,
        before=before.samples if before else (),
        on_progress=line,
    )
    try:
        runner.run(interruption)
    except (KeyboardInterrupt, Terminated):
        line.clear()
        talk.say(f"What is measured is in {journal.path}. Go on with: edgemed-bench resume {journal.path}")
        raise
    finally:
        line.clear()


def _opener(prepared: Prepared, arm: int) -> Callable[[], BenchedEngine]:
    return lambda: prepared.open_engine(arm)


def _start_fields(prepared: Prepared, labels: Sequence[str], forced: Sequence[str]) -> dict[str, Any]:
    options, settings = prepared.options, prepared.settings
    return {
        "schema": SCHEMA,
        "run_id": secrets.token_hex(8),
        "edgemed_version": __version__,
        "profile": settings.profile,
        "suites": [suite for suite in settings.suites if suite in prepared.plan.counts],
        "arms": [
            fingerprint.arm_of(
                model,
                label=label,
                context_length=context_length_of(model, options.context_length),
                threads=options.threads,
            )
            for model, label in zip(prepared.models, labels, strict=True)
        ],
        "item_files": prepared.item_files,
        "seed": settings.seed,
        "order": prepared.plan.order,
        "estimated_seconds": round(prepared.seconds, 1),
        "texts_kept": options.keep_texts,
        "first_words_limit_seconds": options.limit_first_seconds,
        "full_answer_limit_seconds": options.limit_full_seconds,
        "options": {"plan": kept_plan(prepared)},
        "forced": list(forced),
    }
