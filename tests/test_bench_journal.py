"""The record file: what is written is read again, what is cut is mended, what was changed is named."""

from pathlib import Path
from typing import Any

import pytest
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.journal import Journal, read_run, repair

from edgemed.errors import StorageError
from edgemed.records import Arm, Load, RunEnd, RunEvent, RunStart, Sample, Times, Validity

SHA = "a" * 64


def start_fields() -> dict[str, Any]:
    arm = Arm(label="F16", model_name="edge", model_sha256=SHA, size_bytes=5)
    return {
        "schema": "edgemed.bench/1",
        "run_id": "abcd",
        "edgemed_version": "0",
        "profile": "quick",
        "suites": ["latency"],
        "arms": [arm],
    }


def sample_fields(item: str, **others: Any) -> dict[str, Any]:
    return {
        "suite": "latency",
        "item_id": item,
        "arm": 0,
        "prompt_sha256": SHA,
        "prompt_tokens": 3,
        "times": Times(end_ns=7),
        "validity": Validity(verdict="ok"),
        "text": "Drink ORS. ওআরএস\n",
        **others,
    }


def write(path: Path, samples: int = 3) -> None:
    with Journal.create(path) as journal:
        journal.append(RunStart, **start_fields())
        journal.append(Load, arm=0, load_ns=5)
        for number in range(samples):
            journal.append(Sample, **sample_fields(f"item{number}"))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path)
    with Journal.reopen(read_run(path)) as journal:
        journal.append(RunEnd, finished=True, actual_seconds=1.5)
    run = read_run(path)
    assert [sample.item_id for sample in run.samples] == ["item0", "item1", "item2"]
    assert run.samples[0].text == "Drink ORS. ওআরএস\n"
    assert run.end is not None and run.end.finished
    assert run.arm_of(run.samples[0]).label == "F16"
    assert [record.seq for record in run.records] == list(range(6))


def test_a_file_cut_anywhere_gives_all_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path, whole = tmp_path / "cut.jsonl", tmp_path / "whole.jsonl"
    write(whole)
    data = whole.read_bytes()
    lines = data.splitlines(keepends=True)
    last = len(data) - len(lines[-1])
    for size in (*range(len(lines[0]), last, 37), *range(last, len(data), 3), len(data) - 1):
        path.write_bytes(data[:size])
        run = read_run(path)
        assert len(run.records) == data[:size].count(b"\n")
        sentence = repair(run)
        assert bool(sentence) == (data[size - 1 : size] != b"\n")
        with Journal.reopen(read_run(path)) as journal:
            journal.append(RunEvent, kind="resumed")
        assert isinstance(read_run(path).records[-1], RunEvent)
    assert (tmp_path / "cut.jsonl.torn").read_bytes() == lines[-1][:-1]


def test_zeros_that_a_power_cut_leaves_are_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path)
    with path.open("ab") as file:
        file.write(b"\0" * 4096 + b'"]}\n')
    run = read_run(path)
    assert len(run.samples) == 3
    assert "cut in the middle (4100 bytes)" in repair(run)
    assert read_run(path).torn_bytes == 0


@pytest.mark.parametrize(
    ("line", "old", "new", "words"),
    [
        (3, b"item0", b"item9", "line 4: the line does not fit line 3"),
        (3, b'"prompt_tokens":3', b'"prompt_tokens":-3', "line 3: the line is no valid record"),
        (3, b'"arm":0', b'"arm":7', "line 3: the line belongs to arm 7"),
        (2, b'"type":"load"', b'"type":"lode"', "line 2: the line is no valid record"),
        (3, b"item0", b"\xff\xfe", "line 3: the line is no valid record"),
    ],
)
def test_a_changed_line_is_named(tmp_path: Path, line: int, old: bytes, new: bytes, words: str) -> None:
    path = tmp_path / "run.jsonl"
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_bytes(b"".join(lines))
    with pytest.raises(RecordError) as error:
        read_run(path)
    assert words in error.value.message


def test_a_lost_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(RecordError, match="line 3: the line has the number 3, not 2"):
        read_run(path)


def test_two_runs_in_one_file_are_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "run.jsonl", tmp_path / "other.jsonl"
    write(path)
    write(other)
    path.write_bytes(path.read_bytes() + other.read_bytes())
    with pytest.raises(RecordError, match="line 6"):
        read_run(path)
    with Journal.reopen(read_run(other)) as journal:
        journal.append(RunStart, **start_fields())
        journal.append(RunEvent, kind="resumed")
    with pytest.raises(RecordError, match="line 6: the line begins another run"):
        read_run(other)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "nothing is in it yet"),
        (b'{"type":"run_start","seq":0,"cha', "nothing is in it yet"),
        (b'{"type":"run_start","schema":"edgemed.bench/2","new":1}\n{"x":1}\n', "schema 'edgemed.bench/2'"),
        (b"GGUF\x03\x00\x00\n\x00\n", "not the start of a benchmark run"),
        (b'{"type":"sample"}\n{}\n', "not the start of a benchmark run"),
        (b'{"question": "?"}', "not the start of a benchmark run"),
        (b"x" * (17 * 2**20), "longer than any record"),
    ],
)
def test_what_is_no_record_file_is_refused_in_words(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(data)
    with pytest.raises(RecordError) as error:
        read_run(path)
    assert words in error.value.message


def test_fields_of_a_later_minor_version_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal.create(path) as journal:
        journal.append(RunStart, **start_fields())
    path.write_bytes(path.read_bytes().replace(b'"run_id"', b'"moon_phase":"full","run_id"'))
    assert read_run(path).start.run_id == "abcd"


def test_a_missing_file_a_folder_and_an_old_file_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(RecordError, match="cannot be read"):
            read_run(path)
    (tmp_path / "old.jsonl").write_bytes(b"mine")
    with pytest.raises(RecordError, match="is there already"):
        Journal.create(tmp_path / "old.jsonl")
    assert (tmp_path / "old.jsonl").read_bytes() == b"mine"
    with pytest.raises(StorageError):
        Journal.create(tmp_path / "no_folder" / "run.jsonl")


def test_a_full_disk_leaves_the_file_whole(tmp_path: Path) -> None:
    """A quota in miniature: the file may grow to a size that falls inside the third sample's line."""
    resource = pytest.importorskip("resource")
    import signal

    path = tmp_path / "run.jsonl"
    write(path, samples=2)
    limit = path.stat().st_size + 100
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Journal.reopen(read_run(path)) as journal:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(StorageError):
                journal.append(Sample, **sample_fields("in flight"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old_handler)
    run = read_run(path)
    assert (len(run.samples), run.torn_bytes) == (2, 0)


def test_the_time_of_a_resumed_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    clock = iter([100, 150, 170]).__next__
    with Journal.create(path, clock_ns=clock) as journal:
        journal.append(RunStart, **start_fields())
        journal.append(RunEvent, kind="interrupted")
    after_reboot = iter([3, 13]).__next__
    with Journal.reopen(read_run(path), clock_ns=after_reboot) as journal:
        journal.append(RunEvent, kind="resumed")
    assert [record.at_ns for record in read_run(path).records] == [50, 70, 80]
