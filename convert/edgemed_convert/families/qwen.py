"""Qwen2, Qwen2.5 and Qwen3: no reordering; Qwen2 has biases on q, k and v, Qwen3 norms on q and k."""

from collections.abc import Iterator, Mapping
from typing import Any

from edgemed_convert.families import base, config_fields, rope

_QWEN2_NAMES = base.WeightNames(
    layers_prefix="model.layers.",
    layer={**base.ATTENTION, **base.ATTENTION_BIAS, **base.FEED_FORWARD, **base.NORMS},
    outside=base.OUTSIDE,
)
_QWEN3_NAMES = base.WeightNames(
    layers_prefix="model.layers.",
    layer={**base.ATTENTION, **base.ATTENTION_NORMS, **base.FEED_FORWARD, **base.NORMS},
    outside=base.OUTSIDE,
)
_ALLOWED = {
    "hidden_act": ("silu", "swish"),
    # The engine has no window for these families.
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1.0,),
}


class Qwen2:
    """The family of Qwen2 and Qwen2.5."""

    architectures = ("Qwen2ForCausalLM",)
    gguf_architecture = "qwen2"

    def metadata(self, config: Mapping[str, Any]) -> config_fields.Metadata:
        """Return the family's metadata; see `base.Family`."""
        hidden, heads = (
            config_fields.integer(config, name) for name in ("hidden_size", "num_attention_heads")
        )
        # The engine has no other head length for Qwen2.
        config_fields.require(config, {**_ALLOWED, "head_dim": (hidden // heads,)})
        config_fields.head_length(config)
        return config_fields.common_metadata("qwen2", config) | config_fields.prefixed(
            "qwen2", _rotary(config)
        )

    def tensors(self, model: base.Model, *, tokens: int) -> Iterator[base.OutputTensor]:
        """Yield the file's tensors; see `base.Family`."""
        layers = config_fields.integer(model.config, "num_hidden_layers")
        return base.map_weights(model, _QWEN2_NAMES, layers=layers, tokens=tokens)

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """Return what the engine does otherwise: nothing."""
        return []


class Qwen3:
    """The family of Qwen3's dense models."""

    architectures = ("Qwen3ForCausalLM",)
    gguf_architecture = "qwen3"

    def metadata(self, config: Mapping[str, Any]) -> config_fields.Metadata:
        """Return the family's metadata; see `base.Family`."""
        config_fields.require(config, _ALLOWED)
        # transformers' default is 128, whatever the hidden size.
        lengths = config_fields.head_lengths({**config, "head_dim": config.get("head_dim") or 128})
        fields = {**_rotary(config), **lengths}
        return config_fields.common_metadata("qwen3", config) | config_fields.prefixed("qwen3", fields)

    def tensors(self, model: base.Model, *, tokens: int) -> Iterator[base.OutputTensor]:
        """Yield the file's tensors; see `base.Family`."""
        layers = config_fields.integer(model.config, "num_hidden_layers")
        return base.map_weights(model, _QWEN3_NAMES, layers=layers, tokens=tokens)

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """Return what the engine does otherwise: nothing."""
        return []


def _rotary(config: Mapping[str, Any]) -> config_fields.Metadata:
    rotary = rope.read_rope(config, kinds=("default", "linear", "yarn"), default_theta=10000.0)
    return {"rope.freq_base": rotary.theta, **rope.scaling_metadata(rotary, config)}
