"""The last step: `edgemed doctor`, and one question that the installed model has to answer."""

import json
import subprocess
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app_build import clean_environment
from operating_system import sharing_lock
from places import python_of
from talk import Talk

from edgemed.errors import EngineError
from edgemed.kit_list import plain

QUESTION = "What is anaemia?"
_ANSWER_TOKENS = 32
_LONGEST_SECONDS = 900
"""An old computer reads a large model from a slow disk for minutes."""


@dataclass(frozen=True)
class Answer:
    """That it works."""

    text: str
    model: str
    notice: str
    """What people must know of the model; often nothing."""
    seconds: float
    """From the start of the program to the end of the answer."""


def look_at_computer(version: Path, lock: int, talk: Talk) -> None:
    """Run the doctor and show what is not well; nothing of it stops the installation."""
    code, said, complaint = _edgemed(version, lock, "doctor", "--json")
    try:
        checks = [check for check in json.loads(said) if check["status"] != "ok"]
        lines = [f"{check['name']}: {check['detail']}. {check['remedy']}" for check in checks]
    except (ValueError, KeyError, TypeError):
        talk.say(f"      The doctor could not look (exit code {code}): {_last_line(complaint)}")
        return
    talk.say("      The doctor found nothing wrong." if not lines else "      The doctor says:")
    for line in lines:
        talk.say(textwrap.indent(textwrap.fill(plain(line, 1000), 72), "        "))


def ask(version: Path, lock: int, model: str | None) -> Answer:
    """Ask a model one question; None is the one in use.

    Raises:
        EngineError: it did not answer; says why.
    """
    started_at = time.monotonic()
    chosen = [] if model is None else ["--model", model]
    code, said, complaint = _edgemed(
        version, lock, "ask", QUESTION, *chosen, "--json", "--seed", "1", "--max-tokens", str(_ANSWER_TOKENS)
    )
    answer = _answer_in(said)
    if code or not plain(answer.get("text", "")):
        reason = answer.get("explanation") or _last_line(complaint)
        raise EngineError(
            f"The new edgemed did not answer a question: {plain(str(reason))}",
            hint="edgemed doctor looks for the cause.",
        )
    return Answer(
        text=plain(answer["text"]),
        model=plain(answer.get("model", "")),
        notice=plain(answer.get("notice") or ""),
        seconds=time.monotonic() - started_at,
    )


def _edgemed(version: Path, lock: int, *arguments: str) -> tuple[int, str, str]:
    """Run an installed version and return its exit code, its standard output and its standard error."""
    command = [str(python_of(version)), "-I", str(version / "start.py"), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=clean_environment(),
            timeout=_LONGEST_SECONDS,
            check=False,
            **sharing_lock(lock),
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"it took longer than {_LONGEST_SECONDS // 60} minutes"
    except OSError as error:
        return 1, "", f"{command[0]} cannot be started: {error.strerror}"
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def _answer_in(said: str) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _last_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return plain((errors or lines or ["it wrote nothing"])[-1].removeprefix("error: "))
