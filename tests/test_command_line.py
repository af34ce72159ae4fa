"""What is the same in the four command lines: how each ends, and what it says then."""

import errno
import subprocess
import sys
from pathlib import Path

import click
import msgspec
import pytest

from edgemed.command_line import (
    CommandLine,
    percent_line,
    run_command_line,
    write_json,
)
from edgemed.errors import EdgemedError, StorageError


def run_failing(error: BaseException) -> int:
    """Return the exit code of a command that ends with `error`."""

    @click.group(cls=CommandLine)
    def group() -> None:
        pass

    @group.command()
    def fail() -> None:
        raise error

    return run_command_line(group, "tool", ["fail"], storage_hint="Look at the disk.")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("edgemed", ["models", "list"]),
        ("edgemed_convert", ["inspect", "--help"]),
        ("edgemed_training", ["report", "--help"]),
        ("edgemed_benchmarks", ["suites", "list"]),
    ],
)
def test_a_reader_that_leaves_ends_every_program_quietly(program: str, words: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", f"{program}.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert errors == ""
    assert process.returncode == 141


@pytest.mark.parametrize("program", ["edgemed_convert", "edgemed_benchmarks"])
def test_the_system_s_wish_to_end_is_said(program: str) -> None:
    code = (
        f"import signal, click; from {program}.cli import cli, main\n"
        "cli.add_command(click.Command('wait', callback=lambda: signal.raise_signal(signal.SIGTERM)))\n"
        "main(['wait'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (143, "Ended by the system.\n")


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (EdgemedError("No."), 1, "error: No.\n"),
        (StorageError("No.", hint="Try."), 6, "error: No.\nhint: Try.\n"),
        (
            OSError(errno.ENOSPC, "No space", "a.bin"),
            1,
            "error: The system refused: No space (a.bin).\nhint: Look at the disk.\n",
        ),
        (click.UsageError("No."), 2, "error: No.\nhint: tool fail --help shows what there is.\n"),
        (click.Abort(), 130, "Stopped.\n"),
        (SystemExit(4), 4, ""),
        (EdgemedError("a\x07b"), 1, "error: ab\n"),
    ],
)
def test_each_error_has_its_words_and_its_exit_code(
    error: BaseException, exit_code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(error) == exit_code
    assert capsys.readouterr() == ("", said)


def test_a_wrong_option_names_the_help_of_its_own_command(capsys: pytest.CaptureFixture[str]) -> None:
    from edgemed.cli import cli

    assert run_command_line(cli, "edgemed", ["models", "list", "--jsn"]) == 2
    assert capsys.readouterr().err.splitlines()[1] == "hint: edgemed models list --help shows what there is."


def test_an_error_is_never_written_behind_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    @click.group(cls=CommandLine)
    def group() -> None:
        pass

    @group.command()
    def copy() -> None:
        show = percent_line("Copying")
        assert show is not None
        for done_bytes in (1, 2, 2):
            show(done_bytes, 4)
        raise EdgemedError("No.")

    assert run_command_line(group, "tool", ["copy"]) == 1
    assert capsys.readouterr().err == "\rCopying: 25 %\rCopying: 50 %\nerror: No.\n"


def test_a_finished_percentage_ends_its_line_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert percent_line("Copying") is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show = percent_line("Copying")
    assert show is not None
    for done_bytes in (4, 4, 4):
        show(done_bytes, 4)
    assert capsys.readouterr().err == "\rCopying: 100 %\n"


def test_json_takes_paths(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"file": Path("a")})
    assert msgspec.json.decode(capsys.readouterr().out) == {"file": "a"}
