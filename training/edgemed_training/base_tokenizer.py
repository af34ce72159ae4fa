"""A byte-level BPE tokenizer, trained on the data: GPT-2's splitting rule, the special tokens of ChatML.

Every byte is a token, so that no text is unknown; llama.cpp calls the splitting rule `gpt-2`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgemed_training.errors import BaseModelError, DataError

END_OF_TEXT = "<|endoftext|>"
"""Token 0: ends a document."""
SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
END_OF_TEXT_ID = 0
_OUR_BASE = "Name the folder of a base that `edgemed-train base` made."
START_OF_TURN, END_OF_TURN = SPECIAL_TOKENS[1:]
"""Around each message of a conversation."""
QUESTION, ANSWER = "Question: ", "Answer:"
"""What stands before the text of user and assistant; an answer's text begins with a space."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + ('Question: ' if "
    "message['role'] == 'user' else 'Answer: ' if message['role'] == 'assistant' else '') + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\nAnswer:' }}{% endif %}"
)
"""ChatML's frames, with the words of the documents that the base was trained on."""


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


def read_tokenizer(folder: Path) -> Any:
    """Return the `tokenizers.Tokenizer` of a base that a chat model can be made of.

    Args:
        folder: the base model's, which was looked at (`base_model`).

    Raises:
        BaseModelError: no tokenizer.json, a damaged one, or one without the special tokens of the frames.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except OSError as error:
        raise BaseModelError(f"{path} cannot be read: {error.strerror}.", hint=_OUR_BASE) from error
    except ValueError as error:
        raise BaseModelError(f"{path} is no tokenizer: {error}.", hint=_OUR_BASE) from error
    special = {added.content for added in tokenizer.get_added_tokens_decoder().values() if added.special}
    if missing := [token for token in SPECIAL_TOKENS if token not in special]:
        raise BaseModelError(f"The tokenizer {path} has no special token {missing[0]}.", hint=_OUR_BASE)
    if tokenizer.token_to_id(END_OF_TEXT) != END_OF_TEXT_ID:
        raise BaseModelError(f"The tokenizer {path} has another token 0 than {END_OF_TEXT}.", hint=_OUR_BASE)
    return tokenizer


def encode_texts(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text; a special token's name in a text stays ordinary text."""
    tokenizer.encode_special_tokens = True
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    finally:
        tokenizer.encode_special_tokens = False


def save_tokenizer(tokenizer: Any, folder: Path, context_length: int, *, for_chat: bool = False) -> None:
    """Write the tokenizer as transformers reads it.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        folder: the model's folder, which exists.
        context_length: tokens.
        for_chat: with the chat template, and a text that ends with a turn.
    """
    from transformers import PreTrainedTokenizerFast

    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TURN if for_chat else END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
    if for_chat:
        saved.chat_template = CHAT_TEMPLATE
    saved.save_pretrained(folder)
