"""Where each tensor of a GGUF comes from in the Hugging Face model, and how its numbers lie there.

Written anew from the two formats' descriptions, not with the exporter's code: row for row, this module says
which numbers of the model a row of the file must hold. Called by `tensors.py` and `first_layers.py`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemed_convert.check.model_config import ModelConfig
from edgemed_convert.safetensors_file import FloatArray, Tensor, Weights, read_whole

HEAD = "output.weight"
EMBEDDING = "token_embd.weight"

_WHOLE = {EMBEDDING: "embed_tokens.weight", "output_norm.weight": "norm.weight", HEAD: "lm_head.weight"}
_WHOLE_GPT2 = {
    EMBEDDING: "wte.weight",
    "position_embd.weight": "wpe.weight",
    "output_norm.weight": "ln_f.weight",
    "output_norm.bias": "ln_f.bias",
    HEAD: "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_GEMMA3 = {
    **_LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER_PHI3 = {**_LAYER, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_LAYER_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_PREFIXES = ("model.language_model.", "language_model.", "model.", "transformer.")


@dataclass(frozen=True)
class Source:
    """The tensor of the model that one of the file repeats, possibly in another order of rows."""

    name: str
    """Hugging Face's, as in the weights."""
    tensor: Tensor
    transposed: bool = False
    """GPT-2 stores its matrices the other way round."""
    offset: float = 0.0
    """Gemma's norms are stored less one."""
    rows: NDArray[np.intp] | None = None
    """Row of the model for each row of the file; None when they are the same."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(reversed(self.tensor.shape)) if self.transposed else self.tensor.shape

    @property
    def is_computed(self) -> bool:
        """Whether an adapter changed these numbers: then they are equal to rounding only."""
        return self.tensor.read_stored(slice(0, 0)) is None

    def read(self, start: int, stop: int) -> FloatArray:
        """Return what rows `start` to `stop` of the file must hold, before rounding."""
        if self.transposed:
            return np.ascontiguousarray(read_whole(self.tensor).T[start:stop])
        rows = slice(start, stop) if self.rows is None else self.rows[start:stop]
        numbers = self.tensor.read(rows)
        return numbers + np.float32(self.offset) if self.offset else numbers


class TensorSources:
    """Finds the source of each tensor of a file."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self._config = config
        self._weights = {_canonical(name): (name, tensor) for name, tensor in weights.items()}
        self._layer = {"gemma3": _LAYER_GEMMA3, "phi3": _LAYER_PHI3, "gpt2": _LAYER_GPT2}.get(
            config.architecture, _LAYER
        )
        self._whole = _WHOLE_GPT2 if config.is_gpt2 else _WHOLE

    def find(self, name: str) -> Source | None:
        """Return the source of a file's tensor; None when the model has none."""
        canonical = self._hf_name(name)
        if canonical is None or canonical not in self._weights:
            return None
        hf_name, tensor = self._weights[canonical]
        config = self._config
        part = canonical.rsplit(".", 2)[-2]
        if config.is_gpt2 and canonical.endswith(".weight") and part in ("c_attn", "c_proj", "c_fc"):
            return Source(hf_name, tensor, transposed=True)
        if config.architecture in ("gemma", "gemma3") and canonical.endswith("norm.weight"):
            return Source(hf_name, tensor, offset=1.0)
        if config.architecture in ("llama", "smollm3") and part in ("q_proj", "k_proj"):
            heads = config.heads if part == "q_proj" else config.kv_heads
            if tensor.shape[0] % (2 * heads):
                # Not this config's: the rows have no such order, and the comparison says so.
                return Source(hf_name, tensor)
            return Source(hf_name, tensor, rows=rotated_rows(tensor.shape[0], heads))
        return Source(hf_name, tensor)

    @property
    def head(self) -> Source | None:
        """The model's own output head, where it has one besides the embedding."""
        return self.find(HEAD)

    @property
    def embedding(self) -> Source | None:
        return self.find(EMBEDDING)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the model's tensors that none of a file's tensors repeats; the head is judged elsewhere."""
        used = {source.name for name in names if (source := self.find(name))}
        head = self.head.name if self.head else ""
        return sorted(name for name, _tensor in self._weights.values() if name not in used and name != head)

    def _hf_name(self, name: str) -> str | None:
        if name in self._whole:
            return self._whole[name]
        block, dot, rest = name.removeprefix("blk.").partition(".")
        part, _dot, suffix = rest.rpartition(".")
        if not (name.startswith("blk.") and dot and block.isdigit() and part in self._layer):
            return None
        return f"{'h' if self._config.is_gpt2 else 'layers'}.{block}.{self._layer[part]}.{suffix}"


def computed_tensors(config: ModelConfig) -> Mapping[str, FloatArray]:
    """Return the tensors that stand in no weights file: the factors of rope scaling."""
    rope = config.rope
    if rope.kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(config)}
    if rope.kind == "longrope":
        return {
            f"rope_factors_{kind}.weight": np.asarray(rope.parameters[f"{kind}_factor"], np.float32)
            for kind in ("long", "short")
        }
    return {}


def rotated_rows(count: int, heads: int) -> NDArray[np.intp]:
    """Return, for each row of a q or k matrix in the file, its row in the model.

    transformers turns number i of a head together with number i + half; llama.cpp's `llama` turns neighbours,
    so the file holds the two halves of each head like the teeth of a zip.
    """
    row = np.arange(count)
    head_length = count // heads
    head, within = np.divmod(row, head_length)
    pair, second = np.divmod(within, 2)
    source: NDArray[np.intp] = (head * head_length + second * (head_length // 2) + pair).astype(np.intp)
    return source


def llama3_factors(config: ModelConfig) -> FloatArray:
    """Return by what Llama 3.1's rope scaling divides each frequency, shape (head length / 2,)."""
    given = config.rope.parameters
    factor, low, high = (float(given[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(given["original_max_position_embeddings"])
    half = config.rotated_length // 2
    wave_lengths = [2 * math.pi * config.rope.theta ** (index / half) for index in range(half)]
    factors = []
    for wave_length in wave_lengths:
        # 1 for what turns often within the original context, `factor` for what turns less than once.
        smooth = min(1.0, max(0.0, (original / wave_length - low) / (high - low)))
        factors.append(1 / (smooth + (1 - smooth) / factor))
    return np.asarray(factors, np.float32)


def _canonical(name: str) -> str:
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
