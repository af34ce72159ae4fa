"""The recipes of a small model from scratch, read from TOML: a base from text, and a chat model from it.

`stage = "chat"` marks a recipe of the second kind. The structs are the only declaration. Recipes that come
with edgemed have names: base/edge_base_8m, base/edge_chat_8m.
"""

from collections.abc import Iterable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgemed_training.recipe_file import (
    Section,
    as_recipe,
    bundled_recipes,
    overridden,
    read_toml,
    recipe_sha256,
)

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
LearningRate = Annotated[float, msgspec.Meta(gt=0, le=1)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
NotEmpty = Annotated[str, msgspec.Meta(min_length=1)]
BYTES_AND_SPECIAL_TOKENS = 256 + 3
"""The smallest vocabulary: every byte, and the special tokens."""


class ModelSection(Section, frozen=True, kw_only=True):
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


class TokenizerSection(Section, frozen=True, kw_only=True):
    """The byte-level BPE tokenizer."""

    vocabulary_size: Annotated[int, msgspec.Meta(ge=BYTES_AND_SPECIAL_TOKENS, le=1_000_000)] = 8192
    """Tokens, special ones included; data that cannot fill it are refused."""


class StepsSection(Section, frozen=True, kw_only=True):
    """What the steps of both stages have in common."""

    window_tokens: Annotated[int, msgspec.Meta(ge=16, le=1_048_576)] = 512
    """Tokens of one row."""
    batch_tokens: Positive = 8192
    """Tokens of one step: a multiple of window_tokens."""
    steps: Positive
    warmup_steps: NotNegative
    """Steps in which the learning rates rise."""
    adamw_learning_rate: LearningRate
    adamw_beta1: Share = 0.9
    adamw_beta2: Share = 0.95
    adamw_weight_decay: Share
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
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is more than steps {self.steps}")

    @property
    def batch_rows(self) -> int:
        """Return the rows of one step."""
        return self.batch_tokens // self.window_tokens

    def rate_share(self, step: int) -> float:
        """Return what the learning rates are multiplied with: above 0, at most 1.

        Args:
            step: from 0.
        """
        return min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0


class TrainSection(StepsSection, frozen=True, kw_only=True):
    """How the base is trained: on documents that follow each other and are cut where a window ends."""

    steps: Positive = 1992
    warmup_steps: NotNegative = 100
    decay_steps: NotNegative = 640
    """The last steps, in which the learning rates fall linearly."""
    muon_learning_rate: LearningRate = 0.02
    """For the matrices of attention and MLP."""
    muon_momentum: Share = 0.95
    muon_weight_decay: Share = 0.01
    adamw_learning_rate: LearningRate = 0.004
    """For embeddings and norms."""
    adamw_weight_decay: Share = 0.0

    def __post_init__(self) -> None:
        """Refuse a schedule longer than the run."""
        StepsSection.__post_init__(self)
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} are more than "
                f"steps {self.steps}"
            )

    def rate_share(self, step: int) -> float:
        """Return a share that rises, stays 1, and falls linearly, never to 0."""
        rising = StepsSection.rate_share(self, step)
        decayed = step - (self.steps - self.decay_steps)
        return rising * (1 - decayed / self.decay_steps) if decayed > 0 else rising


class ChatTrainSection(StepsSection, frozen=True, kw_only=True):
    """How the chat model is trained: on conversations that fill a row greedily, AdamW for all weights."""

    steps: Positive = 130
    warmup_steps: NotNegative = 20
    adamw_learning_rate: LearningRate = 6e-4
    adamw_weight_decay: Share = 0.01
    save_every_steps: Positive = 10

    def rate_share(self, step: int) -> float:
        """Return a share that rises while it falls linearly over all steps, never to 0."""
        return StepsSection.rate_share(self, step) * (1 - step / self.steps)


class ChatSection(Section, frozen=True, kw_only=True):
    """Which pairs become conversations, and under which system prompts."""

    system_prompts: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("",)
    """One is drawn for each conversation; "": none. One that stands twice is drawn twice as often."""
    max_answer_characters: Positive = 1100
    """A longer answer is cut at the last end of a sentence before."""
    min_cut_characters: NotNegative = 200
    """A pair whose answer would be cut at or before this character is left out."""
    leave_out_beginning: tuple[NotEmpty, ...] = ()
    """Answers that begin so are left out, such as lists of links."""
    leave_out_containing: tuple[NotEmpty, ...] = ()
    """Answers in which this stands are left out, such as tables that have become text."""


class BaseRecipe(Section, frozen=True, kw_only=True):
    """One base model, whole."""

    stage: Literal["text"] = "text"
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
        return recipe_sha256(self)


class ChatRecipe(Section, frozen=True, kw_only=True):
    """One chat model made of a base, whole."""

    stage: Literal["chat"]
    name: str = ""
    license: str = ""
    """Of the weights."""
    chat: ChatSection = ChatSection()
    train: ChatTrainSection = ChatTrainSection()

    def sha256(self) -> str:
        """Return the SHA-256 over all values: two recipes with the same one train the same way."""
        return recipe_sha256(self)


def load_base_recipe(source: str | Path, overrides: Iterable[str] = ()) -> BaseRecipe | ChatRecipe:
    """Read the recipe of either stage.

    Args:
        source: a TOML file, or the name of a recipe that comes with edgemed: base/edge_base_8m.
        overrides: `section.key=value` with the value as TOML has it; text needs no quotation marks.

    Raises:
        RecipeError: no such file or name, no TOML, an unknown key, a value of the wrong type or range.
    """
    known, where = _bundled(), str(source)
    values = read_toml(known.get(where.replace("\\", "/"), Path(source)), where, known)
    values = overridden(values, overrides)
    if values.get("stage", "text") == "chat":
        return as_recipe(values, ChatRecipe, where)
    return as_recipe(values, BaseRecipe, where)


def base_recipe_names() -> list[str]:
    """Return the names of the recipes that come with edgemed for models from scratch."""
    return sorted(_bundled())


def _bundled() -> dict[str, Traversable]:
    return bundled_recipes("recipes/base")
