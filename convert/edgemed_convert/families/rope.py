"""Rotary position embedding: what a config asks for, in transformers 5's form or the older ones.

The engine knows a base frequency for all layers (and one for sliding ones), scaling types of its own, and
tables of factors. Whatever a config asks for beyond that is refused.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemed_convert.errors import CheckpointError
from edgemed_convert.families.base import OutputTensor, computed
from edgemed_convert.families.config_fields import WRONG_ANSWERS, Metadata, integer, number

_NAMES_OF_OLD = {"su": "longrope"}
# Read by nobody, or told apart by the functions below.
_KNOWN = {
    "default": set[str](),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
        "original_max_position_embeddings",
    },
    "longrope": {
        "factor", "attention_factor", "long_factor", "short_factor", "original_max_position_embeddings",
    },
}  # fmt: skip
_ALWAYS_KNOWN = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
}


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the layers that attend to everything."""

    kind: str
    """default, linear, llama3, yarn or longrope."""
    theta: float
    options: Mapping[str, Any]
    """The kind's own fields."""


def read_rope(
    config: Mapping[str, Any],
    *,
    kinds: tuple[str, ...],
    default_theta: float,
    layer_type: str = "full_attention",
) -> Rope:
    """Return a config's rotary embedding.

    Args:
        kinds: what the engine runs for this family.
        default_theta: transformers' own, where an older config names none.
        layer_type: of the layers asked about, where a config tells them apart.

    Raises:
        CheckpointError: another kind, or a field that is missing or unknown.
    """
    options = _options(config, layer_type)
    kind = options.get("rope_type") or options.get("type") or "default"
    kind = _NAMES_OF_OLD.get(kind, kind) if isinstance(kind, str) else kind
    if kind not in kinds:
        raise CheckpointError(
            f"config.json asks for rotary positions of type {kind!r}; the engine runs this family with "
            f"{', '.join(kinds)}.",
            hint=WRONG_ANSWERS,
        )
    unknown = sorted(
        name
        for name, value in options.items()
        if value is not None and name not in _KNOWN[kind] | _ALWAYS_KNOWN
    )
    if unknown:
        raise CheckpointError(
            f"config.json has an option {unknown[0]!r} for rotary positions of type {kind!r} that is not "
            "known.",
            hint="This model cannot be exported: its answers might be wrong.",
        )
    theta = options.get("rope_theta")
    theta = number({"rope_theta": theta}, "rope_theta") if theta is not None else default_theta
    return Rope(kind, theta, options)


def scaling_metadata(rope: Rope, config: Mapping[str, Any]) -> Metadata:
    """Return the fields (without the architecture's prefix) of linear and YaRN scaling; else none."""
    if rope.kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": number(rope.options, "factor")}
    if rope.kind != "yarn":
        return {}
    options = rope.options
    if options.get("truncate") is False:
        raise CheckpointError(
            "config.json asks for YaRN positions with truncate = false, which the engine does not know.",
            hint=WRONG_ANSWERS,
        )
    factor = number(options, "factor")
    fields: Metadata = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original_context_length(rope, config),
    }
    # The engine multiplies with 1 + 0.1 ln(factor) by itself; the rest is this field.
    extra = _yarn_attention_factor(options, factor) / _yarn_scale(factor)
    if not math.isclose(extra, 1.0, rel_tol=1e-6):
        fields["rope.scaling.attn_factor"] = extra
    for name in ("beta_fast", "beta_slow"):
        if options.get(name) is not None:
            fields[f"rope.scaling.yarn_{name}"] = number(options, name)
    return fields


def original_context_length(rope: Rope, config: Mapping[str, Any]) -> int:
    """Return how many positions the model was trained on before they were stretched."""
    original = rope.options.get("original_max_position_embeddings") or config.get(
        "original_max_position_embeddings"
    )
    return integer({"original_max_position_embeddings": original}, "original_max_position_embeddings")


def llama3_factors(rope: Rope, *, head_length: int) -> Iterator[OutputTensor]:
    """Yield the table by which Llama 3.1 and later stretch slow frequencies, where the config asks for it."""
    if rope.kind != "llama3":
        return
    options = rope.options
    factor = number(options, "factor")
    low, high = number(options, "low_freq_factor"), number(options, "high_freq_factor")
    original = integer(options, "original_max_position_embeddings")
    if low == high:
        raise CheckpointError("config.json has the same low_freq_factor and high_freq_factor.")
    exponents = np.arange(0, head_length, 2, dtype=np.float32) / np.float32(head_length)
    frequencies = np.float32(1.0) / np.power(np.float32(rope.theta), exponents)
    factors = []
    # float32 throughout, as the reference implementation: the table is compared byte for byte.
    for frequency in frequencies:
        wavelength = np.float32(2 * math.pi) / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
            factors.append(float(np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)))
    yield computed("rope_freqs.weight", factors)


def _options(config: Mapping[str, Any], layer_type: str) -> dict[str, Any]:
    """Return the rotary fields of one type of layer, wherever the config has them."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise CheckpointError("config.json has rope_parameters that are no object.")
    if isinstance(found.get(layer_type), dict):
        found = found[layer_type]
    options = {name: value for name, value in found.items() if not isinstance(value, dict)}
    for name in ("rope_theta", "partial_rotary_factor"):
        if options.get(name) is None and config.get(name) is not None:
            options[name] = config[name]
    return options


def _yarn_scale(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_attention_factor(options: Mapping[str, Any], factor: float) -> float:
    """Return what transformers multiplies the rotated vectors with."""
    if options.get("attention_factor") is not None:
        return number(options, "attention_factor")
    if options.get("mscale") and options.get("mscale_all_dim"):
        return _yarn_scale(factor, number(options, "mscale")) / _yarn_scale(
            factor, number(options, "mscale_all_dim")
        )
    return _yarn_scale(factor)
