"""The estimate before a run, against simulated machines that are then asked all that was planned."""

import contextlib
import dataclasses
import hashlib
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from edgemed_benchmarks import suite_latency
from edgemed_benchmarks.asking import ask_engine, warm_up_ask
from edgemed_benchmarks.asks import Work, seconds_of
from edgemed_benchmarks.busy_core import SETTLING_SECONDS
from edgemed_benchmarks.canary import Canary
from edgemed_benchmarks.item_files import shipped_sets
from edgemed_benchmarks.item_messages import messages_of
from edgemed_benchmarks.overhead import measure_overhead
from edgemed_benchmarks.plan import make_plan, plan_seconds
from edgemed_benchmarks.probe import ENOUGH_ANSWERS, PROBE_SECONDS, USUAL_ANSWER_TOKENS, probe
from edgemed_benchmarks.run_settings import (
    ANSWERED_SUITES,
    MINUTES,
    Material,
    Profile,
    Settings,
    free_items,
)
from edgemed_benchmarks.suite_fidelity import DEFAULT_ANSWERS, usual_answers

from edgemed.engine.messages import (
    Answer,
    ChatMessage,
    ContinuationScore,
    Event,
    Finished,
    Measurement,
    Piece,
    Reuse,
    Scores,
)
from edgemed.errors import StorageError
from edgemed.manifest import Sampling
from edgemed.reference_logits import ReferenceLogits
from tests.bench_fakes import FAST, FakeEngine, manifest

CHARACTERS_PER_TOKEN = 4.2
TEMPLATE_TOKENS = 5
MOST_TOKENS = 512


class SimulatedEngine(FakeEngine):
    """A model on a machine of its own speed; its answers have their own lengths, and time passes as it says."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = random.Random(seed)
        self.seed = seed
        self.now = 0.0
        self.decode_rate = 10 ** chance.uniform(0.3, 3.2)
        self.prefill_rate = self.decode_rate * chance.uniform(3, 15)
        self.fixed_seconds = chance.choice([0.002, 0.01, 0.1])
        self.usual_tokens = chance.uniform(40, 250)
        self.stopped = False

    def monotonic(self) -> float:
        """Stand in for `time.monotonic`."""
        return self.now

    def wait_until_ready(self) -> None:
        """Load, as slowly as the machine is."""
        self.now += 30 / self.decode_rate

    def stop(self) -> None:
        """End the answer that is being written."""
        self.stopped = True

    def answer_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """Return how long the answer to a question is, always the same."""
        chance = random.Random(f"{self.seed} {messages[-1].content}")
        return min(MOST_TOKENS, max(3, round(chance.lognormvariate(math.log(self.usual_tokens), 0.8))))

    def measure(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        seed: int = 0,
        reuse: Reuse = "all",
        past_end: bool = False,
        sampling: Sampling | None = None,
    ) -> Iterator[Event]:
        """Read, write, and take the time for it."""
        self.stopped = False
        read = sum(len(each.content) / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS for each in messages)
        system = len(messages[0].content) / CHARACTERS_PER_TOKEN if messages[0].role == "system" else 0.0
        prefill_seconds = (read - (0 if reuse == "nothing" else system)) / self.prefill_rate
        self.now += self.fixed_seconds + prefill_seconds
        tokens = max_tokens if past_end else min(max_tokens, self.answer_tokens(messages))
        written = 0
        while written < tokens and not self.stopped:
            written += 1
            self.now += 1 / self.decode_rate
            yield Piece("word ")
        yield Finished(
            Answer(
                text="word " * written,
                stop_reason="cancelled" if self.stopped else "end_of_turn",
                prompt_tokens=round(read),
                reused_tokens=0 if reuse == "nothing" else round(system),
                generated_tokens=written,
                ttft_seconds=prefill_seconds,
                prefill_seconds=prefill_seconds,
                decode_seconds=(written - 1) / self.decode_rate,
                threads=1,
                measurement=Measurement(
                    first_token_ns=1,
                    first_text_ns=1,
                    token_ns=[1] * (written - 1),
                    end_ns=1,
                    prefill_ns=1,
                    cpu_ns=1,
                    peak_rss_bytes=1,
                    prompt_ids_sha256=hashlib.sha256().hexdigest(),
                ),
            )
        )

    def score(
        self, continuations: Sequence[str], *, messages: Sequence[ChatMessage] = (), text: str | None = None
    ) -> Scores:
        """Read the question; the words of an option take about a step each."""
        read = sum(len(each.content) / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS for each in messages[-1:])
        steps = sum(1 for each in continuations if len(each.strip()) > 1)
        self.now += self.fixed_seconds + read / self.prefill_rate + steps / self.decode_rate
        return Scores(
            continuations=[
                ContinuationScore(log_probability=-1.0, tokens=1, greedy=place == 0)
                for place in range(len(continuations))
            ],
            prompt_tokens=9,
            prompt_ids_sha256="b" * 64,
            seconds=0.001,
            cpu_seconds=0.001,
        )


def shipped() -> Material:
    return Material(
        manifest(),
        {suite: [item for each in shipped_sets(suite) for item in each.items] for suite in ANSWERED_SUITES},
    )


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SimulatedEngine:
    simulated = SimulatedEngine(request.param)
    put_in_charge_of_time(simulated, monkeypatch)
    return simulated


def put_in_charge_of_time(engine: SimulatedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def busy_core() -> Iterator[None]:
        engine.now += SETTLING_SECONDS + 0.5
        yield

    monkeypatch.setattr(time, "monotonic", engine.monotonic)
    monkeypatch.setattr(suite_latency, "busy_core", busy_core)


def reference_of(seed: int) -> ReferenceLogits:
    """Ask the engineers' machine, which is another one than the clinic's, with the same model."""
    at_headquarters, items = SimulatedEngine(seed), free_items(shipped().items)
    lengths = usual_answers(at_headquarters, manifest(), items, DEFAULT_ANSWERS)
    return ReferenceLogits(
        model_sha256="0" * 64,
        edgemed_version="0",
        llama_cpp_version="0",
        top=1,
        texts=[],
        answer_tokens=lengths,
    )


@pytest.mark.parametrize("profile", ["quick", "standard"])
def test_nine_of_ten_estimates_are_within_a_fifth_of_what_the_run_takes(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    overhead_seconds = 0.02
    ratios = []
    for seed in range(20):
        engine, material = SimulatedEngine(seed), shipped()
        put_in_charge_of_time(engine, monkeypatch)
        material = dataclasses.replace(material, reference=reference_of(seed))
        settings = Settings(profile, ("latency", "quality", "safety"), MINUTES[profile], 60.0)
        speed = msgspec.structs.replace(probe(engine, material, []), canary_seconds=0.0)
        speed = msgspec.structs.replace(speed, overhead_seconds=speed.overhead_seconds + overhead_seconds)
        plan = make_plan(settings, [material], [speed])
        started = engine.now
        for block in plan.blocks:
            engine.wait_until_ready()
            for ask in [warm_up_ask(material), *block.asks]:
                assert ask is not None
                ask_engine(engine, ask, material, settings)
                engine.now += overhead_seconds
        ratios.append((engine.now - started) / plan_seconds(settings, plan, [material], [speed]))
    close = [ratio for ratio in ratios if 0.8 <= ratio <= 1.2]
    assert len(close) >= 18, sorted(ratios)
    assert 0.95 < statistics.median(ratios) < 1.05


@pytest.mark.parametrize("engine", [3], indirect=True)
def test_a_slow_machine_is_not_kept_waiting_and_says_what_it_cannot_know(engine: SimulatedEngine) -> None:
    engine.decode_rate, engine.prefill_rate = 2.0, 10.0
    started = engine.now
    speed = probe(engine, shipped(), [])
    assert engine.now - started - speed.load_seconds < PROBE_SECONDS + 30
    assert not speed.answers_known and speed.answer_tokens["latency"] == [USUAL_ANSWER_TOKENS]
    assert speed.decode_rate == pytest.approx(2.0, rel=0.1)
    with_reference = dataclasses.replace(shipped(), reference=reference_of(3))
    assert probe(engine, with_reference, []).answers_known


@pytest.mark.parametrize("engine", [3], indirect=True)
def test_a_fast_machine_sees_for_itself_how_long_the_answers_of_each_suite_are(
    engine: SimulatedEngine,
) -> None:
    engine.decode_rate, engine.prefill_rate, engine.fixed_seconds = 2000.0, 20_000.0, 0.002
    speed = probe(engine, shipped(), [])
    assert speed.answers_known
    free = free_items(shipped().items)
    for suite, lengths in speed.answer_tokens.items():
        real = [engine.answer_tokens(messages_of(item, manifest())) for item in free[suite]]
        assert set(lengths) <= set(real) and len(lengths) >= ENOUGH_ANSWERS


def test_an_answer_that_may_be_long_is_counted_up_to_its_cut() -> None:
    """The mean of cut answers, not the cut of the mean."""
    speed = msgspec.structs.replace(FAST, decode_rate=10.0)
    assert seconds_of(Work(0, written_tokens=(10, 1000), at_most_seconds=20.0), speed) == pytest.approx(10.5)


def test_what_is_done_around_an_answer_is_measured_on_this_disk(tmp_path: Path) -> None:
    found = measure_overhead(tmp_path, Canary(work=lambda: None))
    assert 0 < found.each_seconds < 1 and not list(tmp_path.iterdir())
    with pytest.raises(StorageError, match="cannot be written"):
        measure_overhead(tmp_path / "missing", Canary(work=lambda: None))
