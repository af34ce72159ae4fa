"""Packing: several examples in one row, each seeing only itself. Exact: the gradient is that of padded rows.

What keeps documents apart is fragile (a mask of ones or a cache joins them without a word), so `find_leak`
tries the model itself before training begins.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any, TypedDict

from edgemed_training.encoding import IGNORED, Encoded

LEAK_LIMIT = 0.02
"""Largest change of a document's logits that counts as rounding, in their standard deviations."""


class Row(TypedDict):
    """One row for a collator: ids and labels one behind the other, and the length of each document."""

    input_ids: list[int]
    labels: list[int]
    lengths: list[int]


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return which examples share a row: the longest first, each into the fullest row that has room.

    Args:
        lengths: tokens of each example, none above `capacity`.
        capacity: tokens of a row.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(rooms, (lengths[index], -1))
        if place == len(rooms):
            rows.append([index])
            room, row = capacity - lengths[index], len(rows) - 1
        else:
            room, row = rooms.pop(place)
            rows[row].append(index)
            room -= lengths[index]
        insort(rooms, (room, row))
    return rows


def pack(examples: Sequence[Encoded], capacity: int) -> list[Row]:
    """Pack examples into rows of at most `capacity` tokens; the same examples give the same rows."""
    lengths = [len(example.input_ids) for example in examples]
    return [_row([examples[i] for i in members]) for members in best_fit_decreasing(lengths, capacity)]


def unpacked(examples: Sequence[Encoded]) -> list[Row]:
    """Return one row for each example."""
    return [_row([example]) for example in examples]


def fill_share(rows: Sequence[Row], capacity: int) -> float:
    """Return the share of the rows' places that hold a token."""
    return sum(len(row["input_ids"]) for row in rows) / max(len(rows) * capacity, 1)


def padding_share(rows: Sequence[Row], rows_per_batch: int) -> float:
    """Return the share of padding when rows, in their order, are padded to their batch's longest."""
    batches = [rows[start : start + rows_per_batch] for start in range(0, len(rows), rows_per_batch)]
    places = sum(len(batch) * max(len(row["input_ids"]) for row in batch) for batch in batches)
    return 1 - sum(len(row["input_ids"]) for row in rows) / max(places, 1)


def _row(examples: Sequence[Encoded]) -> Row:
    return Row(
        input_ids=[token for example in examples for token in example.input_ids],
        # Nothing before a document predicts its first token.
        labels=[label for example in examples for label in (IGNORED, *example.labels[1:])],
        lengths=[len(example.input_ids) for example in examples],
    )


class PaddedCollator:
    """Rows of one example each, padded at the end. Padding is masked by place: EOS may be the pad token.

    Gives input_ids, labels, attention_mask: (rows, longest).
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return one batch."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        return {
            "input_ids": torch.tensor([_filled(row["input_ids"], longest, self.pad_id) for row in rows]),
            "labels": torch.tensor([_filled(row["labels"], longest, IGNORED) for row in rows]),
            "attention_mask": torch.tensor(mask),
        }


class PackedCollator:
    """Rows of several documents, kept apart by position ids that begin again; padding is a document, too.

    Gives input_ids, labels, position_ids: (rows, longest). There must be no attention mask: transformers
    makes the mask of documents from the position ids only without one.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return one batch."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        positions = [_positions([*row["lengths"], longest - len(row["input_ids"])]) for row in rows]
        return {
            "input_ids": torch.tensor([_filled(row["input_ids"], longest, self.pad_id) for row in rows]),
            "labels": torch.tensor([_filled(row["labels"], longest, IGNORED) for row in rows]),
            "position_ids": torch.tensor(positions),
        }


class VarlenCollator:
    """All documents of all rows in one row without padding, and their borders for `attention.py`.

    Gives input_ids, labels, position_ids: (1, tokens), cu_seq_lens_q and cu_seq_lens_k: (documents + 1).
    """

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return one batch."""
        import torch

        lengths = [length for row in rows for length in row["lengths"]]
        borders = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        return {
            "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
            "labels": torch.tensor([[label for row in rows for label in row["labels"]]]),
            "position_ids": torch.tensor([_positions(lengths)]),
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }


def find_leak(model: Any, collator: Any, *, vocabulary_size: int, seed: int = 0) -> float:
    """Return how much a packed document's logits depend on its neighbour, in deviations of the logits.

    Three documents share a row; the first is exchanged for another, and the second is computed alone.
    Nothing of the second may change: more than LEAK_LIMIT means that documents see each other, or that
    their positions are wrong.

    Args:
        model: with or without an adapter.
        collator: the one of the training.
        vocabulary_size: ids are drawn below it.
        seed: of the drawn ids.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    lengths = (37, 21, 30)

    def document(length: int) -> list[int]:
        return list(map(int, torch.randint(vocabulary_size, (length,), generator=generator)))

    first, other, second, third = (document(length) for length in (lengths[0], *lengths))
    packed = [_row([Encoded(ids, ids) for ids in (start, second, third)]) for start in (first, other)]
    alone = [_row([Encoded(second, second)])]
    place = slice(lengths[0], lengths[0] + lengths[1])
    was_training = model.training
    model.eval()
    with torch.no_grad():
        one, another = (_logits(model, collator([row]))[place] for row in packed)
        reference = _logits(model, collator(alone))
    model.train(was_training)
    scale = reference.std().clamp(min=1e-6)
    changed = ((one - another).abs().max() / scale).item()
    # Rounding differs between shapes: the root of the mean square, not the largest, is asked for.
    moved = (((one - reference) ** 2).mean().sqrt() / scale).item()
    return float(max(changed, moved if moved > 5 * LEAK_LIMIT else 0.0))


def _logits(model: Any, batch: dict[str, Any]) -> Any:
    """Return (tokens, vocabulary) in float32 of a batch of one row, as the training calls the model."""
    import torch

    device = next(model.parameters()).device
    inputs = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
    inputs.pop("labels")
    return model(**inputs, use_cache=False).logits[0].float()


def _filled(values: list[int], length: int, filler: int) -> list[int]:
    return values + [filler] * (length - len(values))


def _positions(lengths: Sequence[int]) -> list[int]:
    return [position for length in lengths for position in range(length)]
