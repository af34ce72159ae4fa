"""Llama 2, 3 and 3.2, Mistral v0.1 and v0.3, SmolLM2: the engine's `llama`.

Special here: the rows of q and k are reordered, and Llama 3.1 and later carry a table of rotary factors.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from edgemed_convert.errors import CheckpointError
from edgemed_convert.families import base, config_fields, rope
from edgemed_convert.safetensors_file import Tensor

NAMES = base.WeightNames(
    layers_prefix="model.layers.",
    layer={
        **base.ATTENTION,
        **base.ATTENTION_BIAS,
        "self_attn.o_proj.bias": "attn_output.bias",
        **base.FEED_FORWARD,
        "mlp.gate_proj.bias": "ffn_gate.bias",
        "mlp.up_proj.bias": "ffn_up.bias",
        "mlp.down_proj.bias": "ffn_down.bias",
        **base.NORMS,
    },
    outside=base.OUTSIDE,
    optional=(".bias",),
)
_KINDS = ("default", "linear", "llama3", "yarn")


class Llama:
    """The family of Llama and of what took over its shape."""

    architectures = ("LlamaForCausalLM", "MistralForCausalLM")
    gguf_architecture = "llama"

    def metadata(self, config: Mapping[str, Any]) -> config_fields.Metadata:
        """Return the family's metadata; see `base.Family`."""
        config_fields.require(config, {"hidden_act": ("silu", "swish"), "partial_rotary_factor": (1.0,)})
        rotary = _rope(config)
        fields: config_fields.Metadata = {
            "vocab_size": config_fields.integer(config, "vocab_size"),
            "rope.dimension_count": config_fields.head_length(config),
            "rope.freq_base": rotary.theta,
            **rope.scaling_metadata(rotary, config),
        }
        if config.get("head_dim") is not None:
            fields |= config_fields.head_lengths(config)
        return config_fields.common_metadata("llama", config) | config_fields.prefixed("llama", fields)

    def tensors(self, model: base.Model, *, tokens: int) -> Iterator[base.OutputTensor]:
        """Yield the file's tensors; see `base.Family`."""
        config = model.config
        yield from rope.llama3_factors(_rope(config), head_length=config_fields.head_length(config))
        yield from base.map_weights(
            model,
            NAMES,
            layers=config_fields.integer(config, "num_hidden_layers"),
            tokens=tokens,
            change=interleave(config),
        )

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """Return what the engine does otherwise."""
        return window_notes(config)


class InterleaveQueriesAndKeys:
    """The change of this family: q and k rows in the engine's order."""

    def __init__(self, heads: int, kv_heads: int) -> None:
        self._heads = heads
        self._kv_heads = kv_heads

    def __call__(self, name: str, tensor: Tensor) -> base.Change:
        """Return the change for one weight."""
        for part, heads in ((".q_proj.", self._heads), (".k_proj.", self._kv_heads)):
            if part in name:
                if not tensor.shape or tensor.shape[0] % (2 * heads):
                    raise CheckpointError(
                        f"The weight {name} has the shape {list(tensor.shape)}, which {heads} attention "
                        "heads do not divide.",
                        hint=config_fields.NOT_WHOLE,
                    )
                return base.Change(row_order=base.interleaved_rows(tensor.shape[0], heads))
        return base.UNCHANGED


def interleave(config: Mapping[str, Any]) -> InterleaveQueriesAndKeys:
    """Return the change for models that the engine runs with interleaved rotary pairs."""
    heads = config_fields.integer(config, "num_attention_heads")
    return InterleaveQueriesAndKeys(
        heads, config_fields.integer(config, "num_key_value_heads", default=heads)
    )


def window_notes(config: Mapping[str, Any]) -> list[str]:
    """Return a note for a model trained with a sliding window that the engine does not apply."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or window >= config_fields.integer(config, "max_position_embeddings"):
        return []
    return [
        (
            f"The model attends to the last {window:,} tokens only; the engine attends to all. Beyond "
            f"{window:,} tokens their answers differ: keep the context length at or below it."
        )
    ]


def _rope(config: Mapping[str, Any]) -> rope.Rope:
    return rope.read_rope(config, kinds=_KINDS, default_theta=10000.0)
