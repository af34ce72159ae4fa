"""Models and data small enough to be made in a test: a random Llama or GPT-2 with a tokenizer, invented pairs."""

import json
from pathlib import Path
from typing import Any

from edgemed_training.records import HELDOUT_NAME, TRAIN_NAME, QAPair, encode_pairs

# The frame of many models: turns between two control tokens, nothing before the first.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ILLNESSES = (
    "Corva fever",
    "Melt cough",
    "Sand eye",
    "River rash",
    "Dry knee",
    "Owl sleep",
    "Pine lung",
    "Moss foot",
)
ASKED = {
    "What is {}?": "{} is an invented illness of the {} region. It is not dangerous.",
    "How is {} treated?": "Rest helps against {} in most cases. Drink {} cups of water. See a doctor after 3 days.",
    "What are the signs of {}?": "The signs of {} are heat, tired legs and {} spots. They pass by themselves.",
}


def invented_pairs(count: int = 24) -> list[QAPair]:
    """Return pairs about illnesses that do not exist; each illness is a group."""
    pairs = []
    for number in range(count):
        illness = ILLNESSES[number % len(ILLNESSES)] + (f" {number // 24}" if number >= 24 else "")
        question, answer = list(ASKED.items())[number // len(ILLNESSES) % 3]
        pairs.append(
            QAPair(
                id=f"row-{number}",
                question=question.format(illness),
                answer=answer.format(illness, number % 7 + 2),
                system="Answer in short sentences.",
                group=illness,
            )
        )
    return pairs


def write_data(folder: Path, *, train: int = 24, heldout: int = 4) -> Path:
    """Write prepared pairs without a dataset card; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = invented_pairs(train + heldout)
    (folder / TRAIN_NAME).write_bytes(encode_pairs(pairs[:train]))
    (folder / HELDOUT_NAME).write_bytes(encode_pairs(pairs[train:]))
    return folder


def make_tokenizer(
    *,
    bos: str | None = None,
    eos: str = "<|im_end|>",
    special: tuple[str, ...] = (),
    template: str | None = CHATML,
) -> Any:
    """Return a byte-level BPE tokenizer that learned from the invented pairs.

    Args:
        bos: put before every text by the tokenizer itself.
        eos: the end token.
        special: more control tokens.
        template: the chat template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict.fromkeys([*(name for name in (bos, eos) if name), *special])
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(names),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{pair.question} {pair.answer}" for pair in invented_pairs(48)]
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=list(special) or None,
    )
    fast.chat_template = template
    return fast


def make_base(folder: Path, *, kind: str = "llama", layers: int = 2, hidden: int = 64, seed: int = 0) -> Path:
    """Write a random base model with its tokenizer; return the folder.

    Args:
        folder: created.
        kind: llama or gpt2 (without a chat template).
        layers: of the decoder.
        hidden: width, a multiple of 64.
        seed: of the weights.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    if kind == "gpt2":
        tokenizer = make_tokenizer(bos="<|endoftext|>", eos="<|endoftext|>", template=None)
        tokenizer.backend_tokenizer.post_processor = None
        ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=hidden, n_layer=layers, n_head=4, n_positions=256, **ids
        )
        model: Any = GPT2LMHeadModel(config)
    else:
        tokenizer = make_tokenizer(special=("<|im_start|>",))
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_losses(log: Path) -> list[float]:
    """Return the loss of every step in a log.jsonl."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]
