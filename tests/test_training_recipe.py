"""A recipe says everything once: presets, own values and overrides, each with its type and range."""

from pathlib import Path

import pytest
from edgemed_training.errors import RecipeError
from edgemed_training.recipe import Recipe, changed_recipe, load_recipe, preset_names

PAPER = ("llama-2-7b", "mistral-7b", "llama-3-8b", "gemma-1.1-7b", "distilgpt2")
EDGE = (
    *("llama-3.2-1b", "llama-3.2-3b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b"),
    *("gemma-3-1b", "gemma-3-4b", "smollm3", "phi-4-mini"),
)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_preset_of_the_study_has_its_settings() -> None:
    for name in PAPER:
        recipe = load_recipe(f"paper/{name}")
        assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.lora_dropout) == (16, 16, 0.25), name
        assert recipe.train.max_length == (1024 if name == "distilgpt2" else 2048), name
        assert recipe.base.name and recipe.base.license and recipe.base.model_type, name


def test_all_promised_presets_are_there_and_load() -> None:
    promised = {f"paper/{name}" for name in PAPER} | {f"edge/{name}" for name in EDGE}
    assert promised | {"recipes/edge_demo", "recipes/paper_table1"} == set(preset_names())
    assert all(load_recipe(name).base.hidden_size for name in promised)


def test_the_sweep_of_the_studys_table_1_holds_only_values_that_a_recipe_may_have() -> None:
    sweep = load_recipe("recipes/paper_table1").sweep
    assert set(sweep) == {"train.max_length", "lora.r", "lora.lora_alpha", "lora.lora_dropout"}
    assert 2048 in sweep["train.max_length"] and 0.25 in sweep["lora.lora_dropout"]


def test_preset_then_recipe_then_override(tmp_path: Path) -> None:
    path = write(tmp_path, 'preset = "edge/qwen3-0.6b"\n[train]\nepochs = 5\nlearning_rate = 1e-4\n')
    recipe = load_recipe(path, ["train.epochs=7", "lora.target_modules=['q_proj']"])
    assert recipe.lora.target_modules == ["q_proj"]
    assert recipe.base.template_options == {"enable_thinking": False}
    assert (recipe.train.epochs, recipe.train.learning_rate) == (7, 1e-4)
    assert (
        changed_recipe(recipe, ["data.system_prompt=Answer briefly."]).data.system_prompt == "Answer briefly."
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[train]\nlearning_rat = 1e-4\n", "Did you mean train.learning_rate?"),
        ("[lora]\nlearning_rate = 1e-4\n", "Did you mean train.learning_rate?"),
        ("[trane]\nepochs = 1\n", "Did you mean train?"),
        ('[train]\nlearning_rate = "1e-4"\n', "train.learning_rate: Expected `float`, got `str`"),
        ("[train]\nlearning_rate = 1e6\n", "train.learning_rate: Expected `float` <= 0.1"),
        (
            "[train]\ngradient_accumulation_steps = 0\n",
            "train.gradient_accumulation_steps: Expected `int` >= 1",
        ),
        ("[train]\nepochs = -1\n", "train.epochs: Expected `float` > 0"),
        ("[lora]\nr = 0\n", "lora.r: Expected `int` >= 1"),
        ("[lora]\nlora_dropout = 1.5\n", "lora.lora_dropout: Expected `float` < 1.0"),
        ("[train]\nkeep_checkpoints = 1\n", "train.keep_checkpoints: Expected `int` >= 2"),
        ('preset = "edge/llama-3.2-1B"\n', "Did you mean edge/llama-3.2-1b?"),
        ("[sweep]\n'lora.r' = [8, 0]\n", "sweep over lora.r: lora.r: Expected `int` >= 1"),
        ("[train]\nepochs = \n", "is not valid TOML"),
    ],
)
def test_a_slip_gets_a_sentence_with_the_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(write(tmp_path, text))
    assert said in refused.value.message
    assert refused.value.exit_code == 2


def test_a_recipe_that_is_not_there_names_the_presets(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(tmp_path / "none.toml")
    assert "edge/smollm3" in refused.value.hint


def test_the_hash_follows_every_value() -> None:
    recipe = Recipe()
    assert recipe.sha256() == Recipe().sha256()
    assert changed_recipe(recipe, ["train.seed=43"]).sha256() != recipe.sha256()
