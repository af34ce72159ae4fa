"""What `training_speed` compares: shapes of models, ways to train, and what all of them share.

Needs nothing but Python: it is read in the environments of the others, too.
"""

from dataclasses import dataclass
from typing import Literal

RANK = ALPHA = 16
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Shape:
    """A Llama without its weights."""

    vocabulary: int
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    tied: bool
    """The output head is the embedding table."""

    def parameters_without_embedding(self) -> int:
        """Return N of the FLOP ceiling: all weights but the embedding table; a tied head is not counted either."""
        attention = self.hidden * self.head_size * 2 * (self.heads + self.key_value_heads)
        layer = attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        head = 0 if self.tied else self.vocabulary * self.hidden
        return self.layers * layer + self.hidden + head


SHAPES = {
    "tiny": Shape(512, 64, 128, 2, 4, 2, 16, tied=False),
    "1b": Shape(128256, 2048, 8192, 16, 32, 8, 64, tied=True),  # Llama 3.2 1B
    "8b": Shape(128256, 4096, 14336, 32, 32, 8, 128, tied=False),  # Llama 3 8B
}


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    library: Literal["edgemed", "trl", "unsloth"]
    packed: bool
    dropout: float
    recompute: Literal["off", "on", "unsloth"]
    """Whether activations are computed again in the backward pass; TRL's and Unsloth's are their defaults."""


ARMS = {
    "ours-padded": Arm("edgemed", packed=False, dropout=0.25, recompute="off"),
    "ours-padded-recompute": Arm("edgemed", packed=False, dropout=0.25, recompute="on"),
    "ours-packed": Arm("edgemed", packed=True, dropout=0.25, recompute="off"),
    "ours-packed-recompute": Arm("edgemed", packed=True, dropout=0.25, recompute="on"),
    "ours-packed-d0": Arm("edgemed", packed=True, dropout=0.0, recompute="off"),
    "ours-packed-recompute-d0": Arm("edgemed", packed=True, dropout=0.0, recompute="on"),
    "trl-default": Arm("trl", packed=False, dropout=0.25, recompute="on"),
    "trl-packed": Arm("trl", packed=True, dropout=0.25, recompute="on"),
    "unsloth-default": Arm("unsloth", packed=False, dropout=0.25, recompute="unsloth"),
    "unsloth-packed": Arm("unsloth", packed=True, dropout=0.25, recompute="unsloth"),
    "unsloth-default-d0": Arm("unsloth", packed=False, dropout=0.0, recompute="unsloth"),
    "unsloth-packed-d0": Arm("unsloth", packed=True, dropout=0.0, recompute="unsloth"),
}


@dataclass(frozen=True)
class Job:
    """What all arms of one model size share."""

    size: str
    base: str
    """Folder of the random model."""
    rows: str
    """File: `train` and `heldout`, each a list of [token ids, length of the prompt]."""
    max_length: int
    packed_rows: int
    """Rows of `max_length` tokens in a micro-step of the packed arms; one micro-step is an optimizer step."""
    padded_examples: int
    """Examples in a micro-step of the padded arms."""
    accumulation: int
    """Micro-steps of the padded arms in an optimizer step."""
    warmup_steps: int
    """Optimizer steps before the clock starts."""
    learning_rate: float
    seed: int
