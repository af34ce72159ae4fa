"""How the pairs of a run reach its model: encoded, packed if safe, answered after each epoch.

Called by `train`; `estimate` counts with the same length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgemed_training.base_model import BaseModel
from edgemed_training.chat_format import ChatFormat
from edgemed_training.encoding import IGNORED, EncodedPairs, encode_pairs
from edgemed_training.errors import BaseModelError
from edgemed_training.generation import generate_answers
from edgemed_training.recipe import Recipe
from edgemed_training.records import QAPair
from edgemed_training.scoring import mean_scores

Progress = Callable[[str], None]
_LOSS_TOLERANCE = 0.01


@dataclass(frozen=True)
class RunPlan:
    """How rows reach the model."""

    encoded: EncodedPairs
    heldout: EncodedPairs
    rows: list[Any]
    heldout_rows: list[Any]
    collator: Any
    packed: bool
    max_length: int


def clamp_length(recipe: Recipe, base: BaseModel, progress: Progress) -> int:
    """Return the length of an example in tokens: the recipe's, at most the model's own."""
    limit = base.context_length
    if limit is None or recipe.train.max_length <= limit:
        return recipe.train.max_length
    progress(
        f"max_length is {recipe.train.max_length}, but this model has {limit} positions: {limit} is used."
    )
    return limit


def encode_file(
    pairs: Sequence[QAPair], chat_format: ChatFormat, recipe: Recipe, max_length: int, name: str
) -> EncodedPairs:
    """Encode the pairs of one file as the recipe says; `name` is for the messages."""
    return encode_pairs(
        pairs,
        chat_format,
        max_length=max_length,
        cut=recipe.data.long_answers,
        drop_long_prompts=recipe.data.drop_long_prompts,
        source=name,
    )


def choose_attention(recipe: Recipe) -> str:
    """Return the attention by transformers' name, registered where it is ours."""
    from edgemed_training.attention import ATTENTION_NAME, register_varlen_attention, varlen_is_fast

    chosen = recipe.train.attention
    if chosen == "auto":
        chosen = "varlen" if recipe.train.packing != "off" and varlen_is_fast() else "sdpa"
    if chosen != "varlen":
        return chosen
    register_varlen_attention()
    return ATTENTION_NAME


def plan_rows(
    model: Any,
    chat_format: ChatFormat,
    recipe: Recipe,
    encoded: EncodedPairs,
    heldout: EncodedPairs,
    max_length: int,
    progress: Progress,
) -> RunPlan:
    """Try packing and loss on the model itself, and lay the examples in rows.

    Args:
        model: with its adapter; afterwards its loss is the one over answers.
        chat_format: its tokenizer says what fills rows.
        recipe: whether to pack.
        encoded: the training examples.
        heldout: the examples for the loss of each epoch.
        max_length: tokens of a row.
        progress: told when examples are padded because packing would not be safe.

    Raises:
        BaseModelError: packing is demanded and would leak, or the family's loss is not the plain one.
    """
    from edgemed_training import packing
    from edgemed_training.attention import ATTENTION_NAME
    from edgemed_training.loss import loss_difference, use_answer_loss

    _refuse_foreign_tokens(model, encoded, heldout)
    # Padding is masked by its place, so any id will do; a tokenizer's own may have no embedding.
    pad_id = chat_format.eos_id
    is_varlen = model.config._attn_implementation == ATTENTION_NAME
    collator: Any = packing.VarlenCollator() if is_varlen else packing.PackedCollator(pad_id)
    packs = recipe.train.packing != "off"
    leak = packing.find_leak(model, collator, vocabulary_size=_vocabulary(model)) if packs else 0.0
    if leak > packing.LEAK_LIMIT:
        sentence = (
            f"Packed documents would see each other in this model (logits move by {leak:.2g} deviations)"
        )
        if recipe.train.packing == "on":
            raise BaseModelError(f"{sentence}.", hint='Set train.packing = "off".')
        progress(f"{sentence}: examples are padded, not packed.")
        packs = False
    if not packs:
        collator = packing.PaddedCollator(pad_id)
    use_answer_loss(model.get_base_model())
    if (difference := loss_difference(model)) > _LOSS_TOLERANCE:
        raise BaseModelError(
            f"The loss of this model family is computed in its own way (it differs by {difference:.2g}).",
            hint="This family cannot be trained with this version.",
        )
    rows, heldout_rows = (
        packing.pack(pairs.examples, max_length) if packs else packing.unpacked(pairs.examples)
        for pairs in (encoded, heldout)
    )
    return RunPlan(encoded, heldout, rows, heldout_rows, collator, packs, max_length)


def _refuse_foreign_tokens(model: Any, *found: EncodedPairs) -> None:
    largest = max(max(example.input_ids) for pairs in found for example in pairs.examples)
    if largest >= _vocabulary(model):
        raise BaseModelError(
            f"The tokenizer gives ids up to {largest}, but the model has only "
            f"{_vocabulary(model)} embeddings.",
            hint="Tokenizer and weights are of different models: copy the model again.",
        )


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def evaluator(recipe: Recipe, chat_format: ChatFormat, base: BaseModel, plan: RunPlan) -> Any:
    """Return the function that computes loss and answers on the held-out pairs."""

    def evaluate(model: Any, accelerator: Any) -> dict[str, float]:
        found = heldout_scores(model, accelerator, plan.heldout_rows, plan.collator, recipe)._asdict()
        pairs = _spread(plan.heldout.pairs, recipe.eval.generation_items)
        if not pairs or _is_fsdp(accelerator):
            return found
        mine = pairs[accelerator.process_index :: accelerator.num_processes]
        answers = generate_answers(
            model,
            chat_format,
            mine,
            max_new_tokens=recipe.eval.max_new_tokens,
            batch_size=recipe.eval.batch_size,
            context_length=base.context_length,
        )
        pieces = _gathered(
            accelerator, [(a.text, p.answer, a.ended) for a, p in zip(answers, mine, strict=True)]
        )
        texts, references, ended = zip(*pieces, strict=True)
        return found | mean_scores(texts, references, ended)

    return evaluate


class HeldoutScores(NamedTuple):
    """What the model makes of answers that it reads, token by token."""

    loss: float
    """Nats a token."""
    token_accuracy: float
    """See `scoring.TOKEN_ACCURACY`."""


def heldout_scores(
    model: Any, accelerator: Any, rows: Sequence[Any], collator: Any, recipe: Recipe
) -> HeldoutScores:
    """Return means over all answer tokens of the rows, whatever their batches.

    Args:
        model: after `use_answer_loss`.
        accelerator: of the Trainer; its processes share the rows.
        rows: for the collator.
        collator: rows → batch.
        recipe: how many rows a batch has.
    """
    import torch

    size, total, hits, count = recipe.train.micro_batch_rows, 0.0, 0, 0
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    # Sharded models compute together, so each process takes all batches.
    mine = (
        batches if _is_fsdp(accelerator) else batches[accelerator.process_index :: accelerator.num_processes]
    )
    was_training = model.training
    model.eval()
    for batch in mine:
        inputs = {
            name: value.to(accelerator.device) if torch.is_tensor(value) else value
            for name, value in collator(batch).items()
        }
        with torch.no_grad(), accelerator.autocast():
            output = model(**inputs, num_items_in_batch=1)
        total += float(output.loss)
        hits += int(output.hits)
        count += int((inputs["labels"][:, 1:] != IGNORED).sum())
    model.train(was_training)
    mine_alone = [(total, hits, count)]
    pieces = mine_alone if _is_fsdp(accelerator) else _gathered(accelerator, mine_alone)
    losses, all_hits, counts = (sum(part) for part in zip(*pieces, strict=True))
    return HeldoutScores(losses / max(counts, 1), all_hits / max(counts, 1))


def _gathered(accelerator: Any, pieces: list[Any]) -> list[Any]:
    from accelerate.utils import gather_object

    return list(gather_object(pieces)) if accelerator.num_processes > 1 else pieces


def _is_fsdp(accelerator: Any) -> bool:
    return "FSDP" in str(accelerator.distributed_type)


def has_cuda() -> bool:
    """Whether this machine trains on a GPU."""
    import torch

    return bool(torch.cuda.is_available())


def _spread(pairs: Sequence[QAPair], count: int) -> list[QAPair]:
    """Return `count` pairs from all over the file: the same ones each time."""
    if count >= len(pairs):
        return list(pairs)
    return [pairs[index * len(pairs) // count] for index in range(count)]
