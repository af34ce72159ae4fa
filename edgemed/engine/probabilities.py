"""How probable a loaded model finds given words, for benchmarks. Called by the child.

Everything is read anew for each request, or from the end of the shared prefix: how tokens are divided into
batches decides the last digits, and a resumed run must give the same decisions as one that was never cut.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

from edgemed.engine.llama import Llama
from edgemed.engine.messages import ContinuationScore, Distribution, Distributions


def prompt_ids_sha256(ids: Sequence[int]) -> str:
    """Return the SHA-256 over token ids, as little-endian 32-bit integers."""
    return hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()


def text_ids(llama: Llama, text: str) -> list[int]:
    """Return the ids of plain text as a model reads it from the start: BOS where it wants one."""
    ids = llama.tokenize(text, parse_special=False)
    bos = llama.bos_token
    return [bos, *ids] if llama.adds_bos and bos is not None else ids


def split_continuation(llama: Llama, text: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the ids of a text and of what goes on from it, by lm-evaluation-harness's rule.

    Spaces at the text's end belong to the continuation; both are tokenized as one text and cut where the
    text's own ids end.
    """
    kept = text.rstrip()
    whole = text_ids(llama, kept + text[len(kept) :] + continuation)
    ids = text_ids(llama, kept)
    return ids, whole[len(ids) :]


def score_continuations(
    llama: Llama, prompt: Sequence[int], prefix: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[ContinuationScore]:
    """Return the log-likelihood of each continuation after the prompt.

    Args:
        prompt: token ids, one or more.
        prefix: what many prompts begin with; it is kept in the KV cache and not read again. May be empty.
        continuations: token ids, one or more each.
    """
    held = llama.keep_prefix([*prefix, -1]) if prefix else 0
    if held < len(prefix) or not prefix:
        llama.forget()
        llama.read(prefix)
    rest = prompt[len(prefix) :]
    first = _log_softmax(next(iter(llama.read_with_logits(rest, len(rest) - 1))))
    return [_score(llama, len(prompt), first, ids) for ids in continuations]


def _score(llama: Llama, prompt_length: int, first: Any, ids: Sequence[int]) -> ContinuationScore:
    llama.cut(prompt_length)
    total = float(first[ids[0]])
    greedy = int(first.argmax()) == ids[0]
    for row, token in zip(llama.read_with_logits(ids[:-1], 0), ids[1:], strict=True):
        log_probabilities = _log_softmax(row)
        total += float(log_probabilities[token])
        greedy = greedy and int(log_probabilities.argmax()) == token
    return ContinuationScore(log_probability=total, tokens=len(ids), greedy=greedy)


def token_distributions(
    llama: Llama, ids: Sequence[int], first: int, *, top: int, wanted: Sequence[Sequence[int]] | None
) -> Distributions:
    """Return what may follow each token from index `first` on.

    Args:
        ids: the text's token ids.
        first: the first index that is told of.
        top: number of most probable tokens at each position.
        wanted: ids to tell of in their place, one list a position.
    """
    llama.forget()
    positions = []
    for index, row in enumerate(llama.read_with_logits(ids, first)):
        log_probabilities = _log_softmax(row)
        chosen = list(wanted[index]) if wanted is not None else _best(log_probabilities, top)
        positions.append(
            Distribution(
                ids=chosen,
                log_probabilities=[float(log_probabilities[token]) for token in chosen],
                best=int(log_probabilities.argmax()),
            )
        )
    return Distributions(token_ids=list(ids), first=first, positions=positions)


def _best(log_probabilities: Any, top: int) -> list[int]:
    import numpy

    top = min(top, len(log_probabilities))
    among = numpy.argpartition(-log_probabilities, top - 1)[:top]
    return [int(token) for token in among[numpy.argsort(-log_probabilities[among], kind="stable")]]


def _log_softmax(logits: Any) -> Any:
    """Return float64 log-probabilities, of shape (vocabulary,)."""
    import numpy

    shifted = logits.astype(numpy.float64)
    shifted -= shifted.max()
    return shifted - numpy.log(numpy.exp(shifted).sum())
