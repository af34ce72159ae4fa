"""Phi-3 and Phi-4-mini: q, k and v fused, gate and up fused, both kept so; rotary on a part of each head.

The long-context models carry two tables of rotary factors, for short and long contexts.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from edgemed_convert.errors import CheckpointError
from edgemed_convert.families import base, config_fields, rope
from edgemed_convert.families.llama import window_notes

_NAMES = base.WeightNames(
    layers_prefix="model.layers.",
    layer={
        "self_attn.qkv_proj.weight": "attn_qkv.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "mlp.gate_up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
        **base.NORMS,
    },
    outside=base.OUTSIDE,
)


class Phi3:
    """The family of Phi-3, Phi-3.5-mini and Phi-4-mini."""

    architectures = ("Phi3ForCausalLM",)
    gguf_architecture = "phi3"

    def metadata(self, config: Mapping[str, Any]) -> config_fields.Metadata:
        """Return the family's metadata; see `base.Family`."""
        hidden, heads = (
            config_fields.integer(config, name) for name in ("hidden_size", "num_attention_heads")
        )
        config_fields.require(config, {"hidden_act": ("silu", "swish"), "head_dim": (hidden // heads,)})
        rotary = _rope(config)
        fields: config_fields.Metadata = {
            "rope.dimension_count": _rotary_length(config, rotary),
            "rope.freq_base": rotary.theta,
            "rope.scaling.original_context_length": _original_context_length(config, rotary),
            # 0 tells the engine that there is none; it applies none for this family in any case.
            "attention.sliding_window": _window(config),
        }
        if rotary.kind == "longrope":
            fields["rope.scaling.attn_factor"] = _attention_factor(config, rotary)
        return config_fields.common_metadata("phi3", config) | config_fields.prefixed("phi3", fields)

    def tensors(self, model: base.Model, *, tokens: int) -> Iterator[base.OutputTensor]:
        """Yield the file's tensors; see `base.Family`."""
        rotary = _rope(model.config)
        if rotary.kind == "longrope":
            for name in ("long", "short"):
                yield _factors(name, rotary, _rotary_length(model.config, rotary))
        layers = config_fields.integer(model.config, "num_hidden_layers")
        yield from base.map_weights(model, _NAMES, layers=layers, tokens=tokens)

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """Return what the engine does otherwise."""
        rotary = _rope(config)
        if rotary.kind != "longrope":
            return window_notes(config)
        original = _original_context_length(config, rotary)
        return [
            *window_notes(config),
            (
                f"The model has other rotary factors for conversations longer than {original:,} tokens. The "
                "engine chooses by its context length, transformers by the text: with a context length "
                f"above {original:,} short texts are answered otherwise."
            ),
        ]


def _window(config: Mapping[str, Any]) -> int:
    return config_fields.integer(config, "sliding_window") if config.get("sliding_window") else 0


def _rope(config: Mapping[str, Any]) -> rope.Rope:
    return rope.read_rope(config, kinds=("default", "longrope"), default_theta=10000.0)


def _rotary_length(config: Mapping[str, Any], rotary: rope.Rope) -> int:
    share = config_fields.number(rotary.options, "partial_rotary_factor", default=1.0)
    length = int(config_fields.head_length(config) * share)
    if length % 2 or not length:
        raise CheckpointError(f"config.json makes {length} elements of each head rotary: not an even number.")
    return length


def _original_context_length(config: Mapping[str, Any], rotary: rope.Rope) -> int:
    if rotary.kind == "longrope":
        return rope.original_context_length(rotary, config)
    longest = config_fields.integer(config, "max_position_embeddings")
    return config_fields.integer(config, "original_max_position_embeddings", default=longest)


def _attention_factor(config: Mapping[str, Any], rotary: rope.Rope) -> float:
    if rotary.options.get("attention_factor") is not None:
        return config_fields.number(rotary.options, "attention_factor")
    original = _original_context_length(config, rotary)
    longest = config_fields.integer(config, "max_position_embeddings")
    scale = config_fields.number(rotary.options, "factor", default=longest / original)
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _factors(name: str, rotary: rope.Rope, rotary_length: int) -> base.OutputTensor:
    factors = rotary.options.get(f"{name}_factor")
    numbers = [value for value in factors if type(value) in (int, float)] if isinstance(factors, list) else []
    if factors != numbers or len(numbers) != rotary_length // 2:
        raise CheckpointError(
            f"config.json must have {rotary_length // 2} numbers as {name}_factor of its rotary positions.",
            hint=config_fields.NOT_WHOLE,
        )
    return base.computed(f"rope_factors_{name}.weight", [float(value) for value in numbers])
