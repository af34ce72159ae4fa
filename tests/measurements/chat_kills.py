"""Kill the whole chat at random moments while somebody types and the AI answers; see what is lost.

python -m tests.measurements.chat_kills 200
"""

import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.terminal import SLOW_APP, Terminal


class Result(NamedTuple):
    """What a number of kills did."""

    rounds: int
    questions_asked: int
    questions_lost: int
    most_words_lost: int
    integrity_failures: int
    drafts_checked: int
    most_draft_letters_lost: int


def kill_rounds(home: Path, words_file: Path, *, rounds: int, seed: int) -> Result:
    """Start the chat, ask, type, and kill it; again and again with the same data folder."""
    chance = random.Random(seed)
    asked: list[str] = []
    worst_words = worst_draft = failures = drafts = 0
    for number in range(rounds):
        question, draft = f"question {number}", f"draft{number}abcdefghij"
        words_file.unlink(missing_ok=True)
        screen = Terminal(SLOW_APP, home, WORDS_FILE=str(words_file), WORDS_PER_SECOND="20")
        typed_at = 0.0
        try:
            if number:
                # The round before was killed in mid-answer.
                screen.wait_for("while an answer was being written")
                screen.press("k")
            screen.wait_for("Ready.")
            screen.press("f2")
            screen.wait_for("A new conversation")
            # What was typed and not sent when the chat was killed is here again.
            screen.press(*["\x7f"] * (len(draft) + 2))
            screen.press(*question, "enter")
            asked.append(question)
            screen.wait_for("w0")
            deadline = time.monotonic() + chance.uniform(0.0, 2.5)
            if chance.random() < 0.5:
                screen.press(*draft)
                typed_at = time.monotonic()
            time.sleep(max(0.0, deadline - time.monotonic()))
        finally:
            killed_at, killed = time.time(), time.monotonic()
            os.killpg(screen.process.pid, signal.SIGKILL)
            screen.end()
        handed_out = [
            word
            for at, word in (line.split() for line in words_file.read_text(encoding="utf-8").splitlines())
            if float(at) <= killed_at
        ]
        with sqlite3.connect(home / "history.sqlite3") as store:
            failures += store.execute("PRAGMA integrity_check").fetchone() != ("ok",)
            (answer,) = store.execute("SELECT text FROM message ORDER BY id DESC LIMIT 1").fetchone()
            worst_words = max(worst_words, len(handed_out) - len(answer.split()))
            if typed_at and killed - typed_at > 1.5:
                drafts += 1
                saved = store.execute("SELECT text FROM draft ORDER BY place DESC LIMIT 1").fetchone()
                worst_draft = max(worst_draft, len(draft) - len(saved[0] if saved else ""))
        store.close()
    with sqlite3.connect(home / "history.sqlite3") as store:
        saved_questions = {text for (text,) in store.execute("SELECT text FROM message WHERE role = 'user'")}
    store.close()
    lost = len(set(asked) - saved_questions)
    return Result(rounds, len(asked), lost, worst_words, failures, drafts, worst_draft)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        count, seed = (int(argument) for argument in (*sys.argv[1:], "200", "1")[:2])
        result = kill_rounds(Path(folder) / "data", Path(folder) / "words", rounds=count, seed=seed)
        sys.stdout.write(f"{result}\n")
