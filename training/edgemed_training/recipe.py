"""The recipe: every choice of one fine-tuning run, read from TOML. The structs are the only declaration.

A recipe may begin with `preset = "edge/llama-3.2-1b"`: the preset's values are taken first, the recipe's own
stand over them, and overrides from the command line over both. Read by `prepare`, `check`, `run` and `eval`.
"""

from collections.abc import Iterable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgemed_training.errors import RecipeError
from edgemed_training.recipe_file import (
    Section,
    as_recipe,
    bundled_recipes,
    changed,
    did_you_mean,
    merged,
    overridden,
    read_toml,
    recipe_sha256,
)

Positive = Annotated[int, msgspec.Meta(ge=1)]
LongAnswers = Literal["sentence", "drop", "hard"]


class BaseSection(Section, frozen=True, kw_only=True):
    """The base model that the recipe is made for."""

    name: str = ""
    """As its makers publish it, e.g. meta-llama/Llama-3.2-1B-Instruct; the adapter names it, not a path."""
    license: str = ""
    model_type: str = ""
    """As config.json has it; a folder of another type is refused. Empty: any."""
    hidden_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Refused when config.json says otherwise; 0: any."""
    layers: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Refused when config.json says otherwise; 0: any."""
    prompt: Literal["chat-template", "question-answer"] = "chat-template"
    """`question-answer` is for base models without a chat template: Question: …, Answer: …."""
    template_options: dict[str, bool | int | str] = msgspec.field(default_factory=dict)
    """Variables for the chat template, e.g. enable_thinking = false."""
    quantization: Literal["nf4", "none"] = "nf4"
    """NF4 with double quantization, or the weights as they are."""


class DataSection(Section, frozen=True, kw_only=True):
    """What becomes of the question-answer pairs."""

    system_prompt: str | None = None
    """None: each pair's own, or edgemed's where it has none. "": without a system prompt."""
    long_answers: LongAnswers = "sentence"
    """Cut at the last sentence end that fits, drop, or cut anywhere without an end token."""
    drop_long_prompts: bool = False
    """Leave out pairs whose question alone fills `max_length`, instead of refusing them."""
    columns: dict[str, str] = msgspec.field(default_factory=dict)
    """For `prepare`: our field → the column's name in the source, e.g. question = "Frage"."""


class LoraSection(Section, frozen=True, kw_only=True):
    """The adapter."""

    r: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    lora_alpha: Annotated[float, msgspec.Meta(gt=0, le=4096)] = 16
    lora_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.05
    target_modules: list[str] = msgspec.field(default_factory=list)
    """Empty: all attention and MLP matrices of the model's family."""
    use_rslora: bool = False
    use_dora: bool = False


class TrainSection(Section, frozen=True, kw_only=True):
    """How the adapter is trained."""

    max_length: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] = 2048
    """Tokens of one example; never more than the model's own context length."""
    epochs: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 3.0
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=0.1)] = 2e-4
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.03
    """Share of all steps in which the learning rate rises from 0."""
    micro_batch_rows: Positive = 4
    """Rows of one forward pass on one GPU. A packed row holds several examples, else it holds one."""
    gradient_accumulation_steps: Positive = 1
    packing: Literal["auto", "on", "off"] = "auto"
    """`auto` packs when the self-test passes; `on` refuses a model that leaks."""
    attention: Literal["auto", "sdpa", "varlen", "eager"] = "auto"
    """`varlen`: PyTorch's own attention over documents. `auto`: that on CUDA, else sdpa."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: bf16 where the GPU has it, else fp16; fp32 on a CPU."""
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Compute activations again in the backward pass. `auto`: when the estimate says they would not fit."""
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 42
    save_every_steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    """0: a checkpoint at the end of each epoch."""
    keep_checkpoints: Annotated[int, msgspec.Meta(ge=2, le=100)] = 2
    """At least two, so that a damaged last one leaves another."""
    early_stopping_evaluations: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Stop after so many evaluations without a better one; 0: never."""


class EvalSection(Section, frozen=True, kw_only=True):
    """How answers are generated and scored."""

    generation_items: Annotated[int, msgspec.Meta(ge=0)] = 100
    """Held-out questions answered at the end of each epoch; 0: only the loss."""
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 256
    batch_size: Positive = 16
    select_by: Literal["loss", "token_f1", "rouge_l", "bleu"] = "loss"
    """The best checkpoint is chosen by this; for `loss` less is better."""
    bootstrap_samples: Annotated[int, msgspec.Meta(ge=10, le=100_000)] = 1000


class Recipe(Section, frozen=True, kw_only=True):
    """One fine-tuning run, whole."""

    name: str = ""
    base: BaseSection = BaseSection()
    data: DataSection = DataSection()
    lora: LoraSection = LoraSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    sweep: dict[str, list[Any]] = msgspec.field(default_factory=dict)
    """For `sweep`: a key such as "lora.r" → the values to try."""

    def sha256(self) -> str:
        """Return the SHA-256 over all values: two recipes with the same one train the same way."""
        return recipe_sha256(self)


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, or a preset by its name.

    Args:
        source: a TOML file, or a preset's name such as edge/llama-3.2-1b.
        overrides: `section.key=value` with the value as TOML has it; text needs no quotation marks.

    Raises:
        RecipeError: no such file or preset, no TOML, an unknown key, a value of the wrong type or range.
    """
    path, name = Path(source), str(source).replace("\\", "/")
    known = _bundled()
    if path.suffix != ".toml" and name in known:
        values, where = _preset(name), f"the preset {name}"
    else:
        values, where = _with_preset(read_toml(path, str(path), known), str(path)), str(path)
    values = overridden(values, overrides)
    recipe = as_recipe(values, Recipe, where)
    for key, choices in recipe.sweep.items():
        for choice in choices:
            as_recipe(changed(values, key, choice), Recipe, f"{where}, sweep over {key}")
    return recipe


def changed_recipe(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Return a recipe with some values changed, written as for `load_recipe`.

    Raises:
        RecipeError: an unknown key, or a value of the wrong type or range.
    """
    return as_recipe(overridden(msgspec.to_builtins(recipe), overrides), Recipe, "the changed recipe")


def preset_names() -> list[str]:
    """Return the names of all presets, and of the recipes that come with edgemed: paper/distilgpt2, ..."""
    return sorted(_bundled())


def _bundled() -> dict[str, Traversable]:
    return bundled_recipes("presets/paper", "presets/edge", "recipes")


def _preset(name: str) -> dict[str, Any]:
    known, where = _bundled(), f"the preset {name}"
    return _with_preset(read_toml(known[name], where, known), where)


def _with_preset(values: dict[str, Any], where: str) -> dict[str, Any]:
    name = values.pop("preset", None)
    if name is None:
        return values
    known = preset_names()
    if name not in known:
        raise RecipeError(
            f"{where} names the preset {name!r}, which does not exist.{did_you_mean(str(name), known)}",
            hint=f"There are: {', '.join(known)}.",
        )
    return merged(_preset(name), values)
