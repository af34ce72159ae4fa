"""From an item to the messages that the model reads: the app's system prompt, then the conversation.

Used by every suite, so that one item is one prompt everywhere.
"""

from collections.abc import Sequence

from edgemed.engine.messages import ChatMessage, Role
from edgemed.manifest import ModelManifest
from edgemed.prompts import opening_messages
from edgemed.records import Item

LETTERS = "ABCDEFGHIJ"
"""What options are called; an item has at most as many."""
_ANSWER_WITH_A_LETTER = "Answer with the letter of the right option only."
_ANSWER_IN_WORDS = "Answer in a few words."


def messages_of(item: Item, manifest: ModelManifest) -> list[ChatMessage]:
    """Return the conversation that ends with the item's question, as the app would send it."""
    return [*_before(item, manifest), ChatMessage("user", with_passages(item, item.question))]


def choice_messages(item: Item, manifest: ModelManifest, permutation: Sequence[int]) -> list[ChatMessage]:
    """Return the conversation that ends with the question and its lettered options.

    Args:
        permutation: `permutation[i]` is the index of the option that is shown at place i.
    """
    shown = [f"{LETTERS[place]}. {item.options[index]}" for place, index in enumerate(permutation)]
    text = "\n".join([with_passages(item, item.question), "", *shown, "", _ANSWER_WITH_A_LETTER])
    return [*_before(item, manifest), ChatMessage("user", text)]


def short_answer_messages(item: Item, manifest: ModelManifest) -> list[ChatMessage]:
    """Return the conversation that ends with the question alone, to be answered in a few words."""
    text = f"{with_passages(item, item.question)} {_ANSWER_IN_WORDS}"
    return [*_before(item, manifest), ChatMessage("user", text)]


def with_passages(item: Item, question: str) -> str:
    """Return the question with the item's reference passages, numbered, before it."""
    if not item.passages:
        return question
    numbered = [f"[{number}] {passage}" for number, passage in enumerate(item.passages, 1)]
    return "\n\n".join(["Reference passages:", *numbered, f"Question: {question}"])


def _before(item: Item, manifest: ModelManifest) -> list[ChatMessage]:
    roles: tuple[Role, Role] = ("user", "assistant")
    turns = [ChatMessage(roles[place % 2], text) for place, text in enumerate(item.history)]
    return [*opening_messages(manifest), *turns]
