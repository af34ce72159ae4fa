"""Proves on probe texts that llama.cpp makes the same tokens as tokenizer.json.

A rule's name alone does not show it: the engine's rules for rare letters are approximations. Where several
names fit a rule, the one that does best is picked.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgemed_convert.checkpoint import read_json
from edgemed_convert.errors import CheckpointError
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.safetensors_file import COPY_AGAIN
from edgemed_convert.tokenizer.fields import TokenizerFields, TokenType
from edgemed_convert.tokenizer.pre_tokenizer import names_of, read_rule
from edgemed_convert.tokenizer.probe_texts import PLAIN, RARE, random_texts
from edgemed_convert.tokenizer.vocabulary_file import write_vocabulary

_RANDOM_TEXTS = 300
_SPECIAL_TEXTS = 12


@dataclass(frozen=True)
class Proof:
    """How llama.cpp's tokens compare with the tokenizer's own."""

    fields: TokenizerFields
    """With the name of the splitting rule that does best."""
    texts: int
    different: tuple[str, ...]
    """Ordinary texts, and such around special tokens, that became other tokens."""
    rare_different: tuple[str, ...]
    """Texts with rare letters, and random ones, that did."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of it, in whole sentences."""
        found = []
        for texts, kind in ((self.different, "ordinary"), (self.rare_different, "rare")):
            if texts:
                found.append(
                    f"{len(texts)} of {self.texts} probe texts, {kind} ones, become other tokens in the "
                    f"engine, such as {shown(texts[0])}."
                )
        return tuple(found)


def prove_pre_tokenizer(folder: Path, fields: TokenizerFields, llama: LlamaProcess) -> Proof | None:
    """Split the probe texts with tokenizer.json and with llama.cpp, and compare.

    Args:
        folder: with tokenizer.json.
        fields: what `read_tokenizer` made of it.

    Returns:
        None where there is no tokenizer.json: nothing to compare with.

    Raises:
        CheckpointError: tokenizer.json cannot be loaded.
        LlamaCppError: llama.cpp failed.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    plain, rare = [*PLAIN, *_texts_around_special_tokens(fields)], [*RARE, *random_texts(_RANDOM_TEXTS)]
    expected = _reference_ids(path, fields, [*plain, *rare])
    best: Proof | None = None
    for name in _names(path, fields):
        candidate = replace(fields, pre=name)
        found = _engine_ids(candidate, [*plain, *rare], llama)
        wrong = [one != other for one, other in zip(expected, found, strict=True)]
        proof = Proof(
            candidate,
            len(wrong),
            tuple(text for text, is_wrong in zip(plain, wrong, strict=False) if is_wrong),
            tuple(text for text, is_wrong in zip(rare, wrong[len(plain) :], strict=True) if is_wrong),
        )
        if best is None or _badness(proof) < _badness(best):
            best = proof
        if _badness(proof) == (0, 0):
            break
    return best


def shown(text: str) -> str:
    """Return the beginning of a text on one line."""
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def _badness(proof: Proof) -> tuple[int, int]:
    return len(proof.different), len(proof.rare_different)


def _names(path: Path, fields: TokenizerFields) -> tuple[str, ...]:
    if fields.model != "gpt2":
        return (fields.pre,)
    return names_of(read_rule(read_json(path, error=CheckpointError)))


def _texts_around_special_tokens(fields: TokenizerFields) -> list[str]:
    """Return texts as a chat template makes them from the vocabulary's own special tokens."""
    found = [
        text.decode()
        for text, type_ in zip(fields.tokens.texts, fields.tokens.types, strict=True)
        if type_ is TokenType.CONTROL and b"unused" not in text and b"reserved" not in text
    ][:_SPECIAL_TEXTS]
    around = [f"{text}user\nHow much ORS, 3 kg?{text} Yes.\n{text}" for text in found]
    return [*around, "".join(found), " ".join(found), "\n".join(found)]


def _reference_ids(path: Path, fields: TokenizerFields, texts: Sequence[str]) -> list[list[int]]:
    # About 40 ms to import; only exports need it.
    from tokenizers import Tokenizer

    # Truncation and padding belong to training.
    content = {**read_json(path, error=CheckpointError), "truncation": None, "padding": None}
    if fields.is_built_anew:
        rule = {"type": "Metaspace", "replacement": "▁", "split": False}
        content |= {"normalizer": None, "pre_tokenizer": {**rule, "prepend_scheme": fields.space_prefix}}
    encoded = json.dumps(content)
    try:
        tokenizer = Tokenizer.from_str(encoded)
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path} cannot be loaded: {error}", hint=COPY_AGAIN) from error
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def _engine_ids(fields: TokenizerFields, texts: Sequence[str], llama: LlamaProcess) -> list[list[int]]:
    with tempfile.TemporaryDirectory(prefix="edgemed-") as folder:
        path = Path(folder) / "vocabulary.gguf"
        write_vocabulary(fields, path)
        llama.load(path, vocabulary_only=True)
        return llama.tokenize(_with_first_space(texts, fields), parse_special=True)


def _with_first_space(texts: Sequence[str], fields: TokenizerFields) -> list[str]:
    """Add the space that transformers puts before a text but the engine was told not to."""
    if fields.space_prefix != "first" or fields.add_space_prefix:
        return list(texts)
    kinds = (TokenType.CONTROL, TokenType.UNKNOWN)
    listed = zip(fields.tokens.texts, fields.tokens.types, strict=True)
    # Behind a special token, and before a space, transformers adds none either.
    without = (" ", "▁", *(token.decode() for token, type_ in listed if type_ in kinds))
    return [text if not text or text.startswith(without) else f" {text}" for text in texts]
