"""The words around a question: one source for the chat, the benchmarks and the training tools."""

from edgemed.engine.messages import ChatMessage
from edgemed.manifest import ModelManifest

SYSTEM_PROMPT = (
    "You help health workers in a clinic. Answer in short, plain sentences. "
    "If you are not sure, or if the question does not say enough, say so. "
    "Never invent a dose, a drug or a source. "
    "Name danger signs that need a doctor or a hospital at once."
)


def opening_messages(manifest: ModelManifest) -> list[ChatMessage]:
    """Return what stands before the first question: the system message, or nothing."""
    text = SYSTEM_PROMPT if manifest.system_prompt is None else manifest.system_prompt
    return [ChatMessage("system", text)] if text else []
