"""Tiny random models of every family that `edgemed_convert` exports, built with transformers on the spot.

Weights are random and meaningless, but every tensor matters: norms and biases are far from 1 and 0. Row
lengths are multiples of 256, so every quantization type fits; head counts are odd where a family allows it.
`build("qwen3", folder)` writes a Hugging Face folder; `build("llama2", folder, num_hidden_layers=1)` changes
its config. Same name, seed and changes: same bytes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_tokenizers import TOKENIZERS, Tokenizer

_MODEL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class _Recipe:
    """What one tiny model is made of; `config` is transformers' own arguments."""

    config_class: str
    tokenizer: str
    config: dict[str, Any] = field(default_factory=dict)
    end_ids: tuple[str, ...] = ()
    """Texts of further end tokens: config and generation config then hold a list."""
    unused_rows: int = 0
    """Rows of the embedding behind the tokenizer's last token, as Qwen and Phi have them."""


def _llama(**changes: Any) -> dict[str, Any]:
    return {**_MODEL, **changes}


_RECIPES = {
    # Multi-head attention, an untied head, the SentencePiece vocabulary.
    "llama2": _Recipe(
        "LlamaConfig", "llama2", _llama(num_attention_heads=4, num_key_value_heads=4, head_dim=64)
    ),
    "llama3": _Recipe(
        "LlamaConfig",
        "llama3",
        _llama(
            hidden_size=768,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=128,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        ),
        end_ids=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "llama32": _Recipe(
        "LlamaConfig",
        "llama3",
        _llama(
            hidden_size=768,
            num_attention_heads=12,
            num_key_value_heads=3,
            head_dim=64,
            tie_word_embeddings=True,
            max_position_embeddings=131072,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        end_ids=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "mistral": _Recipe(
        "MistralConfig",
        "llama2",
        _llama(num_attention_heads=6, num_key_value_heads=3, head_dim=128, sliding_window=4096),
    ),
    "mistral3": _Recipe(
        "MistralConfig",
        "mistral3",
        _llama(
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=128,
            sliding_window=None,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
    ),
    "smollm2": _Recipe(
        "LlamaConfig",
        "smollm2",
        _llama(
            hidden_size=768,
            num_attention_heads=12,
            num_key_value_heads=3,
            head_dim=64,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        ),
    ),
    "smollm3": _Recipe(
        "SmolLM3Config",
        "smollm3",
        _llama(
            hidden_size=768,
            # Every fourth layer has no rotary embedding.
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            no_rope_layer_interval=4,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 5000000.0},
        ),
    ),
    "qwen2": _Recipe(
        "Qwen2Config",
        "qwen2",
        _llama(
            hidden_size=768,
            num_attention_heads=6,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        end_ids=("<|im_end|>", "<|endoftext|>"),
        unused_rows=21,
    ),
    "qwen3": _Recipe(
        "Qwen3Config",
        "qwen2",
        _llama(
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=128,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        end_ids=("<|im_end|>", "<|endoftext|>"),
        unused_rows=21,
    ),
    "gemma": _Recipe(
        "GemmaConfig",
        "gemma",
        _llama(num_attention_heads=3, num_key_value_heads=1, head_dim=256, rms_norm_eps=1e-6),
    ),
    "gemma3": _Recipe(
        "Gemma3TextConfig",
        "gemma",
        _llama(
            # Every sixth layer attends to everything, the others to the last 64 tokens.
            num_hidden_layers=7,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
            query_pre_attn_scalar=256,
            sliding_window=64,
            rms_norm_eps=1e-6,
        ),
        end_ids=("<eos>", "<end_of_turn>"),
        unused_rows=64,
    ),
    "gpt2": _Recipe(
        "GPT2Config",
        "gpt2",
        {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 1024},
    ),
    # The same family with an odd head count and a small vocabulary.
    "distilgpt2": _Recipe(
        "GPT2Config",
        "edge",
        {"n_embd": 768, "n_layer": 2, "n_head": 3, "n_positions": 512},
    ),
    "phi3": _Recipe(
        "Phi3Config",
        "phi3",
        _llama(
            hidden_size=768,
            num_attention_heads=3,
            num_key_value_heads=3,
            original_max_position_embeddings=4096,
            sliding_window=2047,
        ),
        end_ids=("<|endoftext|>", "<|assistant|>", "<|end|>"),
        unused_rows=13,
    ),
    "phi4mini": _Recipe(
        "Phi3Config",
        "phi4mini",
        _llama(
            hidden_size=768,
            num_attention_heads=6,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            max_position_embeddings=131072,
            original_max_position_embeddings=4096,
            sliding_window=262144,
            partial_rotary_factor=0.75,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0 + 0.01 * step for step in range(48)],
                "long_factor": [1.0 + 0.5 * step for step in range(48)],
                "original_max_position_embeddings": 4096,
                "partial_rotary_factor": 0.75,
            },
        ),
        end_ids=("<|endoftext|>", "<|end|>"),
        unused_rows=5,
    ),
    # The project's own small model: a Llama with a GPT-2-like vocabulary.
    "edge": _Recipe(
        "LlamaConfig",
        "edge",
        _llama(num_attention_heads=4, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True),
    ),
}

NAMES = tuple(_RECIPES)


def build(
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    shard_bytes: int | None = None,
    sentencepiece_model: bool = True,
    **changes: Any,
) -> Path:
    """Write a tiny model into `folder`, which is made, and return it.

    Args:
        dtype: of the weights: "float32", "float16" or "bfloat16".
        shard_bytes: split the weights into shards of at most this size, with an index.
        sentencepiece_model: False leaves tokenizer.model out, as transformers 5 does on saving.
        changes: fields of the config that differ from the recipe.
    """
    torch = pytest.importorskip("torch", reason="tiny models need torch and transformers")
    transformers = pytest.importorskip("transformers", reason="tiny models need torch and transformers")
    recipe = _RECIPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = TOKENIZERS[recipe.tokenizer](folder)
    if not sentencepiece_model:
        (folder / "tokenizer.model").unlink(missing_ok=True)
    ends = [tokenizer.ids[text] for text in recipe.end_ids]
    fields: dict[str, Any] = {
        "vocab_size": tokenizer.size + recipe.unused_rows,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": ends or tokenizer.eos,
        "pad_token_id": tokenizer.pad,
        "torch_dtype": dtype,
        **recipe.config,
        **changes,
    }
    config = getattr(transformers, recipe.config_class)(**_renamed(fields))
    model = transformers.AutoModelForCausalLM.from_config(config)
    _scramble(model, seed)
    model.to(getattr(torch, dtype))
    options = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    return folder


def _renamed(fields: dict[str, Any]) -> dict[str, Any]:
    """Give transformers its name of the data type, which changed with version 5."""
    return {("dtype" if key == "torch_dtype" else key): value for key, value in fields.items()}


def _scramble(model: Any, seed: int) -> None:
    """Replace all weights by random ones that make every tensor, norm and bias matter."""
    import torch

    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.data.copy_(parameter.data + 0.3 * noise)
        else:
            # The same spread of activations for every width: thresholds of the checks assume it.
            inputs = parameter.shape[0 if "c_" in name else 1]
            parameter.data.copy_(noise * (0.5 if "embed" in name or "wte" in name else 0.96 / inputs**0.5))


def change_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file in place; a value of None removes the field."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


__all__ = ["NAMES", "Tokenizer", "build", "change_json"]
