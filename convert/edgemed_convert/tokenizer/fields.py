"""What a GGUF file says about its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from edgemed_convert.errors import CheckpointError

NOT_TOGETHER = "Use the tokenizer and the config that were saved with these weights."


class TokenType(IntEnum):
    """The engine's kinds of tokens."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    """Never written out; found in a text only where special tokens are allowed."""
    USER_DEFINED = 4
    """Found in every text before anything else is looked for."""
    UNUSED = 5
    BYTE = 6


@dataclass
class TokenList:
    """The vocabulary while it is put together: one entry for each id."""

    texts: list[bytes]
    types: list[TokenType]
    scores: list[float] | None
    """None for byte-level BPE, whose merges have ranks instead."""

    @classmethod
    def of_size(cls, size: int, *, with_scores: bool) -> "TokenList":
        """Return a vocabulary of unused tokens: what rows of the embedding without a token get."""
        texts = [f"[PAD{number}]".encode() for number in range(size)]
        return cls(texts, [TokenType.UNUSED] * size, [-10000.0] * size if with_scores else None)

    def put(self, number: int, text: bytes, type_: TokenType, score: float = 0.0) -> None:
        """Set one token.

        Raises:
            CheckpointError: the model has no row for it.
        """
        if not 0 <= number < len(self.texts):
            raise CheckpointError(
                f"The tokenizer has a token with the number {number:,}, the model only {len(self.texts):,} "
                "rows.",
                hint=NOT_TOGETHER,
            )
        self.texts[number] = text
        self.types[number] = type_
        if self.scores is not None:
            self.scores[number] = score

    def refuse_duplicates(self) -> None:
        """The engine ends its process over two tokens of the same text.

        Raises:
            CheckpointError: names the text.
        """
        seen: dict[bytes, int] = {}
        for number, text in enumerate(self.texts):
            if text in seen:
                raise CheckpointError(
                    f"The tokens {seen[text]:,} and {number:,} have the same text "
                    f"{text.decode(errors='replace')!r}.",
                    hint="The engine cannot hold such a vocabulary: give one of them another text.",
                )
            seen[text] = number


@dataclass(frozen=True)
class TokenizerFields:
    """A tokenizer in the engine's terms."""

    model: str
    """llama: SentencePiece BPE with scores; gpt2: byte-level BPE with merges."""
    pre: str
    """The engine's name for the rule that splits a text into words; "default" for "llama"."""
    tokens: TokenList
    merges: list[str] | None
    special_ids: Mapping[str, int]
    """bos, eos, eot, eom, unknown, padding → id; what the tokenizer lacks is not there."""
    end_ids: tuple[int, ...]
    """Every id at which generation ends, by config, generation config and tokenizer."""
    accidental_ends: tuple[int, ...]
    """Ordinary tokens at which the engine ends an answer all the same, because of their text."""
    add_bos: bool
    add_eos: bool
    space_prefix: str
    """Where transformers puts a space before a text: "always" behind each special token, too; "first" only at
    the very beginning; "never"."""
    add_space_prefix: bool
    """What the engine is told; it only knows always and never."""
    is_built_anew: bool = False
    """transformers 5 splits by `space_prefix` alone, whatever rule tokenizer.json has."""
    strips_right: bool = False
    """Special tokens swallow the spaces behind them, as in Phi-3."""
    chat_template: str | None = None
    named_templates: Mapping[str, str] = field(default_factory=dict)
    """Further chat templates by name."""
    notes: tuple[str, ...] = ()
    """What the format cannot express, in whole sentences."""

    @property
    def size(self) -> int:
        """How many tokens there are, unused ones too."""
        return len(self.tokens.texts)

    def metadata(self) -> dict[str, Any]:
        """Return the GGUF's tokenizer keys, all that matter said outright: the engine's defaults are "
        "guesses."""
        fields: dict[str, Any] = {
            "tokenizer.ggml.model": self.model,
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": self.tokens.texts,
            "tokenizer.ggml.token_type": [int(type_) for type_ in self.tokens.types],
        }
        if self.tokens.scores is not None:
            fields["tokenizer.ggml.scores"] = self.tokens.scores
        if self.merges is not None:
            fields["tokenizer.ggml.merges"] = self.merges
        for name, number in self.special_ids.items():
            fields[f"tokenizer.ggml.{name}_token_id"] = number
        fields["tokenizer.ggml.add_bos_token"] = self.add_bos
        fields["tokenizer.ggml.add_eos_token"] = self.add_eos
        fields["tokenizer.ggml.add_space_prefix"] = self.add_space_prefix
        if self.chat_template is not None:
            fields["tokenizer.chat_template"] = self.chat_template
        if self.named_templates:
            fields["tokenizer.chat_templates"] = sorted(self.named_templates)
            for name, template in self.named_templates.items():
                fields[f"tokenizer.chat_template.{name}"] = template
        return fields
