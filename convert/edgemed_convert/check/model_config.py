"""What config.json means, with transformers' defaults; read here anew, not with the exporter's code.

The gate must see a fault in the exporter's reading. Called by the modules of this folder.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgemed_convert.errors import CheckpointError

GGUF_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "SmolLM3ForCausalLM": "smollm3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "Gemma3ForCausalLM": "gemma3",
    "GPT2LMHeadModel": "gpt2",
    "Phi3ForCausalLM": "phi3",
}
"""The model's class in transformers → llama.cpp's name of the architecture."""

# What transformers 5 takes for a number that config.json leaves out, where the families differ.
_RMS_EPSILON = {"phi3": 1e-5}
_HEAD_LENGTH = {"gemma": 256, "gemma3": 256, "qwen3": 128}
_ROPE_THETA = {"smollm3": 2_000_000.0, "gemma3": 1_000_000.0}
_KV_HEADS = {"qwen3": 32, "gemma": 16, "gemma3": 4, "smollm3": 4}
_TIED = {"gemma", "gemma3", "gpt2", "smollm3"}
_GEMMA3_PERIOD = 6
_SMOLLM3_PERIOD = 4


@dataclass(frozen=True)
class Rope:
    """How positions turn into angles."""

    theta: float
    local_theta: float | None
    """Of the layers with a sliding window, where they have their own."""
    kind: str
    """transformers' rope_type: default, linear, yarn, llama3, longrope."""
    parameters: Mapping[str, Any]


class ModelConfig:
    """A text model's config.json, by meaning instead of by key."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.raw = config
        names = config.get("architectures") or [""]
        self.hf_architecture = str(names[0])
        if self.hf_architecture not in GGUF_ARCHITECTURES:
            raise CheckpointError(
                f"The gate knows no {self.hf_architecture or 'model without architectures in config.json'}.",
                hint=f"It knows {', '.join(GGUF_ARCHITECTURES)}.",
            )
        self.architecture = GGUF_ARCHITECTURES[self.hf_architecture]
        self.is_gpt2 = self.architecture == "gpt2"

    def _number(self, *keys: str) -> Any:
        for key in keys:
            if self.raw.get(key) is not None:
                return self.raw[key]
        raise CheckpointError(
            f"config.json of the model has no {keys[0]}.", hint="Copy the model's folder again."
        )

    @property
    def layers(self) -> int:
        return int(self._number("num_hidden_layers", "n_layer"))

    @property
    def hidden(self) -> int:
        return int(self._number("hidden_size", "n_embd"))

    @property
    def heads(self) -> int:
        return int(self._number("num_attention_heads", "n_head"))

    @property
    def kv_heads(self) -> int:
        if self.is_gpt2:
            return self.heads
        return int(self.raw.get("num_key_value_heads") or _KV_HEADS.get(self.architecture, self.heads))

    @property
    def head_length(self) -> int:
        named = self.raw.get("head_dim")
        if self.architecture in ("phi3", "gpt2", "qwen2"):
            named = None  # these classes of transformers divide, whatever the file says
        return int(named or _HEAD_LENGTH.get(self.architecture) or self.hidden // self.heads)

    @property
    def feed_forward(self) -> int:
        if self.is_gpt2:
            return int(self.raw.get("n_inner") or 4 * self.hidden)
        return int(self._number("intermediate_size"))

    @property
    def context(self) -> int:
        return int(self._number("max_position_embeddings", "n_positions"))

    @property
    def vocabulary(self) -> int:
        return int(self._number("vocab_size"))

    @property
    def epsilon(self) -> float:
        if self.is_gpt2:
            return float(self.raw.get("layer_norm_epsilon", 1e-5))
        return float(self.raw.get("rms_norm_eps") or _RMS_EPSILON.get(self.architecture, 1e-6))

    @property
    def tied(self) -> bool:
        return bool(self.raw.get("tie_word_embeddings", self.architecture in _TIED))

    @property
    def period(self) -> int:
        """After how many layers the pattern of layers repeats."""
        return {"gemma3": _GEMMA3_PERIOD, "smollm3": _SMOLLM3_PERIOD}.get(self.architecture, 1)

    @property
    def layer_types(self) -> list[str]:
        """Return of each layer "full_attention" or "sliding_attention"."""
        named = self.raw.get("layer_types")
        if named:
            return [str(name) for name in named]
        if self.architecture == "gemma3":
            period = int(self.raw.get("sliding_window_pattern") or _GEMMA3_PERIOD)
            return [
                "full_attention" if (layer + 1) % period == 0 else "sliding_attention"
                for layer in range(self.layers)
            ]
        sliding = self.sliding_window is not None
        first = int(self.raw.get("max_window_layers", 28)) if self.architecture in ("qwen2", "qwen3") else 0
        return [
            "sliding_attention" if sliding and layer >= first else "full_attention"
            for layer in range(self.layers)
        ]

    @property
    def sliding_window(self) -> int | None:
        """Return how many tokens a layer with a window sees; None when no layer has one."""
        if self.hf_architecture in ("LlamaForCausalLM", "GemmaForCausalLM", "GPT2LMHeadModel"):
            return None
        if self.architecture in ("qwen2", "qwen3", "smollm3") and not self.raw.get("use_sliding_window"):
            return None
        # Null says "no window"; only a missing key means the default.
        default = 4096 if self.hf_architecture in ("Gemma3ForCausalLM", "MistralForCausalLM") else None
        window = self.raw.get("sliding_window", default)
        return int(window) if window else None

    @property
    def ignored_window(self) -> int | None:
        """Return a window that llama.cpp does not apply (only Gemma 3's is); None when nothing is lost."""
        window = self.sliding_window
        if window is None or self.architecture == "gemma3" or window >= self.context:
            return None
        return window if "sliding_attention" in self.layer_types else None

    @property
    def rope(self) -> Rope:
        """Return the rotary embedding, from transformers 5's nested form or the older single keys."""
        given = dict(self.raw.get("rope_parameters") or self.raw.get("rope_scaling") or {})
        nested = "full_attention" in given or "sliding_attention" in given
        parameters = dict(given.get("full_attention") or {}) if nested else given
        theta = parameters.get("rope_theta") or self.raw.get("rope_theta")
        local = None
        if self.architecture == "gemma3":
            local = (given.get("sliding_attention") or {}).get("rope_theta") if nested else None
            local = float(local or self.raw.get("rope_local_base_freq") or 10_000.0)
        for key in ("partial_rotary_factor", "original_max_position_embeddings"):
            if self.raw.get(key) is not None:
                parameters.setdefault(key, self.raw[key])
        kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
        return Rope(
            theta=float(theta or _ROPE_THETA.get(self.architecture, 10_000.0)),
            local_theta=local,
            kind="longrope" if kind == "su" else kind,
            parameters=parameters,
        )

    @property
    def rotated_length(self) -> int:
        """Return how many numbers of a head are turned."""
        return int(self.head_length * float(self.rope.parameters.get("partial_rotary_factor", 1.0)))

    @property
    def attention_factor(self) -> float:
        """Return by what the rotated numbers are multiplied (longrope only; 1 elsewhere)."""
        rope = self.rope
        if rope.kind != "longrope":
            return 1.0
        if rope.parameters.get("attention_factor") is not None:
            return float(rope.parameters["attention_factor"])
        original = self.original_context
        scale = self.context / original
        return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0

    @property
    def original_context(self) -> int:
        """Return the context length before rope scaling."""
        return int(self.rope.parameters.get("original_max_position_embeddings") or self.context)

    def end_ids(self, generation_config: Mapping[str, Any]) -> list[int]:
        """Return every token that ends an answer, by config.json and generation_config.json."""
        found: list[int] = []
        for source in (self.raw, generation_config):
            named = source.get("eos_token_id")
            if named is not None:
                found += named if isinstance(named, list) else [named]
        return sorted({int(token) for token in found})
