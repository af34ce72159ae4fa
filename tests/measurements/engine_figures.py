"""The engine's figures in docs/experiments.md, measured again.

Needs a GGUF model; `speed` and `busy` also need llama.cpp's `llama-bench`, built from the source that the
installed llama-cpp-python carries (docs/experiments.md has the commands).
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgemed.engine.client import ChildEngine
from edgemed.engine.messages import Answer, ChatMessage, Finished, LoadRequest, Piece, Reading
from edgemed.manifest import Sampling

WORDS = "The patient has had fever and a cough for three days and cannot drink. "


def main() -> None:
    """Run one measurement and print it as text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["speed", "busy", "turns", "stop"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument(
        "--plain-kernels", action="store_true", help="this machine runs the plain kernels only"
    )
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    {"speed": speed, "busy": busy, "turns": turns, "stop": stop}[arguments.what](arguments)


def speed(arguments: argparse.Namespace) -> None:
    """Compare `edgemed ask` with llama-bench, alternating, on prompts of the same length."""
    question = _question(arguments.model, 512)
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    _ask(arguments.model, question, threads=2, max_tokens=4)
    for _ in range(arguments.rounds):
        ours.append(_rates(_ask(arguments.model, question, threads=2, max_tokens=96)))
        read = int(ours[-1]["read"])
        theirs.append(_llama_bench(arguments, prompt=read, generated=96, depth=int(ours[-1]["prompt"])))
    for what in ("prefill", "decode"):
        a, b = ([row[what] for row in rows] for rows in (ours, theirs))
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        _print(f"{what}: edgemed {_median(a)} llama-bench {_median(b)} tokens/s, ratio {_median(ratios, 3)}")


def busy(arguments: argparse.Namespace) -> None:
    """Compare the following thread count with each fixed one while other programs are busy."""
    question = _question(arguments.model, 256)
    for hogs in (0, 1, 3):
        with _busy_programs(hogs):
            rows: dict[str, list[dict[str, float]]] = {"follows": [], "1 thread": [], "2 threads": []}
            bench = []
            for _ in range(arguments.rounds):
                for name, threads in (("follows", None), ("1 thread", 1), ("2 threads", 2)):
                    rows[name].append(_rates(_ask(arguments.model, question, threads=threads, max_tokens=64)))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    bench.append(_llama_bench(arguments, prompt=256, generated=64, depth=0, timeout=60))
        for what in ("prefill", "decode"):
            medians = {name: statistics.median(row[what] for row in many) for name, many in rows.items()}
            best = max(medians["1 thread"], medians["2 threads"])
            theirs = f"{statistics.median(row[what] for row in bench):.1f}" if bench else "none in 60 s"
            shown = ", ".join(f"{name} {value:.1f}" for name, value in medians.items())
            share = medians["follows"] / best
            _print(f"{hogs} busy, {what}: {shown}; of the best {share:.2f}; llama-bench {theirs}")


def turns(arguments: argparse.Namespace) -> None:
    """Measure what a second turn and a restart read again."""
    system = ChatMessage("system", WORDS * 43)
    question = ChatMessage("user", "What should I do first? Name the danger signs and the next step, please.")
    cold: list[float] = []
    restored: list[float] = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for results in (cold, restored):
                with _engine(arguments.model, Path(folder)) as engine:
                    engine.wait_until_ready()
                    first = _answer(engine, [system, question])
                    results.append(first.ttft_seconds or 0.0)
                    again = [system, question, ChatMessage("assistant", first.text.lstrip()), question]
                    second = _answer(engine, again)
        _print(
            f"first: {first.prompt_tokens} tokens, reused {first.reused_tokens}, "
            f"written {first.generated_tokens}; "
            f"second: {second.prompt_tokens} tokens, reused {second.reused_tokens}"
        )
    ratios = [warm / slow for warm, slow in zip(restored, cold, strict=True)]
    _print(f"TTFT cold {_median(cold, 3)} s, restored {_median(restored, 3)} s, ratio {_median(ratios, 3)}")


def stop(arguments: argparse.Namespace) -> None:
    """Measure 50 stops while reading and 50 while writing."""
    with tempfile.TemporaryDirectory() as folder, _engine(arguments.model, Path(folder)) as engine:
        short = [ChatMessage("user", "What is fever?")]
        expected = _answer(engine, short).text
        for phase in ("reading", "writing"):
            delays, wrong = [], 0
            for number in range(50):
                words = f"Case {number}. {WORDS * 45}" if phase == "reading" else f"Case {number}."
                delays.append(
                    _stop_once(engine, [ChatMessage("user", words)], phase, 0.05 + 0.02 * (number % 20))
                )
                wrong += _answer(engine, short).text != expected
            _print(
                f"stop while {phase}: median {1e3 * statistics.median(delays):.1f} ms, "
                f"worst {1e3 * max(delays):.1f} ms, wrong answers afterwards {wrong} of 50"
            )


def _stop_once(engine: ChildEngine, messages: list[ChatMessage], phase: str, after_seconds: float) -> float:
    pressed_at = 0.0

    def press() -> None:
        nonlocal pressed_at
        pressed_at = time.perf_counter()
        engine.stop()

    timer: threading.Timer | None = None
    for event in engine.ask(messages, max_tokens=400, seed=1):
        if timer is None and isinstance(event, Reading if phase == "reading" else Piece):
            timer = threading.Timer(after_seconds, press)
            timer.start()
        if isinstance(event, Finished):
            ended_at = time.perf_counter()
            if event.answer.stop_reason != "cancelled" or bool(event.answer.text) != (phase == "writing"):
                raise SystemExit(f"not stopped while {phase}: {event.answer}")
    return ended_at - pressed_at


@contextlib.contextmanager
def _engine(model: Path, folder: Path) -> Iterator[ChildEngine]:
    request = LoadRequest(
        model_path=str(model),
        model_sha256=str(model),
        context_length=2048,
        threads=2,
        chat_template=None,
        prefix_states_folder=str(folder),
        kernels_file=str(Path(tempfile.gettempdir()) / "edgemed-measured-kernels.json"),
    )
    engine = ChildEngine(request, Sampling(temperature=0))
    try:
        yield engine
    finally:
        engine.close()


def _answer(engine: ChildEngine, messages: list[ChatMessage]) -> Answer:
    for event in engine.ask(messages, max_tokens=24, seed=1):
        if isinstance(event, Finished):
            return event.answer
    raise AssertionError("no end")


def _ask(model: Path, question: str, *, threads: int | None, max_tokens: int) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "edgemed.cli",
        "ask",
        "-",
        "--json",
        "--model",
        str(model),
        "--seed",
        "1",
    ]
    command += ["--max-tokens", str(max_tokens), *(["--threads", str(threads)] if threads else [])]
    done = subprocess.run(
        command, input=question, capture_output=True, text=True, encoding="utf-8", check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _rates(answer: dict[str, Any]) -> dict[str, float]:
    read = answer["prompt_tokens"] - answer["reused_tokens"]
    return {
        "read": read,
        "prompt": answer["prompt_tokens"],
        "prefill": read / answer["prefill_seconds"],
        "decode": (answer["generated_tokens"] - 1) / answer["decode_seconds"],
    }


def _llama_bench(
    arguments: argparse.Namespace, *, prompt: int, generated: int, depth: int, timeout: float | None = None
) -> dict[str, float]:
    command = [arguments.llama_bench, "-m", arguments.model, "-t", "2", "-r", "1", "-o", "json"]
    command += ["--repack", "0"] if arguments.plain_kernels else []

    def rate(*options: str) -> float:
        done = subprocess.run([*command, *options], capture_output=True, check=True, timeout=timeout)
        value: float = json.loads(done.stdout)[0]["avg_ts"]
        return value

    return {
        "prefill": rate("-p", str(prompt), "-n", "0"),
        "decode": rate("-p", "0", "-n", str(generated), "-d", str(depth)),
    }


def _question(model: Path, tokens: int) -> str:
    """Return a question whose whole prompt, beyond the saved prefix, has about `tokens` tokens."""
    question = WORDS
    while (answer := _ask(model, question, threads=2, max_tokens=1))["prompt_tokens"] < tokens:
        question += WORDS * max(1, (tokens - answer["prompt_tokens"]) // 20)
    return question


@contextlib.contextmanager
def _busy_programs(count: int) -> Iterator[None]:
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(1.0)
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def _median(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
