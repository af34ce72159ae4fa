"""The base's steps are those of the script that made the shared model; needs the shared folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from edgemed_training.base_recipe import BaseRecipe, load_base_recipe
from edgemed_training.libraries import prepare_libraries

from tests.reference_scripts import run_script

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

STEPS, DECAY_STEPS = 200, 64
SIZES = {
    "T=512; B=16": "T=64; B=8",
    "vocab_size=8192": "vocab_size=300",
    "hidden_size=256": "hidden_size=64",
    "intermediate_size=768": "intermediate_size=96",
    "num_hidden_layers=8": "num_hidden_layers=2",
    "head_dim=64": "head_dim=16",
}
"""The script's sizes, and the small ones of this test."""


@pytest.mark.slow
def test_two_hundred_steps_with_their_decay_are_those_of_the_script_to_the_last_bit(tmp_path: Path) -> None:
    """Warm-up, constant rate and decay; Muon, AdamW, clipping and bf16 as shipped, on the script's windows."""
    import numpy as np
    from edgemed_training.base_loop import Loop, Work
    from edgemed_training.base_network import build_model
    from tokenizers import Tokenizer, models

    prepare_libraries("torch", "transformers", "tokenizers", "safetensors")
    folder = tmp_path / "models" / "recipe"
    folder.mkdir(parents=True)
    # Text of a kind: each token depends on the one before, and some are frequent.
    chance = np.random.default_rng(5)
    numbers = np.cumsum(chance.geometric(0.3, 60_000)) % 300
    np.save(folder / "train.npy", numbers.astype(np.uint16))
    seen = run_script(
        "pretrain.py",
        folder,
        changes=SIZES,
        decay=(STEPS - DECAY_STEPS, DECAY_STEPS),
        threads=torch.get_num_threads(),
    )
    assert len(seen["losses"]) == STEPS and seen["losses"][-1] < 0.6 * seen["losses"][0]
    recipe = _recipe()

    def batch(step: int) -> tuple[Any, Any]:
        ids, labels = seen["batches"][step]
        return ids, labels

    out = tmp_path / "ours"
    out.mkdir()
    model = build_model(recipe)
    Loop(Work(model, Tokenizer(models.BPE()), batch), recipe.train, out, lambda sentence: None, {}, 0).run()
    assert _losses(out) == seen["losses"]


def _recipe() -> BaseRecipe:
    shape = {"hidden_size": 64, "feed_forward_size": 96, "layers": 2}
    train = {"window_tokens": 64, "batch_tokens": 512, "steps": STEPS, "decay_steps": DECAY_STEPS}
    overrides = ["tokenizer.vocabulary_size=300"]
    overrides += [f"model.{key}={value}" for key, value in shape.items()]
    overrides += [f"train.{key}={value}" for key, value in train.items()]
    recipe = load_base_recipe("base/edge_base_8m", overrides)
    assert isinstance(recipe, BaseRecipe)
    return recipe


def _losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
