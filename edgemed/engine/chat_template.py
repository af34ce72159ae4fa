"""From messages to token ids, by the model's own chat template.

The template is code from outside: it runs in Jinja's immutable sandbox, and in the child, which the parent
ends when it takes too long. Text typed by a user or found in a document never becomes a control token: what
looks like one is broken by a space before the template sees it.
"""

import datetime
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from edgemed.engine.messages import ChatMessage
from edgemed.errors import ModelUnsupported, UsageError
from edgemed.languages import text as _

_PROBE = "Qj7 system probe"
# Marks what to learn from when a model is trained; transformers takes it out, too.
_GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")


class Vocabulary(Protocol):
    """What this module needs of a tokenizer."""

    @property
    def bos_token(self) -> int | None:
        """The beginning-of-sequence token."""

    @property
    def adds_bos(self) -> bool:
        """Whether a sequence must begin with it."""

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Return token ids, without BOS."""

    def text_of(self, token: int) -> str:
        """Return the vocabulary's own spelling of a token."""

    def is_control(self, token: int) -> bool:
        """Whether a token is a control, unknown or end-of-generation token."""

    def is_user_defined(self, token: int) -> bool:
        """Whether a token was added to the vocabulary as a whole, without being a control token."""


class ChatTemplate:
    """One model's template, compiled."""

    def __init__(
        self, source: str, vocabulary: Vocabulary, *, bos_text: str, eos_text: str, fold_system: bool = True
    ) -> None:
        """Compile.

        Args:
            fold_system: put the system message before the first question where the template has no place for
                one (Gemma); False leaves it to the template to refuse.
        """
        self._source = source
        self._fold_system = fold_system
        self._has_system_role: bool | None = None
        self._vocabulary = vocabulary
        self._variables = {"bos_token": bos_text, "eos_token": eos_text}
        self._render = _compile(source)

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """Return the text of a conversation, ready for the model's answer.

        Raises:
            UsageError: a message cannot be kept apart from the model's control tokens.
            ModelUnsupported: the template fails.
        """
        safe = [
            {"role": message.role, "content": self._without_control_tokens(message)} for message in messages
        ]
        if self._fold_system and safe and safe[0]["role"] == "system" and not self._takes_system():
            safe = _folded(safe)
        return self._rendered(safe)

    def _takes_system(self) -> bool:
        """Whether a system message reaches the text: some templates refuse it, some drop it in silence."""
        if self._has_system_role is None:
            probe = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "?"}]
            try:
                self._has_system_role = _PROBE in self._rendered(probe)
            except ModelUnsupported:
                self._has_system_role = False
        return self._has_system_role

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        try:
            return self._render(messages=messages, add_generation_prompt=True, **self._variables)
        except ModelUnsupported:
            raise
        except Exception as error:  # code from outside can raise anything
            raise ModelUnsupported(
                _("The model's chat template fails: {error}", error=error),
                hint=_("Use another model, or export this one again with a working template."),
            ) from error

    def token_ids(self, text: str) -> list[int]:
        """Return the ids of a rendered conversation, with exactly one BOS where the model wants one."""
        ids = self._vocabulary.tokenize(text, parse_special=True)
        bos = self._vocabulary.bos_token
        if bos is None:
            return ids
        while ids[:2] == [bos, bos]:
            ids = ids[1:]
        if self._vocabulary.adds_bos and ids[:1] != [bos]:
            ids = [bos, *ids]
        return ids

    def plain_ids(self, text: str) -> list[int]:
        """Return the ids of text that may hold no control token, whatever it looks like."""
        return self._vocabulary.tokenize(text, parse_special=False) if text else []

    def continued_ids(self, ids: list[int], text: str, new_text: str) -> list[int] | None:
        """Return the ids of `new_text` keeping `ids`, those of `text` as they were really written.

        A model may write a word in other tokens than the tokenizer would; keeping its own means that the
        next turn reads nothing twice. None if `new_text` does not go on from `text` with a control token.
        """
        if not text or not new_text.startswith(text):
            return None
        rest = self._vocabulary.tokenize(new_text[len(text) :], parse_special=True)
        if not rest or not (
            self._vocabulary.is_control(rest[0]) or self._vocabulary.is_user_defined(rest[0])
        ):
            return None
        return ids + rest

    def shared_prefix_ids(self, system: Sequence[ChatMessage]) -> list[int]:
        """Return the ids that every conversation with these system messages begins with."""
        first, second = (
            self.token_ids(self.render([*system, ChatMessage("user", question)]))
            for question in ("Alpha", "7 beta")
        )
        return first[: common_prefix_length(first, second)]

    def _without_control_tokens(self, message: ChatMessage) -> str:
        content = message.content
        for _unused in range(8):
            found = {
                text
                for token in set(self._vocabulary.tokenize(content, parse_special=True))
                if (text := self._vocabulary.text_of(token))
                and text in content
                and self._is_frame(token, text, message)
            }
            if not found:
                return content
            for text in sorted(found, key=len, reverse=True):
                content = content.replace(text, f"{text[0]} {text[1:]}" if len(text) > 1 else " ")
        raise UsageError(
            _("The text cannot be kept apart from the model's control tokens."),
            hint=_("Leave out what looks like <|...|> and ask again."),
        )

    def _is_frame(self, token: int, text: str, message: ChatMessage) -> bool:
        if self._vocabulary.is_control(token):
            return True
        # A model's own answer may hold such tokens (a thinking mark); a person's text must not.
        return (
            message.role != "assistant"
            and self._vocabulary.is_user_defined(token)
            and bool(text.strip())
            and text in self._source
        )


def _folded(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Put the system message before the first question, as edgemed-train does for such templates."""
    system, *rest = messages
    first = next((index for index, message in enumerate(rest) if message["role"] == "user"), None)
    if first is None:
        return messages
    content = (
        f"{system['content']}\n\n{rest[first]['content']}" if system["content"] else rest[first]["content"]
    )
    return [*rest[:first], {"role": "user", "content": content}, *rest[first + 1 :]]


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading tokens are equal."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


def without_oldest_turn(messages: Sequence[ChatMessage]) -> list[ChatMessage] | None:
    """Leave out the oldest question with its answer; None when only the last question remains.

    System messages at the beginning stay.
    """
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    later_questions = [i for i in range(first + 1, len(messages)) if messages[i].role == "user"]
    if not later_questions:
        return None
    return [*messages[:first], *messages[later_questions[0] :]]


def _compile(source: str) -> Callable[..., str]:
    """Compile with the settings and helpers that transformers gives to chat templates."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise ModelUnsupported(
            _("The model's chat template refuses this conversation: {message}", message=message),
            hint=_("Begin a new conversation with /new, or use another model."),
        )

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def strftime_now(format: str) -> str:  # noqa: A002 - the templates' own name
        return datetime.datetime.now().astimezone().strftime(format)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    try:
        return environment.from_string(_GENERATION_TAG.sub(r"{%\1 if true %}{% endif \2%}", source)).render
    except (jinja2.TemplateError, RecursionError, ValueError, OverflowError) as error:
        raise ModelUnsupported(
            _("The model's chat template is not valid: {error}", error=error),
            hint=_("Use another model, or export this one again with a working template."),
        ) from error
