"""Locks, signals and the ends of processes, tried with real processes."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemed import operating_system
from edgemed.errors import StorageError

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")


@contextlib.contextmanager
def python(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program and wait for its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == b"ready"
            yield process
        finally:
            process.kill()


LOCKING = """
    import pathlib, sys, time
    from edgemed.operating_system import lock_file
    with lock_file(pathlib.Path(sys.argv[1])):
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_second_process_is_told_that_the_file_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    with (
        python(LOCKING, str(path)),
        pytest.raises(StorageError, match=r"models\.lock is in use by another edgemed") as refused,
        operating_system.lock_file(path),
    ):
        pass
    assert str(path) in refused.value.hint


def test_the_death_of_a_process_frees_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    with python(LOCKING, str(path)) as process:
        process.kill()
        process.wait()
        with operating_system.lock_file(path):
            pass


def test_a_lock_is_free_again_after_an_error_inside_it(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    with pytest.raises(KeyError), operating_system.lock_file(path):
        raise KeyError
    with operating_system.lock_file(path):
        pass


def test_a_lock_in_a_missing_folder_is_a_planned_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="cannot be locked"),
        operating_system.lock_file(tmp_path / "missing" / "lock"),
    ):
        pass


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    source, target = tmp_path / "new", tmp_path / "old"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    with target.open("rb") as file:
        operating_system.fsync_file(file.fileno())
    operating_system.replace_file(source, target)
    assert target.read_bytes() == b"new"
    assert not source.exists()


ENDING = """
    import sys, time
    from edgemed.operating_system import on_termination
    on_termination(sys.exit)
    print("ready", flush=True)
    time.sleep(60)
"""


@posix_only
@pytest.mark.parametrize(("name", "exit_code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_wish_to_end_becomes_the_shells_exit_code(name: str, exit_code: int) -> None:
    with python(ENDING) as process:
        process.send_signal(signal.Signals[name])
        assert process.wait(10) == exit_code


@posix_only
def test_a_program_under_nohup_outlives_its_terminal() -> None:
    program = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + textwrap.dedent(ENDING)
    with python(program) as process:
        process.send_signal(signal.Signals["SIGHUP"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143


@posix_only
def test_the_child_leaves_every_wish_to_end_to_its_parent() -> None:
    program = """
        import sys
        from edgemed.operating_system import ignore_termination_signals
        ignore_termination_signals()
        print("ready", flush=True)
        sys.stdin.read()
        sys.exit(7)
    """
    with python(program) as process:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            process.send_signal(signal.Signals[name])
        time.sleep(0.1)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 7


@posix_only
@pytest.mark.parametrize(
    ("name", "words", "crash"),
    [
        ("SIGKILL", "the system stopped it, most often because memory ran out", False),
        ("SIGTERM", "another program ended it", False),
        ("SIGSEGV", "it crashed (signal SIGSEGV)", True),
        ("SIGABRT", "it crashed (signal SIGABRT)", True),
        ("SIGBUS", "the model file was changed or removed while it was in use", True),
        ("SIGILL", "it needs an instruction that this processor lacks", True),
        ("SIGUSR1", "it was ended by signal SIGUSR1", False),
    ],
)
def test_a_signal_that_ended_the_child_is_put_in_words(name: str, words: str, crash: bool) -> None:
    exit_code = -signal.Signals[name]
    assert operating_system.describe_exit(exit_code).startswith(words)
    assert operating_system.is_crash(exit_code) is crash


@pytest.mark.parametrize(
    ("exit_code", "words", "crash"),
    [
        (0xC0000005, "it crashed (0xC0000005, access violation)", True),
        (0xC0000005 - 2**32, "it crashed (0xC0000005, access violation)", True),
        (0xC0000409, "it crashed (0xC0000409, abort)", True),
        (0xC000001D, "it needs an instruction that this processor lacks (0xC000001D)", True),
        (0xC0000017, "memory ran out (0xC0000017)", False),
        (0xC0000142, "it ended with exit code 0xC0000142", False),
        (3, "it ended with exit code 3", False),
        (0, "it ended with exit code 0", False),
        (None, "it did not end", False),
    ],
)
def test_an_exit_code_is_put_in_words(exit_code: int | None, words: str, crash: bool) -> None:
    assert operating_system.describe_exit(exit_code) == words
    assert operating_system.is_crash(exit_code) is crash


@posix_only
def test_the_words_fit_a_process_that_really_crashed() -> None:
    crashed = subprocess.run([sys.executable, "-c", "import os; os.abort()"], stderr=subprocess.DEVNULL)
    assert operating_system.describe_exit(crashed.returncode) == "it crashed (signal SIGABRT)"


def test_strlen_tells_zero_from_not_zero_without_python() -> None:
    """As llama.cpp calls it: with the address of the stop byte, for a truth value."""
    callback = ctypes.cast(operating_system.c_strlen(), ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p))
    stop_byte = (ctypes.c_uint8 * 2)()
    assert callback(ctypes.addressof(stop_byte)) is False
    stop_byte[0] = 1
    assert callback(ctypes.addressof(stop_byte)) is True


def test_what_c_code_prints_goes_nowhere() -> None:
    program = """
        import os
        from edgemed.operating_system import send_stderr_to_null
        send_stderr_to_null()
        os.write(1, b"lost")
        os.write(2, b"lost")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True, timeout=30
    )
    assert (ended.stdout, ended.stderr) == (b"", b"")


def test_text_is_utf_8_in_any_locale_and_bad_bytes_can_be_told() -> None:
    program = """
        import sys
        from edgemed.operating_system import utf8_standard_streams
        utf8_standard_streams()
        text = sys.stdin.read()
        print(ascii(text))
        print("ärztin 医生 \\udcff")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        input=b"fi\xc3\xa8vre \xff",
        capture_output=True,
        check=True,
        timeout=30,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    read, written = ended.stdout.splitlines()
    assert read == rb"'fi\xe8vre \udcff'"
    assert written == "ärztin 医生 ?".encode()


def test_a_program_without_console_has_no_streams_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    operating_system.utf8_standard_streams()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told")
def test_the_kernel_takes_the_engines_child_first() -> None:
    program = """
        import pathlib
        from edgemed.operating_system import lower_priority_for_memory_pressure
        lower_priority_for_memory_pressure()
        print(pathlib.Path("/proc/self/oom_score_adj").read_text(encoding="ascii"))
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=True, timeout=30
    )
    assert int(ended.stdout) == 800


def test_windows_knowledge_is_empty_elsewhere() -> None:
    if sys.platform == "win32":
        assert operating_system.windows_cpu_model()
    else:
        assert operating_system.windows_cpu_model() is None
        assert operating_system.windows_cpu_features() == frozenset()
