"""The engine's name for the rule by which a byte-level tokenizer splits a text into words.

The name is found from tokenizer.json's own rule, so a newly trained tokenizer is known like its model; a
table of hashes would refuse it. Names, regular expressions and flags were read from llama.cpp (MIT),
src/llama-vocab.cpp. `pre_tokenizer_proof.py` proves a name on probe texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgemed_convert.errors import CheckpointError
from edgemed_convert.tokenizer.sentencepiece import steps

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_QWEN35 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
# "{0}" stands for what may follow a word.
_WORDS = _BEFORE + _UPPER + "*" + _LOWER + "+{0}|" + _BEFORE + _UPPER + "+" + _LOWER + "*{0}"
_REST_WITH_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = _WORDS.replace("{0}", _CONTRACTIONS + "?") + r"|\p{N}{1,3}" + _REST_WITH_SLASH
_TEKKEN = _WORDS.replace("{0}", "") + r"|\p{N}" + _REST_WITH_SLASH
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)

# (regular expressions, ignore_merges) → names, the usual one first.
_NAMES: dict[tuple[tuple[str, ...], bool], tuple[str, ...]] = {
    ((_GPT2,), False): ("gpt-2",),
    ((_DIGIT, _GPT2), False): ("smollm",),
    ((_LLAMA3,), True): ("llama-bpe",),
    ((_LLAMA3,), False): ("smaug-bpe",),
    ((_QWEN2,), False): ("qwen2",),
    ((_QWEN35,), False): ("qwen35",),
    # The second one keeps combining marks (Hindi, vowelled Arabic) with their letters, as the rule says.
    ((_GPT4O,), False): ("gpt-4o", "granite-embed-multi-97m"),
    ((_TEKKEN,), True): ("tekken",),
    (_DEEPSEEK_V3, False): ("deepseek-v3",),
}
_SAME_MEANING = {
    # Spellings that match the same texts.
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])": _CONTRACTIONS,
    "(?i:[sdmt]|ll|ve|re)": "(?i:s|t|re|ve|m|ll|d)",
    "'(?i:s|t|re|ve|m|ll|d)": _CONTRACTIONS,
    r"\p{N}{1}": r"\p{N}",
    "?+": "?",
    "++": "+",
}


@dataclass(frozen=True)
class SplitRule:
    """A tokenizer's rule: what it does to a text before the merges."""

    expressions: tuple[str, ...]
    """Applied one after another; each match and each stretch between matches is a word of its own."""
    ignore_merges: bool
    """A word that is a token is taken whole, whatever the merges say."""
    normalizer: str | None
    """Unicode form that texts are brought into first."""

    def __str__(self) -> str:
        flags = " with ignore_merges" if self.ignore_merges else ""
        return " then ".join(self.expressions) + flags


def read_rule(tokenizer: Mapping[str, Any]) -> SplitRule:
    """Return the splitting rule of a tokenizer.json.

    Raises:
        CheckpointError: a step that the engine does not know; it is named.
    """
    model = tokenizer.get("model")
    ignore_merges = isinstance(model, dict) and bool(model.get("ignore_merges"))
    found: list[str] = []
    for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        found += _expressions(step)
    return SplitRule(tuple(found), ignore_merges, _normalizer(tokenizer))


def names_of(rule: SplitRule) -> tuple[str, ...]:
    """Return the engine's names for a rule, the usual one first.

    Raises:
        CheckpointError: it has none.
    """
    names = _NAMES.get((rule.expressions, rule.ignore_merges))
    if names is None:
        raise CheckpointError(
            f"The engine has no name for the rule by which this tokenizer splits texts: {rule}.",
            hint="Train the tokenizer with the rule of GPT-2, Llama 3, Qwen2, SmolLM or GPT-4o.",
        )
    return names


def _expressions(step: Mapping[str, Any]) -> list[str]:
    kind = step.get("type")
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            raise _unknown("a space is put before each text (add_prefix_space)")
        return [_GPT2] if step.get("use_regex", True) else []
    if kind == "Digits":
        # Neither the engine nor this table has a rule for whole numbers as words.
        return [_DIGIT] if step.get("individual_digits") else [r"\p{N}+"]
    if kind == "Split":
        pattern = step.get("pattern")
        expression = pattern.get("Regex") if isinstance(pattern, dict) else None
        behavior = (step.get("behavior"), bool(step.get("invert")))
        if isinstance(expression, str) and behavior in (
            ("Isolated", False),
            ("Removed", True),
            ("Isolated", True),
        ):
            return [_canonical(expression)]
    raise _unknown(f"a step {kind!r} of its pre_tokenizer")


def _canonical(expression: str) -> str:
    for spelling, usual in _SAME_MEANING.items():
        expression = expression.replace(spelling, usual)
    return expression


def _normalizer(tokenizer: Mapping[str, Any]) -> str | None:
    kinds = [str(step.get("type")) for step in steps(tokenizer.get("normalizer"), "normalizers")]
    if not kinds:
        return None
    if kinds != ["NFC"]:
        raise _unknown(f"its normalizer {'+'.join(kinds)}")
    return "NFC"


def _unknown(what: str) -> CheckpointError:
    return CheckpointError(
        f"The tokenizer treats texts in a way that the engine does not know: {what}.",
        hint="The engine would make other tokens: this model cannot be exported.",
    )
