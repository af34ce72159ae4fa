"""A chat's `messages` (or ShareGPT's `conversations`) as question, answer and earlier turns."""

from typing import NamedTuple


class Conversation(NamedTuple):
    """What one row asks and answers."""

    question: str
    answer: str
    system: str | None
    turns: tuple[tuple[str, str], ...] = ()
    """Earlier questions and answers, oldest first."""


_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


def conversation(messages: object, *, system: str | None = None) -> Conversation | None:
    """Return the last answered question and what came before it; None when none is answered.

    A last question without an answer is left out.

    Args:
        messages: what stands in the column; should be a list of {role, content} or {from, value}.
        system: the system prompt of a column of its own; a system message has precedence.

    Raises:
        ValueError: no such list; the message says why, without its text.
    """
    if not isinstance(messages, list):
        raise ValueError(f"its messages are a {type(messages).__name__}, not a list")
    turns: list[tuple[str, str]] = []
    question: str | None = None
    for number, message in enumerate(messages, 1):
        role, text = _role_and_text(message, number)
        if role == "system":
            if number > 1:
                raise ValueError(f"message {number} is a system message, which can only be the first")
            system = text
        elif role == "user":
            if question is not None:
                raise ValueError(f"messages {number - 1} and {number} are both of the user")
            question = text
        elif question is None:
            raise ValueError(f"message {number} answers, but no question stands before it")
        else:
            turns.append((question, text))
            question = None
    if not turns:
        return None
    last_question, answer = turns.pop()
    return Conversation(last_question, answer, system, tuple(turns))


def _role_and_text(message: object, number: int) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise ValueError(f"message {number} is a {type(message).__name__}, not {{role, content}}")
    role = _ROLES.get(str(message.get("role", message.get("from"))))
    if role is None:
        raise ValueError(f"message {number} has a role that is not system, user or assistant")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = _joined_parts(content, number)
    if not isinstance(content, str):
        raise ValueError(f"message {number} has no text")
    return role, content


def _joined_parts(parts: list[object], number: int) -> str:
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"message {number} holds something that is not text")
    return "\n".join(map(str, texts))
