"""A GGUF file with a tokenizer and no tensors: enough for llama.cpp to split texts."""

from pathlib import Path

import gguf

from edgemed_convert.gguf_metadata import add_metadata
from edgemed_convert.output import new_file
from edgemed_convert.tokenizer.fields import TokenizerFields

# The engine treats models of these names as Phi-3: their special tokens swallow the spaces behind them.
_PHI3_NAMES = ("phi-3", "phi3")
_PHI3_TOKENS = (b"</s>", b"<unk>", b"<s>", b"<|endoftext|>")


def write_vocabulary(tokenizer: TokenizerFields, target: Path, *, name: str = "vocabulary") -> None:
    """Write the file, in the place of an older one.

    Raises:
        StorageError: the disk is full or read-only.
    """
    with new_file(target, replace=True) as path:
        writer = gguf.GGUFWriter(None, "llama")
        general = {"general.type": "model", "general.name": engine_name(name, tokenizer)}
        add_metadata(writer, general | tokenizer.metadata())
        try:
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()


def engine_name(name: str, tokenizer: TokenizerFields) -> str:
    """Return the model's name as the engine must see it, which treats names with "phi-3" specially.

    Where the special tokens swallow the spaces behind them, the name must have it; elsewhere it must not: a
    vocabulary without certain tokens would not even load.
    """
    has_name = any(part in name.lower() for part in _PHI3_NAMES)
    wanted = swallows_spaces(tokenizer)
    if has_name == wanted:
        return name
    if wanted:
        return f"{name} (phi-3)"
    for part in _PHI3_NAMES:
        while (start := name.lower().find(part)) >= 0:
            name = f"{name[: start + 3]} {name[start + len(part) - 1 :]}"
    return name


def swallows_spaces(tokenizer: TokenizerFields) -> bool:
    """Whether the engine can be told that special tokens swallow the spaces behind them, and has to be."""
    return bool(tokenizer.strips_right) and all(text in tokenizer.tokens.texts for text in _PHI3_TOKENS)
