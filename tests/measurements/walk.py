"""Walk through the chat by keys in tmux at 80x24, and through line mode, and write down what is seen.

python -m tests.measurements.walk > docs/walk.md
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SESSION = "edgemed-walk"


def tmux(*arguments: str) -> str:
    return subprocess.run(
        ["tmux", "-L", SESSION, *arguments], check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout


DELAYS = (0.08, 0.12, 0.16, 0.2) * 4
"""Seconds to the stop, until one comes in the middle of an answer."""


class Walk:
    """One program in tmux."""

    def __init__(self, command: str, home: Path) -> None:
        self._home = home
        shell = f"cd {home}; EDGEMED_HOME=data HOME={home} TERM=screen-256color {command}; sleep 1000"
        tmux("new-session", "-d", "-x", "80", "-y", "24", "-s", SESSION, shell)

    def wait(self, text: str, seconds: float = 15) -> str:
        until = time.monotonic() + seconds
        while text not in (shown := tmux("capture-pane", "-p", "-t", SESSION)):
            if time.monotonic() > until:
                raise AssertionError(f"{text!r} did not come:\n{shown}")
            time.sleep(0.05)
        return shown

    def press(self, *keys: str) -> None:
        for key in keys:
            tmux("send-keys", "-t", SESSION, key)
            time.sleep(0.03)

    def type(self, text: str) -> None:
        tmux("send-keys", "-t", SESSION, "-l", text)
        time.sleep(0.1)

    def show(self, title: str, text: str) -> None:
        """Wait for a text and write down the screen."""
        self.wait(text)
        time.sleep(0.4)
        lines = [line.rstrip() for line in tmux("capture-pane", "-p", "-t", SESSION).split("\n")]
        while lines and not lines[-1]:
            lines.pop()
        screen = "\n".join(lines).replace(str(self._home), "/home/clinic")
        sys.stdout.write(f"\n### {title}\n\n```text\n{screen}\n```\n")

    def end(self) -> None:
        tmux("kill-server")
        time.sleep(0.3)


def full_screen(home: Path, program: str) -> None:
    walk = Walk(program, home)
    walk.show("First start", "recommended")
    walk.press("Enter")
    walk.wait("Ready.")
    walk.type("What are the danger signs of dehydration in a child? Tell me all that you know.")
    # The demonstration model writes an answer in a fifth of a second: one has to be quick.
    for delay in DELAYS:
        walk.press("Enter")
        time.sleep(delay)
        walk.press("Escape")
        time.sleep(1.2)
        if "Stopped. What" in tmux("capture-pane", "-p", "-t", SESSION):
            break
        walk.press("F2", "Up")
    walk.show("A question, stopped in mid-answer (Esc)", "NOT FINISHED")
    walk.press("Tab", "c")
    walk.show("Continued (Tab, C)", " words in ")
    walk.press("Tab", "a")
    walk.show("Answered again (Tab, A)", "version 2 of 2")
    walk.press("F2")
    walk.wait("A new conversation")
    walk.type("What is malaria?")
    walk.press("Enter")
    walk.wait("Done.")
    walk.press("F6")
    walk.show("All conversations (F6)", "F4 rename")
    walk.type("dehydration")
    time.sleep(0.5)
    walk.show("Searched", "dehydration")
    walk.press("Enter")
    walk.wait("F10 leave")
    walk.press("F5")
    walk.show("Export (F5)", "Written as")
    walk.press("Enter")
    walk.show("Written", "Written to")
    walk.press("F7")
    walk.wait("Settings")
    walk.press("Down", "Down", "Down", "Down", "Down", "Right", "Right", "Right")
    walk.show("Settings (F7)", "high contrast")
    walk.press("Escape")
    walk.wait("F10 leave")
    walk.press("F1")
    walk.show("Help (F1)", "Help")
    walk.press("Escape")
    walk.wait("F10 leave")
    walk.press("F10")
    walk.show("Leave (F10)", "Leave edgemed?")
    walk.press("l")
    time.sleep(1)
    walk.end()


def line_mode(home: Path, program: str) -> None:
    walk = Walk(f"{program} chat --plain", home)
    walk.wait("You>")
    for delay in DELAYS:
        walk.type("What are the danger signs of dehydration in a child? Tell me all that you know.")
        walk.press("Enter")
        time.sleep(delay)
        walk.press("C-c")
        time.sleep(1.2)
        if "(Stopped. What" in tmux("capture-pane", "-p", "-t", SESSION):
            break
        walk.press("Enter")
    walk.show("A question, stopped in mid-answer (Ctrl+C)", "Stopped.")
    walk.type("/continue")
    walk.press("Enter")
    time.sleep(2)
    for line, awaited in (
        ("/again", "You>"),
        ("/history dehydration", "/open NUMBER"),
        ("/rename Dehydration", "The title is now"),
        ("/export notes.txt", "Written to"),
        ("/set theme high-contrast", "theme: high contrast"),
    ):
        walk.type(line)
        walk.press("Enter")
        walk.wait(awaited)
        time.sleep(0.8)
    walk.show("Continued, answered again, searched, exported, a setting changed", "theme: high contrast")
    walk.type("/quit")
    walk.press("Enter")
    time.sleep(1)
    walk.end()


def main() -> None:
    program = str(Path(sys.executable).with_name("edgemed"))
    sys.stdout.write(
        "# A walk through the chat\n\nWritten by `python -m tests.measurements.walk`: keys in tmux at 80x24, the embedded "
        "demonstration\nmodel. It is not for patients, and it shows.\n\n## Full screen\n"
    )
    os.environ.pop("TMUX", None)
    with tempfile.TemporaryDirectory() as folder:
        full_screen(Path(folder), program)
    sys.stdout.write("\n## Line mode\n")
    with tempfile.TemporaryDirectory() as folder:
        line_mode(Path(folder), program)


if __name__ == "__main__":
    main()
