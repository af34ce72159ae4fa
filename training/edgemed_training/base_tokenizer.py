"""A byte-level BPE tokenizer, trained on the data: GPT-2's splitting rule, the special tokens of ChatML.

Every byte is a token, so that no text is unknown; llama.cpp calls the splitting rule `gpt-2`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgemed_training.errors import DataError

END_OF_TEXT = "<|endoftext|>"
"""Token 0: ends a document."""
SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
END_OF_TEXT_ID = 0


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Any:
    """Return a `tokenizers.Tokenizer`; the same texts give the same one.

    Args:
        texts: what to learn from.
        vocabulary_size: tokens, special ones included.

    Raises:
        DataError: the texts hold too little to fill the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found < vocabulary_size:
        raise DataError(
            f"The data hold too little text for a vocabulary of {vocabulary_size} tokens: it gave {found}.",
            hint=f"Use more data, or set tokenizer.vocabulary_size to at most {found}.",
        )
    return tokenizer


def encode_texts(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text; a special token's name in a text stays ordinary text."""
    tokenizer.encode_special_tokens = True
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    finally:
        tokenizer.encode_special_tokens = False


def save_tokenizer(tokenizer: Any, folder: Path, context_length: int) -> None:
    """Write the tokenizer as transformers reads it.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        folder: the model's folder, which exists.
        context_length: tokens.
    """
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
