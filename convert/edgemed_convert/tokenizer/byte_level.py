"""Vocabularies of byte-level BPE, as tokenizer.json has them: GPT-2, Llama 3, Qwen, SmolLM, Phi-4-mini."""

from collections.abc import Mapping
from typing import Any

from edgemed_convert.errors import CheckpointError
from edgemed_convert.safetensors_file import COPY_AGAIN
from edgemed_convert.tokenizer.fields import TokenList, TokenType
from edgemed_convert.tokenizer.files import TokenizerFiles
from edgemed_convert.tokenizer.sentencepiece import added_type

# How byte-level BPE writes a space.
_SPACE = "Ġ"


def read_vocabulary(files: TokenizerFiles, size: int) -> tuple[TokenList, list[str]]:
    """Return the tokens and the merges.

    Args:
        size: rows of the model's embedding.

    Raises:
        CheckpointError: the vocabulary is damaged, or larger than the model.
    """
    path = files.folder / "tokenizer.json"
    if files.model.get("type") != "BPE":
        raise CheckpointError(
            f"{path} is a tokenizer of the kind {files.model.get('type')!r}, not BPE.",
            hint="The engine runs the families that can be exported with BPE only.",
        )
    vocabulary = files.model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise CheckpointError(f"{path} has no vocabulary.", hint=COPY_AGAIN)
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if files.model.get(option):
            raise CheckpointError(
                f"{path} uses {option}, which the engine does not know.",
                hint="The engine would split texts otherwise: this model cannot be exported.",
            )
    tokens = TokenList.of_size(size, with_scores=False)
    for text, number in vocabulary.items():
        if type(number) is not int:
            raise CheckpointError(f"{path} gives the token {text!r} no number.", hint=COPY_AGAIN)
        tokens.put(number, text.encode(), TokenType.NORMAL)
    for token in files.added:
        tokens.put(token.number, token.text.encode(), added_type(token.text, special=token.special))
    tokens.refuse_duplicates()
    return tokens, _merges(files.model, path)


def _merges(model: Mapping[str, Any], path: object) -> list[str]:
    """Return the merges as the engine has them: two parts with one space between."""
    merges = model.get("merges")
    if not isinstance(merges, list) or not merges:
        raise CheckpointError(f"{path} has no merges.", hint=COPY_AGAIN)
    lines = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise CheckpointError(
                f"{path} has a merge that is not two texts: {str(merge)[:40]}.", hint=COPY_AGAIN
            )
        lines.append(" ".join(part.replace(" ", _SPACE) for part in pair))
    return lines
