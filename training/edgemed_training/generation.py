"""Answers as a user would get them: greedy, from the prompt alone, until the model ends its turn."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgemed_training.chat_format import ChatFormat
from edgemed_training.records import QAPair


@dataclass(frozen=True)
class GeneratedAnswer:
    """What a model answered to one question."""

    text: str
    tokens: int
    """Generated, the end token included."""
    ended: bool
    """The model ended its turn by itself; otherwise `max_new_tokens` or the context length did."""
    batch_seconds: float
    """How long its whole batch took."""


def generate_answers(
    model: Any,
    chat_format: ChatFormat,
    pairs: Sequence[QAPair],
    *,
    max_new_tokens: int,
    batch_size: int,
    context_length: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[GeneratedAnswer]:
    """Answer questions greedily; the model is left as it was.

    Args:
        model: of transformers, with or without an adapter.
        chat_format: its tokenizer and template.
        pairs: only their questions are read.
        max_new_tokens: the longest answer.
        batch_size: questions answered at one time.
        context_length: tokens the model has positions for; a prompt that fills it gets an empty answer.
        progress: called with the answered questions and their number.
    """
    prompts = [chat_format.token_ids(chat_format.frame(pair).prompt) for pair in pairs]
    answers: dict[int, GeneratedAnswer] = {}
    room = [max_new_tokens if context_length is None else context_length - len(prompt) for prompt in prompts]
    # Prompts of one length share a batch: less padding.
    order = sorted((i for i in range(len(prompts)) if room[i] > 0), key=lambda i: (len(prompts[i]), i))
    stops = _stop_ids(model, chat_format)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = min(max_new_tokens, *(room[i] for i in batch))
            found = _generate(model, chat_format, [prompts[i] for i in batch], longest, stops)
            answers |= dict(zip(batch, found, strict=True))
            progress(len(answers), len(pairs))
    finally:
        model.train(was_training)
    nothing = GeneratedAnswer("", 0, False, 0.0)
    return [answers.get(i, nothing) for i in range(len(prompts))]


def _generate(
    model: Any, chat_format: ChatFormat, prompts: list[list[int]], max_new_tokens: int, stops: list[int]
) -> list[GeneratedAnswer]:
    import torch
    from transformers import GenerationConfig

    longest = max(len(prompt) for prompt in prompts)
    pad_id = chat_format.eos_id  # any would do: padding is masked
    padded = [[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    # The makers' own settings (temperature, penalties) must not leak into a greedy answer.
    before = inner.generation_config
    inner.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=pad_id,
        use_cache=True,
    )
    started = time.perf_counter()
    try:
        with torch.no_grad():
            output = model.generate(
                input_ids=torch.tensor(padded, device=inner.device),
                attention_mask=torch.tensor(mask, device=inner.device),
            )
    finally:
        inner.generation_config = before
    seconds = time.perf_counter() - started
    return [_answer(chat_format, ids, stops, seconds) for ids in output[:, longest:].tolist()]


def _answer(chat_format: ChatFormat, ids: list[int], stops: list[int], seconds: float) -> GeneratedAnswer:
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    kept = ids if end is None else ids[:end]
    text = chat_format.tokenizer.decode(kept, skip_special_tokens=True).strip()
    return GeneratedAnswer(text, len(kept) + (end is not None), end is not None, seconds)


def _stop_ids(model: Any, chat_format: ChatFormat) -> list[int]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = inner.generation_config.eos_token_id
    known = found if isinstance(found, list) else [] if found is None else [found]
    return sorted({chat_format.eos_id, *chat_format.end_of_turn_ids(), *known})
