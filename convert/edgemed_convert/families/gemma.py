"""Gemma 1 and 1.1, and the text models of Gemma 3.

Special here: norms are stored as their distance from 1, so 1 is added; the embedding's scale is in the
engine. Gemma 1 has no place for a head of its own; Gemma 3 has sliding layers with a rotary base of their
own.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from edgemed_convert.checkpoint import HEAD, is_tied
from edgemed_convert.errors import CheckpointError
from edgemed_convert.families import base, config_fields, rope
from edgemed_convert.safetensors_file import Tensor

_GEMMA_NAMES = base.WeightNames(
    layers_prefix="model.layers.",
    layer={**base.ATTENTION, **base.FEED_FORWARD, **base.NORMS},
    outside=base.OUTSIDE,
)
_GEMMA3_NAMES = base.WeightNames(
    layers_prefix="model.layers.",
    layer={
        **base.ATTENTION,
        **base.ATTENTION_NORMS,
        **base.FEED_FORWARD,
        "input_layernorm.weight": "attn_norm.weight",
        "post_attention_layernorm.weight": "post_attention_norm.weight",
        "pre_feedforward_layernorm.weight": "ffn_norm.weight",
        "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    },
    outside=base.OUTSIDE,
)
# "gelu" in Gemma's first configs means this approximation, too; transformers reads it so.
_GELU = ("gelu_pytorch_tanh", "gelu")
_PATTERN = 6
_LAYERS_OF_27B = 62
_LOCAL_THETA = 10000.0


class Gemma:
    """The family of Gemma 1 and 1.1."""

    architectures = ("GemmaForCausalLM",)
    gguf_architecture = "gemma"

    def metadata(self, config: Mapping[str, Any]) -> config_fields.Metadata:
        """Return the family's metadata; see `base.Family`."""
        config_fields.require(
            config,
            {
                "hidden_act": _GELU,
                "hidden_activation": _GELU,
                "partial_rotary_factor": (1.0,),
                "use_bidirectional_attention": (False,),
            },
        )
        rotary = rope.read_rope(config, kinds=("default",), default_theta=10000.0)
        lengths = config_fields.head_lengths({**config, "head_dim": config.get("head_dim") or 256})
        fields: config_fields.Metadata = {**lengths, "rope.freq_base": rotary.theta}
        return config_fields.common_metadata("gemma", config) | config_fields.prefixed("gemma", fields)

    def tensors(self, model: base.Model, *, tokens: int) -> Iterator[base.OutputTensor]:
        """Yield the file's tensors; see `base.Family`."""
        layers = config_fields.integer(model.config, "num_hidden_layers")
        for tensor in base.map_weights(
            model, _GEMMA_NAMES, layers=layers, tokens=tokens, change=_norms_from_zero
        ):
            if tensor.name != base.OUTPUT:
                yield tensor
            elif is_tied(dict(model.config)) or not _is_embedding(model):
                raise CheckpointError(
                    "The model has an output head of its own, for which Gemma 1 has no place in the engine.",
                    hint="Train the adapter without lm_head, or with lm_head and embedding tied.",
                )

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """Return what the engine does otherwise: nothing."""
        return []


class Gemma3:
    """The family of Gemma 3's text models."""

    architectures = ("Gemma3ForCausalLM",)
    gguf_architecture = "gemma3"

    def metadata(self, config: Mapping[str, Any]) -> config_fields.Metadata:
        """Return the family's metadata; see `base.Family`."""
        config_fields.require(
            config,
            {
                "hidden_activation": _GELU[:1],
                "attn_logit_softcapping": (),
                "use_bidirectional_attention": (False,),
            },
        )
        _check_attention_scale(config)
        rotary = rope.read_rope(config, kinds=("default", "linear"), default_theta=1000000.0)
        lengths = config_fields.head_lengths({**config, "head_dim": config.get("head_dim") or 256})
        fields: config_fields.Metadata = {
            **lengths,
            "rope.freq_base": rotary.theta,
            **rope.scaling_metadata(rotary, config),
            **_window(config),
        }
        if config.get("final_logit_softcapping") is not None:
            fields["final_logit_softcapping"] = config_fields.number(config, "final_logit_softcapping")
        return config_fields.common_metadata("gemma3", config) | config_fields.prefixed("gemma3", fields)

    def tensors(self, model: base.Model, *, tokens: int) -> Iterator[base.OutputTensor]:
        """Yield the file's tensors; see `base.Family`."""
        layers = config_fields.integer(model.config, "num_hidden_layers")
        return base.map_weights(model, _GEMMA3_NAMES, layers=layers, tokens=tokens, change=_norms_from_zero)

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """Return what the engine does otherwise: nothing."""
        return []


def _norms_from_zero(name: str, _tensor: Tensor) -> base.Change:
    return base.Change(offset=1.0) if name.endswith("norm.weight") else base.UNCHANGED


def _is_embedding(model: base.Model) -> bool:
    return base.same_numbers(model.weights, HEAD, "model.embed_tokens.weight")


def _check_attention_scale(config: Mapping[str, Any]) -> None:
    """The engine derives the scale of attention from the head length; for the 27B model from the heads."""
    scalar = config_fields.number(config, "query_pre_attn_scalar", default=256)
    if config_fields.integer(config, "num_hidden_layers") == _LAYERS_OF_27B:
        engine = config_fields.integer(config, "hidden_size") // config_fields.integer(
            config, "num_attention_heads"
        )
    else:
        engine = config_fields.integer(config, "head_dim", default=256)
    if scalar != engine:
        raise CheckpointError(
            f"config.json has query_pre_attn_scalar = {scalar:g}; the engine would use {engine}.",
            hint=config_fields.WRONG_ANSWERS,
        )


def _window(config: Mapping[str, Any]) -> config_fields.Metadata:
    """Return the window of the sliding layers, and which those are if not all but every sixth."""
    sliding = _sliding_layers(config)
    if not any(sliding):
        return {}
    local = rope.read_rope(
        _local_rope(config), kinds=("default",), default_theta=_LOCAL_THETA, layer_type="sliding_attention"
    )
    fields: config_fields.Metadata = {
        "attention.sliding_window": config_fields.integer(config, "sliding_window"),
        "rope.freq_base_swa": local.theta,
    }
    if sliding != [bool((index + 1) % _PATTERN) for index in range(len(sliding))]:
        fields["attention.sliding_window_pattern"] = sliding
    return fields


def _local_rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config with the rotary fields of the sliding layers only."""
    parameters = config.get("rope_parameters")
    if isinstance(parameters, dict) and isinstance(parameters.get("sliding_attention"), dict):
        return {"rope_parameters": parameters}
    return {"rope_theta": config.get("rope_local_base_freq")}


def _sliding_layers(config: Mapping[str, Any]) -> list[bool]:
    layers = config_fields.integer(config, "num_hidden_layers")
    types = config.get("layer_types")
    if types is None:
        older = config.get("_sliding_window_pattern") or _PATTERN
        pattern = config_fields.integer(config, "sliding_window_pattern", default=older)
        return [bool((index + 1) % pattern) for index in range(layers)]
    known = {"sliding_attention": True, "full_attention": False}
    if not isinstance(types, list) or len(types) != layers or not all(kind in [*known] for kind in types):
        raise CheckpointError("config.json has layer_types that do not fit num_hidden_layers.")
    return [known[kind] for kind in types]
