"""How a question and its answer become one text: the model's own chat template, or a minimal one.

The template is code from outside and runs in Jinja's immutable sandbox, with a fixed date: the same pair
gives the same tokens today and when a run is resumed. Text of the data never becomes a control token.
"""

import datetime
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from edgemed.prompts import SYSTEM_PROMPT
from edgemed_training.errors import BaseModelError
from edgemed_training.recipe import Recipe
from edgemed_training.records import QAPair

TEMPLATE_DATE = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)
"""What a template that asks for today's date is told."""
CHAT_TEMPLATE_NAME = "chat_template.jinja"
QUESTION_ANSWER_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% if message['content'] %}{{ message['content'] + '\\n\\n' }}{% endif %}"
    "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\\nAnswer:' }}"
    "{% else %}{{ ' ' + message['content'] + (eos_token if loop.last else '\\n\\n') }}"
    "{% endif %}{% endfor %}"
)
"""What `question-answer` writes, in Jinja: goes into the adapter, so that the chat asks as training did."""
_ANSWER = "\ue000"  # stands for the answer while its frame is rendered
_PROBE = "\ue001"
# Frames of Llama 2 and Mistral: plain text to their tokenizer, yet they open and close a turn.
_PLAIN_FRAMES = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
_GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
SystemPlacement = Literal["system", "first question"]


@dataclass(frozen=True)
class Frame:
    """One example as text, around the place of its answer."""

    prompt: str
    """What the model reads before it answers."""
    before: str
    """The prompt, and what the template puts between it and the answer."""
    after: str
    """What the template puts behind the answer."""


class ChatFormat:
    """A tokenizer with its template, both looked at once."""

    def __init__(self, tokenizer: Any, recipe: Recipe) -> None:
        """Look at the tokenizer and try the template.

        Args:
            tokenizer: of transformers.
            recipe: its prompt kind, template options and system prompt.

        Raises:
            BaseModelError: no end token, no template, or a template whose prompt is not the beginning of the
                whole conversation.
        """
        self.tokenizer = tokenizer
        self._system_prompt = recipe.data.system_prompt
        self._options = recipe.base.template_options
        self.eos_id = self._eos_id()
        self.bos_id: int | None = tokenizer.bos_token_id
        self._adds_bos = tokenizer("a")["input_ids"][:1] == [self.bos_id]
        source = _template_source(tokenizer) if recipe.base.prompt == "chat-template" else ""
        self._render = _compile(source) if source else None
        self.control_ids, self._control_texts = _control_tokens(tokenizer, source)
        self.system_placement: SystemPlacement = "system"
        if self._render:
            self._try_template()

    def frame(self, pair: QAPair) -> Frame:
        """Return the text around the answer of a pair, its control tokens made harmless.

        Raises:
            BaseModelError: the template fails, or does not extend its own prompt.
        """
        system = self.without_control_tokens(self._system_of(pair))
        turns = [
            (self.without_control_tokens(question), self.without_control_tokens(answer))
            for question, answer in pair.turns
        ]
        question = self.without_control_tokens(pair.question)
        if self._render is None:
            return _question_answer_frame(system, turns, question, str(self.tokenizer.eos_token))
        import jinja2

        try:
            return self._template_frame(_messages(system, turns, question, self.system_placement))
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            # One conversation may be refused where another was not, such as one of several turns.
            raise self._broken(f"{error} (pair {pair.id})") from error

    @property
    def own_template(self) -> str | None:
        """The chat template that the base model does not bring: the question-answer one, where it is used."""
        return QUESTION_ANSWER_TEMPLATE if self._render is None else None

    def token_ids(self, text: str) -> list[int]:
        """Return the ids of a rendered text, with exactly one BOS where the model wants one."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.bos_id is None:
            return ids
        while ids[:2] == [self.bos_id, self.bos_id]:
            ids = ids[1:]
        if self._adds_bos and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        return ids

    def without_control_tokens(self, text: str) -> str:
        """Break what looks like a control token by a space behind its first character, as the chat does."""
        for _unused in range(8):
            found = [control for control in self._control_texts if control in text]
            if not found:
                break
            for control in found:
                text = text.replace(control, f"{control[0]} {control[1:]}" if len(control) > 1 else " ")
        return text

    def end_of_turn_ids(self) -> list[int]:
        """Return the control tokens that the template puts behind an answer; a model may end with them."""
        after = self.frame(QAPair(id="probe", question="?", answer="")).after
        return [
            index for index in self.token_ids(after) if index in self.control_ids and index != self.bos_id
        ]

    def _eos_id(self) -> int:
        eos_id = self.tokenizer.eos_token_id
        if not isinstance(eos_id, int):
            raise BaseModelError(
                f"The tokenizer in {self.tokenizer.name_or_path} has no end token (eos_token).",
                hint="Use the tokenizer as it was published: without an end token the model never stops.",
            )
        return eos_id

    def _system_of(self, pair: QAPair) -> str:
        if self._system_prompt is not None:
            return self._system_prompt
        return SYSTEM_PROMPT if pair.system is None else pair.system

    def _template_frame(self, messages: list[dict[str, str]]) -> Frame:
        assert self._render is not None
        words: dict[str, Any] = {
            name: getattr(self.tokenizer, name) or "" for name in ("bos_token", "eos_token", "pad_token")
        }
        words |= self._options
        prompt = self._render(messages=messages, add_generation_prompt=True, **words)
        answered = [*messages, {"role": "assistant", "content": _ANSWER}]
        whole = self._render(messages=answered, add_generation_prompt=False, **words)
        before, answer, after = whole.partition(_ANSWER)
        if not answer or not before.startswith(prompt):
            raise BaseModelError(
                f"The chat template in {self.tokenizer.name_or_path} does not go on from its own prompt: the "
                "loss would fall on other tokens than the answer's.",
                hint="Set base.template_options (such as enable_thinking = false), or base.prompt = "
                '"question-answer".',
            )
        return Frame(prompt, before, after)

    def _try_template(self) -> None:
        """Find out where the system prompt can stand; some templates refuse it, some drop it in silence."""
        import jinja2

        try:
            shown = self._template_frame(_messages(_PROBE, [], "?", "system")).prompt
        except (jinja2.TemplateError, TypeError):
            shown = ""
        if _PROBE not in shown:
            self.system_placement = "first question"
            try:
                shown = self._template_frame(_messages(_PROBE, [], "?", "first question")).prompt
            except (jinja2.TemplateError, TypeError, ValueError) as error:
                raise self._broken(error) from error
        if _PROBE not in shown:
            raise self._broken("it does not show the question")

    def _broken(self, reason: object) -> BaseModelError:
        return BaseModelError(
            f"The chat template in {self.tokenizer.name_or_path} fails: {reason}.",
            hint='Use the template as it was published, or set base.prompt = "question-answer".',
        )


def _messages(
    system: str, turns: list[tuple[str, str]], question: str, placement: SystemPlacement
) -> list[dict[str, str]]:
    questions = [*(asked for asked, _answer in turns), question]
    if system and placement == "first question":
        questions[0] = f"{system}\n\n{questions[0]}"
    messages = [{"role": "system", "content": system}] if system and placement == "system" else []
    for asked, (_question, answer) in zip(questions[:-1], turns, strict=True):
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": questions[-1]}]


def _question_answer_frame(system: str, turns: list[tuple[str, str]], question: str, eos: str) -> Frame:
    opening = f"{system}\n\n" if system else ""
    earlier = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in turns)
    prompt = f"{opening}{earlier}Question: {question}\nAnswer:"
    return Frame(prompt, f"{prompt} ", eos)


def _template_source(tokenizer: Any) -> str:
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        raise BaseModelError(
            f"The tokenizer in {tokenizer.name_or_path} has no chat template.",
            hint='A base model without one is trained with base.prompt = "question-answer"; else copy '
            "chat_template.jinja or tokenizer_config.json from where the model was published.",
        )
    return str(source)


def _control_tokens(tokenizer: Any, source: str) -> tuple[frozenset[int], list[str]]:
    """Return the ids of the special tokens, and all texts that open or close something, longest first."""
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    texts = {str(token) for index, token in added.items() if index in special or str(token) in source}
    texts |= {str(token) for token in tokenizer.all_special_tokens}
    texts |= {frame for frame in _PLAIN_FRAMES if frame in source}
    return frozenset(special), sorted((text for text in texts if text.strip()), key=len, reverse=True)


def _compile(source: str) -> Callable[..., str]:
    """Compile with the settings and helpers that transformers gives to chat templates."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def strftime_now(format: str) -> str:  # noqa: A002 - the templates' own name
        return TEMPLATE_DATE.strftime(format)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    try:
        # {% generation %} only marks the answer for tools that look for it: its text stays.
        return environment.from_string(_GENERATION_TAG.sub(_as_condition, source)).render
    except (jinja2.TemplateError, RecursionError, ValueError, OverflowError) as error:
        raise BaseModelError(
            f"The model's chat template is not valid: {error}.",
            hint="Copy the tokenizer again from where the model was published.",
        ) from error


def _as_condition(tag: re.Match[str]) -> str:
    word = "endif" if "endgeneration" in tag[0] else "if true"
    return f"{{%{tag[1]} {word} {tag[2]}%}}"
