"""The fields of config.json that all families have, read with suspicion."""

from collections.abc import Mapping
from typing import Any

from edgemed_convert.errors import CheckpointError

Metadata = dict[str, int | float | bool | str | list[Any]]
"""GGUF keys and values; an int becomes a uint32, a float a float32."""

NOT_WHOLE = "Use the model folder as it was published or saved by save_pretrained."
WRONG_ANSWERS = "This model cannot be exported: its answers would be wrong."


def integer(config: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """Return a whole number above zero of the config.

    Raises:
        CheckpointError: it is missing (and has no default), or no such number.
    """
    value = config.get(name)
    if value is None:
        value = default
    if type(value) is not int or not 0 < value < 2**31:
        raise _bad_field(config, name, value)
    return value


def number(config: Mapping[str, Any], name: str, *, default: float | None = None) -> float:
    """Return a number above zero of the config; raises as `integer` does."""
    value = config.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise _bad_field(config, name, value)
    return float(value)


def head_length(config: Mapping[str, Any]) -> int:
    """Return the length of one attention head's vectors."""
    heads = integer(config, "num_attention_heads")
    hidden = integer(config, "hidden_size")
    if config.get("head_dim") is None and hidden % heads:
        raise CheckpointError(
            f"config.json has a hidden_size of {hidden}, which {heads} attention heads do not divide.",
            hint=NOT_WHOLE,
        )
    return integer(config, "head_dim", default=hidden // heads)


def common_metadata(architecture: str, config: Mapping[str, Any]) -> Metadata:
    """Return what all families with RMS norm have in common, under the architecture's prefix."""
    heads = integer(config, "num_attention_heads")
    fields: Metadata = {
        "block_count": integer(config, "num_hidden_layers"),
        "context_length": integer(config, "max_position_embeddings"),
        "embedding_length": integer(config, "hidden_size"),
        "feed_forward_length": integer(config, "intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": integer(config, "num_key_value_heads", default=heads),
        "attention.layer_norm_rms_epsilon": number(config, "rms_norm_eps"),
    }
    return prefixed(architecture, fields)


def head_lengths(config: Mapping[str, Any]) -> Metadata:
    """Return the fields for heads whose length is not hidden size / heads."""
    length = head_length(config)
    return {"attention.key_length": length, "attention.value_length": length}


def prefixed(architecture: str, fields: Metadata) -> Metadata:
    """Put the architecture's name before each key."""
    return {f"{architecture}.{key}": value for key, value in fields.items()}


def require(config: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse a config with an option that the engine would silently run otherwise.

    Args:
        allowed: field → values that the engine can run. A field that is absent or null is always allowed.

    Raises:
        CheckpointError: names the first such option.
    """
    for name, values in allowed.items():
        value = config.get(name)
        if value is not None and value not in values:
            raise CheckpointError(
                f"config.json has {name} = {value!r}; the engine runs this family only with "
                f"{' or '.join(repr(allowed_value) for allowed_value in values) or 'none'}.",
                hint=WRONG_ANSWERS,
            )


def _bad_field(config: Mapping[str, Any], name: str, value: object) -> CheckpointError:
    if name not in config or value is None:
        return CheckpointError(f"config.json has no {name}.", hint=NOT_WHOLE)
    return CheckpointError(f"config.json has {name} = {value!r}, which is no possible value.", hint=NOT_WHOLE)
