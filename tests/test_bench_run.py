"""A run: what it asks, what it writes down, and that nothing that happens on the way costs more than one sample."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgemed_benchmarks import cli, run_command, suite_fidelity, suite_latency
from edgemed_benchmarks.asks import key_of
from edgemed_benchmarks.busy_core import busy_core
from edgemed_benchmarks.interruption import Interruption
from edgemed_benchmarks.journal import Journal, Run, read_run
from edgemed_benchmarks.machine_side import MachineSide
from edgemed_benchmarks.plan import Plan, make_plan, plan_seconds
from edgemed_benchmarks.run_settings import EnergyNeeds, Settings
from edgemed_benchmarks.runner import BenchArm, Progress, Runner

from edgemed import models
from edgemed.engine.messages import ChatMessage, Event, Finished, Piece, Reading, StopReason
from edgemed.errors import EngineDied, FileInUse, ModelCorrupt, QuestionTooLong, Terminated
from edgemed.records import Energy, Item, RunStart, Sample
from edgemed.session import open_session
from tests.bench_fakes import FAST, FakeEngine, FakeSurroundings, fake_material
from tests.test_bench_journal import start_fields

ITEMS = """\
{"edgemed_items":1,"license":"CC0-1.0","name":"few","source":"test","suite":"latency"}
{"id":"one","kind":"speed","question":"What is anaemia?","tags":["length:short"]}
{"id":"two","kind":"speed","question":"How is dehydration treated?","tags":["length:short"]}
{"id":"three","kind":"speed","question":"Why wash hands?","tags":["length:short"]}
"""


class Bench:
    """A run with fakes in a folder of its own."""

    def __init__(self, folder: Path, *, arms: int = 1, minutes: float = 10, **settings: Any) -> None:
        self.settings = Settings(
            profile="standard",
            suites=("latency", "quality", "safety", "energy"),
            minutes=minutes,
            limit_full_seconds=60,
            energy=EnergyNeeds(idle_seconds=0, window_seconds=0, each_answer=True),
        )._replace(**settings)
        self.materials = [fake_material()] * arms
        self.plan: Plan = make_plan(self.settings, self.materials, [FAST] * arms)
        self.path = folder / "run.jsonl"
        self.engines: list[FakeEngine] = []
        self.around = FakeSurroundings()
        self.progress: list[Progress] = []

    def run(
        self,
        interruption: Interruption | None = None,
        before_answer: Callable[[], StopReason | None] = lambda: None,
        open_engine: Callable[[], FakeEngine] | None = None,
    ) -> bool:
        """Begin the run, or go on with it."""

        def opened() -> FakeEngine:
            self.engines.append(FakeEngine(before_answer))
            return self.engines[-1]

        before: Sequence[Sample] = ()
        if self.path.exists():
            run = read_run(self.path)
            before = run.samples
            journal = Journal.reopen(run)
        else:
            journal = Journal.create(self.path)
            arms = [start_fields()["arms"][0]] * len(self.materials)
            journal.append(RunStart, **{**start_fields(), "arms": arms})
        with journal:
            runner = Runner(
                journal,
                self.settings,
                self.plan,
                [BenchArm(f"arm{n}", m, FAST, open_engine or opened) for n, m in enumerate(self.materials)],
                self.around,
                before=before,
                on_progress=self.progress.append,
            )
            return runner.run(interruption or Interruption())

    @property
    def record(self) -> Run:
        return read_run(self.path)

    @property
    def planned(self) -> int:
        return sum(len(block.asks) for block in self.plan.blocks)


def asked_of(run: Run) -> Counter[Any]:
    return Counter(key_of(sample) for sample in run.samples if not sample.warm_up)


@pytest.fixture(autouse=True)
def no_busy_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child that keeps a core busy has its own test."""

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    monkeypatch.setattr("edgemed_benchmarks.suite_latency.busy_core", nothing)


def test_a_run_asks_the_plan_and_nothing_else(tmp_path: Path) -> None:
    bench = Bench(tmp_path, arms=2)
    assert bench.run()
    run = bench.record
    wanted = {(n, block.arm, ask) for n, block in enumerate(bench.plan.blocks) for ask in block.asks}
    assert asked_of(run) == Counter(wanted)
    assert run.end is not None and run.end.finished and run.end.ok == bench.planned
    assert len(run.loads) == len(bench.plan.blocks) == len(bench.engines)
    assert all(engine.closed for engine in bench.engines)
    assert len(run.machines) == 1 and run.telemetry
    last = bench.progress[-1]
    assert last.done == bench.planned - 1 and 0.9 < last.share < 1 and last.seconds_left < 60


def test_each_load_is_followed_by_the_cold_question_and_a_discarded_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run()
    for number in range(len(bench.plan.blocks)):
        first, second, third = [sample for sample in bench.record.samples if sample.block == number][:3]
        assert first.condition.startswith("cold") and not first.warm_up
        assert second.warm_up
        assert not third.warm_up and not third.condition.startswith("cold")


def test_conditions_reach_the_engine(tmp_path: Path) -> None:
    bench = Bench(tmp_path, suites=("latency",))
    bench.run()
    asked = [asked for engine in bench.engines for asked in engine.asked]
    assert {reuse for _m, _t, reuse, _p in asked} == {"saved_prefix", "nothing"}
    assert {tokens for _m, tokens, _r, past_end in asked if past_end} == {16, 64}
    busy = [sample for sample in bench.record.samples if "busy:1" in sample.condition]
    assert len(busy) == 9 == sum(bench.around.busy)
    assert all(sample.forced_length == ("forced" in sample.condition) for sample in bench.record.samples)


def test_energy_is_measured_over_each_answer_of_its_suite(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run()
    with_energy = [sample for sample in bench.record.samples if sample.energy]
    assert {sample.suite for sample in with_energy} == {"energy"}
    assert len(with_energy) == bench.plan.counts["energy"] == bench.around.windows


class PacedEngine(FakeEngine):
    """Each answer takes its time, on a clock of its own."""

    def __init__(self, clock: list[float], seconds_a_token: float, stop_at: float = float("inf")) -> None:
        super().__init__()
        self.clock, self.seconds_a_token, self.stop_at = clock, seconds_a_token, stop_at

    def measure(self, messages: Sequence[ChatMessage], **options: Any) -> Iterator[Event]:
        """Let the time pass that the answer takes."""
        for event in super().measure(messages, **options):
            assert isinstance(event, Finished) and event.answer.measurement
            seconds = event.answer.generated_tokens * self.seconds_a_token
            self.clock[0] += seconds
            if self.clock[0] > self.stop_at:
                raise ModelCorrupt("gone")
            measured = msgspec.structs.replace(event.answer.measurement, end_ns=round(seconds * 1e9))
            yield Finished(msgspec.structs.replace(event.answer, measurement=measured))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "monotonic_ns", lambda: round(now[0] * 1e9))
    return now


@pytest.mark.parametrize("pace", [0.5, 1.0, 1.7])
def test_endurance_lasts_as_long_as_said_on_a_faster_and_on_a_slower_machine(
    tmp_path: Path, clock: list[float], pace: float
) -> None:
    bench = Bench(tmp_path, suites=("endurance",), minutes=4)
    planned = plan_seconds(bench.settings, bench.plan, bench.materials, [FAST])
    assert 0.85 * 240 < planned < 240
    assert bench.run(open_engine=lambda: PacedEngine(clock, pace / FAST.decode_rate))
    assert clock[0] == pytest.approx(planned, rel=0.02)
    asked = asked_of(bench.record)
    assert set(asked.values()) == {1}
    assert sum(asked.values()) == pytest.approx(bench.planned / pace, rel=0.1)
    middle = bench.progress[len(bench.progress) // 2]
    assert middle.share == pytest.approx(0.5, abs=0.03)
    assert middle.seconds_left == pytest.approx(planned / 2, rel=0.1)


def test_endurance_goes_on_for_the_rest_of_its_time(tmp_path: Path, clock: list[float]) -> None:
    bench = Bench(tmp_path, suites=("endurance",), minutes=4)
    pace = 0.5 / FAST.decode_rate
    with pytest.raises(ModelCorrupt):
        bench.run(open_engine=lambda: PacedEngine(clock, pace, stop_at=150.0))
    assert bench.run(open_engine=lambda: PacedEngine(clock, pace))
    assert clock[0] == pytest.approx(
        plan_seconds(bench.settings, bench.plan, bench.materials, [FAST]), rel=0.02
    )
    assert (
        set(asked_of(bench.record).values()) == {1} and sum(asked_of(bench.record).values()) > bench.planned
    )
    before = clock[0]
    assert bench.run(open_engine=lambda: PacedEngine(clock, pace)) and clock[0] == before


@pytest.mark.parametrize("pace", [0.3, 1.0])
def test_a_window_of_energy_is_as_long_as_its_gauge_needs_it(
    tmp_path: Path, clock: list[float], pace: float
) -> None:
    needs = EnergyNeeds(idle_seconds=0, window_seconds=60, each_answer=False)
    bench = Bench(tmp_path, suites=("latency", "energy"), energy=needs)
    opened, closed = [], []

    class Watched(FakeSurroundings):
        def open_window(self) -> None:
            opened.append(clock[0])

        def close_window(self) -> Energy | None:
            closed.append(clock[0])
            return super().close_window()

    bench.around = Watched()
    # An answer of the fake is three tokens, of the plan a hundred.
    assert bench.run(open_engine=lambda: PacedEngine(clock, pace * 100 / 3 / FAST.decode_rate))
    ((began,), (ended,)) = opened, closed
    assert 60 < ended - began < 80
    assert [sample.suite for sample in bench.record.samples if sample.energy] == ["energy"]


def test_what_is_too_long_is_told_once_and_not_asked_in_each_round(
    tmp_path: Path, clock: list[float]
) -> None:
    bench = Bench(tmp_path, suites=("endurance",), minutes=2)

    class Refusing(PacedEngine):
        def measure(self, messages: Sequence[ChatMessage], **options: Any) -> Iterator[Event]:
            if (
                options.get("past_end")
                and messages[-1].content == bench.materials[0].items["latency"][1].question
            ):
                raise QuestionTooLong("too long")
            return super().measure(messages, **options)

    assert bench.run(open_engine=lambda: Refusing(clock, 1 / FAST.decode_rate))
    assert [event.kind for event in bench.record.events] == ["skipped_item"]
    assert clock[0] == pytest.approx(100, rel=0.1)


def test_texts_can_be_left_out(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run()
    assert b"Wash your hands." in bench.path.read_bytes()
    # The runner's own option: see `Runner`.
    other = Bench(tmp_path / "..", arms=1)
    other.path = tmp_path / "without.jsonl"
    with Journal.create(other.path) as journal:
        journal.append(RunStart, **start_fields())
        arm = BenchArm("a", other.materials[0], FAST, FakeEngine)
        Runner(journal, other.settings, other.plan, [arm], other.around, keep_texts=False).run(Interruption())
    assert b"Wash your hands." not in other.path.read_bytes()
    assert all(sample.text_sha256 for sample in other.record.samples if sample.choice is None)


def test_the_run_ends_in_time_and_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.settings = bench.settings._replace(minutes=0.0001)
    assert not bench.run()
    run = bench.record
    assert run.end is not None and not run.end.finished
    assert [event.kind for event in run.events] == ["stopped_early"]
    bench.settings = bench.settings._replace(minutes=10)
    assert bench.run()
    assert set(asked_of(bench.record).values()) == {1} and len(asked_of(bench.record)) == bench.planned


def test_ctrl_c_ends_the_record_properly_and_resume_asks_the_rest(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with Interruption() as interruption:
        left = iter(range(5))

        def press() -> StopReason | None:
            if next(left, None) is None:
                signal.raise_signal(signal.SIGINT)
                return "cancelled"
            return None

        with pytest.raises(KeyboardInterrupt):
            bench.run(interruption, press)
    assert bench.engines[0].stops == 1
    run = bench.record
    assert run.end is None and run.events[-1].kind == "interrupted"
    assert len(run.samples) == 5
    assert bench.run()
    assert set(asked_of(bench.record).values()) == {1}
    assert len(asked_of(bench.record)) == bench.planned


def test_the_system_s_wish_to_end_is_written_down_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with Interruption() as interruption:

        def end() -> StopReason | None:
            signal.raise_signal(signal.SIGTERM)
            return "cancelled"

        with pytest.raises(Terminated):
            bench.run(interruption, end)
    assert bench.record.events[-1].detail == "by the system"


def test_an_engine_that_dies_once_costs_one_sample_which_is_invalid(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    reasons = iter(["end_of_turn", "end_of_turn", "engine_died"])
    assert bench.run(before_answer=lambda: next(reasons, None))  # type: ignore[arg-type]
    invalid = [sample for sample in bench.record.samples if sample.validity.verdict == "invalid"]
    assert len(invalid) == 1 and invalid[0].validity.reasons == ["engine_died"]
    assert [event.kind for event in bench.record.events] == ["engine_died"]
    assert bench.record.end is not None and bench.record.end.invalid == 1


def test_an_engine_that_keeps_dying_ends_the_run_with_the_way_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(EngineDied) as error:
        bench.run(before_answer=lambda: "engine_died")
    assert f"edgemed-bench resume {bench.path}" in error.value.hint
    assert [event.kind for event in bench.record.events] == ["engine_died"] * 3
    assert bench.record.end is None


def test_a_question_that_is_too_long_is_left_out_by_name(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    calls = iter(range(1000))

    def too_long() -> StopReason | None:
        if next(calls) == 4:
            raise QuestionTooLong("too long")
        return None

    assert bench.run(before_answer=too_long)
    assert [event.kind for event in bench.record.events] == ["skipped_item"]
    assert len(asked_of(bench.record)) == bench.planned - 1


def test_a_model_that_is_gone_at_the_next_load_leaves_a_record_to_go_on_with(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    engines = iter([FakeEngine()])

    def vanish() -> FakeEngine:
        engine = next(engines, None)
        if engine is None:
            raise ModelCorrupt("model.gguf is missing.", hint="Copy it again.")
        return engine

    with pytest.raises(ModelCorrupt) as error:
        bench.run(open_engine=vanish)
    assert error.value.hint.startswith("Copy it again. Then: edgemed-bench resume")
    run = bench.record
    assert run.events[-1].kind == "model_changed" and len(run.samples) == len(bench.plan.blocks[0].asks) + 1
    assert bench.run()
    assert set(asked_of(bench.record).values()) == {1}


# With the embedded model, as the field tester runs it.


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "few.jsonl"
    path.write_text(ITEMS, encoding="utf-8")
    return path


def arguments(items: Path, out: Path, *more: str) -> list[str]:
    return [
        *("run", "quick", "--suite", "latency", "--items", str(items), "--out", str(out)),
        # On a fast machine the probe takes a fortieth of the time.
        *("--minutes", "2", "--threads", "1", "--force", "--yes", *more),
    ]


def test_a_killed_run_goes_on_and_nothing_is_lost_or_asked_twice(items: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "edgemed_benchmarks.cli", *arguments(items, out)],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    deadline = time.monotonic() + 60
    while not (out.exists() and out.read_bytes().count(b'"type":"sample"') >= 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    _out, said = process.communicate()
    assert "This takes about" in said
    whole = out.read_bytes().split(b"\n")[:-1]
    before = read_run(out)
    # 3 more questions do not make a verdict; on a busy machine the samples are invalid.
    assert run_cli("resume", str(out), "--items", str(items)) in (3, 4)
    run = read_run(out)
    assert out.read_bytes().split(b"\n")[: len(whole)] == whole
    assert run.end is not None and run.end.finished
    assert set(asked_of(run).values()) == {1}
    resumed = next(record for record in run.records[len(before.records) :] if isinstance(record, Sample))
    assert resumed.warm_up
    assert run_cli("verify", str(out)) == 0


def test_verify_tells_a_torn_file_and_a_changed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    bench.run()
    assert run_cli("verify", str(bench.path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["finished"] is True
    data = bench.path.read_bytes()
    bench.path.write_bytes(data[:-30])
    assert run_cli("verify", str(bench.path)) == 1
    assert "cut in the middle" in capsys.readouterr().out
    bench.path.write_bytes(data.replace(b"Wash your hands", b"Wash your mouth", 1))
    assert run_cli("verify", str(bench.path)) == 1
    assert "was changed" in capsys.readouterr().err


def test_resume_refuses_another_model_and_takes_the_first_one_wherever_it_is(
    items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, out = tmp_path / "mine.gguf", tmp_path / "run.jsonl"
    data = bytearray(models.find_model(None).path.read_bytes())
    data[-1000] ^= 1
    mine.write_bytes(data)
    options = (*("--items", str(items)), *("--model", str(mine)))
    assert run_cli(*arguments(items, out, "--model", str(mine))) in (3, 4)
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:6]))
    answered = sum(not sample.warm_up for sample in read_run(out).samples)

    mine.write_bytes(bytes(data[:-2000]) + bytes(2000))
    assert run_cli("resume", str(out), *options) == 3
    assert "mine is another model now" in capsys.readouterr().err
    mine.unlink()
    assert run_cli("resume", str(out), "--items", str(items)) == 3
    assert "The model mine that the run was begun with is not on this computer" in capsys.readouterr().err
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(data)
    assert run_cli("resume", str(out), "--items", str(items), "--model", str(moved)) in (3, 4)
    assert f"{answered} of 16 questions are answered already" in capsys.readouterr().err
    assert set(asked_of(read_run(out)).values()) == {1}


def test_a_finished_run_is_not_resumed_and_an_old_file_not_overwritten(
    tmp_path: Path, items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    bench.run()
    before = bench.path.read_bytes()
    assert run_cli("resume", str(bench.path)) == 1
    assert "nothing left to ask" in capsys.readouterr().err
    assert run_cli(*arguments(items, bench.path)) == 1
    assert "is there already" in capsys.readouterr().err
    assert bench.path.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "exit_code", "words"),
    [
        (("--minutes", "0.1"), 2, "--minutes must be from 0.5"),
        (("--model", "nothing-of-this-name"), 3, "nothing-of-this-name"),
        (("--items", "no-such-set"), 2, "no-such-set"),
        (("--threads", "0"), 2, "--threads must be 1 or more"),
        (("--model", "edge-chat-8m", "--model", "edge-chat-8m"), 2, "are the same file"),
        (("--out", "no/such/folder/run.jsonl"), 6, "cannot be written"),
    ],
)
def test_a_wrong_option_is_told_in_a_sentence(
    items: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    exit_code: int,
    words: str,
) -> None:
    assert run_cli(*arguments(items, tmp_path / "run.jsonl", *more)) == exit_code
    assert words in capsys.readouterr().err


def run_cli(*words: str) -> int:
    """Run the command line in this process; return its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_an_answer_that_has_missed_the_limit_is_cut_once_it_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a slow machine one answer could take the whole run; its first words are waited for all the same."""
    seconds = iter([0.0, 100.0, 101.0, 102.0])
    monkeypatch.setattr("edgemed_benchmarks.suite_latency.time.monotonic", lambda: next(seconds))

    class SlowEngine(FakeEngine):
        def measure(self, messages: Any, **options: Any) -> Iterator[Event]:
            yield Reading(1, 9)
            yield Piece("Wash")
            yield Piece(" your")
            self._before_answer = lambda: "cancelled" if self.stops else None
            yield from super().measure(messages, **options)

    engine, material = SlowEngine(), fake_material()
    item = material.items["latency"][0]
    outcome = suite_latency.sample(engine, item, material.manifest, "saved_prefix", limit_seconds=60)
    assert engine.stops == 1
    assert (
        outcome.stop_reason == "cancelled"
        and outcome.explanation == "Cut after 75 s: it had missed the limit."
    )


def test_the_busy_core_is_busy_inside_the_block_and_gone_after_it() -> None:
    def children() -> list[str]:
        return [child.name for child in multiprocessing.active_children()]

    with busy_core(settling_seconds=0.3):
        assert "edgemed-busy" in children()
    assert "edgemed-busy" not in children()


def test_the_busy_core_ends_with_a_parent_that_is_killed() -> None:
    script = (
        "import multiprocessing, time\n"
        "from edgemed_benchmarks.busy_core import busy_core\n"
        "if __name__ == '__main__':\n"
        "    with busy_core(0):\n"
        "        print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "        time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, encoding="utf-8")
    assert parent.stdout is not None
    busy = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while _runs(busy):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process_id}/stat")
    return not (state.exists() and state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z")


def test_fidelity_of_the_same_model_is_perfect_and_of_another_template_is_none() -> None:
    session = open_session(None, threads=1)
    try:
        session.engine.wait_until_ready()
        found = session.model.manifest
        items = [
            Item(id="a", kind="generation", question="What is anaemia?", references=["Too little blood."])
        ]
        reference = suite_fidelity.make_reference(session.engine, found, items, llama_cpp_version="0")
        ask = suite_fidelity.asks(reference)[0]
        same = suite_fidelity.sample(session.engine, reference, ask, found).fidelity
        other = msgspec.structs.replace(found, system_prompt="Answer in one word.")
        changed = suite_fidelity.sample(session.engine, reference, ask, other).fidelity
    finally:
        session.engine.close()
    assert same is not None and same.tokens_equal and same.mean_kl_nats is not None
    assert same.mean_kl_nats < 1e-3 and same.same_top_share == 1.0
    assert changed is not None and not changed.tokens_equal and changed.mean_kl_nats is None


def test_a_second_benchmark_at_the_same_time_is_refused(tmp_path: Path) -> None:
    with run_command.one_benchmark(), pytest.raises(FileInUse), run_command.one_benchmark():
        pass


def test_a_busy_machine_is_not_measured_unless_somebody_says_so(
    items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_command, "wait_until_idle", lambda **_options: 1.5)
    words = [word for word in arguments(items, tmp_path / "run.jsonl") if word != "--force"]
    assert run_cli(*words) == 4
    said = capsys.readouterr().err
    assert "Other programs keep 1.5 processor cores busy." in said and "--force" in said
    assert not (tmp_path / "run.jsonl").exists()


def test_a_person_s_meter_gives_the_energy_of_all_answers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter(["100.0", "100.0", "99 oops", "101.0", "101.0", "104.0"])
    monkeypatch.setattr("edgemed_benchmarks.machine_side.memory_bandwidth", lambda: 1.0)
    monkeypatch.setattr("edgemed_benchmarks.machine_side.time.sleep", lambda _seconds: None)
    with MachineSide(read_meter=lambda _question: next(readings)) as machine:
        assert isinstance(machine.energy, EnergyNeeds) and not machine.energy.each_answer
        machine.measure_idle(60)
        machine.open_window()
        assert machine.close_window() is None
        assert "60" in machine.energy_refusal
    assert next(readings, None) is None
