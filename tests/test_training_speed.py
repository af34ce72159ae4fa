"""The comparison of training speeds: its arithmetic, and that every arm trains on the same tokens."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.measurements.training_arms import SHAPES
from tests.measurements.training_speed import main, random_rows
from tests.measurements.training_tables import flop_share, targets


def test_the_parameters_of_llama_3_8b_are_counted_without_its_embedding_table() -> None:
    whole, embedding = 8_030_261_248, 128_256 * 4096
    assert SHAPES["8b"].parameters_without_embedding() == whole - embedding
    # Llama 3.2 1B: the head is the embedding table.
    assert SHAPES["1b"].parameters_without_embedding() == 1_235_814_400 - 128_256 * 2048


def test_the_share_of_the_flop_ceiling_is_that_of_a_case_done_by_hand() -> None:
    # 10,000 tokens/s · 4 FLOP · 7.5e9 weights = 3.0e14 FLOP/s, of 8.0e14.
    assert flop_share(10_000, 7_500_000_000, 8e14) == pytest.approx(0.375)


def test_the_lengths_of_the_rows_are_those_of_the_study() -> None:
    rows = random_rows(4000, 512, 2048, seed=0)
    lengths = sorted(len(ids) for ids, _prompt in rows)
    assert sum(lengths) / len(lengths) == pytest.approx(247, rel=0.05)
    assert lengths[2000] == pytest.approx(160, abs=8)
    assert lengths[3800] == pytest.approx(595, rel=0.1)
    assert max(max(ids) for ids, _prompt in rows) < 512
    assert all(1 <= prompt < len(ids) for ids, prompt in rows)


def test_a_target_of_an_arm_that_failed_is_neither_held_nor_missed() -> None:
    def arm(
        library: str, speed: float | None, *, packed: bool, dropout: float, full: int = 8100
    ) -> dict[str, Any]:
        rounds = [{"tokens_per_micro_step": full}] if speed else []
        share = speed / 30_000 if speed else None
        return {
            "library": library, "packed": packed, "dropout": dropout, "tokens_per_second": speed,
            "flop_share": share, "rounds": rounds,
        }  # fmt: skip

    arms = {
        "padded": arm("edgemed", 4000, packed=False, dropout=0.25, full=1900),
        "packed": arm("edgemed", 10_000, packed=True, dropout=0.25),
        "packed-d0": arm("edgemed", 10_800, packed=True, dropout=0.0),
        "trl": arm("trl", 4000, packed=False, dropout=0.25),
        "trl-packed": arm("trl", 8000, packed=True, dropout=0.25),
        "unsloth": arm("unsloth", None, packed=True, dropout=0.25),
        "unsloth-d0": arm("unsloth", 13_500, packed=True, dropout=0.0),
    }
    default, with_dropout, without_dropout, ceiling = targets(arms)
    assert (default["found"], default["holds"]) == (2.5, True)
    assert (with_dropout["found"], with_dropout["holds"]) == (None, None)
    assert (without_dropout["found"], without_dropout["holds"]) == (0.8, False)
    assert (ceiling["found"], ceiling["holds"]) == (pytest.approx(0.36), True)


@pytest.mark.slow
def test_all_arms_train_once_on_the_same_real_tokens(tmp_path: Path) -> None:
    for name in ("torch", "peft", "bitsandbytes"):
        pytest.importorskip(name)
    arms = ["ours-padded", "ours-packed"]
    absent = [f"{name}-packed" for name in ("trl", "unsloth") if importlib.util.find_spec(name) is None]
    size = ["--size", "tiny", "--rows", "24", "--heldout", "4", "--max-length", "128", "--rounds", "1"]
    steps = ["--packed-rows", "2", "--padded-examples", "2", "--accumulation", "2", "--warmup-steps", "2"]
    main(["--work", str(tmp_path), *size, *steps, "--arms", *arms, *absent])
    (result,) = json.loads((tmp_path / "results.json").read_bytes())
    rows = json.loads((tmp_path / "tiny" / "rows.json").read_bytes())["train"]
    found = {name: result["arms"][name]["rounds"] for name in arms}
    for name, (measured,) in found.items():
        assert measured["examples"] == len(rows) == 24, name
        assert measured["tokens"] == sum(len(ids) for ids, _prompt in rows), name
        assert 0 < measured["timed_tokens"] < measured["tokens"], name
        assert result["arms"][name]["heldout_loss"] < result["untrained_heldout_loss"], name
    assert result["same_tokens_in_all_arms"]
    assert found["ours-packed"][0]["steps"] == found["ours-packed"][0]["micro_steps"]
    assert found["ours-padded"][0]["steps"] == 6  # 24 examples, 2 · 2 in a step
    for name in absent:
        assert result["arms"][name]["failure"] == f"not installed: {name.removesuffix('-packed')}"
        assert f"not installed: {name.removesuffix('-packed')}" in (tmp_path / "results.md").read_text(
            "utf-8"
        )
