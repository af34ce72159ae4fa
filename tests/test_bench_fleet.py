"""A folder of packs from many machines: who misses the limits, who became slower, and what cannot be read."""

import datetime
import gzip
import hashlib
import random
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgemed_benchmarks.answer_times import limit_verdicts
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.fleet import Fleet, fleet
from edgemed_benchmarks.fleet_text import fleet_text
from edgemed_benchmarks.journal import read_run
from edgemed_benchmarks.pack import prepare_pack, write_pack

from edgemed.errors import MissingExtra, StorageError
from edgemed.records import (
    FIRST_CHAIN,
    Arm,
    Machine,
    Record,
    RunEnd,
    RunStart,
    Sample,
    Times,
    Validity,
    chain_of,
)

TODAY = datetime.date(2026, 11, 25)
WORDS = ("saved_prefix", "saved_prefix forced:64", "no_prefix", "busy:1", "cold length:short")


def sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write_run(
    path: Path,
    *,
    machine_id: str = "heron",
    day: str = "2026-11-20",
    run_id: str | None = None,
    seconds: float = 2.0,
    token_seconds: float = 0.2,
    questions: int = 40,
    spread: float = 0.05,
    strange: bool = False,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write one run: as many questions with an answer each.

    Args:
        strange: samples of all conditions and verdicts, repeated, some ended by the engine's death.
        changes: fields of the machine.
    """
    chance = random.Random(f"{machine_id} {day} {run_id}")
    common = {"utc": f"{day}T02:30:00Z", "at_ns": 0}
    records: list[dict[str, Any]] = [
        {
            "type": RunStart,
            "schema": "edgemed.bench/1",
            "run_id": run_id or f"{machine_id}-{day}",
            "edgemed_version": "1.0",
            "profile": "quick",
            "suites": ["latency"],
            "arms": [Arm(label="Q4_K_M", model_name="clinic-8m", model_sha256=sha("model"), size_bytes=9)],
        },
        {
            "type": Machine,
            "machine_id": machine_id,
            "system": "Linux",
            "cpu_model": "Some CPU",
            "physical_cores": 4,
            "logical_cores": 4,
            "total_memory_bytes": 2**33,
            "available_memory_bytes": 2**32,
        }
        | (changes or {}),
    ]
    for item in range(questions):
        for repetition in range(chance.randint(1, 3) if strange else 1):
            slower = chance.choice((1.0, 6.0)) if strange else 1.0
            died = strange and chance.random() < 0.1
            token = [round(1e9 * token_seconds * chance.gauss(1.0, spread)) for _ in range(20)]
            records.append(
                {
                    "type": Sample,
                    "suite": "latency",
                    "item_id": f"q{item}",
                    "arm": 0,
                    "repetition": repetition,
                    "warm_up": strange and chance.random() < 0.2,
                    "condition": chance.choice(WORDS) if strange else "saved_prefix length:short",
                    "prompt_sha256": sha(str(item)),
                    "prompt_tokens": 90,
                    "generated_tokens": 21,
                    "stop_reason": "engine_died" if died else "end_of_turn",
                    "times": Times(
                        first_text_ns=None
                        if died
                        else round(1e9 * slower * seconds * chance.uniform(0.9, 1.1)),
                        token_ns=token,
                        end_ns=round(1e9 * slower * seconds) + sum(token),
                    ),
                    "validity": Validity(
                        verdict=chance.choice(("ok", "suspect", "invalid")) if strange else "ok"
                    ),
                }
            )
    records.append({"type": RunEnd, "finished": True, "actual_seconds": 60.0})
    lines: list[bytes] = []
    chain = FIRST_CHAIN
    for seq, fields in enumerate(records):
        record: Record = fields.pop("type")(seq=seq, chain=chain, **common, **fields)
        lines.append(msgspec.json.encode(record))
        chain = chain_of(lines[-1])
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(folder: Path, **options: Any) -> Fleet:
    pytest.importorskip("duckdb", reason="needs DuckDB, of the extra `bench`")
    return fleet(folder, today=TODAY, **options)


def test_machines_that_miss_the_limits_come_first(tmp_path: Path) -> None:
    write_run(tmp_path / "a.edgebench.json.gz", machine_id="fast", seconds=2.0)
    write_run(tmp_path / "b.edgebench.json.gz", machine_id="slow", seconds=20.0)
    write_run(tmp_path / "c.edgebench.json.gz", machine_id="few", questions=10)
    # Fast today, slow last spring: the newest run counts.
    (tmp_path / "below").mkdir()
    write_run(tmp_path / "below" / "d.jsonl", machine_id="mended", day="2026-04-01", seconds=20.0)
    write_run(tmp_path / "below" / "e.jsonl", machine_id="mended", day="2026-11-01", seconds=2.0)
    found = read(tmp_path)
    assert [(one.machine_id, one.verdict) for one in found.machines] == [
        ("slow", "no"),
        ("few", "undecided"),
        ("fast", "yes"),
        ("mended", "yes"),
    ]
    assert found.machines[1].first_words.more == 19
    assert found.machines[3].runs == 2 and found.machines[3].file == "e.jsonl"
    assert found.machines[2].decode_rate == pytest.approx(5.0, rel=0.02)
    assert found.machines[2].samples == 40 and found.files == 5
    stricter = read(tmp_path, first_words_limit_seconds=1.0)
    assert {one.verdict for one in stricter.machines} == {"no"}


@pytest.mark.parametrize("number", range(6))
def test_a_fleet_says_of_a_run_what_its_own_report_says(tmp_path: Path, number: int) -> None:
    """Two languages tell which answers count, Python's and SQL's: on strange runs they must agree."""
    path = write_run(tmp_path / "run.jsonl", run_id=str(number), strange=True, questions=60)
    run = read_run(path)
    first_words, full_answer = limit_verdicts(run.start, [one for one in run.samples if not one.warm_up])
    (machine,) = read(tmp_path).machines
    assert machine.first_words == first_words[2:]
    assert machine.full_answer == full_answer[2:]
    assert machine.samples == sum(not one.warm_up for one in run.samples)


def test_a_machine_that_writes_slower_than_last_month_is_found_with_what_changed(tmp_path: Path) -> None:
    write_run(tmp_path / "a1.jsonl", machine_id="dusty", day="2026-09-01", token_seconds=0.2)
    write_run(
        tmp_path / "a2.jsonl",
        machine_id="dusty",
        token_seconds=0.26,
        changes={"power_source": "battery"},
    )
    write_run(tmp_path / "b1.jsonl", machine_id="steady", day="2026-09-01")
    write_run(tmp_path / "b2.jsonl", machine_id="steady", token_seconds=0.21)
    write_run(tmp_path / "c1.jsonl", machine_id="new")
    found = read(tmp_path)
    assert found.since == datetime.date(2026, 10, 21) and found.compared == 2
    (drift,) = found.drifted
    assert drift.machine_id == "dusty"
    assert drift.ratio.value == pytest.approx(0.2 / 0.26, rel=0.03)
    assert drift.ratio.high is not None and drift.ratio.high < 0.9
    assert (drift.rate_before, drift.rate_after) == pytest.approx((5.0, 1 / 0.26), rel=0.03)
    assert drift.also_changed == ["power source: ? → battery"]
    text = fleet_text(found)
    assert "Slower since 2026-10-21 by 10% or more, beyond noise: 1 of 2 that can be compared" in text
    assert "also changed: power source: ? → battery" in text
    assert "5 files, 3 machines: 0 miss the limits, 0 not known yet, 3 keep them" in text
    assert {one.machine_id for one in read(tmp_path, drop=0.02).drifted} == {"dusty", "steady"}
    assert read(tmp_path, since=datetime.date(2026, 1, 2)).compared == 0


def test_noise_alone_is_no_drift(tmp_path: Path) -> None:
    for number in range(30):
        for day in ("2026-09-01", "2026-11-20"):
            name = f"m{number}"
            write_run(tmp_path / f"{name}-{day}.jsonl", machine_id=name, day=day, questions=12, spread=1.2)
    found = read(tmp_path, drop=0.0)
    assert found.compared == 30
    assert len(found.drifted) <= 3


def test_packs_with_several_runs_are_read_as_their_record_files_are(tmp_path: Path) -> None:
    for folder in ("records", "packs"):
        (tmp_path / folder).mkdir()
    files = [
        write_run(
            tmp_path / "records" / f"{number}.jsonl", run_id=str(number), machine_id=machine, seconds=seconds
        )
        for number, (machine, seconds) in enumerate((("heron", 2.0), ("stork", 20.0), ("crane", 7.9)))
    ]
    write_pack(prepare_pack(files, keep_names=True), tmp_path / "packs" / "three")
    before, after = read(tmp_path / "records"), read(tmp_path / "packs")
    assert after.files == 1 and {one.file for one in after.machines} == {"three.edgebench.json.gz"}
    whole, packed = (sorted(found.machines, key=lambda one: one.first_words) for found in (before, after))
    assert [one.first_words for one in packed] == [one.first_words for one in whole]
    assert [one.full_answer for one in packed] == [one.full_answer for one in whole]
    rates = [one.decode_rate for one in whole]
    assert [one.decode_rate for one in packed] == pytest.approx(rates, rel=0.002)


def test_copies_of_a_run_count_once(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a.edgebench.json.gz", questions=20)
    for copy in ("b", "c"):
        (tmp_path / f"{copy}.edgebench.json.gz").write_bytes(path.read_bytes())
    found = read(tmp_path)
    assert found.duplicates == 2 and found.files == 3
    assert [one.samples for one in found.machines] == [20]


def test_a_clock_that_was_never_set_takes_no_part_in_drift(tmp_path: Path) -> None:
    write_run(tmp_path / "a.jsonl", day="1970-01-01", token_seconds=0.1)
    write_run(tmp_path / "b.jsonl", day="2031-01-01", token_seconds=0.1)
    write_run(tmp_path / "c.jsonl", token_seconds=0.2)
    found = read(tmp_path)
    assert found.wrong_clocks == ["a.jsonl", "b.jsonl"] and found.drifted == []
    assert found.machines[0].file == "c.jsonl" and found.machines[0].runs == 3


def test_files_that_cannot_be_read_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good.edgebench.json.gz").read_bytes()
    (tmp_path / "cut.edgebench.json.gz").write_bytes(good[: len(good) // 2])
    (tmp_path / "changed.edgebench.json.gz").write_bytes(good[:200] + bytes(20) + good[220:])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "text.jsonl").write_bytes("Grüße\n".encode("latin-1"))
    torn = write_run(tmp_path / "torn.jsonl", machine_id="other").read_bytes()
    (tmp_path / "torn.jsonl").write_bytes(torn[:-30])
    (tmp_path / "short.edgebench.json.gz").write_bytes(gzip.compress(torn[:-30]))
    newer = torn.replace(b"edgemed.bench/1", b"edgemed.bench/2", 1)
    (tmp_path / "newer.jsonl").write_bytes(newer)
    (tmp_path / "no-pack.edgebench.json.gz").write_bytes(b"{}\n")
    patched = write_run(tmp_path / "patched.jsonl", machine_id="crane", run_id="patched").read_bytes()
    (tmp_path / "patched.jsonl").write_bytes(patched.replace(b'"seq":7', b'"seq":{{{', 1))
    found = read(tmp_path)
    assert [(one.machine_id, one.samples) for one in found.machines] == [
        ("crane", 39),
        ("heron", 40),
        ("other", 40),
    ]
    assert dict(found.bad_files) == {
        "changed.edgebench.json.gz": "is damaged or was cut",
        "cut.edgebench.json.gz": "is damaged or was cut",
        "empty.jsonl": "is empty",
        "text.jsonl": "is no benchmark file",
        "torn.jsonl": "has lines that are no records (1); its others are counted",
        "short.edgebench.json.gz": "was cut in the middle of a line",
        "newer.jsonl": "is of schema 'edgemed.bench/2', which this edgemed does not read",
        "no-pack.edgebench.json.gz": "is damaged or was cut",
        "patched.jsonl": "has lines that are no records (1); its others are counted",
    }


def test_a_folder_without_packs_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"holds no packs"):
        fleet(tmp_path)
    with pytest.raises(RecordError, match=r"is no folder"):
        fleet(tmp_path / "nowhere")
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(RecordError, match=r"None of the 1 files .* a.jsonl is empty"):
        fleet(tmp_path)


def test_too_little_memory_is_said_and_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "a.jsonl")
    monkeypatch.setattr("edgemed_benchmarks.fleet.MEMORY_LIMIT_MIB", 1)
    with pytest.raises(StorageError, match=r"The packs could not be counted"):
        read(tmp_path)


def test_without_duckdb_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "a.jsonl")
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtra) as caught:
        fleet(tmp_path)
    assert "edgemed[bench]" in caught.value.hint
