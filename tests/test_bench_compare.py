"""Comparing arms: paired by item, honest about noise, and refused where numbers would mislead."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from edgemed_benchmarks.compare import compare
from edgemed_benchmarks.compare_text import comparison_text
from edgemed_benchmarks.compare_values import ArmValues, Metric, run_arms
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.journal import Run
from edgemed_benchmarks.score_format import ItemScore, Score, Scores

from edgemed.errors import UsageError
from edgemed.records import (
    FIRST_CHAIN,
    Arm,
    ItemFile,
    Machine,
    RunEnd,
    RunStart,
    Sample,
    Times,
    Validity,
)

ACCURACY = Metric("quality", "accuracy", "choice")
FIRST_TEXT = Metric("latency", "first_text", "saved_prefix")
DECODE = Metric("latency", "decode_rate", "saved_prefix")
AT = {"chain": FIRST_CHAIN, "at_ns": 0, "utc": "2026-11-25T02:30:00Z"}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def arm(label: str, **changes: object) -> Arm:
    made = Arm(
        label=label,
        model_name="clinic-8m",
        model_sha256=sha(label),
        size_bytes=9_000_000,
        quantization_type=label,
        recipe_sha256=sha("recipe"),
    )
    return msgspec.structs.replace(made, **changes)


def sample(item: str, place: int, *, milliseconds: float = 1000, **changes: object) -> Sample:
    made = Sample(
        seq=0,
        suite="latency",
        item_id=item,
        arm=place,
        condition="saved_prefix length:short",
        prompt_sha256=sha(item),
        prompt_tokens=100,
        generated_tokens=11,
        times=Times(
            first_text_ns=round(milliseconds * 1e6),
            token_ns=[round(milliseconds * 1e5)] * 10,
            end_ns=round(2 * milliseconds * 1e6),
            prefill_ns=round(milliseconds * 9e5),
        ),
        validity=Validity(verdict="ok"),
        **AT,  # type: ignore[arg-type]
    )
    return msgspec.structs.replace(made, **changes)


def run_of(
    arms: Sequence[Arm],
    samples: Sequence[Sample],
    *,
    run_id: str = "run-1",
    machine_id: str = "heron",
    questions: str = "choice",
    version: str = "1.0",
) -> Run:
    start = RunStart(
        seq=0,
        schema="edgemed.bench/1",
        run_id=run_id,
        edgemed_version=version,
        profile="quick",
        suites=["latency", "quality"],
        arms=list(arms),
        item_files=[ItemFile(name="choice", sha256=sha(questions), items=100)],
        **AT,  # type: ignore[arg-type]
    )
    machine = Machine(
        seq=1,
        machine_id=machine_id,
        system="Linux",
        cpu_model="Some CPU",
        physical_cores=4,
        logical_cores=8,
        total_memory_bytes=8 * 2**30,
        available_memory_bytes=6 * 2**30,
        **AT,  # type: ignore[arg-type]
    )
    end = RunEnd(seq=9, finished=True, actual_seconds=60.0, **AT)  # type: ignore[arg-type]
    return Run(
        path=Path(f"/somewhere/{run_id}.jsonl"),
        records=[start, machine, *samples, end],
        start=start,
        machines=[machine],
        loads=[],
        samples=list(samples),
        telemetry=[],
        events=[],
        end=end,
        whole_bytes=0,
        last_chain=FIRST_CHAIN,
    )


def scores_of(run: Run, right: Sequence[Sequence[bool]], *, groups: int = 0) -> Scores:
    """Return scores in which item i of arm a is right where `right[a][i]` says so."""
    return Scores(
        edgemed_version="1.0",
        run_id=run.start.run_id,
        arms=[arm.label for arm in run.arms],
        model_sha256=[arm.model_sha256 for arm in run.arms],
        scores=[
            Score(
                suite="quality",
                arm=place,
                metric="accuracy",
                item_set="choice",
                value=0.5,
                n=len(results),
                higher_is_better=True,
                definition="share of right answers",
            )
            for place, results in enumerate(right)
        ],
        items=[
            ItemScore(
                suite="quality",
                arm=place,
                metric="accuracy",
                item_set="choice",
                item_id=f"q{item}",
                group=str(item % groups) if groups else "",
                value=float(hit),
            )
            for place, results in enumerate(right)
            for item, hit in enumerate(results)
        ],
    )


def with_quality(arms: Sequence[Arm], right: Sequence[Sequence[bool]], *, groups: int = 0) -> list[ArmValues]:
    run = run_of(arms, [])
    return run_arms(run, scores_of(run, right, groups=groups))


def test_quantizations_are_paired_by_item_and_flips_are_counted() -> None:
    """A mean that hardly moves hides how many answers changed."""
    before = [True] * 100 + [False] * 100
    after = [False] * 7 + [True] * 93 + [True] * 4 + [False] * 96
    found = compare(with_quality([arm("F16"), arm("Q2_K")], [before, after]))
    (result,) = found.pairs
    assert (result.metric, result.kind, result.items) == (ACCURACY, "quantization", 200)
    assert result.changed is not None and result.changed[:2] == (7, 4)
    assert result.estimate.value == pytest.approx(-3 / 200)
    assert result.p == pytest.approx(0.5488, abs=1e-4) and not result.shown
    assert result.detectable is not None and 0.04 < result.detectable < 0.05
    assert found.rankings[0].tiers == [[0, 1]]
    text = comparison_text(found)
    assert "7 went from right to wrong, 4 from wrong to right" in text
    assert "200 items cannot show differences under 4.6 points" in text
    assert "Order: none" in text


def test_arms_are_ordered_only_where_the_difference_is_beyond_chance() -> None:
    """Of three, the last is surely worse; the first two are one tier, whatever their means."""
    chance = random.Random(5)
    best = [chance.random() < 0.8 for _ in range(300)]
    nearly = [hit if chance.random() > 0.02 else not hit for hit in best]
    worse = [hit and chance.random() < 0.7 for hit in best]
    found = compare(with_quality([arm("Q2_K"), arm("F16"), arm("Q8_0")], [worse, best, nearly]))
    assert [ranking.tiers for ranking in found.rankings] == [[[1, 2], [0]]]
    assert sum(result.shown for result in found.pairs) == 2
    assert "Order: [2] [3] before [1]" in comparison_text(found)


def test_equal_arms_are_told_apart_in_at_most_5_percent_of_comparisons() -> None:
    told = 0
    for run in range(25):
        chance = random.Random(run)
        right = [[chance.random() < 0.6 for _ in range(40)] for _ in range(3)]
        told += any(
            result.shown for result in compare(with_quality([arm("A"), arm("B"), arm("C")], right)).pairs
        )
    assert told <= 4


def test_items_of_one_document_do_not_make_a_difference_certain() -> None:
    """Forty items, all of two documents: eight flips each way of one document are one event."""
    before, after = [True] * 40, [item % 2 == 0 for item in range(40)]
    alone = compare(with_quality([arm("F16"), arm("Q4_0")], [before, after]))
    together = compare(with_quality([arm("F16"), arm("Q4_0")], [before, after], groups=2))
    assert alone.pairs[0].shown and not together.pairs[0].shown
    assert together.pairs[0].p is None
    assert "too few items for a test" in comparison_text(together)


def test_speeds_are_compared_by_ratio_over_valid_samples_of_the_same_items() -> None:
    chance = random.Random(1)
    samples = []
    for item in range(12):
        length = chance.uniform(500, 5000)
        for place, factor in ((0, 1.0), (1, 1.25)):
            noise = chance.gauss(1.0, 0.02)
            samples.append(sample(f"q{item}", place, milliseconds=length * factor * noise))
        samples.append(
            sample(
                f"q{item}", 1, milliseconds=length * 90, validity=Validity(verdict="invalid"), repetition=1
            )
        )
        samples.append(sample(f"q{item}", 0, milliseconds=length * 90, warm_up=True, repetition=1))
    samples.append(sample("only-here", 0))
    found = compare(run_arms(run_of([arm("Q4_K_M"), arm("Q8_0")], samples)))
    first = next(result for result in found.pairs if result.metric == FIRST_TEXT)
    assert first.scale == "ratio" and first.items == 12 and first.left_out == 1
    assert first.estimate.value == pytest.approx(1.25, abs=0.02) and first.shown
    assert first.estimate.low is not None and first.estimate.low > 1.2
    assert first.detectable is not None and 0.01 < first.detectable < 0.05
    rates = next(result for result in found.pairs if result.metric == DECODE)
    # An arm's own rate is the sum of its tokens over the sum of its time.
    counted = [taken for taken in samples if taken.arm == 0 and not taken.warm_up]
    tokens, seconds = sum(10 for _ in counted), sum(sum(taken.times.token_ns) for taken in counted) / 1e9
    assert found.sides[DECODE][0].estimate.value == pytest.approx(tokens / seconds)
    assert rates.estimate.value == pytest.approx(0.8, abs=0.02)
    assert [(arm.ok, arm.invalid) for arm in found.arms] == [(13, 0), (12, 12)]
    by_metric = {ranking.metric: ranking.tiers for ranking in found.rankings}
    # Faster is better, whether it is told in seconds or in tokens a second.
    assert by_metric[FIRST_TEXT] == by_metric[DECODE] == [[0], [1]]
    assert any("12 of 24 samples are invalid" in flag for flag in found.flags)


def test_one_label_for_two_model_files_is_refused_by_name() -> None:
    first = run_arms(run_of([arm("Q4_K_M")], [], run_id="monday"))
    second = run_arms(run_of([arm("Q4_K_M", model_sha256=sha("other"))], [], run_id="tuesday"))
    with pytest.raises(
        RecordError, match=r"monday.jsonl and tuesday.jsonl both call an arm clinic-8m Q4_K_M"
    ):
        compare([*first, *second])


def test_the_same_run_given_twice_is_refused() -> None:
    run = run_of([arm("Q4_K_M")], [])
    copy = msgspec.structs.replace(run, path=Path("copy.jsonl"))
    with pytest.raises(RecordError, match=r"run-1.jsonl and copy.jsonl hold the same run"):
        compare([*run_arms(run), *run_arms(copy)])
    with pytest.raises(UsageError):
        compare(run_arms(run))


def test_other_questions_under_the_same_name_are_named_and_not_compared() -> None:
    runs = [
        run_of([arm("Q4_K_M")], [], run_id="a", machine_id="heron"),
        run_of([arm("Q4_K_M")], [], run_id="b", machine_id="stork", questions="changed"),
    ]
    arms = [made for run in runs for made in run_arms(run, scores_of(run, [[True] * 20]))]
    found = compare(arms)
    assert found.pairs == []
    assert any("questions under the name choice differ" in flag and "b.jsonl" in flag for flag in found.flags)


def test_items_asked_in_other_words_are_left_out_and_counted() -> None:
    same = [sample(f"q{item}", 0) for item in range(10)]
    changed = [*same[:8], *(sample(f"q{item}", 0, prompt_sha256=sha("other words")) for item in (8, 9))]
    found = compare(
        [
            *run_arms(run_of([arm("Q4_K_M")], same, run_id="a", machine_id="heron")),
            *run_arms(run_of([arm("Q4_K_M")], changed, run_id="b", machine_id="stork")),
        ]
    )
    result = next(result for result in found.pairs if result.metric == FIRST_TEXT)
    assert (result.kind, result.items, result.left_out) == ("machine", 8, 2)
    assert any("2 items of latency were asked with another prompt" in flag for flag in found.flags)


def test_what_differs_beside_the_model_is_said() -> None:
    found = compare(
        [
            *run_arms(run_of([arm("Q4_K_M", threads=2)], [sample("q", 0)], run_id="a")),
            *run_arms(run_of([arm("Q4_K_M", threads=4)], [sample("q", 0)], run_id="b", version="1.1")),
        ]
    )
    assert found.pairs[0].kind == "run"
    text = " ".join(comparison_text(found).split())
    assert "The number of threads differs: 2 (a.jsonl Q4_K_M); 4 (b.jsonl Q4_K_M)." in text
    assert "The edgemed version differs" in text
    assert "a.jsonl, b.jsonl are different runs on the machine heron" in text


def test_many_arms_are_each_compared_with_the_first() -> None:
    arms = [arm(f"type-{place}") for place in range(8)]
    found = compare(with_quality(arms, [[True] * 10] * 8))
    assert {(result.before, result.after) for result in found.pairs} == {(0, place) for place in range(1, 8)}
    assert all(verdict == "quantization" for verdict in {result.kind for result in found.pairs})
