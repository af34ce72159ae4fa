"""Vocabularies of SentencePiece's BPE with byte fallback: Llama 2, Mistral, Gemma, Phi-3.

Two sources: tokenizer.model with scores, or (transformers 5 writes nothing else) the merges of
tokenizer.json, whose ranks become scores: the engine joins the pair of best score first, the merges the pair
of lowest rank.
"""

import re
from collections.abc import Mapping
from typing import Any

from edgemed_convert.errors import CheckpointError
from edgemed_convert.tokenizer.fields import NOT_TOGETHER, TokenList, TokenType
from edgemed_convert.tokenizer.files import TokenizerFiles
from edgemed_convert.tokenizer.sentencepiece_model import SentencePieceModel, parse_model

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_ADDED_SCORE = -1000.0
_SPACE = "▁"


def is_sentencepiece_like(files: TokenizerFiles) -> bool:
    """Whether the tokenizer is SentencePiece's BPE, whichever file holds it."""
    if not files.tokenizer:
        return True
    return files.model.get("type") == "BPE" and bool(files.model.get("byte_fallback"))


def read_vocabulary(files: TokenizerFiles, size: int) -> tuple[TokenList, list[str]]:
    """Return the tokens, and notes on what the engine does otherwise.

    Args:
        size: rows of the model's embedding.

    Raises:
        CheckpointError: the vocabulary is damaged, larger than the model, or has no byte tokens.
    """
    tokens = TokenList.of_size(size, with_scores=True)
    notes: list[str] = []
    path = files.folder / "tokenizer.model"
    model = None if files.sentencepiece is None else parse_model(files.sentencepiece, path)
    if model is not None and _agree(model, files):
        _put_pieces(tokens, model, user_defined=not files.tokenizer)
        if model.rewrites_text:
            notes.append(
                "The tokenizer normalizes letters (such as full-width ones) before it splits a text; the "
                "engine does not."
            )
    else:
        if model is not None:
            notes.append("tokenizer.model is of another vocabulary than tokenizer.json, and was not used.")
        _put_merges(tokens, files.model)
    _put_added(tokens, files)
    _check_bytes(tokens, files)
    tokens.refuse_duplicates()
    return tokens, notes


def is_built_anew(files: TokenizerFiles, config: Mapping[str, Any]) -> bool:
    """Whether transformers 5 builds the splitting rule from settings and does not look at "
    "tokenizer.json's own."""
    class_name = str(files.settings.get("tokenizer_class", "")).removesuffix("Fast")
    return class_name == "LlamaTokenizer" and (config.get("model_type") == "llama" or not files.tokenizer)


def space_prefix(files: TokenizerFiles, config: Mapping[str, Any]) -> str:
    """Return where transformers puts a space before a text: "always", "first" or "never"."""
    if is_built_anew(files, config):
        if files.settings.get("add_prefix_space") is False:
            return "never"
        return "always" if files.settings.get("legacy") else "first"
    if not files.tokenizer:
        model = parse_model(files.sentencepiece or b"", files.folder / "tokenizer.model")
        return "always" if model.add_dummy_prefix else "never"
    return _prefix_of_rule(files.tokenizer)


def _prefix_of_rule(tokenizer: Mapping[str, Any]) -> str:
    for step in steps(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend":
            return "always"
    for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme")
            return str(scheme) if scheme else ("always" if step.get("add_prefix_space", True) else "never")
    return "never"


def steps(node: object, key: str) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, sequences within sequences laid flat."""
    if not isinstance(node, dict):
        return []
    if node.get("type") != "Sequence":
        return [node]
    children = node.get(key)
    return [step for child in children for step in steps(child, key)] if isinstance(children, list) else []


def _agree(model: SentencePieceModel, files: TokenizerFiles) -> bool:
    """Whether tokenizer.json, where there is one, gives the pieces the same numbers."""
    if not files.tokenizer:
        return True
    vocabulary = files.model.get("vocab")
    if not isinstance(vocabulary, dict):
        return False
    added = {token.number for token in files.added}
    return all(
        vocabulary.get(piece.text) == number or number in added for number, piece in enumerate(model.pieces)
    )


def _put_pieces(tokens: TokenList, model: SentencePieceModel, *, user_defined: bool) -> None:
    for number, piece in enumerate(model.pieces):
        type_, text = piece.type, piece.text
        if type_ is TokenType.USER_DEFINED:
            # Where there is a tokenizer.json, its list of added tokens decides.
            type_ = added_type(text, special=False) if user_defined else TokenType.NORMAL
            text = text.replace(_SPACE, " ") if type_ is TokenType.USER_DEFINED else text
        tokens.put(number, text.encode(), type_, piece.score)


def _put_merges(tokens: TokenList, model: Mapping[str, Any]) -> None:
    vocabulary, ranks = _vocabulary(model), _ranks(model)
    unknown = model.get("unk_token")
    for text, number in vocabulary.items():
        if _BYTE.fullmatch(text):
            type_ = TokenType.BYTE
        else:
            type_ = TokenType.UNKNOWN if text == unknown else TokenType.NORMAL
        # What no merge makes comes last; single letters are never looked up by score.
        tokens.put(number, text.encode(), type_, -float(ranks.get(text, len(ranks) + number)))


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        raise CheckpointError("tokenizer.json has no vocabulary of texts and numbers.", hint=NOT_TOGETHER)
    return vocabulary


def _ranks(model: Mapping[str, Any]) -> dict[str, int]:
    """Return, for each text that a merge makes, how early the first such merge comes."""
    ranks: dict[str, int] = {}
    merges = model.get("merges")
    for rank, merge in enumerate(merges if isinstance(merges, list) else []):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or not all(isinstance(part, str) for part in pair):
            raise CheckpointError("tokenizer.json has a merge that is not two texts.", hint=NOT_TOGETHER)
        ranks.setdefault("".join(pair), rank)
    return ranks


def _put_added(tokens: TokenList, files: TokenizerFiles) -> None:
    for token in files.added:
        type_ = added_type(token.text, special=token.special)
        text = token.text.replace(_SPACE, " ") if type_ is TokenType.USER_DEFINED else token.text
        known = 0 <= token.number < len(tokens.texts) and tokens.texts[token.number] == token.text.encode()
        score = tokens.scores[token.number] if known and tokens.scores is not None else _ADDED_SCORE
        if known and tokens.types[token.number] is TokenType.UNKNOWN:
            type_ = TokenType.UNKNOWN
        tokens.put(token.number, text.encode(), type_, score)


def added_type(text: str, *, special: bool) -> TokenType:
    """Return the engine's kind of an added token.

    Some models list tokens as ordinary that steer the model; which texts look so was read from llama.cpp's
    MIT-licensed converter.
    """
    steering = (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
    return TokenType.CONTROL if special or steering else TokenType.USER_DEFINED


def _check_bytes(tokens: TokenList, files: TokenizerFiles) -> None:
    """Without all byte tokens the engine's process ends at the first letter it does not know."""
    texts = set(tokens.texts)
    if any(f"<0x{byte:02X}>".encode() not in texts for byte in range(256)):
        raise CheckpointError(
            f"The tokenizer in {files.folder} has no tokens for single bytes.",
            hint="The engine needs them for letters that are not in the vocabulary: this model cannot "
            "be exported.",
        )
