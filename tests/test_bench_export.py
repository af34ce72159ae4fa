"""A run in the shapes of lm-evaluation-harness, llama-bench and a spreadsheet says the same as its record."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from edgemed_benchmarks.answer_times import speed
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.export import export_files
from edgemed_benchmarks.export_llama_bench import KEYS
from edgemed_benchmarks.export_lm_eval import lm_eval_files
from edgemed_benchmarks.item_files import shipped_sets
from edgemed_benchmarks.journal import read_run
from edgemed_benchmarks.pack import prepare_pack, write_pack
from edgemed_benchmarks.run_items import FoundItem
from edgemed_benchmarks.score import score_run

from edgemed.errors import UsageError
from edgemed.records import Choice, Item, OptionScore
from tests.bench_records import MadeUpRun, full_run

SETS = {each.name: each for each in shipped_sets("quality")}


def option(log_probability: float, characters: int = 1) -> OptionScore:
    return OptionScore(log_probability=log_probability, tokens=1, characters=characters, greedy=False)


def quality_run(folder: Path) -> Path:
    """Write a run: 20 choices by letters, half of them right; and 10 written answers, all right."""
    run = MadeUpRun(item_files=[each.item_file for each in SETS.values()])
    run.machine()
    for number, item in enumerate(SETS["choice"].items[:20]):
        assert item.correct is not None
        best = item.correct if number < 10 else (item.correct + 1) % 4
        options = [option(-0.5 if place == best else -2.0) for place in range(4)]
        choice = Choice(options=options, correct=item.correct, permutation=[0, 1, 2, 3])
        run.sample(item.id, suite="quality", condition="letters:0", choice=choice, tokens=1)
    for item in SETS["answers"].items[:10]:
        run.sample(item.id, suite="quality", condition="", text=item.references[0][:90])
    run.sample("warm", suite="quality", condition="letters:0", warm_up=True)
    run.end()
    return run.write(folder / "run.jsonl")


def exported(files: list[Path]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    samples = {
        path.name.removeprefix("samples_").rsplit("_", 1)[0]: [
            json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for path in files
        if path.name.startswith("samples_")
    }
    [results] = [path for path in files if path.name.startswith("results_")]
    return samples, json.loads(results.read_text(encoding="utf-8"))


def test_lm_eval_files_say_what_the_scores_say(tmp_path: Path) -> None:
    path = quality_run(tmp_path)
    files = export_files([path], "lm-eval", tmp_path / "out")
    samples, results = exported(files)
    assert set(samples) == {"choice_letters_0", "answers"}
    assert len(samples["choice_letters_0"]) == 20
    found = results["results"]["choice_letters_0"]
    assert found["acc,none"] == 0.5
    # lm-evaluation-harness: sample deviation ÷ √n.
    assert found["acc_stderr,none"] == pytest.approx((0.25 * 20 / 19) ** 0.5 / 20**0.5)
    scores = {(score.metric, score.item_set): score for score in score_run(read_run(path)).scores}
    assert scores["accuracy_first_order", "choice"].value == found["acc,none"]
    answers = results["results"]["answers"]
    for metric in ("exact_match", "token_f1", "rouge_l", "bleu"):
        assert answers[f"{metric},none"] == pytest.approx(scores[metric, "answers"].value)
    first = samples["answers"][0]
    assert first["resps"] == [[first["target"][:90]]]
    assert all(re.fullmatch(r"[\w.T-]+", part.name) for part in files), "a name that some system refuses"


def test_document_hashes_are_those_of_lm_eval(tmp_path: Path) -> None:
    """hash_string(json.dumps(doc, indent=2, ensure_ascii=False)) of lm-evaluation-harness 0.4.13."""
    item = Item(id="é-1", kind="choice", question="Is “fièvre” a sign?\n", options=["no", "yes"], correct=1)
    run = MadeUpRun()
    choice = Choice(
        options=[option(-4.0, characters=2), option(-4.5, characters=3)],
        correct=1,
        permutation=[0, 1],
        by_text=True,
    )
    run.sample("é-1", suite="quality", condition="text", choice=choice)
    read = read_run(run.write(tmp_path / "run.jsonl"))
    [arm] = lm_eval_files(read, {("quality", "é-1"): FoundItem("own", item)}, score_run(read))
    [sample] = [json.loads(text) for name, text in arm.files.items() if name.startswith("samples_own_text")]
    assert sample["doc_hash"] == "5f4dff21c91ab78ec0a9d0c7a5503c98fccd317a5587c88ab6d0925d686e8fac"
    assert sample["target_hash"] == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert (sample["acc"], sample["acc_norm"]) == (0.0, 1.0)
    assert sample["arguments"]["gen_args_1"]["arg_1"] == "yes"
    assert sample["resps"] == [[["-4.0", "False"]], [["-4.5", "False"]]]


def test_options_of_an_exported_document_stand_as_they_were_shown(tmp_path: Path) -> None:
    item = SETS["choice"].items[0]
    assert item.correct is not None
    turned = [1, 2, 3, 0]
    run = MadeUpRun(item_files=[SETS["choice"].item_file])
    choice = Choice(options=[option(-1.0)] * 4, correct=turned.index(item.correct), permutation=turned)
    run.sample(item.id, suite="quality", condition="letters:1", choice=choice)
    samples, _results = exported(export_files([run.write(tmp_path / "r.jsonl")], "lm-eval", tmp_path / "out"))
    [sample] = samples["choice_letters_1"]
    assert sample["doc"]["options"][int(sample["target"])] == item.options[item.correct]


def test_llama_bench_tests_add_up_to_our_rates(tmp_path: Path) -> None:
    made = full_run(arms=2)
    for words in ("busy:1", "cold"):
        made.sample("q1", condition=f"{words} length:short", token_seconds=9.0)
    made.sample("q2", verdict="invalid", token_seconds=9.0)
    path = made.write(tmp_path / "run.jsonl")
    [out] = export_files([path], "llama-bench", tmp_path / "bench")
    tests = json.loads(out.read_text(encoding="utf-8"))
    run = read_run(path)
    assert all(tuple(test)[: len(KEYS)] == KEYS for test in tests)
    for number, arm in enumerate(run.arms):
        mine = [test for test in tests if test["edgemed_arm"] == arm.label]
        forced = [test for test in mine if "forced" in test["edgemed_condition"] or test["n_prompt"]]
        prompt = [test for test in forced if test["n_prompt"]]
        samples = [sample for sample in run.samples if sample.arm == number]
        measures = {one.key: one.estimate.value for one in speed(run, samples, run.loads, arm)}
        assert rate(prompt, "n_prompt") == pytest.approx(measures["prefill_rate"])
        assert all(test["n_gen"] == 0 and test["n_depth"] >= 0 for test in prompt)
        # The report's decode rate rests on answers of free length where all forced ones are no_prefix.
        free = [test for test in mine if test["n_gen"] and "no_prefix" not in test["edgemed_condition"]]
        assert rate(free, "n_gen") == pytest.approx(measures["decode_rate"])
    unknown = ("build_commit", "model_size", "n_batch", "type_k", "flash_attn")
    assert all(tests[0][key] is None for key in unknown)


def rate(tests: list[dict[str, Any]], tokens: str) -> float:
    seconds = sum(sum(test["samples_ns"]) for test in tests) / 1e9
    return float(sum(test[tokens] * len(test["samples_ns"]) for test in tests) / seconds)


def test_csv_and_packs_can_be_exported_too(tmp_path: Path) -> None:
    record_file = quality_run(tmp_path)
    pack = write_pack(prepare_pack([record_file]), tmp_path / "pack")
    summary, samples = export_files([pack], "csv", tmp_path / "table.csv")
    assert (summary.name, samples.name) == ("table.summary.csv", "table.samples.csv")
    with samples.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 30
    from_pack, results = exported(export_files([pack], "lm-eval", tmp_path / "out"))
    assert results["results"]["choice_letters_0"]["acc,none"] == 0.5
    assert from_pack["answers"][0]["resps"] == [[None]]
    assert results["results"]["answers"]["token_f1,none"] > 0.5


def test_nothing_is_replaced_and_nothing_is_made_of_nothing(tmp_path: Path) -> None:
    path = quality_run(tmp_path)
    with pytest.raises(RecordError, match="as llama-bench"):
        export_files([path], "llama-bench", tmp_path / "x")
    first = export_files([path], "lm-eval", tmp_path / "out")
    before = [each.read_bytes() for each in first]
    with pytest.raises(UsageError, match="there already"):
        export_files([path], "lm-eval", tmp_path / "out")
    assert [each.read_bytes() for each in first] == before
