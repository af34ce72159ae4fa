"""The files a Hugging Face tokenizer is made of, read with suspicion."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemed_convert.checkpoint import read_json
from edgemed_convert.errors import CheckpointError
from edgemed_convert.safetensors_file import COPY_AGAIN, unreadable

_MAX_MODEL_BYTES = 64 * 2**20
_MAX_TEMPLATE_BYTES = 2**20


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text before the vocabulary's own rule is applied."""

    number: int
    text: str
    special: bool
    strips_left: bool
    strips_right: bool


@dataclass(frozen=True)
class TokenizerFiles:
    """What lies in the folder; an empty mapping for a JSON file that is not there."""

    folder: Path
    tokenizer: Mapping[str, Any]
    """tokenizer.json"""
    settings: Mapping[str, Any]
    """tokenizer_config.json"""
    added: tuple[AddedToken, ...]
    sentencepiece: bytes | None
    """tokenizer.model"""

    @property
    def model(self) -> Mapping[str, Any]:
        """The model of tokenizer.json: its vocabulary and merges."""
        model = self.tokenizer.get("model")
        return model if isinstance(model, dict) else {}

    def token_text(self, name: str) -> str | None:
        """Return the text that tokenizer_config.json or special_tokens_map.json gives to e.g. eos_token."""
        value = self.settings.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) and value else None


def read_files(folder: Path) -> TokenizerFiles:
    """Read all tokenizer files of a folder.

    Raises:
        CheckpointError: there is none, or one cannot be read.
    """
    tokenizer = _optional(folder / "tokenizer.json")
    sentencepiece = _optional_bytes(folder / "tokenizer.model")
    if not tokenizer and sentencepiece is None:
        raise _missing(folder)
    settings = {
        **_optional(folder / "special_tokens_map.json"),
        **_optional(folder / "tokenizer_config.json"),
    }
    extra = _optional(folder / "added_tokens.json")
    return TokenizerFiles(
        folder, tokenizer, settings, _added_tokens(folder, tokenizer, settings, extra), sentencepiece
    )


def read_templates(files: TokenizerFiles) -> dict[str, str]:
    """Return the chat templates by name, "default" for the one to use; a file wins over
    tokenizer_config.json.

    Raises:
        CheckpointError: a template is no text.
    """
    found: dict[str, str] = {}
    for value in (
        _optional(files.folder / "chat_template.json").get("chat_template"),
        files.settings.get("chat_template"),
    ):
        found |= _templates(files.folder, value)
    for path in (files.folder / "chat_template.jinja", *_additional(files.folder)):
        content = _optional_bytes(path, _MAX_TEMPLATE_BYTES)
        if content is not None:
            name = "default" if path.parent == files.folder else path.stem
            found[name] = _decoded(path, content)
    return found


def _additional(folder: Path) -> list[Path]:
    return sorted((folder / "additional_chat_templates").glob("*.jinja"))


def _templates(folder: Path, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    entries = value if isinstance(value, list) else []
    named = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)}
    if not named or not all(isinstance(item, str) for pair in named.items() for item in pair):
        raise CheckpointError(f"{folder} has a chat template that is no text.", hint=COPY_AGAIN)
    return {str(name): str(template) for name, template in named.items()}


def _added_tokens(
    folder: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any], extra: Mapping[str, Any]
) -> tuple[AddedToken, ...]:
    """Return the added tokens by number. transformers 5 lists them in tokenizer.json only, 4 in both, "
    "3 elsewhere."""
    entries: dict[int, Mapping[str, Any]] = {
        number: {"content": text} for text, number in extra.items() if type(number) is int
    }
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        entries |= {
            int(key): entry for key, entry in decoder.items() if key.isdecimal() and isinstance(entry, dict)
        }
    listed = tokenizer.get("added_tokens") or []
    try:
        entries |= {int(entry["id"]): entry for entry in listed}
        return tuple(
            AddedToken(
                number,
                str(entry["content"]),
                bool(entry.get("special", False)),
                bool(entry.get("lstrip", False)),
                bool(entry.get("rstrip", False)),
            )
            for number, entry in sorted(entries.items())
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} lists an added token wrongly.", hint=COPY_AGAIN
        ) from error


def _missing(folder: Path) -> CheckpointError:
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return CheckpointError(
            f"{folder} has its tokenizer only in the old form (vocab.json and merges.txt).",
            hint="Load it with transformers' AutoTokenizer and save it again: that writes tokenizer.json.",
        )
    if (folder / "tekken.json").is_file():
        return CheckpointError(
            f"{folder} has its tokenizer only in Mistral's form (tekken.json).",
            hint="Add the model's tokenizer.json.",
        )
    return CheckpointError(
        f"{folder} has no tokenizer: neither tokenizer.json nor tokenizer.model.",
        hint="Copy the tokenizer files of the base model into the folder.",
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, error=CheckpointError) if path.exists() else {}


def _optional_bytes(path: Path, limit: int = _MAX_MODEL_BYTES) -> bytes | None:
    try:
        if not path.exists():
            return None
        if path.stat().st_size > limit:
            raise CheckpointError(f"{path} is too large for what it should be.", hint=COPY_AGAIN)
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, CheckpointError) from error


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text.", hint=COPY_AGAIN) from error
