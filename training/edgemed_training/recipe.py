"""The recipe: every choice of one fine-tuning run, read from TOML. The structs are the only declaration.

A recipe may begin with `preset = "edge/llama-3.2-1b"`: the preset's values are taken first, the recipe's own
stand over them, and overrides from the command line over both. Read by `prepare`, `check`, `run` and `eval`.
"""

import difflib
import hashlib
import tomllib
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgemed_training.errors import RecipeError

Positive = Annotated[int, msgspec.Meta(ge=1)]
LongAnswers = Literal["sentence", "drop", "hard"]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict and immutable: an unknown key is an error, not a silent loss."""


class BaseSection(_Section, frozen=True, kw_only=True):
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
    template_options: dict[str, bool | int | str] = {}
    """Variables for the chat template, e.g. enable_thinking = false."""
    quantization: Literal["nf4", "none"] = "nf4"
    """NF4 with double quantization, or the weights as they are."""


class DataSection(_Section, frozen=True, kw_only=True):
    """What becomes of the question-answer pairs."""

    system_prompt: str | None = None
    """None: each pair's own, or edgemed's where it has none. "": without a system prompt."""
    long_answers: LongAnswers = "sentence"
    """Cut at the last sentence end that fits, drop, or cut anywhere without an end token."""
    drop_long_prompts: bool = False
    """Leave out pairs whose question alone fills `max_length`, instead of refusing them."""
    columns: dict[str, str] = {}
    """For `prepare`: our field → the column's name in the source, e.g. question = "Frage"."""


class LoraSection(_Section, frozen=True, kw_only=True):
    """The adapter."""

    r: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    lora_alpha: Annotated[float, msgspec.Meta(gt=0, le=4096)] = 16
    lora_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.05
    target_modules: list[str] = []
    """Empty: all attention and MLP matrices of the model's family."""
    use_rslora: bool = False
    use_dora: bool = False


class TrainSection(_Section, frozen=True, kw_only=True):
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


class EvalSection(_Section, frozen=True, kw_only=True):
    """How answers are generated and scored."""

    generation_items: Annotated[int, msgspec.Meta(ge=0)] = 100
    """Held-out questions answered at the end of each epoch; 0: only the loss."""
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 256
    batch_size: Positive = 16
    select_by: Literal["loss", "token_f1", "rouge_l", "bleu"] = "loss"
    """The best checkpoint is chosen by this; for `loss` less is better."""
    bootstrap_samples: Annotated[int, msgspec.Meta(ge=10, le=100_000)] = 1000


class Recipe(_Section, frozen=True, kw_only=True):
    """One fine-tuning run, whole."""

    name: str = ""
    base: BaseSection = BaseSection()
    data: DataSection = DataSection()
    lora: LoraSection = LoraSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    sweep: dict[str, list[Any]] = {}
    """For `sweep`: a key such as "lora.r" → the values to try."""

    def sha256(self) -> str:
        """Return the SHA-256 over all values: two recipes with the same one train the same way."""
        return hashlib.sha256(msgspec.json.encode(msgspec.to_builtins(self), order="sorted")).hexdigest()


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file, or a preset by its name.

    Args:
        source: a TOML file, or a preset's name such as edge/llama-3.2-1b.
        overrides: `section.key=value` with the value as TOML has it; text needs no quotation marks.

    Raises:
        RecipeError: no such file or preset, no TOML, an unknown key, a value of the wrong type or range.
    """
    path, name = Path(source), str(source).replace("\\", "/")
    if path.suffix != ".toml" and name in preset_names():
        values, where = _preset(name), f"the preset {name}"
    else:
        values, where = _with_preset(_read(path), str(path)), str(path)
    for override in overrides:
        _override(values, override)
    recipe = _convert(values, where)
    for key, choices in recipe.sweep.items():
        for choice in choices:
            _convert(_changed(values, key, choice), f"{where}, sweep over {key}")
    return recipe


def changed_recipe(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Return a recipe with some values changed, written as for `load_recipe`.

    Raises:
        RecipeError: an unknown key, or a value of the wrong type or range.
    """
    values = msgspec.to_builtins(recipe)
    for override in overrides:
        _override(values, override)
    return _convert(values, "the changed recipe")


def preset_names() -> list[str]:
    """Return the names of all presets, and of the recipes that come with edgemed: paper/distilgpt2, ..."""
    return sorted(_bundled())


def _bundled() -> dict[str, Traversable]:
    package = resources.files("edgemed_training")
    presets = package / "presets"
    folders = [*(presets / family for family in ("paper", "edge")), package / "recipes"]
    return {
        f"{folder.name}/{file.name.removesuffix('.toml')}": file
        for folder in folders
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    }


def _preset(name: str) -> dict[str, Any]:
    return _with_preset(tomllib.loads(_bundled()[name].read_text(encoding="utf-8")), f"the preset {name}")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise RecipeError(
            f"There is no recipe {path}.", hint=f"Name a TOML file or a preset: {', '.join(preset_names())}."
        ) from error
    except OSError as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(
            f"The recipe {path} is not valid TOML: {error}.", hint="Correct that line."
        ) from error


def _with_preset(values: dict[str, Any], where: str) -> dict[str, Any]:
    name = values.pop("preset", None)
    if name is None:
        return values
    known = preset_names()
    if name not in known:
        raise RecipeError(
            f"{where} names the preset {name!r}, which does not exist.{_meant(str(name), known)}",
            hint=f"There are: {', '.join(known)}.",
        )
    return _merged(_preset(name), values)


def _merged(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `under` with the values of `over` in their place, section by section."""
    both = dict(under)
    for key, value in over.items():
        both[key] = _merged(both[key], value) if isinstance(value, dict) and key in both else value
    return both


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or "." not in key:
        raise RecipeError(
            f"{override!r} does not change a recipe.",
            hint="Write section.key=value, for example train.epochs=1.",
        )
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    values.update(_changed(values, key.strip(), value))


def _changed(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    section, _dot, rest = key.partition(".")
    nested: dict[str, Any] = {rest: value} if rest else {}
    return _merged(dict(values), {section: nested if rest else value})


def _convert(values: Mapping[str, Any], where: str) -> Recipe:
    _refuse_unknown_keys(values, Recipe, where, "")
    try:
        return msgspec.convert(values, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"In {where}: {_readable(error)}.", hint="Correct this value.") from error


def _readable(error: msgspec.ValidationError) -> str:
    """Turn msgspec's `… - at `$.train.epochs`` into `train.epochs: …`."""
    message, separator, place = str(error).rpartition(" - at `$.")
    return f"{place.rstrip('`')}: {message}" if separator else str(error)


def _refuse_unknown_keys(values: Mapping[str, Any], section: type, where: str, prefix: str) -> None:
    known = typing.get_type_hints(section)
    for key, value in values.items():
        if key not in known:
            raise RecipeError(
                f"In {where} there is no key {prefix}{key}.{_meant(prefix + key, [*known, *_all_keys()])}",
                hint=f"Known here: {', '.join(known)}.",
            )
        if isinstance(value, dict) and isinstance(known[key], type) and issubclass(known[key], _Section):
            _refuse_unknown_keys(value, known[key], where, f"{prefix}{key}.")


def _all_keys() -> list[str]:
    return [
        f"{section}.{key}"
        for section, kind in typing.get_type_hints(Recipe).items()
        if isinstance(kind, type) and issubclass(kind, _Section)
        for key in typing.get_type_hints(kind)
    ]


def _meant(key: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(key, list(known), n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""
