"""What the full screen costs: start, idle, each token, typing; other terminal chats beside it.

    python -m tests.measurements.chat_figures [--peer NAME=PROGRAM]...

Figures go to docs/experiments.md. CPU and memory are those of the process that draws, from /proc.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from edgemed.history import History
from tests.terminal import APP, SLOW_APP, Terminal

ROUNDS = 5
IDLE_SECONDS = 8.0
WORDS = 300


def cpu_seconds(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(process_id: int) -> float:
    pages = int(Path(f"/proc/{process_id}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def wait_until_drawn(screen: Terminal, text: str | None, seconds: float) -> bool:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        shown = screen.text
        if (text in shown) if text else sum(bool(line.strip()) for line in shown.split("\n")) >= 4:
            return True
        time.sleep(0.003)
    return False


def start_once(command: list[str], home: Path, text: str | None) -> tuple[float, float, float, float, float]:
    """Return wall s to the screen, CPU s by then, CPU s and RSS MiB settled, idle bytes/s."""
    started = time.perf_counter()
    screen = Terminal(command, home, HOME=str(home.parent), OPENAI_API_KEY="none")
    try:
        if not wait_until_drawn(screen, text, 40):
            return (float("nan"),) * 5
        wall, cpu = time.perf_counter() - started, cpu_seconds(screen.process.pid)
        time.sleep(4)
        settled, rss = cpu_seconds(screen.process.pid), rss_mib(screen.process.pid)
        before = screen.received_bytes
        time.sleep(IDLE_SECONDS)
        return wall, cpu, settled, rss, (screen.received_bytes - before) / IDLE_SECONDS
    finally:
        screen.end()


def starts(programs: dict[str, tuple[list[str], str | None]], folder: Path, rounds: int) -> None:
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in programs}
    for _round in range(rounds):
        for name, (command, text) in programs.items():
            home = folder / name / "data"
            home.mkdir(parents=True, exist_ok=True)
            found[name].append(start_once(command, home, text))
    say("start (medians): wall s, CPU s to the screen, CPU s after 4 s, RSS MiB, idle bytes/s")
    for name, rows in found.items():
        say(
            f"  {name}: "
            + ", ".join(f"{statistics.median(column):.3f}" for column in zip(*rows, strict=True))
        )


def streaming(folder: Path) -> None:
    screen = Terminal(SLOW_APP, folder / "stream/data", WORDS=str(WORDS), WORDS_PER_SECOND="20")
    try:
        screen.wait_for("Ready.")
        time.sleep(1)
        screen.press("h", "i")
        cpu, received = cpu_seconds(screen.process.pid), screen.received_bytes
        screen.press("enter")
        screen.wait_for("Done.", seconds=60)
        cpu, received = cpu_seconds(screen.process.pid) - cpu, screen.received_bytes - received
        say(f"streaming, 20 words/s: {1000 * cpu / WORDS:.2f} ms CPU, {received / WORDS:.0f} bytes a word")
    finally:
        screen.end()


def typing(folder: Path) -> None:
    screen = Terminal(SLOW_APP, folder / "typing/data", WORDS="100000", WORDS_PER_SECOND="20")
    try:
        screen.wait_for("Ready.")
        screen.press("h", "i", "enter")
        screen.wait_for("w20")
        typed, waits = "", []
        for number in range(60):
            typed += "abcdefghijklmnopqrstuvwxyz"[number % 26]
            started = time.perf_counter()
            screen.send(typed[-1].encode())
            while typed not in screen.text and time.perf_counter() - started < 5:
                time.sleep(0.001)
            waits.append(1000 * (time.perf_counter() - started))
            time.sleep(0.13)
        waits.sort()
        say(
            f"typing while an answer comes, ms to the letter on the screen: median {statistics.median(waits):.1f}, "
            f"95 of 100 within {waits[56]:.1f}, worst {waits[-1]:.1f}"
        )
    finally:
        screen.end()


def large_store(folder: Path) -> None:
    home = folder / "large/data"
    home.mkdir(parents=True)
    history = History.open(home / "history.sqlite3")
    with history._transaction():
        for conversation in range(500):
            conversation_id = history.start_conversation("m", "0" * 64)
            for turn in range(10):
                words = f"fever case{conversation} turn{turn} " + "drink rest zinc water child " * 15
                question = history.add_question(
                    conversation_id, f"Question {turn} of {conversation}? {words[:60]}"
                )
                history.finish_answer(history.begin_answer(question, None), words, "done")

    def milliseconds(action: object, *arguments: object, **options: object) -> str:
        times = []
        for _ in range(9):
            started = time.perf_counter()
            action(*arguments, **options)  # type: ignore[operator]
            times.append(1000 * (time.perf_counter() - started))
        return f"{statistics.median(times):.1f}"

    say(
        f"10,000 messages in 500 conversations, {sum(f.stat().st_size for f in home.iterdir()) / 1e6:.1f} MB:"
    )
    first = history.conversations(limit=50)
    say(
        f"  ms: list {milliseconds(history.conversations)}, next page "
        f"{milliseconds(history.conversations, before=first[-1].activity)}, search of a word in all "
        f"{milliseconds(history.conversations, search='zinc')}, of a rare one "
        f"{milliseconds(history.conversations, search='case321')}, open {milliseconds(history.messages, 250)}"
    )
    history.close()
    (home / "settings.toml").write_text("", encoding="utf-8")
    (folder / "small/data").mkdir(parents=True)
    (folder / "small/data/settings.toml").write_text("", encoding="utf-8")
    found: dict[str, list[tuple[float, ...]]] = {"small": [], "large": []}
    for _ in range(ROUNDS):
        for name, rows in found.items():
            started = time.perf_counter()
            screen = Terminal(APP, folder / name / "data")
            try:
                wait_until_drawn(screen, "Type a question", 20)
                rows.append((time.perf_counter() - started, cpu_seconds(screen.process.pid)))
                screen.wait_for("Ready")
                started = time.perf_counter()
                screen.press("f6")
                wait_until_drawn(screen, "F4 rename", 20)
                rows[-1] += (time.perf_counter() - started,)
                if name == "large":
                    started = time.perf_counter()
                    screen.send(b"\x1b[6~" * 60)
                    wait_until_drawn(screen, "Question 0 of 0?", 20)
                    say(f"  to the end of the list, 500 lines down: {time.perf_counter() - started:.2f} s")
            finally:
                screen.end()
    for name, rows in found.items():
        say(
            f"  {name} store: "
            + ", ".join(f"{statistics.median(c):.3f}" for c in zip(*rows, strict=True))
            + " (start wall s, CPU s, F6 to the list s)"
        )


def main() -> None:
    peers = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = folder / "edgemed/data"
        ours.mkdir(parents=True)
        (ours / "settings.toml").write_text("", encoding="utf-8")
        streaming(folder)
        typing(folder)
        large_store(folder)
        starts({"edgemed": (APP, "Type a question")}, folder, ROUNDS)
        if peers:
            programs: dict[str, tuple[list[str], str | None]] = {"edgemed": (APP, "Type a question")}
            programs |= {peer: (program.split(), None) for peer, program in peers.items()}
            starts(programs, folder, 3)


if __name__ == "__main__":
    main()
