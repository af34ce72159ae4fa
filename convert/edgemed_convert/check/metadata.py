"""Every number in a file's metadata against config.json: a wrong epsilon cannot be seen in logits.

What counts is the value that llama.cpp calculates with: a missing key means llama.cpp's own default, and a
key that the architecture does not know is a fault too. Called by `gate.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgemed.check_report import CheckResult
from edgemed.gguf_header import ArraySummary, Value
from edgemed_convert.check.gguf_file import GGUFFile
from edgemed_convert.check.model_config import ModelConfig

Number = int | float | str
_NEEDED = None

# Keys that the engine reads nowhere for these architectures, or that only repeat what another key says.
_HARMLESS = {"rope.dimension_count", "vocab_size", "attention.head_count_kv", "attention.causal"}


@dataclass(frozen=True)
class _Expected:
    key: str
    """Without the architecture's name in front."""
    value: Number
    default: Number | None
    """What llama.cpp takes when the key is missing; None when it needs the key."""


def check_metadata(config: ModelConfig, file: GGUFFile, end_ids: list[int]) -> CheckResult:
    """Compare a file's numbers with the model's.

    Args:
        end_ids: every token that may stand in the file as end of sequence.
    """
    faults = [] if file.architecture == config.architecture else [_wrong_architecture(config, file)]
    expected = _expected(config)
    prefix = f"{file.architecture}."
    found = {
        key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)
    }
    for item in expected:
        faults += _difference(item, found.get(item.key, item.default), config)
    known = {item.key for item in expected} | _HARMLESS
    faults += [
        f"{prefix}{key} = {_shown(value)} does not belong to this model"
        for key, value in found.items()
        if key not in known
    ]
    faults += _harmless_differences(config, found)
    faults += _vocabulary_faults(config, file)
    faults += _end_faults(file, end_ids)
    faults += engine_limits(config)
    return CheckResult(
        name="metadata",
        file=file.path.name,
        status="failed" if faults else "passed",
        sentence=(
            f"{len(faults)} of the file's settings are not the model's."
            if faults
            else f"All {len(expected)} settings say what config.json says.{_window_note(config)}"
        ),
        numbers={"settings": len(expected), "different": len(faults)},
        limit="every number equal to config.json's",
        details=faults[:20],
    )


def _expected(config: ModelConfig) -> list[_Expected]:
    divided = config.hidden // config.heads
    items = [
        _Expected("block_count", config.layers, _NEEDED),
        _Expected("embedding_length", config.hidden, _NEEDED),
        _Expected("feed_forward_length", config.feed_forward, _NEEDED),
        _Expected("attention.head_count", config.heads, _NEEDED),
        _Expected("attention.head_count_kv", config.kv_heads, config.heads),
        _Expected("attention.key_length", config.head_length, divided),
        _Expected("attention.value_length", config.head_length, divided),
        _Expected("context_length", config.context, _NEEDED),
    ]
    if config.is_gpt2:
        return [*items, _Expected("attention.layer_norm_epsilon", config.epsilon, _NEEDED)]
    items.append(_Expected("attention.layer_norm_rms_epsilon", config.epsilon, _NEEDED))
    items += _expected_rope(config)
    if config.architecture == "gemma3":
        items += _expected_gemma3(config)
    if config.architecture == "phi3":
        # llama.cpp reads it and turns it off; what it says must be true all the same.
        items.append(_Expected("attention.sliding_window", config.sliding_window or 0, 0))
    return items


def _expected_rope(config: ModelConfig) -> list[_Expected]:
    rope = config.rope
    given = rope.parameters
    items = [
        _Expected("rope.freq_base", rope.theta, 10_000.0),
        _Expected("rope.dimension_count", config.rotated_length, config.head_length),
    ]
    factor = float(given.get("factor", 1.0)) if rope.kind in ("linear", "yarn") else 1.0
    items.append(_Expected("rope.scaling.factor", factor, 1.0))
    kind = rope.kind if rope.kind in ("linear", "yarn", "longrope") else "none"
    items.append(_Expected("rope.scaling.type", kind, "linear"))
    scaled = rope.kind in ("yarn", "longrope") or config.architecture == "phi3"
    if scaled:
        items.append(
            _Expected("rope.scaling.original_context_length", config.original_context, config.context)
        )
    items.append(_Expected("rope.scaling.attn_factor", config.attention_factor, 1.0))
    if rope.kind == "yarn":
        for key, name, default in (
            ("yarn_ext_factor", "extrapolation_factor", 1.0),
            ("yarn_attn_factor", "attention_factor", 1.0),
            ("yarn_beta_fast", "beta_fast", 32.0),
            ("yarn_beta_slow", "beta_slow", 1.0),
        ):
            value = given.get(name)
            items.append(_Expected(f"rope.scaling.{key}", default if value is None else value, default))
    return items


def _expected_gemma3(config: ModelConfig) -> list[_Expected]:
    return [
        _Expected("attention.sliding_window", config.sliding_window or 0, 0),
        _Expected("rope.freq_base_swa", config.rope.local_theta or 10_000.0, 10_000.0),
        _Expected("attention.sliding_window_pattern", config.period, config.period),
        _Expected("final_logit_softcapping", float(config.raw.get("final_logit_softcapping") or 0), 0.0),
    ]


def _difference(item: _Expected, found: Value | None, config: ModelConfig) -> list[str]:
    if found is None:
        return [f"{item.key} is missing; the model has {_shown(item.value)}"]
    values = found if isinstance(found, list) else [found]
    # Without a factor, linear, longrope and no scaling at all are the same to llama.cpp.
    if item.key == "rope.scaling.type" and item.value != "yarn" and found != "yarn":
        return []
    allowed = {item.value}
    if item.key == "context_length" and config.ignored_window:
        # As trained, or cut to what llama.cpp calculates as trained.
        allowed.add(config.ignored_window)
    values = found if isinstance(found, list) else [found]
    if values and all(any(_same(value, one) for one in allowed) for value in values):
        return []
    return [f"{item.key} is {_shown(found)}; the model has {_shown(item.value)}"]


def _same(found: Value, value: Number) -> bool:
    if isinstance(value, str) or isinstance(found, str | list | ArraySummary):
        return bool(found == value)
    # The file holds float32; a formula may differ from another's in the last place.
    return abs(float(np.float32(found)) - float(np.float32(value))) <= 2e-7 * abs(float(value))


def _harmless_differences(config: ModelConfig, found: Mapping[str, Value]) -> list[str]:
    """What llama.cpp does not need must be true where it is written."""
    truths = {"vocab_size": config.vocabulary}
    return [
        f"{key} is {_shown(found[key])}; the model has {value}"
        for key, value in truths.items()
        if key in found and found[key] != value
    ]


def _vocabulary_faults(config: ModelConfig, file: GGUFFile) -> list[str]:
    tokens = file.token_count
    faults = []
    if "token_embd.weight" in file and file.shape("token_embd.weight")[0] != tokens:
        faults.append(f"{tokens} tokens, but the embedding has {file.shape('token_embd.weight')[0]} rows")
    # Gemma 3's embedding may have more rows than the tokenizer has tokens; they are cut off.
    if tokens != config.vocabulary and not (config.architecture == "gemma3" and tokens < config.vocabulary):
        faults.append(f"{tokens} tokens; the model has {config.vocabulary}")
    return faults


def _end_faults(file: GGUFFile, end_ids: list[int]) -> list[str]:
    named = file.metadata.get("tokenizer.ggml.eos_token_id")
    if not end_ids:
        return [] if named is None else [f"end token {named}, but the model names none"]
    if named is None:
        return [f"no tokenizer.ggml.eos_token_id; the model ends with {end_ids}"]
    return [] if named in end_ids else [f"end token {named}; the model ends with {end_ids}"]


def _window_note(config: ModelConfig) -> str:
    if config.ignored_window is None:
        return ""
    return (
        f" llama.cpp does not apply the model's sliding window: beyond {config.ignored_window} tokens its "
        "answers are not the model's."
    )


def _wrong_architecture(config: ModelConfig, file: GGUFFile) -> str:
    return f"architecture {file.architecture}; a {config.hf_architecture} is {config.architecture}"


def engine_limits(config: ModelConfig) -> list[str]:
    """Return what the model does and llama.cpp, which has it built in, does otherwise."""
    raw = config.raw
    faults = []
    activation = raw.get("activation_function" if config.is_gpt2 else "hidden_act")
    if config.architecture in ("gemma", "gemma3"):
        activation = raw.get("hidden_activation") or activation
        allowed = {None, "gelu_pytorch_tanh", "gelu", "gelu_new"}
    else:
        allowed = {None, "gelu_new", "gelu_pytorch_tanh"} if config.is_gpt2 else {None, "silu", "swish"}
    if activation not in allowed:
        faults.append(f"the model's activation {activation} is not llama.cpp's")
    if config.architecture == "smollm3":
        faults += _smollm3_limits(config)
    if config.architecture == "gemma3":
        faults += _gemma3_limits(config)
    if config.is_gpt2:
        faults += [
            f"the model's {key} is not llama.cpp's"
            for key, value in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False))
            if raw.get(key, value) != value
        ]
    return faults


def _smollm3_limits(config: ModelConfig) -> list[str]:
    named = config.raw.get("no_rope_layers") or []
    interval = int(config.raw.get("no_rope_layer_interval") or 4)
    built_in = [int((layer + 1) % 4 != 0) for layer in range(config.layers)]
    if (named and named != built_in) or (not named and interval != 4):
        return ["the model's layers without rope are not every fourth, as llama.cpp has it"]
    return []


def _gemma3_limits(config: ModelConfig) -> list[str]:
    faults = []
    built_in = config.hidden / config.heads if config.layers == 62 else config.head_length
    if float(config.raw.get("query_pre_attn_scalar", 256)) != built_in:
        faults.append(f"the model's query_pre_attn_scalar is not llama.cpp's {built_in:g}")
    pattern = [
        "full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(config.layers)
    ]
    if config.layer_types != pattern:
        faults.append("the model's layers with a sliding window are not llama.cpp's five of six")
    if config.raw.get("attn_logit_softcapping") or config.raw.get("use_bidirectional_attention"):
        faults.append("the model's attention is not llama.cpp's")
    return faults


def _shown(value: Value) -> str:
    if isinstance(value, ArraySummary):
        return f"a list of {value.length}"
    return f"{value:g}" if isinstance(value, float) else str(value)
