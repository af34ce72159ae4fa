"""Conversations as text by a model's own chat template. Lives in the child process.

A template is code from the model's file: it runs in Jinja's sandbox, and where the tool can end it.
"""

from collections.abc import Sequence

from edgemed.engine.chat_template import ChatTemplate
from edgemed.engine.messages import ChatMessage
from edgemed.errors import ModelUnsupported
from edgemed_convert.llama.model import Model


class Vocabulary:
    """A loaded model as the app's chat template wants to see it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._description = model.describe()

    @property
    def bos_token(self) -> int | None:
        """The beginning-of-sequence token."""
        return self._description.bos

    @property
    def adds_bos(self) -> bool:
        """Whether a sequence must begin with it."""
        return self._description.add_bos

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        """Return token ids, without BOS."""
        return self._model.tokenize(
            text.encode("utf-8", "replace"), add_special=False, parse_special=parse_special
        )

    def text_of(self, token: int) -> str:
        """Return the vocabulary's own spelling of a token."""
        return self._model.text_of(token).decode("utf-8", "replace")

    def is_control(self, token: int) -> bool:
        """Whether a token is a control, unknown or end-of-generation token."""
        return self._model.is_control(token)

    def is_user_defined(self, token: int) -> bool:
        """Whether a token was added to the vocabulary as a whole, without being a control token."""
        return self._model.is_user_defined(token)


class ChatRenderer:
    """The chat template of one loaded model."""

    def __init__(self, model: Model, source: str | None = None) -> None:
        """Compile the template.

        Args:
            source: used instead of the one that the file carries.

        Raises:
            ModelUnsupported: there is none, or it is not valid.
        """
        vocabulary = Vocabulary(model)
        description = model.describe()
        source = source or description.chat_template
        if not source:
            raise ModelUnsupported(
                f"{model.name} has no chat template.", hint="Export the model again with its template."
            )
        texts = ["" if id_ is None else vocabulary.text_of(id_) for id_ in (description.bos, description.eos)]
        self._template = ChatTemplate(source, vocabulary, bos_text=texts[0], eos_text=texts[1])
        self._ends = [vocabulary.text_of(token) for token in description.eog_ids]

    def prompt(self, messages: Sequence[ChatMessage]) -> str:
        """Return the text of a conversation, ready for the model's answer."""
        return self._template.render(messages)

    def conversation(self, messages: Sequence[ChatMessage]) -> str:
        """Return the text of a conversation up to the end of its last answer."""
        text = self._template.render(messages)
        if messages[-1].role != "assistant":
            return text
        # The template goes on with the frame of one more answer.
        answer_at = text.rfind(messages[-1].content.strip())
        if answer_at < 0:
            return text
        after = answer_at + len(messages[-1].content.strip())
        ends = [at + len(end) for end in self._ends if end and (at := text.find(end, after)) >= 0]
        return text[: min(ends)] if ends else text
