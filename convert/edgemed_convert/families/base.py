"""What all families share: where each weight goes, and how its rows are read.

A family says how its Hugging Face weights become GGUF tensors. It refuses what the engine (llama.cpp) would
not run as transformers does: a weight without a place, a weight that is missing, an option that changes the
maths.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemed_convert.checkpoint import HEAD, is_tied
from edgemed_convert.errors import CheckpointError
from edgemed_convert.families.config_fields import Metadata
from edgemed_convert.safetensors_file import FloatArray, Tensor, Weights, row_blocks


class Model(Protocol):
    """A base model, with or without adapters applied."""

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""

    @property
    def architecture(self) -> str:
        """Its class in transformers."""

    @property
    def weights(self) -> Weights:
        """Its tensors by Hugging Face name, in the files' order."""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the GGUF file."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as Hugging Face has it."""
    read: Callable[[int, int], FloatArray]
    """Rows from start to stop as float32."""
    hf_names: tuple[str, ...]
    """The weights it is made of; empty for what is computed from the config."""
    keep_f32: bool
    """Vectors and tables that the engine wants in F32 whatever the file's type."""
    stored_type: str = "F32"
    read_stored: Callable[[int, int], NDArray[Any] | None] | None = None
    """The same rows as they are stored, where the numbers need no change."""


class Family(Protocol):
    """Models that the engine runs under one name of architecture."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """Transformers' names of its classes."""

    @property
    def gguf_architecture(self) -> str:
        """The engine's name."""

    def metadata(self, config: Mapping[str, Any]) -> Metadata:
        """Return all metadata but the tokenizer's.

        Raises:
            CheckpointError: a field is missing, or an option is one that the engine has no place for.
        """

    def tensors(self, model: Model, *, tokens: int) -> Iterator[OutputTensor]:
        """Return the file's tensors, in the order of the model's weights.

        Args:
            tokens: how many the file's vocabulary holds.

        Raises:
            CheckpointError: a weight is missing, left over, or of a shape that does not fit the config.
        """

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """Return what the engine does otherwise than transformers, in whole sentences."""


@dataclass(frozen=True)
class Change:
    """How a weight's numbers differ in the GGUF; by default not at all."""

    row_order: NDArray[np.intp] | None = None
    offset: float = 0.0
    transposed: bool = False


UNCHANGED = Change()


@dataclass(frozen=True)
class WeightNames:
    """Where each Hugging Face weight goes.

    `layer` maps names behind `layers.N.` to names behind `blk.N.`; weights whose name ends with one of
    `optional` may be absent, but then in all layers.
    """

    layers_prefix: str
    layer: Mapping[str, str]
    outside: Mapping[str, str]
    optional: tuple[str, ...] = field(default=())


# Names that most families have.

ATTENTION = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
}
ATTENTION_BIAS = {
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
}
ATTENTION_NORMS = {
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
}
FEED_FORWARD = {
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
NORMS = {"input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "ffn_norm.weight"}
EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
OUTSIDE = {"model.embed_tokens.weight": EMBEDDING, "model.norm.weight": "output_norm.weight", HEAD: OUTPUT}


# Weights.


def interleaved_rows(rows: int, heads: int) -> NDArray[np.intp]:
    """Return the order of q or k rows that turns rotary halves into the engine's rotary pairs.

    Hugging Face rotates element i of a head with element i + d/2, the engine with its neighbour: new row 2i
    is old row i, new row 2i + 1 is old row i + d/2 of the same head (read from the MIT-licensed converter of
    llama.cpp).
    """
    return np.arange(rows, dtype=np.intp).reshape(heads, 2, -1).swapaxes(1, 2).reshape(rows)


def map_weights(
    model: Model,
    names: WeightNames,
    *,
    layers: int,
    tokens: int,
    change: Callable[[str, Tensor], Change] = lambda _name, _tensor: UNCHANGED,
) -> Iterator[OutputTensor]:
    """Yield a tensor for each weight, after all of them were found to be there.

    Args:
        change: from the Hugging Face name and the weight to what becomes of its numbers.

    Raises:
        CheckpointError: a weight is missing or has no place, or the embedding does not fit the vocabulary.
    """
    places = _places(model, names, layers)
    if (
        HEAD in places
        and is_tied(dict(model.config))
        and same_numbers(model.weights, HEAD, embedding(places))
    ):
        del places[HEAD]
    _check_embedding(model, embedding(places), tokens)
    for name, place in places.items():
        tensor = model.weights[name]
        yield _output(name, place, tensor, change(name, tensor))


def embedding(places: Mapping[str, str]) -> str:
    """Return the Hugging Face name of the token embedding."""
    return next(name for name, place in places.items() if place == EMBEDDING)


def computed(name: str, numbers: list[float]) -> OutputTensor:
    """Return a tensor made from the config, such as rotary factors."""
    values = np.array(numbers, dtype=np.float32)
    return OutputTensor(name, values.shape, lambda start, stop: values[start:stop], (), keep_f32=True)


def same_numbers(weights: Weights, first: str, second: str) -> bool:
    """Whether two weights hold the same numbers; reads them in row blocks, and stops at a difference."""
    one, other = weights[first], weights[second]
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.read(rows), other.read(rows)) for rows in row_blocks(one.shape))


def _places(model: Model, names: WeightNames, layers: int) -> dict[str, str]:
    """Return Hugging Face name → GGUF name for the model's weights, in their order."""
    places = {name: _place(name, names, layers) for name in model.weights}
    for name, place in places.items():
        if place is None:
            raise CheckpointError(
                f"The weight {name} has no place in a GGUF file of {model.architecture}.",
                hint="The engine would ignore it and answer otherwise: this model cannot be exported.",
            )
    found = {name: place for name, place in places.items() if place is not None}
    for name in _required(model, names, layers):
        if name not in found:
            raise CheckpointError(
                f"The weight {name} is missing.",
                hint="Copy or download the model again; a shard may be lost, or config.json belongs to "
                "another model.",
            )
    return found


def _place(name: str, names: WeightNames, layers: int) -> str | None:
    if name in names.outside:
        return names.outside[name]
    if not name.startswith(names.layers_prefix):
        return None
    index, _, rest = name.removeprefix(names.layers_prefix).partition(".")
    if not (index.isascii() and index.isdecimal() and str(int(index)) == index and int(index) < layers):
        return None
    return f"blk.{index}.{names.layer[rest]}" if rest in names.layer else None


def _required(model: Model, names: WeightNames, layers: int) -> Iterator[str]:
    """Yield every weight that must be there: an optional one as soon as one layer has it."""
    present = {
        name.removeprefix(names.layers_prefix).partition(".")[2]
        for name in model.weights
        if name.startswith(names.layers_prefix)
    }
    for name in names.outside:
        if name != HEAD or not is_tied(dict(model.config)):
            yield name
    for rest in names.layer:
        if rest in present or not rest.endswith(names.optional):
            yield from (f"{names.layers_prefix}{index}.{rest}" for index in range(layers))


def _check_embedding(model: Model, name: str, tokens: int) -> None:
    width = model.config.get("hidden_size", model.config.get("n_embd"))
    for weight in (name, HEAD):
        shape = model.weights[weight].shape if weight in model.weights else (tokens, width)
        if len(shape) != 2 or shape[1] != width:
            raise CheckpointError(
                f"{weight} has the shape {list(shape)}, but config.json makes rows of {width} numbers.",
                hint="Use the config that was saved with these weights.",
            )
        if shape[0] != tokens:
            raise CheckpointError(
                f"{weight} has {shape[0]:,} rows, but config.json and tokenizer make {tokens:,} tokens.",
                hint="Use the tokenizer and the config that were saved with these weights.",
            )


def _output(name: str, place: str, tensor: Tensor, change: Change) -> OutputTensor:
    shape = tuple(reversed(tensor.shape)) if change.transposed else tensor.shape
    keep_f32 = len(shape) < 2 or not place.endswith(".weight") or place.endswith("_norm.weight")
    order = change.row_order

    def rows(start: int, stop: int) -> Any:
        return slice(start, stop) if order is None else order[start:stop]

    def read(start: int, stop: int) -> FloatArray:
        if change.transposed:
            # Only GPT-2 has such weights, of 40 MB at most: whole, its columns are the rows asked for.
            return np.ascontiguousarray(tensor.read(slice(0, tensor.shape[0]))[:, start:stop].T)
        numbers = tensor.read(rows(start, stop))
        return numbers + np.float32(change.offset) if change.offset else numbers

    def read_stored(start: int, stop: int) -> NDArray[Any] | None:
        return tensor.read_stored(rows(start, stop))

    unchanged = not (change.transposed or change.offset)
    return OutputTensor(
        place, shape, read, (name,), keep_f32, tensor.type_name, read_stored if unchanged else None
    )
