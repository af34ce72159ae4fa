"""An engine and a machine for tests of benchmark runs: they answer at once, and fail when they are told to."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edgemed_benchmarks.asks import Speed
from edgemed_benchmarks.run_settings import Material
from edgemed_benchmarks.telemetry import Point

from edgemed.engine.messages import (
    Answer,
    ChatMessage,
    ContinuationScore,
    Distributions,
    Event,
    Finished,
    Measurement,
    Reuse,
    Scores,
    StopReason,
)
from edgemed.manifest import ModelManifest, Sampling
from edgemed.models import find_model
from edgemed.records import Energy, Item, Suite, Validity


def usual(tokens: int) -> dict[Suite, list[int]]:
    """All answers have this length."""
    return {"latency": [tokens], "quality": [tokens], "safety": [tokens]}


PI_WITH_8B = Speed(
    load_seconds=60, prefill_rate=8, decode_rate=1.9, characters_per_token=4, answer_tokens=usual(160)
)
"""As measured for an 8B model on a Raspberry Pi 500."""
LAPTOP_WITH_1B = Speed(
    load_seconds=2, prefill_rate=120, decode_rate=15, characters_per_token=4, answer_tokens=usual(160)
)
FAST = Speed(
    load_seconds=0.5, prefill_rate=5000, decode_rate=500, characters_per_token=4, answer_tokens=usual(100)
)


class FakeEngine:
    """Every answer is the same; `before_answer` may raise, or return why the answer ended."""

    llama_cpp_build = "0.3.36 | FAKE = 1"
    process_id = None

    def __init__(self, before_answer: Callable[[], StopReason | None] = lambda: None) -> None:
        self._before_answer = before_answer
        self.asked: list[tuple[Sequence[ChatMessage], int, Reuse, bool]] = []
        self.stops = 0
        self.closed = False

    def wait_until_ready(self) -> None:
        """Nothing has to be loaded."""

    def stop(self) -> None:
        """Count."""
        self.stops += 1

    def close(self) -> None:
        """Note it."""
        self.closed = True

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
        """Answer with three tokens, or so many as are forced."""
        assert sampling is not None and sampling.temperature == 0
        self.asked.append((messages, max_tokens, reuse, past_end))
        reason = self._before_answer()
        tokens = max_tokens if past_end else 3
        measurement = Measurement(
            first_token_ns=10,
            first_text_ns=20,
            token_ns=[5] * (tokens - 1),
            end_ns=1000,
            prefill_ns=8,
            cpu_ns=900,
            peak_rss_bytes=1,
            prompt_ids_sha256=hashlib.sha256(messages[-1].content.encode()).hexdigest(),
        )
        yield Finished(
            Answer(
                text="Wash your hands.",
                stop_reason=reason or "end_of_turn",
                prompt_tokens=9,
                reused_tokens=0,
                generated_tokens=tokens,
                ttft_seconds=0.1,
                prefill_seconds=0.1,
                decode_seconds=0.1,
                threads=1,
                explanation="it crashed" if reason == "engine_died" else "",
                measurement=None if reason == "engine_died" else measurement,
            )
        )

    def score(
        self, continuations: Sequence[str], *, messages: Sequence[ChatMessage] = (), text: str | None = None
    ) -> Scores:
        """The first is always the most probable."""
        self._before_answer()
        return Scores(
            continuations=[
                ContinuationScore(log_probability=-1.0 - place, tokens=1, greedy=place == 0)
                for place in range(len(continuations))
            ],
            prompt_tokens=9,
            prompt_ids_sha256="b" * 64,
            seconds=0.001,
            cpu_seconds=0.001,
        )

    def distributions(
        self,
        *,
        messages: Sequence[ChatMessage] = (),
        answer: str = "",
        token_ids: Sequence[int] | None = None,
        first: int | None = None,
        top: int = 32,
        wanted: Sequence[Sequence[int]] | None = None,
    ) -> Distributions:
        """Not asked for in these tests."""
        raise NotImplementedError


class FakeSurroundings:
    """A quiet machine with a counter of energy."""

    energy_refusal = ""

    def __init__(self) -> None:
        self.windows = 0
        self.busy: list[float] = []

    def describe(self, llama_cpp_build: str, model_sha256: str) -> dict[str, Any]:
        """A machine."""
        return {
            "machine_id": "fake",
            "system": "none",
            "cpu_model": "none",
            "physical_cores": 1,
            "logical_cores": 1,
            "total_memory_bytes": 1,
            "available_memory_bytes": 1,
        }

    def begin(self, engine_process_id: int | None) -> None:
        """Nothing to watch."""

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
        """All is well, unless the engine died."""
        self.busy.append(expected_busy_cores)
        return Validity(
            verdict="invalid" if engine_died else "ok", reasons=["engine_died"] if engine_died else []
        )

    def telemetry(self) -> list[Point]:
        """One point, seen a little earlier."""
        return [Point(0, {"temperature_celsius": 50.0})]

    def changes(self) -> list[tuple[str, str]]:
        """None."""
        return []

    def measure_idle(self, seconds: float) -> None:
        """Nothing to wait for."""

    def open_window(self) -> None:
        """Count."""
        self.windows += 1

    def close_window(self) -> Energy | None:
        """Give one joule."""
        return Energy(joules=1.0, source="fake", grade="A", window_ns=1)


def fake_items(latency: int = 6, quality: int = 4, safety: int = 4) -> dict[Any, list[Item]]:
    """Return items of three lengths, choices and free questions, requests and twins."""
    lengths = ("length:short", "length:history", "length:passages")
    tags = ("must_refuse", "benign_twin", "red_flag", "invented")
    return {
        "latency": [
            Item(id=f"latency{n}", kind="speed", question=f"What is {n}?" * (1 + n), tags=[lengths[n % 3]])
            for n in range(latency)
        ],
        "quality": [
            Item(
                id=f"choice{n}",
                kind="choice",
                question=f"Which {n}?",
                options=["a", "b", "c", "d"],
                correct=0,
            )
            if n % 2
            else Item(id=f"free{n}", kind="generation", question=f"Why {n}?", references=["so"])
            for n in range(quality)
        ],
        "safety": [
            Item(id=f"safety{n}", kind="safety", question=f"How {n}?", tags=[tags[n % 4]])
            for n in range(safety)
        ],
    }


def fake_material(**counts: int) -> Material:
    """Return the embedded model's manifest with fake items."""
    return Material(manifest(), fake_items(**counts))


def manifest() -> ModelManifest:
    """The embedded model's."""
    return find_model(None).manifest
