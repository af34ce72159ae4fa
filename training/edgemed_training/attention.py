"""Attention over packed rows without a mask: each document attends to itself alone.

On CUDA it is PyTorch's own FlashAttention for documents of different lengths; elsewhere one call of scaled
dot product attention for each document. Registered with transformers under the name ATTENTION_NAME.
"""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

ATTENTION_NAME = "edgemed_varlen"


def register_varlen_attention() -> None:
    """Make the attention known to transformers. May be called twice.

    Batches without `cu_seq_lens_q` (generation, padding) go through transformers' own sdpa and its mask.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION_NAME, _attention)
    AttentionMaskInterface.register(ATTENTION_NAME, _mask)


@contextlib.contextmanager
def borders_known() -> Iterator[None]:
    """Let transformers build no mask meanwhile: it would be (tokens, tokens), and nobody would read it."""
    _borders_known.append(True)
    try:
        yield
    finally:
        _borders_known.pop()


_borders_known: list[bool] = []


def _mask(*arguments: Any, **options: Any) -> Any:
    from transformers.masking_utils import sdpa_mask

    return None if _borders_known else sdpa_mask(*arguments, **options)


@functools.cache
def varlen_is_fast() -> bool:
    """Whether this PyTorch and GPU have FlashAttention for documents of different lengths."""
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401 - its presence is the question
    except ImportError:
        return False
    return True


def _attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Attend within each document.

    Args:
        module: the attention layer.
        query: (rows, heads, tokens, head size); key and value may have fewer heads.
        key: see `query`.
        value: see `query`.
        attention_mask: used only without `cu_seq_lens_q`.
        dropout: of the attention weights.
        scaling: of the products; None: one over the root of the head size.
        is_causal: used only without `cu_seq_lens_q`.
        kwargs: `cu_seq_lens_q` has the documents' borders in a batch of one row: 0, …, tokens.

    Returns:
        (rows, tokens, heads, head size), and no weights.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    borders = kwargs.get("cu_seq_lens_q")
    if borders is None:
        result: tuple[Any, None] = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
        return result
    longest = int(kwargs["max_length_q"])
    window = kwargs.get("sliding_window") or getattr(module, "sliding_window", None)
    window = window if window and window < longest else None
    dropout = dropout if module.training else 0.0
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and is_half and not dropout and varlen_is_fast():
        return _flash(query, key, value, borders, longest, window=window, scaling=scaling), None
    return _each_document(query, key, value, borders, window=window, scaling=scaling, dropout=dropout), None


def _flash(
    query: Any, key: Any, value: Any, borders: Any, longest: int, *, window: int | None, scaling: float | None
) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    known = _varlen_parameters()
    grouped = key.shape[1] != query.shape[1]
    options: dict[str, Any] = {}
    if grouped and "enable_gqa" in known:
        options["enable_gqa"] = True
    elif grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    if "window_size" in known:
        options["window_size"] = (window - 1 if window else -1, 0)
    elif window:
        return _each_document(query, key, value, borders, window=window, scaling=scaling, dropout=0.0)
    else:
        options["is_causal"] = True
    if scaling is not None:
        if "scale" in known:
            options["scale"] = scaling
        else:
            query = query * (scaling * query.shape[-1] ** 0.5)
    rows, heads, tokens, head_size = query.shape
    flat = (tensor.transpose(1, 2).reshape(-1, tensor.shape[1], head_size) for tensor in (query, key, value))
    return varlen_attn(*flat, borders, borders, longest, longest, **options).view(
        rows, tokens, heads, head_size
    )


@functools.cache
def _varlen_parameters() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _each_document(
    query: Any,
    key: Any,
    value: Any,
    borders: Any,
    *,
    window: int | None,
    scaling: float | None,
    dropout: float,
) -> Any:
    import torch

    def attend(start: int, end: int) -> Any:
        length = end - start
        mask = None
        if window and length > window:
            distance = torch.arange(length, device=query.device)[:, None] - torch.arange(
                length, device=query.device
            )
            mask = (distance >= 0) & (distance < window)
        return torch.nn.functional.scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )

    places = borders.tolist()
    documents = [attend(start, end) for start, end in itertools.pairwise(places)]
    return torch.cat(documents, dim=2).transpose(1, 2).contiguous()
