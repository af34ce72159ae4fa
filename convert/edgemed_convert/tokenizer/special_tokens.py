"""Which tokens begin a text and end an answer, and whether the tokenizer adds them by itself."""

from collections.abc import Iterable, Mapping
from typing import Any

from edgemed_convert.errors import CheckpointError
from edgemed_convert.tokenizer.fields import TokenList, TokenType
from edgemed_convert.tokenizer.files import TokenizerFiles
from edgemed_convert.tokenizer.sentencepiece import steps

# Texts that the engine takes for the end of an answer wherever they stand in a vocabulary.
ENDS_BY_TEXT = frozenset(
    {
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>",
    }
)  # fmt: skip
"""Texts that make any token an end of generation in llama.cpp, whatever the file says of it."""
# What ends a turn, the most telling first. By text: its number differs from vocabulary to vocabulary.
_ENDS_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>")
_DEFAULT_TEXTS = {"GPT2Tokenizer": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}}


def end_ids(
    tokens: TokenList, files: TokenizerFiles, configs: Iterable[Mapping[str, Any]]
) -> tuple[int, ...]:
    """Return every id that ends generation, the tokenizer's own first.

    Raises:
        CheckpointError: there is none, or the vocabulary has no such id.
    """
    found: dict[int, None] = {}
    own = _by_text(tokens, _text(files, "eos"))
    if own is not None:
        found[own] = None
    for config in configs:
        value = config.get("eos_token_id")
        for number in value if isinstance(value, list) else [value]:
            if number is None:
                continue
            if type(number) is not int or not 0 <= number < len(tokens.texts):
                raise CheckpointError(
                    f"The config ends answers at token {number!r}, which the vocabulary does not have.",
                    hint="Correct eos_token_id in config.json or generation_config.json.",
                )
            found[number] = None
    if not found:
        raise CheckpointError(
            "Neither the tokenizer nor config.json says which token ends an answer (eos_token, "
            "eos_token_id).",
            hint="Add eos_token_id to config.json: without it the engine would end answers at an "
            "ordinary token.",
        )
    return tuple(found)


def special_ids(
    tokens: TokenList, files: TokenizerFiles, config: Mapping[str, Any], ends: tuple[int, ...]
) -> tuple[dict[str, int], list[str]]:
    """Return the ids under the engine's names, and notes on ends that it cannot be told.

    The format has three places for the end of an answer (eos, eot, eom); more ends are known by their text.
    """
    ids: dict[str, int] = {}
    for name, key in (("bos", "bos"), ("unk", "unknown"), ("pad", "padding")):
        number = _by_text(tokens, _text(files, name))
        number = config.get(f"{name}_token_id") if number is None else number
        if type(number) is int and 0 <= number < len(tokens.texts):
            ids[key] = number
    ids["eos"] = ends[0]
    unknown_by_text = [number for number in ends[1:] if _decoded(tokens, number) not in ENDS_BY_TEXT]
    known_by_text = [number for number in ends[1:] if number not in unknown_by_text]
    turn_ends = [number for text in _ENDS_OF_TURN if (number := _control(tokens, text)) is not None]
    candidates = [*unknown_by_text, *known_by_text, *(number for number in turn_ends if number not in ends)]
    ids |= zip(("eot", "eom"), candidates[: 2 if len(ends) > 2 else 1], strict=False)
    notes = [
        f"The token {_decoded(tokens, number)!r} ends an answer by the config, but the format has no place "
        "left to say so: the engine writes on."
        for number in unknown_by_text[2:]
    ]
    return ids, notes


def added_by_tokenizer(files: TokenizerFiles) -> tuple[bool, bool]:
    """Return whether transformers puts bos before and eos behind a text by itself.

    Flags in tokenizer_config.json win over tokenizer.json's rule, as in transformers 5.
    """
    flags = [files.settings.get(f"add_{name}_token") for name in ("bos", "eos")]
    texts = [_text(files, name) for name in ("bos", "eos")]
    if any(isinstance(flag, bool) for flag in flags):
        return bool(flags[0]) and texts[0] is not None, bool(flags[1]) and texts[1] is not None
    before: str | None = None
    behind: str | None = None
    for step in steps(files.tokenizer.get("post_processor"), "processors"):
        if step.get("type") == "TemplateProcessing":
            before, behind = _template_ends(step.get("single"))
    for text, own, name in ((before, texts[0], "begins"), (behind, texts[1], "ends")):
        if text is not None and text != own:
            raise CheckpointError(
                f"The tokenizer {name} each text with {text!r}, which is not its own "
                f"{'bos' if name == 'begins' else 'eos'}_token ({own!r}).",
                hint="The engine can add only those: correct tokenizer_config.json.",
            )
    return before is not None, behind is not None


def _template_ends(single: object) -> tuple[str | None, str | None]:
    """Return the special tokens before and behind the text."""
    parts = [part for part in single if isinstance(part, dict)] if isinstance(single, list) else []
    tokens = [part.get("SpecialToken") for part in parts]
    texts = [token.get("id") if isinstance(token, dict) else None for token in tokens]
    place = next((index for index, part in enumerate(parts) if "Sequence" in part), 0)
    if len(texts[:place]) > 1 or len(texts[place + 1 :]) > 1:
        raise CheckpointError(
            "The tokenizer puts several special tokens around each text, which the engine cannot do.",
            hint="This model cannot be exported: its answers would be wrong.",
        )
    return next(iter(texts[:place]), None), next(iter(texts[place + 1 :]), None)


def accidental_ends(tokens: TokenList, ends: tuple[int, ...]) -> tuple[int, ...]:
    """Return the ordinary tokens that the engine takes for an end by their text, such as Qwen's "</s>"."""
    return tuple(
        number
        for number, type_ in enumerate(tokens.types)
        if type_ is TokenType.NORMAL and number not in ends and _decoded(tokens, number) in ENDS_BY_TEXT
    )


def _text(files: TokenizerFiles, name: str) -> str | None:
    """Return the text of bos, eos, unk or pad."""
    text = files.token_text(f"{name}_token")
    if text is None and f"{name}_token" not in files.settings:
        class_name = str(files.settings.get("tokenizer_class", "")).removesuffix("Fast")
        text = _DEFAULT_TEXTS.get(class_name, {}).get(name)
    return text


def _by_text(tokens: TokenList, text: str | None) -> int | None:
    if text is None:
        return None
    encoded = text.encode()
    return tokens.texts.index(encoded) if encoded in tokens.texts else None


def _control(tokens: TokenList, text: str) -> int | None:
    number = _by_text(tokens, text)
    return number if number is not None and tokens.types[number] is TokenType.CONTROL else None


def _decoded(tokens: TokenList, number: int) -> str:
    return tokens.texts[number].decode(errors="replace")
