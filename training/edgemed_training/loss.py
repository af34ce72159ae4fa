"""The loss over answers: cross entropy where a label is, the output head run on those positions alone.

No tensor of (rows, tokens, vocabulary) is ever made: with 128,000 tokens it would be the largest.
The model's `forward` is replaced, so that DDP and FSDP see every call.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from edgemed_training.attention import ATTENTION_NAME, borders_known
from edgemed_training.encoding import IGNORED

CHUNK_TOKENS = 1024
"""Answer tokens whose logits exist at one time."""


def use_answer_loss(causal_model: Any) -> None:
    """Make a causal language model compute the loss over its labels without keeping logits.

    With labels its forward returns the summed cross entropy over `num_items_in_batch`, or its mean where
    that is not given; logits are None, and there is no cache. Without gradients it returns `hits`, too: how
    many labels the likeliest token meets. Without labels it is what it was.

    Args:
        causal_model: of transformers, before an adapter is put around it.
    """
    original, output = causal_model.forward, _output_class()

    def forward(*args: Any, labels: Any = None, num_items_in_batch: Any = None, **inputs: Any) -> Any:
        if labels is None:
            return original(*args, **inputs)
        # Packed rows with other attention than ours keep their mask: it is what divides the documents.
        ours = causal_model.config._attn_implementation == ATTENTION_NAME and "cu_seq_lens_q" in inputs
        with borders_known() if ours else contextlib.nullcontext():
            hidden = causal_model.base_model(*args, **inputs | {"use_cache": False}).last_hidden_state
        total, count, hits = _summed_cross_entropy(causal_model, hidden, labels)
        return output(loss=total / (count if num_items_in_batch is None else num_items_in_batch), hits=hits)

    causal_model.forward = forward


@functools.cache
def _output_class() -> Any:
    from dataclasses import dataclass

    from transformers.modeling_outputs import CausalLMOutputWithPast

    @dataclass
    class AnswerLossOutput(CausalLMOutputWithPast):  # type: ignore[misc]
        """A field of the output: what wraps a model copies fields alone."""

        hits: Any = None

    return AnswerLossOutput


def loss_difference(model: Any, *, token_count: int = 24) -> float:
    """Return how far the loss is from the model's own, relative to it; some families scale their logits.

    Args:
        model: with or without an adapter, after `use_answer_loss`.
        token_count: length of the probe.
    """
    import torch

    causal_model = model.get_base_model() if hasattr(model, "get_base_model") else model
    vocabulary_size = causal_model.config.vocab_size
    ids = torch.arange(token_count, device=causal_model.device)[None] * 7 % vocabulary_size
    was_training = model.training
    model.eval()
    with torch.no_grad():
        ours = model(
            input_ids=ids, labels=ids, position_ids=torch.arange(token_count, device=ids.device)[None]
        )
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    model.train(was_training)
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    return float((ours.loss - theirs).abs() / theirs.abs().clamp(min=1e-3))


def _summed_cross_entropy(causal_model: Any, hidden: Any, labels: Any) -> tuple[Any, int, Any]:
    """Return the sum over all labelled positions, their number, and without gradients the hits among them.

    Args:
        causal_model: its output head and config are used.
        hidden: (rows, tokens, width).
        labels: (rows, tokens); -100 is not looked at.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    wanted = labels[:, 1:] != IGNORED
    states, targets = hidden[:, :-1][wanted], labels[:, 1:][wanted]
    head = _head(causal_model)

    def chunk_loss(states: Any, targets: Any) -> Any:
        return torch.nn.functional.cross_entropy(head(states).float(), targets, reduction="sum")

    def chunk_loss_and_hits(states: Any, targets: Any) -> tuple[Any, Any]:
        logits = head(states).float()
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return loss, (logits.argmax(-1) == targets).sum()

    # The sum over nothing still belongs to the graph: every process of several must go backward.
    total = states.float().sum() * 0
    hits = None if torch.is_grad_enabled() else torch.zeros((), dtype=torch.long, device=targets.device)
    for start in range(0, len(targets), CHUNK_TOKENS):
        chunk = states[start : start + CHUNK_TOKENS], targets[start : start + CHUNK_TOKENS]
        if torch.is_grad_enabled():
            total = total + checkpoint(chunk_loss, *chunk, use_reentrant=False, preserve_rng_state=False)
        else:
            loss, found = chunk_loss_and_hits(*chunk)
            total, hits = total + loss, hits + found
    return total, max(len(targets), 1), hits


def _head(causal_model: Any) -> Callable[[Any], Any]:
    """Return the output head with what a family does to its logits."""
    import torch

    config, head = causal_model.config, causal_model.get_output_embeddings()
    softcap = getattr(config, "final_logit_softcapping", None)
    divisor = getattr(config, "logits_scaling", None)  # Granite
    factor = getattr(config, "logit_scale", None)  # Cohere

    def logits(states: Any) -> Any:
        values = head(states)
        if divisor:
            values = values / divisor
        if factor:
            values = values * factor
        return softcap * torch.tanh(values / softcap) if softcap else values

    return logits
