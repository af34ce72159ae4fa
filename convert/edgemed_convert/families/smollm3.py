"""SmolLM3: Llama's shape, but every fourth layer has no rotary embedding.

The engine hard-codes which layers those are; a model with another pattern is refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from edgemed_convert.errors import CheckpointError
from edgemed_convert.families import base, config_fields, rope
from edgemed_convert.families.llama import interleave

_NAMES = base.WeightNames(
    layers_prefix="model.layers.",
    layer={**base.ATTENTION, **base.FEED_FORWARD, **base.NORMS},
    outside=base.OUTSIDE,
)
_INTERVAL = 4


class SmolLM3:
    """The family of SmolLM3."""

    architectures = ("SmolLM3ForCausalLM",)
    gguf_architecture = "smollm3"

    def metadata(self, config: Mapping[str, Any]) -> config_fields.Metadata:
        """Return the family's metadata; see `base.Family`."""
        config_fields.require(
            config,
            {
                "hidden_act": ("silu", "swish"),
                "use_sliding_window": (False,),
                "partial_rotary_factor": (1.0,),
                "no_rope_layer_interval": (_INTERVAL,),
            },
        )
        _check_layers_without_rope(config)
        rotary = rope.read_rope(config, kinds=("default", "linear", "yarn"), default_theta=2000000.0)
        fields: config_fields.Metadata = {
            "vocab_size": config_fields.integer(config, "vocab_size"),
            "rope.dimension_count": config_fields.head_length(config),
            "rope.freq_base": rotary.theta,
            **rope.scaling_metadata(rotary, config),
        }
        if config.get("head_dim") is not None:
            fields |= config_fields.head_lengths(config)
        return config_fields.common_metadata("smollm3", config) | config_fields.prefixed("smollm3", fields)

    def tensors(self, model: base.Model, *, tokens: int) -> Iterator[base.OutputTensor]:
        """Yield the file's tensors; see `base.Family`."""
        layers = config_fields.integer(model.config, "num_hidden_layers")
        return base.map_weights(model, _NAMES, layers=layers, tokens=tokens, change=interleave(model.config))

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """Return what the engine does otherwise: nothing."""
        return []


def _check_layers_without_rope(config: Mapping[str, Any]) -> None:
    layers = config_fields.integer(config, "num_hidden_layers")
    expected = [int((index + 1) % _INTERVAL != 0) for index in range(layers)]
    found = config.get("no_rope_layers")
    if found is not None and (not isinstance(found, list) or found[:layers] != expected):
        raise CheckpointError(
            "config.json has rotary positions in other layers (no_rope_layers) than the engine: it leaves "
            f"out every {_INTERVAL}th.",
            hint=config_fields.WRONG_ANSWERS,
        )
