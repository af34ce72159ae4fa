"""Question-answer pairs as conversations in ChatML frames, and rows of equal length that they fill greedily.

The same seed gives the same rows in the same order; loss falls on the last answer and its end token only.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from edgemed_training.base_data import Row, one_line
from edgemed_training.base_recipe import ChatSection, ChatTrainSection
from edgemed_training.base_tokenizer import (
    ANSWER,
    END_OF_TEXT_ID,
    END_OF_TURN,
    QUESTION,
    START_OF_TURN,
    encode_texts,
)
from edgemed_training.encoding import IGNORED
from edgemed_training.errors import DataError

Turns = tuple[tuple[str, str], ...]
"""Questions and answers, oldest first; the loss falls on the last answer."""


@dataclass(frozen=True)
class Conversations:
    """What the chat model learns from."""

    turns: list[Turns]
    """In the file's order, each once."""
    cut: int
    """Conversations whose last answer was cut at the end of a sentence."""
    left_out: dict[str, int]
    """Reason → pairs."""


def choose_conversations(rows: Iterable[Row], chat: ChatSection) -> Conversations:
    """Cut long answers, and leave out what the recipe says, and pairs seen before.

    Raises:
        DataError: nothing is left.
    """
    chosen: dict[Turns, bool] = {}
    left_out: Counter[str] = Counter()
    for row in rows:
        whole = one_line(row.answer)
        answer = cut_answer(whole, chat)
        turns = (*((one_line(q), one_line(a)) for q, a in row.turns), (one_line(row.question), answer))
        if reason := _reason_against(answer, chat):
            left_out[reason] += 1
        elif turns in chosen:
            left_out["the same again"] += 1
        else:
            chosen[turns] = answer != whole
    if not chosen:
        raise DataError(
            f"The data hold no answers to learn from ({_in_words(left_out)}).",
            hint="Use other data, or change the recipe's [chat].",
        )
    return Conversations(list(chosen), sum(chosen.values()), dict(left_out))


def cut_answer(answer: str, chat: ChatSection) -> str:
    """Return an answer of at most `max_answer_characters`, cut at a sentence's end; "" where none fits."""
    if len(answer) <= chat.max_answer_characters:
        return answer
    end = max(answer.rfind(mark, 0, chat.max_answer_characters) for mark in (". ", "? "))
    return answer[: end + 1] if end > chat.min_cut_characters else ""


def _reason_against(answer: str, chat: ChatSection) -> str:
    if not answer:
        return "no end of a sentence to cut at"
    if answer.startswith(chat.leave_out_beginning):
        return "leave_out_beginning"
    return "leave_out_containing" if any(words in answer for words in chat.leave_out_containing) else ""


def _in_words(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} left out: {reason}" for reason, count in left_out.items())


class ConversationRows:
    """The rows of each step; going forward, each conversation is encoded once."""

    def __init__(
        self, conversations: Conversations, tokenizer: Any, chat: ChatSection, train: ChatTrainSection
    ) -> None:
        """Take the conversations.

        Args:
            conversations: in the order of the data.
            tokenizer: a `tokenizers.Tokenizer` with ChatML's tokens.
            chat: the system prompts to draw from.
            train: tokens of a row, rows of a step, seed.
        """
        self._turns, self._tokenizer, self._chat, self._train = conversations.turns, tokenizer, chat, train
        self._start, self._end, self._line_end = (
            [tokenizer.token_to_id(START_OF_TURN)],
            [tokenizer.token_to_id(END_OF_TURN)],
            encode_texts(tokenizer, ["\n"])[0],
        )
        self._rows, self._next_step = self._all_rows(), 0

    def batch(self, step: int) -> tuple[Any, Any]:
        """Return token ids and labels of one step, from 0: int64 tensors [batch_rows, window_tokens].

        A later step than the last is reached by making the rows before it, an earlier one by beginning again.
        """
        import torch

        if step < self._next_step:
            self._rows, self._next_step = self._all_rows(), 0
        rows: list[tuple[list[int], list[int]]] = []
        while self._next_step <= step:
            rows = [next(self._rows) for _ in range(self._train.batch_rows)]
            self._next_step += 1
        ids, labels = zip(*rows, strict=True)
        return torch.tensor(ids), torch.tensor(labels)

    def _all_rows(self) -> Iterator[tuple[list[int], list[int]]]:
        """Yield rows without end: each pass over the conversations has another order and draws anew."""
        chance, turns = random.Random(self._train.seed), list(self._turns)
        length = self._train.window_tokens
        ids: list[int] = []
        labels: list[int] = []
        while True:
            chance.shuffle(turns)
            for conversation in turns:
                more_ids, more_labels = self._encode(chance.choice(self._chat.system_prompts), conversation)
                if len(ids) + min(len(more_ids), length) > length:
                    room = length - len(ids)
                    yield ids + [END_OF_TEXT_ID] * room, labels + [IGNORED] * room
                    ids, labels = [], []
                ids += more_ids[:length]
                labels += more_labels[:length]

    def _encode(self, system: str, turns: Turns) -> tuple[list[int], list[int]]:
        """Return ids and labels of one conversation; control tokens' names in its texts stay text."""
        texts = [f"system\n{system}"] if system else []
        for question, answer in turns:
            texts += [f"user\n{QUESTION}{question}", f"assistant\n{ANSWER}", f" {answer}"]
        encoded = iter(encode_texts(self._tokenizer, texts))
        ids: list[int] = []
        if system:
            ids += self._frame(next(encoded))
        for _ in turns[:-1]:
            ids += self._frame(next(encoded)) + self._frame(next(encoded) + next(encoded))
        ids += self._frame(next(encoded)) + self._start + next(encoded)
        answer_ids = next(encoded) + self._end
        labels = [IGNORED] * len(ids) + answer_ids + [IGNORED] * len(self._line_end)
        return ids + answer_ids + self._line_end, labels

    def _frame(self, ids: list[int]) -> list[int]:
        return self._start + ids + self._end + self._line_end
