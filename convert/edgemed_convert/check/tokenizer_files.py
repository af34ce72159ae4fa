"""What a model folder's tokenizer files say of special tokens, read without transformers.

Called by `gate.py`.
"""

import json
from pathlib import Path
from typing import Any


def end_ids(folder: Path) -> list[int]:
    """Return the id of the tokenizer's own end token, read from its files; empty when they name none."""
    settings = _json(folder / "tokenizer_config.json")
    token = settings.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        return []
    added = _json(folder / "tokenizer.json").get("added_tokens", [])
    found = {int(entry["id"]) for entry in added if entry.get("content") == text}
    for number, entry in settings.get("added_tokens_decoder", {}).items():
        if entry.get("content") == text:
            found.add(int(number))
    return sorted(found)


def added_ids(folder: Path) -> set[int]:
    """Return the tokens that were added to the vocabulary as a whole: no ordinary text."""
    settings, document = _json(folder / "tokenizer_config.json"), _json(folder / "tokenizer.json")
    found = {int(number) for number in settings.get("added_tokens_decoder", {})}
    found |= {int(number) for number in _json(folder / "added_tokens.json").values()}
    return found | {int(entry["id"]) for entry in document.get("added_tokens", [])}


def chat_template(folder: Path) -> str | None:
    """Return the chat template that is used without tools; None when the files hold none."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except OSError:
        pass
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _json(folder / name).get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
