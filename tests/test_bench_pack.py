"""A pack is small, holds the numbers that count, and not one word of a person, a machine or a place."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from edgemed_benchmarks.answer_times import limit_verdicts, speed
from edgemed_benchmarks.compare_values import run_arms
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.item_files import shipped_sets
from edgemed_benchmarks.journal import Run, read_run
from edgemed_benchmarks.long_run import endurance
from edgemed_benchmarks.pack import prepare_pack, write_pack
from edgemed_benchmarks.pack_format import (
    LARGEST_PACK_BYTES,
    SUFFIX,
    is_pack,
    read_pack,
    read_runs,
)

from edgemed.errors import UsageError
from edgemed.records import Choice, Energy, OptionScore, Record, RunStart, Sample
from tests.bench_records import MadeUpRun, full_run

SECRETS = (
    "anna.mbeki",
    "C:\\Users\\anna\\model.gguf",
    "/home/anna/clinic",
    "CLINIC-PC-07",
    "S/N 5CG1234XYZ",
    "The patient has a fever",
    "anna@clinic.example",
    "192.168.1.17",
    "00:1a:2b:3c:4d:5e",
    "Intel Core i5-6300U of anna",
    "rapl: package-0 (anna)",
    "busy: CLINIC-PC-07 has a fever",
    "6.1.0-anna-kernel",
)
TRACES = ("anna", "mbeki", "home", "clinic", "5cg1234", "patient", "fever", "192.168", "1a:2b", "users")


def rich_run(*, answers: int = 40) -> MadeUpRun:
    """Return a run that has every field which a record can hold."""
    run = full_run(forced=["busy: others"], options={"plan": "{}"})
    for number in range(answers):
        run.sample(f"w{number}", suite="quality", text="Drink clean water.", text_sha256=f"{number:064x}")
    option = OptionScore(log_probability=-1.25, tokens=1, characters=1, greedy=False)
    likely = OptionScore(log_probability=-0.5, tokens=1, characters=1, greedy=True)
    run.sample(
        "c1",
        suite="quality",
        condition="letters:0",
        choice=Choice(options=[option, likely], correct=1, permutation=[0, 1]),
        energy=Energy(joules=2.0, source="emi: x", grade="A", window_ns=10),
        explanation="why",
        text="Drink clean water.",
        verdict="suspect",
        reasons=["throttled"],
    )
    run.sample("warm", warm_up=True)
    return run


def with_secret(record: Record, secret: str) -> Iterator[tuple[str, Record]]:
    """Yield the record with the secret in one of its text fields, for each that may hold it."""
    fields = msgspec.to_builtins(record)
    for path in list(_text_paths(fields)):
        changed = _changed(fields, path, secret)
        try:
            yield ".".join(map(str, path)), msgspec.convert(changed, type(record))
        except msgspec.ValidationError:
            # A field whose form the schema fixes: no secret fits in.
            continue


def _text_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _text_paths(each, (*path, key))
            if path and path[-1] in ("options", "tensor_types"):
                yield (*path, key, "KEY")
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _text_paths(each, (*path, place))
    elif isinstance(value, str) and path[0] != "type":
        yield path


def _changed(value: Any, path: tuple[Any, ...], secret: str) -> Any:
    if not path:
        return secret
    if path[1:] == ("KEY",):
        return {secret if key == path[0] else key: each for key, each in value.items()}
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _changed(copy[path[0]], path[1:], secret)
    return copy


def test_no_secret_in_any_text_field_of_a_record_comes_into_a_pack(tmp_path: Path) -> None:
    made = rich_run(answers=1)
    start = msgspec.structs.replace(
        made.start,
        arms=[
            msgspec.structs.replace(
                made.start.arms[0], tensor_types={"Q4_K": 9}, architecture="llama", model_name="m"
            )
        ],
    )
    kinds = {type(record): record for record in made.records if not isinstance(record, RunStart)}
    one_of_each = [start, *kinds.values(), made.records[-2]]
    planted = set()
    for number, secret in enumerate(SECRETS):
        for place, record in enumerate(one_of_each):
            for field, changed in with_secret(record, secret):
                planted.add((type(record).__name__, field))
                made.records = [*one_of_each[:place], changed, *one_of_each[place + 1 :]]
                path = made.write(tmp_path / f"{number}.jsonl")
                data = gzip.decompress(prepare_pack([path]).data).decode("utf-8").lower()
                found = [trace for trace in TRACES if trace in data]
                assert not found, (type(record).__name__, field, secret)
    assert {field for kind, field in planted if kind == "RunStart"} >= {
        "run_id",
        "arms.0.label",
        "arms.0.model_name",
        "arms.0.tensor_types.Q4_K.KEY",
        "item_files.0.name",
        "options.plan",
        "options.plan.KEY",
        "forced.0",
    }
    assert {field for kind, field in planted if kind == "Sample"} >= {
        "item_id",
        "condition",
        "stop_reason",
        "text",
        "explanation",
        "energy.source",
        "validity.reasons.0",
    }


def test_every_kind_of_record_is_planted_with_secrets() -> None:
    kinds = {type(record) for record in rich_run().records}
    assert kinds == set(get_args(Record))


def test_verdicts_and_rates_of_a_pack_are_those_of_the_record_file(tmp_path: Path) -> None:
    record_file = full_run(arms=2).write(tmp_path / "run.jsonl")
    before = read_run(record_file)
    for largest_bytes in (LARGEST_PACK_BYTES, 15_000):
        out = write_pack(
            prepare_pack([record_file], largest_bytes=largest_bytes), tmp_path / f"{largest_bytes}"
        )
        [(after, _scores)] = read_runs(out)
        assert out.stat().st_size <= largest_bytes
        for arm in range(2):
            mine, theirs = of_arm(before, arm), of_arm(after, arm)
            assert [(one.verdict, one.samples, one.misses) for one in limit_verdicts(before.start, mine)] == [
                (one.verdict, one.samples, one.misses) for one in limit_verdicts(after.start, theirs)
            ]
            for first, second in zip(
                speed(before, mine, before.loads, before.arms[arm]),
                speed(after, theirs, after.loads, after.arms[arm]),
                strict=True,
            ):
                close = 0.02 if first.key == "inter_token_seconds" else 2e-3
                assert second.estimate.value == pytest.approx(first.estimate.value, rel=close), first.key
                assert second.estimate.samples == first.estimate.samples


def of_arm(run: Run, arm: int) -> list[Sample]:
    return [sample for sample in run.samples if sample.arm == arm and not sample.warm_up]


def test_a_night_of_three_models_fits_into_a_pack(tmp_path: Path) -> None:
    run = full_run(arms=3, questions=240, tokens=120)
    chance = run.chance
    for arm in range(3):
        for question in range(64):
            for turn in range(4):
                options = [
                    OptionScore(
                        log_probability=-chance.uniform(0.1, 9.0), tokens=1, characters=1, greedy=False
                    )
                    for _ in range(4)
                ]
                run.sample(
                    f"choice-{question:02}",
                    suite="quality",
                    arm=arm,
                    tokens=1,
                    condition=f"letters:{turn}",
                    prompt_sha256=f"{chance.getrandbits(256):064x}",
                    choice=Choice(options=options, correct=0, permutation=[0, 1, 2, 3]),
                )
        for question in range(170):
            run.sample(f"answer-{question}", suite="safety", arm=arm, text="Drink.", tokens=96)
    path = run.write(tmp_path / "night.jsonl")
    prepared = prepare_pack([path])
    assert path.stat().st_size > 2_000_000
    assert len(prepared.data) <= LARGEST_PACK_BYTES
    assert not prepared.thinning.text_hashes
    assert "768 quality" in prepared.contents[1], "the quality samples had to go"


def test_an_hour_of_a_fast_machine_fits_into_a_pack_and_keeps_its_trend(tmp_path: Path) -> None:
    run = MadeUpRun()
    run.machine()
    run.load()
    for number in range(9000):
        run.sample(
            f"l{number % 48}",
            suite="endurance",
            tokens=16,
            first_seconds=run.chance.uniform(0.01, 0.03),
            token_seconds=0.001 * (1 + number / 30_000) * run.chance.uniform(0.8, 1.2),
            condition="forced:16",
            prompt_sha256=f"{number % 48:064x}",
            repetition=number // 48,
        )
    run.end()
    path = run.write(tmp_path / "hour.jsonl")
    prepared = prepare_pack([path])
    assert len(prepared.data) <= LARGEST_PACK_BYTES
    [(packed, _scores)] = read_runs(write_pack(prepared, tmp_path / "hour"))
    before, after = (
        {measure.key: measure.estimate.value for measure in endurance(each.samples)}
        for each in (read_run(path), packed)
    )
    assert before["endurance_change"] is not None and before["endurance_change"] < -0.1
    assert after["endurance_change"] == pytest.approx(before["endurance_change"], abs=0.02)
    assert after["endurance_seconds"] == pytest.approx(before["endurance_seconds"], rel=0.01)
    said = packed.events[-1].detail
    again = write_pack(prepare_pack([tmp_path / f"hour{SUFFIX}"]), tmp_path / "again")
    repeated = next(event for event in read_pack(again).runs[0].events if event.kind == "packed").detail
    assert "endurance" in said and repeated.split() == said.replace(",", "").split()


def test_several_runs_and_packs_go_into_one_pack_each_run_once(tmp_path: Path) -> None:
    first = full_run(run_id="a" * 16).write(tmp_path / "a.jsonl")
    second = full_run(run_id="b" * 16, seed=1).write(tmp_path / "b.jsonl")
    one = write_pack(prepare_pack([first]), tmp_path / "one")
    both = write_pack(prepare_pack([one, second]), tmp_path / f"both{SUFFIX}")
    assert is_pack(one)
    assert not read_pack(one).runs[0].start.texts_kept
    assert [run.start.run_id for run in read_pack(both).runs] == ["a" * 16, "b" * 16]
    assert [len(run.samples) for run in read_pack(both).runs] == [
        len(run.samples) for run in (read_run(first), read_run(second))
    ]
    with pytest.raises(RecordError, match="the same run"):
        prepare_pack([both, first])
    with pytest.raises(UsageError, match="there already"):
        write_pack(prepare_pack([first]), both)


def test_answers_are_scored_before_their_texts_are_left_behind(tmp_path: Path) -> None:
    [items] = [each for each in shipped_sets("quality") if each.name == "answers"]
    run = MadeUpRun(item_files=[items.item_file])
    run.machine()
    for item in items.items[:12]:
        run.sample(item.id, suite="quality", text=item.references[0], condition="")
    run.end()
    path = write_pack(prepare_pack([run.write(tmp_path / "run.jsonl")]), tmp_path / "pack")
    [(packed, scores)] = read_runs(path)
    assert scores is not None
    exact = next(score for score in scores.scores if score.metric.startswith("exact"))
    assert (exact.value, exact.n) == (1.0, 12)
    assert {sample.item_id for sample in packed.samples} == {item.id for item in items.items[:12]}
    [arm] = run_arms(packed, scores)
    assert any(metric.name == exact.metric for metric in arm.metrics)
    assert b"clean water" not in gzip.decompress(path.read_bytes())


def test_the_probabilities_of_a_choice_stay(tmp_path: Path) -> None:
    path = write_pack(prepare_pack([rich_run().write(tmp_path / "run.jsonl")]), tmp_path / "pack")
    [choice] = [sample.choice for sample in read_pack(path).runs[0].samples if sample.choice]
    assert [option.log_probability for option in choice.options] == [-1.25, -0.5]
    assert (choice.correct, choice.permutation) == (1, [0, 1])


def test_names_stay_only_when_the_person_says_so(tmp_path: Path) -> None:
    made = full_run()
    arm = msgspec.structs.replace(made.start.arms[0], model_name="mbeki-clinic", label="mbeki-clinic")
    made.records[0] = msgspec.structs.replace(made.start, arms=[arm, arm])
    path = made.write(tmp_path / "run.jsonl")
    hidden, kept = prepare_pack([path]), prepare_pack([path], keep_names=True)
    assert b"mbeki" not in gzip.decompress(hidden.data)
    assert "  model mbeki-clinic: mbeki-clinic" in kept.contents
    labels = [arm.label for arm in read_pack(write_pack(hidden, tmp_path / "x")).runs[0].arms]
    assert labels == ["model-aaaaaaaa", "model-aaaaaaaa 1"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data[: len(data) // 2], "is damaged, cut or no pack"),
        (lambda _data: b"", "is empty"),
        (lambda _data: b"no pack at all", "is damaged, cut or no pack"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-9]), "was cut in the middle of a line"),
        (lambda _data: gzip.compress(b'{"a":1}\n'), "line 1: the line does not start a benchmark run"),
        (
            lambda data: gzip.compress(gzip.decompress(data).replace(b"bench/1", b"bench/2", 1)),
            "is of schema 'edgemed.bench/2'",
        ),
        (
            lambda data: gzip.compress(gzip.decompress(data).replace(b'"arm":0', b'"arm":7', 1)),
            "belongs to arm 7, and the run has 1",
        ),
        (lambda _data: gzip.compress(b" " * (65 * 2**20)), "unpacks to more than 64 MiB"),
        (
            lambda data: gzip.compress(gzip.decompress(data) + gzip.decompress(data)),
            "begins run 0, and 1 came before",
        ),
    ],
)
def test_a_bad_pack_is_refused_with_what_is_wrong(tmp_path: Path, change: Any, sentence: str) -> None:
    data = prepare_pack([full_run(questions=4).write(tmp_path / "run.jsonl")]).data
    path = tmp_path / f"bad{SUFFIX}"
    path.write_bytes(change(data))
    with pytest.raises(RecordError) as error:
        read_pack(path)
    assert sentence in error.value.message


def test_too_much_for_one_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="would have"):
        prepare_pack([full_run().write(tmp_path / "run.jsonl")], largest_bytes=2_000)
