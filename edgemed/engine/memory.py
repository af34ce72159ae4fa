"""Does this model fit into the memory that is free? Asked before the child starts to load it."""

import msgspec

from edgemed.errors import NotEnoughMemory
from edgemed.languages import text as _
from edgemed.manifest import ModelShape

BATCH_TOKENS = 512
"""Tokens llama.cpp reads in one go (`n_ubatch`)."""

_PROCESS_BYTES = 60 * 2**20
"""The child's Python, numpy and llama.cpp before any model."""


class MemoryNeed(msgspec.Struct, frozen=True):
    """Bytes a model needs to answer at one context length."""

    model_bytes: int
    kv_cache_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        """Return all parts together, the child process itself included."""
        return self.model_bytes + self.kv_cache_bytes + self.compute_bytes + _PROCESS_BYTES


def memory_need(shape: ModelShape, model_bytes: int, context_length: int) -> MemoryNeed:
    """Estimate what a model needs; the compute buffers are an upper estimate (docs/experiments.md)."""
    widest = 4 * shape.embedding_length + 2 * shape.feed_forward_length
    attention_mask = 2 * context_length
    compute_bytes = 4 * BATCH_TOKENS * widest + BATCH_TOKENS * attention_mask + 4 * 64 * shape.vocabulary_size
    return MemoryNeed(
        model_bytes=model_bytes,
        kv_cache_bytes=shape.kv_bytes_per_token * context_length,
        compute_bytes=compute_bytes,
    )


def longest_context_that_fits(
    shape: ModelShape, model_bytes: int, context_length: int, available_bytes: int
) -> int | None:
    """Return the longest context length (a multiple of 256) that fits; None if not even 256 does."""
    fitting = [
        length
        for length in range(256, context_length + 1, 256)
        if memory_need(shape, model_bytes, length).total_bytes <= available_bytes
    ]
    return fitting[-1] if fitting else None


def check_fits(
    name: str,
    shape: ModelShape,
    model_bytes: int,
    context_length: int,
    available_bytes: int,
    *,
    smaller_models: list[str],
) -> None:
    """Refuse a model that does not fit.

    Args:
        smaller_models: names of installed models that do fit, for the hint.

    Raises:
        NotEnoughMemory: with the next action as its hint.
    """
    need = memory_need(shape, model_bytes, context_length)
    if need.total_bytes <= available_bytes:
        return
    shorter = longest_context_that_fits(shape, model_bytes, context_length, available_bytes)
    actions = []
    if shorter:
        actions.append(_("use a shorter context: --context-length {length}", length=shorter))
    if smaller_models:
        actions.append(_("use a smaller model: --model {name}", name=smaller_models[0]))
    actions.append(_("close other programs and try again"))
    hint = _(", or ").join(actions) + "."
    raise NotEnoughMemory(
        _(
            "{name} needs {gib} of memory at a context length of {context_length} tokens, "
            "and {gib2} is free.",
            name=name,
            gib=_gib(need.total_bytes),
            context_length=context_length,
            gib2=_gib(available_bytes),
        ),
        hint=hint[0].upper() + hint[1:],
    )


def _gib(size_bytes: int) -> str:
    if size_bytes < 2**30:
        return f"{size_bytes / 2**20:.0f} MiB"
    return f"{size_bytes / 2**30:.1f} GiB"
