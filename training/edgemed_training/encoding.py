"""From question-answer pairs to token ids and labels: loss on the answer and its end token, on nothing else.

A prompt is never cut. An answer that does not fit is cut at the end of a sentence and keeps its end token.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from edgemed_training.chat_format import ChatFormat, Frame
from edgemed_training.errors import DataError
from edgemed_training.recipe import LongAnswers
from edgemed_training.records import QAPair

IGNORED = -100
"""The label of a token that the loss does not look at."""
DoesNotFit = Literal["question too long", "answer too long"]
_SENTENCE_END = re.compile(r"[.!?…。！？।؟]+[\"'”’)\]]*(?=\s)|(?<![.!?…。！？।؟\s])\n(?=\s*\S)")
_ABBREVIATION = re.compile(
    r"\b(?:[A-Za-z]|e\.g|i\.e|Dr|Mr|Mrs|Ms|Prof|vs|approx|no|fig|St)\.$", re.IGNORECASE
)
_SHOWN_ROWS = 5


@dataclass(frozen=True)
class Encoded:
    """One example: `labels` has the length of `input_ids`, -100 on the prompt, then the answer's ids."""

    input_ids: list[int]
    labels: list[int]
    cut: bool = False
    """The answer was cut."""


@dataclass
class EncodedPairs:
    """The examples of one file, and what became of the others."""

    examples: list[Encoded] = field(default_factory=list)
    pairs: list[QAPair] = field(default_factory=list)
    """The pairs of the examples, in the same order."""
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return sum(len(example.input_ids) for example in self.examples)

    @property
    def answer_tokens(self) -> int:
        """Tokens that the loss looks at."""
        return sum(label != IGNORED for example in self.examples for label in example.labels)

    @property
    def longest(self) -> int:
        """Tokens of the longest example; 0 without any."""
        return max((len(example.input_ids) for example in self.examples), default=0)

    @property
    def cut_share(self) -> float:
        """Share of the examples whose answer was cut."""
        return sum(example.cut for example in self.examples) / max(len(self.examples), 1)


def encode_pairs(
    pairs: Iterable[QAPair],
    chat_format: ChatFormat,
    *,
    max_length: int,
    cut: LongAnswers = "sentence",
    drop_long_prompts: bool = False,
    source: str = "the data",
) -> EncodedPairs:
    """Encode all pairs of a file.

    Args:
        pairs: in the order of the file.
        chat_format: of the base model.
        max_length: tokens an example may have.
        cut: what becomes of a long answer.
        drop_long_prompts: leave out pairs whose question fills `max_length`, instead of refusing them.
        source: the file, for the messages.

    Raises:
        DataError: a question is too long, or nothing is left to train on.
    """
    encoded, too_long, count = EncodedPairs(), [], 0
    for pair in pairs:
        count += 1
        example = encode(pair, chat_format, max_length=max_length, cut=cut)
        if isinstance(example, Encoded):
            encoded.examples.append(example)
            encoded.pairs.append(pair)
            continue
        encoded.dropped[example] += 1
        if example == "question too long":
            too_long.append(pair.id)
    if too_long and not drop_long_prompts:
        shown = ", ".join(too_long[:_SHOWN_ROWS]) + (" …" if len(too_long) > _SHOWN_ROWS else "")
        raise DataError(
            f"In {source} {len(too_long)} of {count} questions alone need more than "
            f"{max_length} tokens: {shown}.",
            hint="A prompt is never cut. Raise train.max_length, or leave them out with "
            "data.drop_long_prompts = true.",
        )
    if not encoded.examples:
        reasons = ", ".join(f"{number} {reason}" for reason, number in encoded.dropped.items())
        raise DataError(
            f"No usable examples in {source} (0 of {count}{': ' if reasons else ''}{reasons}).",
            hint="Look at what `edgemed-train prepare` wrote, or raise train.max_length.",
        )
    return encoded


def encode(
    pair: QAPair, chat_format: ChatFormat, *, max_length: int, cut: LongAnswers = "sentence"
) -> Encoded | DoesNotFit:
    """Encode one pair by the model's own template.

    The ids hold one BOS at most, at their beginning, and end with the only EOS that the loss sees.

    Returns:
        the example, or what of the pair does not fit into `max_length` tokens.

    Raises:
        BaseModelError: the template fails.
        DataError: the tokenizer joins the prompt's last token with the answer's first.
    """
    frame = chat_format.frame(pair)
    prompt_ids = chat_format.token_ids(frame.prompt)
    if len(prompt_ids) + 2 > max_length:
        return "question too long"
    answer = chat_format.without_control_tokens(pair.answer).strip()
    ids = _with_answer(chat_format, frame, prompt_ids, answer, pair.id)
    if len(ids) <= max_length:
        return _masked(ids, len(prompt_ids), cut=False)
    if cut == "drop":
        return "answer too long"
    if cut == "hard":
        return _masked(ids[:max_length], len(prompt_ids), cut=True)
    return _cut_at_sentence(chat_format, frame, prompt_ids, answer, pair.id, max_length)


def sentence_ends(text: str) -> list[int]:
    """Return the positions behind each sentence of a text but the last."""
    return [
        match.end() if match[0] != "\n" else match.start()
        for match in _SENTENCE_END.finditer(text)
        if not _ABBREVIATION.search(text, max(0, match.end() - 8), match.end())
    ]


def _cut_at_sentence(
    chat_format: ChatFormat, frame: Frame, prompt_ids: list[int], answer: str, row: str, max_length: int
) -> Encoded | DoesNotFit:
    """Keep as many whole sentences as fit."""
    ends = sentence_ends(answer)

    def length(end: int) -> int:
        return len(_with_answer(chat_format, frame, prompt_ids, answer[:end].rstrip(), row))

    fitting = bisect_right(ends, max_length, key=length)
    while fitting and length(ends[fitting - 1]) > max_length:
        fitting -= 1
    if not fitting:
        return "answer too long"
    kept = answer[: ends[fitting - 1]].rstrip()
    return _masked(_with_answer(chat_format, frame, prompt_ids, kept, row), len(prompt_ids), cut=True)


def _with_answer(
    chat_format: ChatFormat, frame: Frame, prompt_ids: list[int], answer: str, row: str
) -> list[int]:
    """Return the ids of prompt, answer and one EOS; what comes behind the end of turn is left out."""
    # A tokenizer may join "]" and "(": a space keeps them apart.
    for gap in ("", " "):
        ids = chat_format.token_ids(f"{frame.before}{gap}{answer}{frame.after}")
        if ids[: len(prompt_ids)] == prompt_ids:
            break
    else:
        raise DataError(
            f"The tokenizer joins the prompt of {row} with its answer: where the answer begins is not clear.",
            hint="Leave this row out.",
        )
    before_ids = chat_format.token_ids(frame.before)
    # Its last token may have grown into the answer's first, unless it is a control token.
    first = max(len(prompt_ids), len(before_ids) - (before_ids[-1] not in chat_format.control_ids))
    for position in range(first, len(ids)):
        if ids[position] in chat_format.control_ids:
            end_of_turn = ids[position]
            ids = ids[: position + 1]
            return ids if end_of_turn == chat_format.eos_id else [*ids, chat_format.eos_id]
    return [*ids, chat_format.eos_id]


def _masked(ids: list[int], prompt_length: int, *, cut: bool) -> Encoded:
    return Encoded(ids, [IGNORED] * prompt_length + ids[prompt_length:], cut)
