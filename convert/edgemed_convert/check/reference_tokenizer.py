"""The tokenizer and chat template as transformers has them: what the model was trained with.

Needs transformers, never torch. Called by `tokens.py`, `templates.py` and `end_of_turn.py` through `gate.py`.
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from edgemed.errors import MissingExtra
from edgemed_convert.errors import CheckpointError

PIP_LINE = "pip install 'edgemed[convert]' transformers"
Message = Mapping[str, str]
# A change of case, digits side by side, an apostrophe, runs of spaces or lines, signs before letters.
_TELLING = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]|\d\d|'[A-Za-z]|[ĠĊ▁]{2}|[ĊĠ▁][^\w]|[^\w\s][A-Za-z]")


def unreadable_errors() -> tuple[type[Exception], ...]:
    """Return what transformers raises for files of a model folder that it cannot use."""
    from huggingface_hub.errors import StrictDataclassError

    return (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError, StrictDataclassError)


class ReferenceTokenizer:
    """transformers' tokenizer of a model folder; nothing is downloaded, no code of the folder runs."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer.

        Raises:
            MissingExtra: transformers, or what it needs for this tokenizer, is not installed.
            CheckpointError: transformers cannot read the tokenizer's files.
        """
        self._folder = folder
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            import transformers
        except ImportError as error:
            raise MissingExtra("transformers is not installed.", hint=PIP_LINE) from error
        logging.getLogger("transformers").setLevel(logging.ERROR)
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except ImportError as error:
            raise MissingExtra(
                f"transformers needs another package for {folder.name}'s tokenizer: {_first_line(error)}",
                hint=f"{PIP_LINE} sentencepiece protobuf",
            ) from error
        except unreadable_errors() as error:
            raise CheckpointError(
                f"transformers cannot read the tokenizer of {folder}: {_first_line(error)}",
                hint="Copy the model's tokenizer files again.",
            ) from error

    def encode(self, texts: Sequence[str], *, add_special: bool) -> list[list[int]]:
        """Return the token ids of each text; what looks like a control token becomes one."""
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=add_special, verbose=False)["input_ids"]
        return [list(ids) for ids in encoded]

    def encode_by_own_files(self, texts: Sequence[str], *, add_special: bool) -> list[list[list[int]]]:
        """Return for each text its ids by tokenizer.json alone and by tokenizer.model alone, if there.

        transformers 5 builds some tokenizers anew by their class and leaves rules of the file out, and a
        tokenizer.json does not always say all that its tokenizer.model does.
        """
        ways: list[list[list[int]]] = []
        if self._own_file is not None:
            batch = self._own_file.encode_batch(list(texts), add_special_tokens=add_special)
            ways.append([list(encoding.ids) for encoding in batch])
        if self._sentencepiece is not None:
            # Its own special tokens are no text to it: what holds one is compared with the others alone.
            begin = self.encode([""], add_special=True)[0] if add_special else []
            ways.append([[*begin, *ids] for ids in self._sentencepiece.encode(list(texts))])
        return [[way[index] for way in ways] for index in range(len(texts))]

    @cached_property
    def _own_file(self) -> Any:
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            return None
        import tokenizers

        return tokenizers.Tokenizer.from_file(str(path))

    @cached_property
    def _sentencepiece(self) -> Any:
        path = self._folder / "tokenizer.model"
        try:
            import sentencepiece
        except ImportError:
            return None
        return sentencepiece.SentencePieceProcessor(model_file=str(path)) if path.is_file() else None

    @cached_property
    def is_sentencepiece(self) -> bool:
        """Whether a space is written as U+2581, not as a byte of byte-level BPE."""
        return "\u2581" in "".join(
            self._tokenizer.convert_ids_to_tokens(self.encode(["a b"], add_special=False)[0])
        )

    @cached_property
    def normal_form(self) -> Literal["NFC", "NFKC"] | None:
        """Return the Unicode normal form into which the tokenizer brings text; llama.cpp does not."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        kind = type(backend.normalizer).__name__ if backend is not None else ""
        return "NFC" if kind == "NFC" else "NFKC" if kind == "NFKC" else None

    @cached_property
    def rule_knows_marks(self) -> bool:
        """Whether the tokenizer's own splitting rule speaks of combining marks, as GPT-4o's kind does."""
        if self._own_file is None or self._own_file.pre_tokenizer is None:
            return False
        # What the object prints is cut short: only the file has the whole expression.
        document = json.loads((self._folder / "tokenizer.json").read_text(encoding="utf-8"))
        return "\\p{M}" in json.dumps(document.get("pre_tokenizer"), ensure_ascii=False).replace("\\\\", "\\")

    def vocabulary_texts(self, count: int) -> list[str]:
        """Return texts of the vocabulary's own tokens, first what a wrong splitting rule tears apart."""
        tokens = self._tokenizer.convert_ids_to_tokens(list(range(self.size)))
        telling = [id_ for id_, token in enumerate(tokens) if token and _TELLING.search(token)]
        chosen = [*telling[:: max(1, len(telling) // count)][:count]]
        chosen += list(range(0, self.size, max(1, self.size // count)))[: count - len(chosen)]
        texts = self._tokenizer.batch_decode([[id_] for id_ in chosen], clean_up_tokenization_spaces=False)
        return [f"a{text}b {text}" for text in texts if text and "\ufffd" not in text]

    @cached_property
    def frame(self) -> str:
        """Return what to put before a text so that llama.cpp can say what transformers says; mostly nothing.

        Some SentencePiece tokenizers begin a text with a space, but not what follows a control token.
        llama.cpp does both or neither; a chat begins with a control token, so that is what counts.
        """
        bos = self.bos_id
        if bos is None or not self.is_sentencepiece or not self.has_template:
            return ""
        text = self.token_text(bos)
        first, behind = self.encode(["a", f"{text}a"], add_special=False)
        return text if behind[:1] == [bos] and behind[1:] != first else ""

    @property
    def size(self) -> int:
        """Return how many ids the tokenizer knows."""
        return len(self._tokenizer)

    @property
    def bos_id(self) -> int | None:
        found: int | None = self._tokenizer.bos_token_id
        return found

    @property
    def eos_id(self) -> int | None:
        found: int | None = self._tokenizer.eos_token_id
        return found

    def token_text(self, token: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token))

    @property
    def special_ids(self) -> set[int]:
        """Return the tokens that are no ordinary text: named ones, and those added as special."""
        added = self._tokenizer.added_tokens_decoder
        return {*self._tokenizer.all_special_ids, *(id_ for id_, token in added.items() if token.special)}

    @property
    def has_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    @property
    def template(self) -> str | None:
        """Return the source of the chat template that is used without tools."""
        if not self.has_template:
            return None
        found = self._tokenizer.get_chat_template()
        return str(found) if found else None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str | None:
        """Return a rendered conversation; None when the template refuses it."""
        import jinja2

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError):
            return None

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids that training and transformers' own chat give the model."""
        text = self.render(messages, add_generation_prompt=True)
        return [] if text is None else self.encode([text], add_special=False)[0]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
