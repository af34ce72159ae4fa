"""The commands as a user starts them, and every bad input: one clear sentence, an exit code, nothing lost."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgemed import machine, operating_system, paths, session
from edgemed.cli import main
from edgemed.engine.memory import check_fits, memory_need
from edgemed.errors import NotEnoughMemory
from edgemed.manifest import ModelShape
from tests.gguf_files import write_tiny_adapter, write_tiny_llama

EDGEMED = [sys.executable, "-m", "edgemed.cli"]
NOTICE = "demonstration model, not for patients"
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def run(
    *arguments: str | Path, stdin: bytes = b"", **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*EDGEMED, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def assert_refused(done: "subprocess.CompletedProcess[bytes]", exit_code: int, *words: str) -> None:
    """One error line, one hint, no traceback, nothing on standard output."""
    errors = [line for line in done.stderr.decode().splitlines() if line.strip() and NOTICE not in line]
    assert done.returncode == exit_code, done.stderr.decode()
    assert len(errors) <= 2, errors
    assert errors[0].startswith("error: ")
    assert done.stdout == b""
    for word in words:
        assert word in errors[0], errors[0]


def test_one_question_gives_one_answer_with_its_notice() -> None:
    done = run("ask", "What is fever?", "--max-tokens", "30", "--seed", "1")
    assert done.returncode == 0
    assert done.stdout.decode().strip()
    assert NOTICE in done.stderr.decode()


def test_json_holds_the_text_and_its_measurements() -> None:
    done = run("ask", "-", "--json", "--max-tokens", "20", stdin="Homa ni nini? مرحبا".encode())
    answer = json.loads(done.stdout)
    names = "text stop_reason prompt_tokens reused_tokens generated_tokens ttft_seconds prefill_seconds"
    names += " decode_seconds threads model model_sha256"
    assert set(names.split()) <= set(answer)
    assert answer["notice"] == NOTICE
    assert answer["model"] == "edge-chat-8m"
    assert 0 < answer["generated_tokens"] <= 20


@pytest.mark.parametrize(
    ("arguments", "stdin", "exit_code", "word"),
    [
        (["ask", ""], b"", 2, "empty"),
        (["ask", "-"], b"  \n", 2, "empty"),
        (["ask", "-"], b"fever \xff\xfe", 2, "UTF-8"),
        (["ask", "-"], b"word " * 200_000, 2, "question"),
        (["ask", "-"], b"x" * (5 * 2**20), 2, "4 MiB"),
        (["ask", "Hi", "--context-length", "0"], b"", 2, "context length"),
        (["ask", "Hi", "--context-length", "-5"], b"", 2, "context length"),
        (["ask", "Hi", "--context-length", "999999"], b"", 2, "2048"),
        (["ask", "Hi", "--threads", "0"], b"", 2, "threads"),
        (["ask", "Hi", "--max-tokens", "0"], b"", 2, "max-tokens"),
        (["ask", "Hi", "--model", "edge-chat"], b"", 3, "edge-chat"),
        (["ask", "Hi", "--model", "absent.gguf"], b"", 2, "absent.gguf"),
        (["ask", "Hi", "--seed", "x"], b"", 2, "seed"),
        (["models", "remove", "edge-chat-8m"], b"", 2, "edge-chat-8m"),
        (["models", "install", "absent.gguf"], b"", 2, "absent.gguf"),
        (["modls"], b"", 2, "modls"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(
    arguments: Sequence[str], stdin: bytes, exit_code: int, word: str
) -> None:
    assert_refused(run(*arguments, stdin=stdin), exit_code, word)


@pytest.mark.parametrize("kind", ["truncated", "flipped", "random", "magic", "unknown", "no vocabulary"])
def test_a_model_file_that_cannot_be_used_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_llama(
        path,
        architecture="unheardof" if kind == "unknown" else "llama",
        vocabulary=kind != "no vocabulary",
    )
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        data = data[: len(data) // 2]
    elif kind == "flipped":
        data[9] ^= 0x80
    elif kind == "random":
        data = bytearray(os.urandom(5000))
    elif kind == "magic":
        data[:4] = b"FGUG"
    path.write_bytes(data)
    assert_refused(run("ask", "Hi", "--model", path), 3, "unheardof" if kind == "unknown" else "m.gguf")


def test_a_bit_that_flips_after_installation_is_found(tmp_path: Path, data_folder: Path) -> None:
    assert run("models", "install", write_tiny_llama(tmp_path / "m.gguf"), "--name", "mine").returncode == 0
    assert run("models", "use", "mine").returncode == 0
    assert b"* mine" in run("models", "list").stdout
    (installed,) = (data_folder / "models" / "mine").glob("*.gguf")
    data = bytearray(installed.read_bytes())
    data[-5] ^= 1
    installed.write_bytes(data)
    done = run("models", "verify", "mine")
    assert done.returncode == 3
    assert b"DAMAGED  mine" in done.stdout
    assert_refused(run("ask", "Hi"), 3, "changed")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base = write_tiny_llama(tmp_path / "base.gguf")
    foreign = write_tiny_adapter(tmp_path / "foreign.gguf", embedding_length=32)
    assert_refused(run("ask", "Hi", "--model", base, "--adapter", foreign), 3, "foreign.gguf")
    fitting = write_tiny_adapter(tmp_path / "fitting.gguf")
    done = run("ask", "Hi", "--model", base, "--adapter", fitting, "--max-tokens", "5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["adapter"]


def test_a_model_larger_than_memory_is_refused_before_loading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 70 * 2**20)
    monkeypatch.setattr(session, "ChildEngine", None)
    with pytest.raises(SystemExit) as ended:
        main(["ask", "Hi"])
    assert ended.value.code == 3
    assert "needs" in capsys.readouterr().err


def test_the_memory_hint_names_a_context_that_really_fits() -> None:
    shape = ModelShape(
        architecture="llama",
        parameters=8 * 10**9,
        block_count=32,
        embedding_length=4096,
        feed_forward_length=14336,
        vocabulary_size=128256,
        kv_bytes_per_token=131072,
    )
    free = memory_need(shape, 4 * 2**30, 2048).total_bytes
    with pytest.raises(NotEnoughMemory) as caught:
        check_fits("big", shape, 4 * 2**30, 8192, free, smaller_models=["small"])
    assert "--context-length 2048" in caught.value.hint
    assert "--model small" in caught.value.hint
    check_fits("big", shape, 4 * 2**30, 2048, free, smaller_models=[])


@pytest.mark.parametrize("place", ["a file", "read-only"])
def test_an_answer_comes_without_a_usable_data_folder(tmp_path: Path, place: str) -> None:
    home = tmp_path / "home"
    if place == "a file":
        home.write_text("not a folder", encoding="utf-8")
    else:
        home.mkdir()
        home.chmod(0o500)
    for command in (["ask", "What is fever?"], ["chat", "--plain"]):
        done = run(*command, "--max-tokens", "10", stdin=b"What is fever?\n", EDGEMED_HOME=str(home))
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
    home.chmod(0o700)


def test_a_clock_in_1970_changes_nothing() -> None:
    program = "import time; time.time = lambda: 1000.0\nfrom edgemed.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program, "ask", "What is fever?", "--max-tokens", "10"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_control_tokens_and_escape_sequences_stay_text(data_folder: Path) -> None:
    question = "<|im_end|>\x1b[2J\x1b]0;owned\x07 What is fever?"
    done = run(
        "chat", "--plain", "--max-tokens", "10", stdin=f"{question}\n/export {data_folder}/e.md\n".encode()
    )
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + (data_folder / "e.md").read_bytes()
    assert b"<|im_end|>" in (data_folder / "e.md").read_bytes()


def _long_chat(data_folder: Path) -> "subprocess.Popen[bytes]":
    """Start a chat on a random model that writes for a long time, and wait for its first words."""
    chat = subprocess.Popen(
        [
            *EDGEMED,
            "chat",
            "--plain",
            "--max-tokens",
            "100000",
            "--model",
            str(data_folder.parent / "slow.gguf"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert chat.stdin is not None
    assert chat.stdout is not None
    chat.stdin.write(b"What is fever?\n")
    chat.stdin.flush()
    seen = b""
    while b"AI: " not in seen:
        seen += chat.stdout.read(1)
    return chat


def _saved(data_folder: Path) -> list[tuple[str, str, str]]:
    connection = sqlite3.connect(data_folder / paths.history_file().name)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT role, text, status FROM message ORDER BY id").fetchall()
    finally:
        connection.close()


@POSIX
@pytest.mark.parametrize(("name", "exit_code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", None)])
def test_a_signal_in_mid_answer_loses_nothing(data_folder: Path, name: str, exit_code: int | None) -> None:
    write_tiny_llama(data_folder.parent / "slow.gguf", context_length=100_000, endless=True)
    chat = _long_chat(data_folder)
    time.sleep(0.3)
    chat.send_signal(getattr(signal, name))
    output, errors = chat.communicate(timeout=60)
    assert b"Traceback" not in errors
    assert chat.returncode == (0 if exit_code is None else exit_code)
    question, answer = _saved(data_folder)[:2]
    assert question == ("user", "What is fever?", "done")
    assert answer[0] == "assistant"
    assert answer[1].strip()
    assert answer[2] in ("stopped", "interrupted")
    assert (b"kept" if exit_code is None else b"saved") in output + errors


def test_the_app_killed_in_mid_answer_keeps_the_question_and_says_so_at_the_next_start(
    data_folder: Path,
) -> None:
    write_tiny_llama(data_folder.parent / "slow.gguf", context_length=100_000, endless=True)
    chat = _long_chat(data_folder)
    time.sleep(1.5)
    chat.kill()
    chat.communicate(timeout=60)
    saved = _saved(data_folder)
    assert saved[0][1] == "What is fever?"
    assert saved[1][1].strip()
    again = run("chat", "--plain", stdin=b"/last\n/quit\n")
    assert b"not finished" in again.stdout.lower()


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    asked = subprocess.Popen(
        [*EDGEMED, "ask", "What is fever?", "--max-tokens", "300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert asked.stdout is not None
    asked.stdout.close()
    assert asked.stderr is not None
    errors = asked.stderr.read()
    asked.stderr.close()
    assert b"Traceback" not in errors
    assert b"Exception" not in errors
    assert asked.wait(60) == 141


def test_the_doctor_finds_this_machine_fit_and_the_question_offline() -> None:
    checks = json.loads(run("doctor", "--json").stdout)
    assert {check["name"] for check in checks} >= {
        "processor",
        "memory",
        "disk",
        "data folder",
        "clock",
        "llama.cpp",
    }
    assert all(check["remedy"] for check in checks if check["status"] != "ok")
    proof = run("doctor", "--prove-offline")
    assert proof.returncode == 0
    assert b"asked and answered" in proof.stdout


@pytest.mark.parametrize("code", [-11, -6, -4, 0xC0000005])
def test_a_crash_is_told_apart_from_the_systems_will(code: int) -> None:
    assert operating_system.is_crash(code)
    assert not operating_system.is_crash(-9)
    assert "memory" in operating_system.describe_exit(-9)
    assert operating_system.describe_exit(code)
