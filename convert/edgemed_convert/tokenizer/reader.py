"""Reads a model folder's tokenizer into the engine's terms; called by export and by the checks."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemed_convert.checkpoint import read_json
from edgemed_convert.errors import CheckpointError
from edgemed_convert.tokenizer import byte_level, sentencepiece
from edgemed_convert.tokenizer.fields import NOT_TOGETHER, TokenizerFields
from edgemed_convert.tokenizer.files import TokenizerFiles, read_files, read_templates
from edgemed_convert.tokenizer.pre_tokenizer import names_of, read_rule
from edgemed_convert.tokenizer.special_tokens import accidental_ends, added_by_tokenizer, end_ids, special_ids

_TEMPLATE_NAME = re.compile(r"[a-z0-9_]+")


def read_tokenizer(
    folder: Path, config: Mapping[str, Any], *, generation_config: Mapping[str, Any] | None = None
) -> TokenizerFields:
    """Read the tokenizer that belongs to a model.

    Args:
        folder: with the tokenizer's files.
        config: of the model; its vocab_size is the number of tokens, unused ones too.
        generation_config: of the model; by default the folder's own, where it has one.

    Raises:
        CheckpointError: a file is missing or damaged, the tokenizer does not belong to the model, or the
        engine
            would split texts otherwise.
    """
    files = read_files(folder)
    size = config.get("vocab_size")
    if type(size) is not int or not 0 < size < 2**31:
        raise CheckpointError("config.json has no vocab_size.", hint=NOT_TOGETHER)
    if generation_config is None:
        path = folder / "generation_config.json"
        generation_config = read_json(path, error=CheckpointError) if path.exists() else {}
    notes: list[str] = []
    if sentencepiece.is_sentencepiece_like(files):
        model, pre, merges = "llama", "default", None
        tokens, notes = sentencepiece.read_vocabulary(files, size)
        prefix = sentencepiece.space_prefix(files, config)
    else:
        model, prefix = "gpt2", "never"
        tokens, merges = byte_level.read_vocabulary(files, size)
        rule = read_rule(files.tokenizer)
        pre = names_of(rule)[0]
        if rule.normalizer is not None:
            notes.append(
                f"The tokenizer brings texts into Unicode's form {rule.normalizer}; the engine does not: "
                "text with separate combining marks becomes other tokens."
            )
    ends = end_ids(tokens, files, (config, generation_config))
    ids, end_notes = special_ids(tokens, files, config, ends)
    accidental = accidental_ends(tokens, ends)
    for number in accidental:
        text = tokens.texts[number].decode(errors="replace")
        notes.append(f"The engine ends an answer at the ordinary token {text!r} because of its text.")
    add_bos, add_eos = added_by_tokenizer(files)
    if add_bos and "bos" not in ids:
        raise CheckpointError("The tokenizer adds a bos token, but names none.", hint=NOT_TOGETHER)
    templates, template_notes = _templates(files)
    default = templates.pop("default", None)
    add_space_prefix, prefix_notes = _space_prefix(prefix, has_template=default is not None)
    strips_right, strip_notes = _strips(files)
    return TokenizerFields(
        model=model,
        pre=pre,
        tokens=tokens,
        merges=merges,
        special_ids=ids,
        end_ids=ends,
        accidental_ends=accidental,
        add_bos=add_bos,
        add_eos=add_eos,
        space_prefix=prefix,
        add_space_prefix=add_space_prefix,
        is_built_anew=model == "llama" and sentencepiece.is_built_anew(files, config),
        strips_right=strips_right,
        chat_template=default,
        named_templates=templates,
        notes=(*notes, *end_notes, *template_notes, *prefix_notes, *strip_notes),
    )


def _templates(files: TokenizerFiles) -> tuple[dict[str, str], list[str]]:
    templates = read_templates(files)
    notes = []
    if templates and "default" not in templates:
        notes.append(f"None of the chat templates ({', '.join(sorted(templates))}) is the default one.")
    for name in [name for name in templates if not _TEMPLATE_NAME.fullmatch(name)]:
        del templates[name]
        notes.append(f"The chat template {name!r} is left out: the format knows no such name.")
    return templates, notes


def _space_prefix(prefix: str, *, has_template: bool) -> tuple[bool, list[str]]:
    """Return what to tell the engine, which puts the space behind every special token, too, or nowhere."""
    if prefix != "first":
        return prefix == "always", []
    if has_template:
        return False, [
            (
                "The tokenizer puts a space before a text only at its very beginning, never behind a "
                "special token; the engine is told never to, so conversations are right and a bare text "
                "lacks its first space."
            )
        ]
    return True, [
        (
            "The tokenizer puts a space before a text only at its very beginning; the engine does so "
            "behind special tokens, too."
        )
    ]


def _strips(files: TokenizerFiles) -> tuple[bool, list[str]]:
    right = [token.text for token in files.added if token.strips_right]
    left = [token.text for token in files.added if token.strips_left]
    notes = [f"The token {text!r} swallows the spaces before it; the engine keeps them." for text in left]
    return bool(right), notes
