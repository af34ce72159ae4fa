"""The dry run: what a recipe will need and take, from tokenizer and config.json alone.

Memory and time are estimates for one GPU; token counts, cuts, padding and steps are exact.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgemed_training.base_model import BaseModel
from edgemed_training.chat_format import ChatFormat
from edgemed_training.encoding import IGNORED, EncodedPairs
from edgemed_training.errors import BaseModelError
from edgemed_training.libraries import prepare_libraries
from edgemed_training.recipe import Recipe
from edgemed_training.records import HELDOUT_NAME, TRAIN_NAME, read_pairs

NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of one weight: 4 bits, an 8-bit scale for 64 weights, a 32-bit one for 256 scales."""
EFFICIENCY = 0.4
"""Share of the GPU's peak that training in plain PyTorch reaches with rows of thousands of tokens."""
_ADAPTER_BYTES = 16  # float32 weight, gradient and two moments
_CONTEXT_BYTES = 700 * 2**20  # CUDA, cuBLAS and the allocator's leftovers
_LOGIT_BYTES = 10  # of a chunk: bf16, float32 and its gradient
_SAFE_SHARE = 0.9


class Gpu(msgspec.Struct, frozen=True):
    """A GPU as its maker describes it: dense bf16 (Turing: fp16) and memory."""

    name: str
    peak_flops: float
    memory_gib: int


GPUS = (
    Gpu("T4", 65e12, 16),
    Gpu("L4", 121e12, 24),
    Gpu("RTX 4090", 165e12, 24),
    Gpu("A100 80GB", 312e12, 80),
    Gpu("H100", 800e12, 80),
)


class GpuEstimate(msgspec.Struct, frozen=True):
    """What one GPU would make of the recipe."""

    gpu: str
    fits: bool
    seconds_per_epoch: float


class ModelSize(msgspec.Struct, frozen=True):
    """Counted on a model without weights."""

    parameters: int
    linear_parameters: int
    """Of the matrices that are quantized."""
    adapter_parameters: int
    head_parameters: int
    largest_matrix: int
    hidden_size: int
    feed_forward_size: int
    layers: int
    vocabulary_size: int
    kv_bytes_per_token: int


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """The dry run's result."""

    recipe: str
    base_model: str
    max_length: int
    examples: int
    dropped: dict[str, int]
    heldout_examples: int
    tokens: int
    answer_tokens: int
    longest_example: int
    cut_share: float
    """Share of the examples whose answer is cut."""
    padding_share: float
    """Of the places in padded batches of random order: what packing saves."""
    packed_rows: int
    fill_share: float
    """Share of the packed rows' places that hold a token."""
    steps_per_epoch: int
    steps: int
    size: ModelSize
    activation_checkpointing: bool
    memory_bytes: dict[str, int]
    """By what takes it; the largest of training and of generation counts."""
    total_bytes: int
    gpus: list[GpuEstimate]
    system_prompt_in: str
    first_example: str
    """With the answer's tokens between ⟦ and ⟧: what the loss looks at."""


def check(
    recipe: Recipe, *, data: Path, base: Path, progress: Callable[[str], None] = lambda sentence: None
) -> Check:
    """Count everything that a run would meet.

    Args:
        recipe: as for `run`.
        data: the folder that `prepare` wrote.
        base: needs config.json and the tokenizer; weights are not read.
        progress: told a sentence when the length is clamped.

    Raises:
        BaseModelError: the folder cannot be used, or is not the recipe's model.
        DataError: the data cannot be used.
    """
    prepare_libraries()
    from edgemed_training import packing, qlora
    from edgemed_training.run_plan import clamp_length, encode_file

    model_folder = BaseModel.read(base, weights=False)
    model_folder.check_fits(recipe.base)
    chat_format = ChatFormat(qlora.load_tokenizer(model_folder), recipe)
    max_length = clamp_length(recipe, model_folder, progress)
    encoded, heldout = (
        encode_file(read_pairs(data / name), chat_format, recipe, max_length, name)
        for name in (TRAIN_NAME, HELDOUT_NAME)
    )
    size = model_size(model_folder, recipe)
    rows = packing.pack(encoded.examples, max_length)
    packs = recipe.train.packing != "off"
    row_count = len(rows) if packs else len(encoded.examples)
    per_step = recipe.train.micro_batch_rows * recipe.train.gradient_accumulation_steps
    steps_per_epoch = math.ceil(row_count / per_step)
    recompute = recipe.train.activation_checkpointing != "off"
    micro_tokens = recipe.train.micro_batch_rows * (max_length if packs else encoded.longest)
    memory = memory_bytes(size, recipe, micro_tokens=micro_tokens, recompute=recompute)
    total = sum(memory.values())
    padding = packing.padding_share(
        _shuffled(packing.unpacked(encoded.examples)), recipe.train.micro_batch_rows
    )
    processed = encoded.tokens / (1 if packs else 1 - padding)
    flops = flops_per_token(size, encoded.answer_tokens / encoded.tokens, recompute=recompute) * processed
    return Check(
        recipe=recipe.name,
        base_model=qlora.public_name(model_folder, recipe),
        max_length=max_length,
        examples=len(encoded.examples),
        dropped=dict(encoded.dropped),
        heldout_examples=len(heldout.examples),
        tokens=encoded.tokens,
        answer_tokens=encoded.answer_tokens,
        longest_example=encoded.longest,
        cut_share=encoded.cut_share,
        padding_share=padding,
        packed_rows=len(rows),
        fill_share=packing.fill_share(rows, max_length),
        steps_per_epoch=steps_per_epoch,
        steps=math.ceil(steps_per_epoch * recipe.train.epochs),
        size=size,
        activation_checkpointing=recompute,
        memory_bytes=memory,
        total_bytes=total,
        gpus=[
            GpuEstimate(gpu.name, total <= gpu.memory_gib * 2**30, flops / (gpu.peak_flops * EFFICIENCY))
            for gpu in GPUS
        ],
        system_prompt_in=chat_format.system_placement,
        first_example=_marked(encoded, chat_format),
    )


def model_size(base: BaseModel, recipe: Recipe) -> ModelSize:
    """Count a model's parameters on the meta device: no weight is read, no memory taken.

    Raises:
        BaseModelError: transformers does not know the family.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgemed_training.qlora import attach_adapter

    try:
        config = AutoConfig.from_pretrained(str(base.folder), local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(
            f"config.json in {base.folder} describes no model that transformers knows: "
            f"{' '.join(str(error).split())[:200]}.",
            hint="Use a newer transformers, or another model.",
        ) from error
    head = model.get_output_embeddings().weight
    matrices = [
        part.weight for name, part in model.named_modules() if _is_matrix(part) and part.weight is not head
    ]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with torch.device("meta"):
        adapted = attach_adapter(model, recipe, base)
    hidden = base.hidden_size
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    return ModelSize(
        parameters=parameters,
        linear_parameters=sum(weight.numel() for weight in matrices),
        adapter_parameters=sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        head_parameters=head.numel(),
        largest_matrix=max(weight.numel() for weight in matrices),
        hidden_size=hidden,
        feed_forward_size=getattr(config, "intermediate_size", None) or 4 * hidden,
        layers=base.layers,
        vocabulary_size=head.shape[0],
        kv_bytes_per_token=2 * base.layers * kv_heads * head_size * 2,
    )


def memory_bytes(size: ModelSize, recipe: Recipe, *, micro_tokens: int, recompute: bool) -> dict[str, int]:
    """Estimate GPU memory by what takes it.

    Args:
        size: of the model.
        recipe: quantization, generation.
        micro_tokens: tokens of one forward pass.
        recompute: activations are computed again in the backward pass.
    """
    from edgemed_training.loss import CHUNK_TOKENS

    quantized = NF4_BYTES if recipe.base.quantization == "nf4" else 2.0
    of_layer = 2 * (14 * size.hidden_size + 6 * size.feed_forward_size)
    kept = 2 * size.hidden_size * size.layers + of_layer if recompute else of_layer * size.layers
    context = recipe.train.max_length + recipe.eval.max_new_tokens
    generation = (
        size.kv_bytes_per_token * recipe.eval.batch_size * context if recipe.eval.generation_items else 0
    )
    activations = micro_tokens * kept + CHUNK_TOKENS * size.vocabulary_size * _LOGIT_BYTES
    parts = {
        "base model": size.linear_parameters * quantized + (size.parameters - size.linear_parameters) * 2,
        "adapter and optimizer": size.adapter_parameters * _ADAPTER_BYTES,
        # Training and answering take turns.
        "activations" if activations >= generation else "generation": max(activations, generation),
        "one matrix dequantized": 2 * size.largest_matrix if recipe.base.quantization == "nf4" else 0,
        "CUDA": _CONTEXT_BYTES,
    }
    return {name: math.ceil(value) for name, value in parts.items()}


def flops_per_token(size: ModelSize, answer_share: float, *, recompute: bool) -> float:
    """Return floating-point operations of one token: forward and backward through frozen matrices.

    The head runs on answers alone; frozen weights need no gradient, so it is 4 a weight, 6 with recomputing.
    """
    weights = size.linear_parameters + size.adapter_parameters + size.head_parameters * answer_share
    return (6 if recompute else 4) * weights


def activations_fit(recipe: Recipe, base: BaseModel, max_length: int) -> bool:
    """Whether activations can be kept on this process's GPU; always true on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return True
    size = model_size(base, recipe)
    micro_tokens = recipe.train.micro_batch_rows * max_length
    needed = sum(memory_bytes(size, recipe, micro_tokens=micro_tokens, recompute=False).values())
    return bool(needed <= _SAFE_SHARE * torch.cuda.get_device_properties(0).total_memory)


def _is_matrix(part: Any) -> bool:
    return type(part).__name__ in ("Linear", "Conv1D")


def _shuffled(rows: Sequence[Any]) -> list[Any]:
    import random

    shuffled = list(rows)
    random.Random(0).shuffle(shuffled)
    return shuffled


def _marked(encoded: EncodedPairs, chat_format: ChatFormat) -> str:
    example = encoded.examples[0]
    start = sum(label == IGNORED for label in example.labels)
    decode = chat_format.tokenizer.decode
    return f"{decode(example.input_ids[:start])}⟦{decode(example.input_ids[start:])}⟧"
