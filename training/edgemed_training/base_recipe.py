"""The recipe of a base model trained from scratch: shape, tokenizer and schedule, read from TOML.

The structs are the only declaration. Recipes that come with edgemed have names: base/edge_base_8m.
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

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
LearningRate = Annotated[float, msgspec.Meta(gt=0, le=1)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
BYTES_AND_SPECIAL_TOKENS = 256 + 3
"""The smallest vocabulary: every byte, and the special tokens."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict and immutable: an unknown key is an error, not a silent loss."""


class ModelSection(_Section, frozen=True, kw_only=True):
    """The shape, of Llama's architecture with tied embeddings."""

    hidden_size: Annotated[int, msgspec.Meta(ge=8, le=16_384)] = 256
    layers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    heads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    """Attention heads; they share hidden_size evenly."""
    key_value_heads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 2
    feed_forward_size: Annotated[int, msgspec.Meta(ge=8, le=131_072)] = 768
    context_length: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] = 2048
    """Tokens; what the model says it can hold, whatever the windows it was trained on."""
    rope_theta: Annotated[float, msgspec.Meta(gt=1)] = 10_000.0

    def __post_init__(self) -> None:
        """Refuse a shape whose parts do not divide each other."""
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}")
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads {self.heads} is not divisible by key_value_heads {self.key_value_heads}")
        if self.hidden_size // self.heads % 2:
            raise ValueError(f"hidden_size / heads is {self.hidden_size // self.heads}, which is odd")


class TokenizerSection(_Section, frozen=True, kw_only=True):
    """The byte-level BPE tokenizer."""

    vocabulary_size: Annotated[int, msgspec.Meta(ge=BYTES_AND_SPECIAL_TOKENS, le=1_000_000)] = 8192
    """Tokens, special ones included; data that cannot fill it are refused."""


class TrainSection(_Section, frozen=True, kw_only=True):
    """How the model is trained."""

    window_tokens: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] = 512
    """Tokens of one row; documents follow each other and are cut where a window ends."""
    batch_tokens: Positive = 8192
    """Tokens of one step: a multiple of window_tokens."""
    steps: Positive = 1992
    warmup_steps: NotNegative = 100
    """Steps in which the learning rates rise."""
    decay_steps: NotNegative = 640
    """The last steps, in which the learning rates fall linearly."""
    muon_learning_rate: LearningRate = 0.02
    """For the matrices of attention and MLP."""
    muon_momentum: Share = 0.95
    muon_weight_decay: Share = 0.01
    adamw_learning_rate: LearningRate = 0.004
    """For embeddings and norms."""
    adamw_beta1: Share = 0.9
    adamw_beta2: Share = 0.95
    adamw_weight_decay: Share = 0.0
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the matrix products; weights and optimizer state are always float32."""
    max_gradient_norm: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    save_every_steps: Positive = 100
    keep_checkpoints: Annotated[int, msgspec.Meta(ge=2, le=100)] = 2
    """At least two, so that a damaged last one leaves another."""

    def __post_init__(self) -> None:
        """Refuse batches that are no whole windows, and a schedule longer than the run."""
        if self.batch_tokens % self.window_tokens:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is not divisible by window_tokens {self.window_tokens}"
            )
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} are more than "
                f"steps {self.steps}"
            )

    @property
    def batch_rows(self) -> int:
        """Return the windows of one step."""
        return self.batch_tokens // self.window_tokens

    def rate_share(self, step: int) -> float:
        """Return what the learning rates are multiplied with: it rises, stays 1, falls linearly, never 0.

        Args:
            step: from 0.
        """
        rising = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decayed = step - (self.steps - self.decay_steps)
        return rising * (1 - decayed / self.decay_steps) if decayed > 0 else rising


class BaseRecipe(_Section, frozen=True, kw_only=True):
    """One base model, whole."""

    name: str = ""
    license: str = ""
    """Of the weights."""
    model: ModelSection = ModelSection()
    tokenizer: TokenizerSection = TokenizerSection()
    train: TrainSection = TrainSection()

    def __post_init__(self) -> None:
        """Refuse windows that the model cannot hold."""
        if self.train.window_tokens > self.model.context_length:
            raise ValueError(
                f"train.window_tokens {self.train.window_tokens} is more than "
                f"model.context_length {self.model.context_length}"
            )

    def sha256(self) -> str:
        """Return the SHA-256 over all values: two recipes with the same one train the same way."""
        return hashlib.sha256(msgspec.json.encode(msgspec.to_builtins(self), order="sorted")).hexdigest()


def load_base_recipe(source: str | Path, overrides: Iterable[str] = ()) -> BaseRecipe:
    """Read the recipe of a base model.

    Args:
        source: a TOML file, or the name of a recipe that comes with edgemed: base/edge_base_8m.
        overrides: `section.key=value` with the value as TOML has it; text needs no quotation marks.

    Raises:
        RecipeError: no such file or name, no TOML, an unknown key, a value of the wrong type or range.
    """
    name = str(source).replace("\\", "/")
    values = _read(_bundled().get(name, Path(source)), str(source))
    for override in overrides:
        _override(values, override)
    _refuse_unknown_keys(values, BaseRecipe, str(source), "")
    try:
        return msgspec.convert(values, BaseRecipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"In {source}: {_readable(error)}.", hint="Correct this value.") from error


def base_recipe_names() -> list[str]:
    """Return the names of the base models' recipes that come with edgemed."""
    return sorted(_bundled())


def _bundled() -> dict[str, Traversable]:
    folder = resources.files("edgemed_training") / "recipes" / "base"
    files = [file for file in folder.iterdir() if file.name.endswith(".toml")]
    return {f"base/{file.name.removesuffix('.toml')}": file for file in files}


def _read(file: Traversable, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise RecipeError(
            f"There is no recipe {where}.",
            hint=f"Name a TOML file or one of: {', '.join(base_recipe_names())}.",
        ) from error
    except OSError as error:
        raise RecipeError(f"The recipe {where} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(
            f"The recipe {where} is not valid TOML: {error}.", hint="Correct that line."
        ) from error


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    section, _dot, key = path.strip().partition(".")
    if not (equals and key):
        raise RecipeError(
            f"{override!r} does not change a recipe.",
            hint="Write section.key=value, for example train.steps=100.",
        )
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    kept = values.get(section, {})
    values[section] = {**(kept if isinstance(kept, dict) else {}), key: value}


def _readable(error: msgspec.ValidationError) -> str:
    """Turn msgspec's `… - at `$.train.steps`` into `train.steps: …`."""
    message, separator, place = str(error).rpartition(" - at `$.")
    return f"{place.rstrip('`')}: {message}" if separator else str(error)


def _refuse_unknown_keys(values: Mapping[str, Any], section: type, where: str, prefix: str) -> None:
    known = typing.get_type_hints(section)
    for key, value in values.items():
        if key not in known:
            nearest = difflib.get_close_matches(prefix + key, [*known, *_all_keys()], n=1)
            meant = f" Did you mean {nearest[0]}?" if nearest else ""
            raise RecipeError(
                f"In {where} there is no key {prefix}{key}.{meant}", hint=f"Known here: {', '.join(known)}."
            )
        if isinstance(value, dict) and isinstance(known[key], type) and issubclass(known[key], _Section):
            _refuse_unknown_keys(value, known[key], where, f"{prefix}{key}.")


def _all_keys() -> list[str]:
    return [
        f"{section}.{key}"
        for section, kind in typing.get_type_hints(BaseRecipe).items()
        if isinstance(kind, type) and issubclass(kind, _Section)
        for key in typing.get_type_hints(kind)
    ]
