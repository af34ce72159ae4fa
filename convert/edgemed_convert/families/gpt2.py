"""GPT-2 and DistilGPT2: learned positions, layer norms with biases, fused q, k and v.

Special here: its Conv1D weights are stored the other way round and are transposed; older files have names
without the `transformer.` prefix.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from edgemed_convert.checkpoint import HEAD
from edgemed_convert.families import base, config_fields
from edgemed_convert.safetensors_file import Tensor

_PREFIX = "transformer."
_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
_POSITIONS = "position_embd.weight"


class GPT2:
    """The family of GPT-2."""

    architectures = ("GPT2LMHeadModel",)
    gguf_architecture = "gpt2"

    def metadata(self, config: Mapping[str, Any]) -> config_fields.Metadata:
        """Return the family's metadata; see `base.Family`."""
        config_fields.require(
            config,
            {
                "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
                "scale_attn_weights": (True,),
                "scale_attn_by_inverse_layer_idx": (False,),
                "add_cross_attention": (False,),
            },
        )
        width = config_fields.integer(config, "n_embd")
        fields: config_fields.Metadata = {
            "block_count": config_fields.integer(config, "n_layer"),
            "context_length": config_fields.integer(config, "n_positions", default=config.get("n_ctx")),
            "embedding_length": width,
            "feed_forward_length": config_fields.integer(config, "n_inner", default=4 * width),
            "attention.head_count": config_fields.integer(config, "n_head"),
            "attention.layer_norm_epsilon": config_fields.number(config, "layer_norm_epsilon"),
        }
        return config_fields.prefixed("gpt2", fields)

    def tensors(self, model: base.Model, *, tokens: int) -> Iterator[base.OutputTensor]:
        """Yield the file's tensors; see `base.Family`."""
        layers = config_fields.integer(model.config, "n_layer")
        for tensor in base.map_weights(
            model, _names(model), layers=layers, tokens=tokens, change=_transpose_conv1d
        ):
            yield replace(tensor, keep_f32=True) if tensor.name == _POSITIONS else tensor

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """Return what the engine does otherwise: nothing."""
        return []


def _names(model: base.Model) -> base.WeightNames:
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in model.weights) else ""
    outside = {
        "wte.weight": base.EMBEDDING,
        "wpe.weight": _POSITIONS,
        "ln_f.weight": "output_norm.weight",
        "ln_f.bias": "output_norm.bias",
    }
    return base.WeightNames(
        layers_prefix=f"{prefix}h.",
        layer={
            f"{name}.{kind}": f"{place}.{kind}"
            for name, place in _LAYER.items()
            for kind in ("weight", "bias")
        },
        outside={**{prefix + name: place for name, place in outside.items()}, HEAD: base.OUTPUT},
    )


def _transpose_conv1d(name: str, _tensor: Tensor) -> base.Change:
    return base.Change(transposed=True) if name.endswith(_CONV1D) else base.UNCHANGED
