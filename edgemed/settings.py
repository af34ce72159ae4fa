"""What the user chose, in one TOML file that a person can read and change: `settings.toml`.

A slip in the file costs one setting, never the start: each is told in one sentence, and its default is used.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgemed import paths
from edgemed.errors import StorageError
from edgemed.languages import text as _
from edgemed.operating_system import write_atomically

TextSize = Literal["normal", "large"]
Theme = Literal["dark", "light", "high-contrast", "console"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings; None leaves the choice to edgemed."""

    model: str | None = None
    adapter: str | None = None
    references: list[str] | None = None
    """Libraries and rule sets, NAME-vVERSION each; None: the newest version of each that is installed."""
    context_length: Annotated[int, msgspec.Meta(ge=128)] | None = None
    """Tokens."""
    temperature: Annotated[float, msgspec.Meta(ge=0, le=5)] | None = None
    """None: as the model's makers say."""
    text_size: TextSize = "normal"
    theme: Theme | None = None
    """None: by the terminal."""
    language: str = "en"


_EXPLAINED: dict[str, tuple[str, str]] = {
    "model": ("The name of an installed model (edgemed models list).", '"edge-chat-8m"'),
    "adapter": ("The name of an installed adapter that belongs to the model.", '"clinic-words"'),
    "references": (
        "Versions of libraries and rule sets in use (edgemed doctor); updates change them.",
        '["drugs-v3", "triage-v1"]',
    ),
    "context_length": ("How much of a conversation the AI reads, in tokens; more needs more memory.", "4096"),
    "temperature": ("0 always takes the most probable word; the model's makers say what is best.", "0.3"),
    "text_size": ('"normal" or "large".', '"large"'),
    "theme": ('"dark", "light", "high-contrast" or "console".', '"high-contrast"'),
    "language": ("The language of the interface.", '"en"'),
}
_TYPES: dict[str, Any] = Settings.__annotations__


def read_settings() -> tuple[Settings, list[str]]:
    """Return the settings, and one sentence for each that could not be understood."""
    path = paths.settings_file()
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return Settings(), []
    except OSError as error:
        return Settings(), [
            _(
                "The settings in {path} cannot be read ({reason}); defaults are used.",
                path=path,
                reason=error.strerror,
            )
        ]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        return Settings(), [
            _(
                "The settings in {path} cannot be understood ({error}); defaults are used.",
                path=path,
                error=error,
            )
        ]
    understood, problems = {}, []
    for name, value in found.items():
        if name not in _TYPES:
            nearest = difflib.get_close_matches(name, _TYPES, n=1)
            meant = " " + _("Did you mean {name}?", name=nearest[0]) if nearest else ""
            problems.append(
                _("There is no setting {name!r} in edgemed ({path}).", name=name, path=path) + meant
            )
            continue
        try:
            understood[name] = msgspec.convert(value, _TYPES[name])
        except msgspec.ValidationError as error:
            problems.append(
                _(
                    "The setting {name} in {path} is not valid: {error}. Its default is used.",
                    name=name,
                    path=path,
                    error=error,
                )
            )
    return Settings(**understood), problems


def change_settings(**changes: object) -> Settings:
    """Change some settings, save all, and return them.

    A file with something in it that could not be understood is kept as settings.toml.old.

    Raises:
        StorageError: the disk does not take them.
    """
    current, problems = read_settings()
    changed = msgspec.convert(msgspec.structs.asdict(current) | changes, Settings)
    path = paths.settings_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if problems and path.exists():
            _keep(path)
        write_atomically(path, _as_toml(changed).encode())
    except OSError as error:
        raise StorageError(
            _("The settings cannot be saved in {path}: {reason}.", path=path, reason=error.strerror or error),
            hint=_("Free some space, or set EDGEMED_HOME to a folder that can be written."),
        ) from error
    return changed


def _keep(path: Path) -> None:
    kept, number = path.with_name(f"{path.name}.old"), 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.old{number}")
    path.rename(kept)


def _as_toml(settings: Settings) -> str:
    import tomli_w

    lines = ["# Settings of edgemed. Change them here or in the chat (F7, or /settings)."]
    for name, (explanation, example) in _EXPLAINED.items():
        value = getattr(settings, name)
        lines += ["", f"# {explanation}"]
        lines.append(f"# {name} = {example}" if value is None else tomli_w.dumps({name: value}).rstrip())
    return "\n".join(lines) + "\n"
