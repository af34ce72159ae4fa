"""The chat template an adapter was trained with, for a base model that has none. Called by `run_plan.py`.

Training writes it into the adapter's folder; the packs then carry it as if it had been named.
"""

from pathlib import Path

from edgemed_convert.adapter import MergedCheckpoint
from edgemed_convert.check.tokenizer_files import chat_template
from edgemed_convert.checkpoint import Checkpoint

TEMPLATE_NAME = "chat_template.jinja"


def template_for_packs(model: Checkpoint | MergedCheckpoint) -> Path | None:
    """Return the last adapter's template, where the model has none of its own."""
    return None if _own_template(model) is not None else _adapter_template(model)


def template_sentence(model: Checkpoint | MergedCheckpoint, packed: Path | None) -> str | None:
    """Return what a person should know of the adapter's template; None: nothing.

    Args:
        packed: the template that the packs will carry.
    """
    found = _adapter_template(model)
    if found is None:
        return None
    if packed == found:
        return f"{found}, the one of the adapter's training; the packs' manifests carry it"
    own = _own_template(model)
    if own is not None and own != _text(found):
        return f"the model's own, NOT that of the adapter's training ({found})"
    return None


def _adapter_template(model: Checkpoint | MergedCheckpoint) -> Path | None:
    """Return the template of the last adapter, unless its whole tokenizer is used anyway."""
    if not isinstance(model, MergedCheckpoint):
        return None
    folder = model.adapters[-1].folder
    path = folder / TEMPLATE_NAME
    return path if folder != model.tokenizer_folder and path.is_file() else None


def _own_template(model: Checkpoint | MergedCheckpoint) -> str | None:
    try:
        return chat_template(model.tokenizer_folder)
    except UnicodeDecodeError:
        return ""  # there is one; the export says what is wrong with it


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
