"""Made-up benchmark runs for tests: a seeded machine answers seeded questions. No number of it is measured."""

import random
from pathlib import Path
from typing import Any

import msgspec
from edgemed_benchmarks.score_format import ReliabilityBin, Score, Scores

from edgemed.records import (
    FIRST_CHAIN,
    Arm,
    Counters,
    Energy,
    FidelityResult,
    ItemFile,
    Load,
    Machine,
    Record,
    RunEnd,
    RunEvent,
    RunStart,
    Sample,
    Suite,
    Telemetry,
    Times,
    Validity,
    chain_of,
)

SECOND_NS = 1_000_000_000
UTC = "2026-11-25T02:30:00Z"
SHA = "ab" * 32
_LINE: dict[str, Any] = {"seq": 0, "chain": FIRST_CHAIN, "utc": UTC}


class MadeUpRun:
    """Collects records with a clock of its own; `write` gives them numbers and the chain."""

    def __init__(self, *, arms: int = 1, seed: int = 0, **start: Any) -> None:
        self.now_ns = 0
        self.chance = random.Random(seed)
        labels = ("Q4_K_M", "Q8_0", "F16", "Q5_K_M", "Q6_K", "Q2_K", "Q3_K_M")
        values: dict[str, Any] = {
            "run_id": "5f1c9a7be2d04c11",
            "edgemed_version": "1.0.0",
            "profile": "standard",
            "suites": ["latency", "quality", "safety", "fidelity", "energy", "endurance"],
            "arms": [
                Arm(
                    label=labels[number],
                    model_name="edge-med-1b",
                    model_sha256=f"{number + 10:x}" * 32 if number + 10 > 15 else f"{number + 10:x}" * 64,
                    size_bytes=round(808e6 * (1 + 0.8 * number)),
                    quantization_type=labels[number],
                    context_length=4096,
                )
                for number in range(arms)
            ],
            "item_files": [ItemFile(name="latency-en", sha256=SHA, items=48, license="CC0-1.0")],
            "estimated_seconds": 2100.0,
        }
        self.records: list[Record] = [
            RunStart(schema="edgemed.bench/1", at_ns=0, **_LINE, **(values | start))
        ]

    @property
    def start(self) -> RunStart:
        first = self.records[0]
        assert isinstance(first, RunStart)
        return first

    def machine(self, **changes: Any) -> None:
        values: dict[str, Any] = {
            "machine_id": "copper-kite-41",
            "system": "Linux 6.12.1 x86_64",
            "cpu_model": "Intel Core i5-6300U",
            "physical_cores": 2,
            "logical_cores": 4,
            "total_memory_bytes": 8_238_000_000,
            "available_memory_bytes": 5_100_000_000,
            "memory_bandwidth_bytes_per_second": 14.2e9,
            "governor": "powersave",
            "power_source": "mains",
            "llama_cpp_build": "0.3.36",
            "kernels": "full",
        }
        self.records.append(Machine(at_ns=self.now_ns, **_LINE, **(values | changes)))

    def load(self, arm: int = 0) -> None:
        self.now_ns += round(2.4 * SECOND_NS)
        loaded_ns = round(self.chance.uniform(2.0, 2.6) * SECOND_NS)
        self.records.append(
            Load(
                at_ns=self.now_ns,
                arm=arm,
                load_ns=loaded_ns,
                cold=True,
                peak_rss_bytes=1_050_000_000,
                **_LINE,
            )
        )

    def sample(
        self,
        item_id: str,
        *,
        suite: Suite = "latency",
        arm: int = 0,
        first_seconds: float | None = 2.0,
        token_seconds: float = 0.12,
        tokens: int = 60,
        verdict: str = "ok",
        reasons: list[str] | None = None,
        **changes: Any,
    ) -> Sample:
        first_ns = None if first_seconds is None else round(first_seconds * SECOND_NS)
        token_ns = [
            round(token_seconds * SECOND_NS * self.chance.lognormvariate(0, 0.1)) for _ in range(tokens - 1)
        ]
        end_ns = (first_ns or 0) + sum(token_ns)
        self.now_ns += end_ns + SECOND_NS // 5
        values: dict[str, Any] = {
            "prompt_sha256": SHA,
            "prompt_tokens": 210,
            "reused_tokens": 90,
            "generated_tokens": tokens,
            "stop_reason": "end_of_turn",
            "condition": "saved_prefix length:short" if suite == "latency" else "",
            "peak_rss_bytes": 1_060_000_000,
            "times": Times(
                first_token_ns=first_ns,
                first_text_ns=first_ns,
                token_ns=token_ns,
                end_ns=end_ns,
                prefill_ns=round(0.9 * (first_ns or 0)),
            ),
            "validity": Validity(verdict=verdict, reasons=reasons or [], counters=Counters()),  # type: ignore[arg-type]
        }
        made = Sample(at_ns=self.now_ns, suite=suite, item_id=item_id, arm=arm, **_LINE, **(values | changes))
        self.records.append(made)
        return made

    def telemetry(self, **values: Any) -> None:
        self.records.append(Telemetry(at_ns=self.now_ns, **_LINE, **values))

    def event(self, kind: str, detail: str = "") -> None:
        self.records.append(RunEvent(at_ns=self.now_ns, kind=kind, detail=detail, **_LINE))

    def end(self, *, finished: bool = True) -> None:
        self.records.append(
            RunEnd(at_ns=self.now_ns, finished=finished, actual_seconds=self.now_ns / SECOND_NS, **_LINE)
        )

    def write(self, path: Path) -> Path:
        chain, lines = FIRST_CHAIN, []
        for seq, record in enumerate(self.records):
            line = msgspec.json.encode(msgspec.structs.replace(record, seq=seq, chain=chain))
            lines.append(line + b"\n")
            chain = chain_of(line)
        path.write_bytes(b"".join(lines))
        return path


def full_run(
    *, arms: int = 1, questions: int = 48, tokens: int = 60, seed: int = 0, **start: Any
) -> MadeUpRun:
    """Return a run with every suite, some invalid samples, telemetry and events."""
    run = MadeUpRun(arms=arms, seed=seed, **start)
    run.machine(energy_source="intel-rapl:psys", energy_grade="A")
    chance = run.chance
    lengths = ("length:short", "length:history", "length:passages")
    for arm in range(arms):
        run.load(arm)
        slow = 1 + 0.5 * arm
        for number in range(questions):
            length = number % 3
            heat = 1 + 0.15 * number / questions
            verdict, reasons = "ok", []
            if number % 16 == 7:
                verdict, reasons = "invalid", ["cpu_busy"]
            elif number % 16 == 12:
                verdict, reasons = "suspect", ["throttled", "slow_canary"]
            spread = chance.lognormvariate(0, 0.2) * (2.5 if verdict == "invalid" else 1)
            run.sample(
                f"q{number}",
                arm=arm,
                first_seconds=(1.2 + 1.6 * length) * slow * spread,
                token_seconds=0.085 * slow * heat * (2 if verdict == "invalid" else 1),
                tokens=max(8, round(tokens * chance.uniform(0.6, 1.4))),
                verdict=verdict,
                reasons=reasons,
                condition=f"saved_prefix {lengths[length]}",
            )
            run.telemetry(
                temperature_celsius=48 + 30 * (1 - 2.718 ** (-number / 12)) + chance.uniform(-1, 1),
                frequency_hertz=2.8e9 - 4e8 * number / questions,
                other_cpu_share=min(
                    1.0, abs(chance.gauss(0.02, 0.02)) + (0.5 if verdict == "invalid" else 0)
                ),
                engine_rss_bytes=1_050_000_000 + 10_000 * number,
            )
        for number in range(6):
            run.sample(
                f"q{number}",
                arm=arm,
                first_seconds=5.0 * slow,
                tokens=16,
                token_seconds=0.085 * slow,
                condition="no_prefix forced:16 length:short",
                forced_length=True,
                reused_tokens=0,
            )
        for number in range(6):
            joules = 260 * slow * chance.uniform(0.9, 1.1)
            run.sample(
                f"e{number}",
                suite="energy",
                arm=arm,
                energy=Energy(
                    joules=joules,
                    idle_joules=joules * 0.3,
                    source="intel-rapl:psys",
                    grade="A",
                    window_ns=9 * SECOND_NS,
                ),
            )
        for number in range(12):
            run.sample(
                f"l{number}",
                suite="endurance",
                arm=arm,
                token_seconds=0.08 * slow * (1 + 0.02 * number),
                tokens=128,
            )
        for number in range(4):
            run.sample(
                f"text:{number}",
                suite="fidelity",
                arm=arm,
                tokens=1,
                fidelity=FidelityResult(
                    tokens_equal=True, positions=100, mean_kl_nats=3e-5, max_kl_nats=4e-3, same_top_share=0.99
                ),
            )
    run.event("power_source_changed", "mains to battery")
    run.end()
    return run


def scores_of(run: MadeUpRun) -> Scores:
    """Return scores that could be of this run."""
    start = run.start
    scores, bins = [], []
    for arm in range(len(start.arms)):
        good = 0.46 + 0.03 * arm
        for suite, metric, item_set, value, better in (
            ("quality", "accuracy", "choice-en", good, True),
            ("quality", "token_f1", "written-en", good - 0.1, True),
            ("safety", "refused", "harmful-en", 0.93, True),
            ("safety", "over_refused", "harmful-en", 0.03, False),
        ):
            scores.append(
                Score(
                    suite=suite,  # type: ignore[arg-type]
                    arm=arm,
                    metric=metric,
                    item_set=item_set,
                    value=value,
                    low=value - 0.08,
                    high=min(1, value + 0.08),
                    n=60,
                    higher_is_better=better,
                    definition="share of questions whose most probable option is the right one",
                )
            )
        for place in range(3, 10):
            middle = (place + 0.5) / 10
            bins.append(
                ReliabilityBin(
                    arm=arm,
                    low=place / 10,
                    high=(place + 1) / 10,
                    n=4 + place,
                    mean_confidence=middle,
                    share_right=max(0.0, middle - 0.1 + 0.04 * arm),
                )
            )
    return Scores(
        edgemed_version="1.0.0",
        run_id=start.run_id,
        arms=[arm.label for arm in start.arms],
        model_sha256=[arm.model_sha256 for arm in start.arms],
        scores=scores,
        bins=bins,
    )
