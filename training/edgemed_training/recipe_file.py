"""A recipe as a TOML file: reading it, changing single keys, and refusing what no struct declares.

Called by `recipe` (fine-tuning) and `base_recipe` (a model from scratch), which declare the structs.
"""

import difflib
import hashlib
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

import msgspec

from edgemed_training.errors import RecipeError


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict and immutable: an unknown key is an error, not a silent loss."""


R = TypeVar("R", bound=Section)


def recipe_sha256(recipe: Section) -> str:
    """Return the SHA-256 over all values: two recipes with the same one train the same way."""
    return hashlib.sha256(msgspec.json.encode(msgspec.to_builtins(recipe), order="sorted")).hexdigest()


def bundled_recipes(*folders: str) -> dict[str, Traversable]:
    """Return the TOML files that come with edgemed, by name: the folder's last part, and the file's stem.

    Args:
        folders: inside the package, with slashes, such as presets/paper.
    """
    package = resources.files("edgemed_training")
    return {
        f"{folder.rpartition('/')[2]}/{file.name.removesuffix('.toml')}": file
        for folder in folders
        for file in package.joinpath(folder).iterdir()
        if file.name.endswith(".toml")
    }


def read_toml(file: Traversable, where: str, known: Iterable[str]) -> dict[str, Any]:
    """Read a recipe's values.

    Args:
        file: in the package or on the disk.
        where: what to call it in a message.
        known: names that may stand instead of a file.

    Raises:
        RecipeError: no such file, unreadable, or no TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise RecipeError(
            f"There is no recipe {where}.", hint=f"Name a TOML file or one of: {', '.join(sorted(known))}."
        ) from error
    except OSError as error:
        raise RecipeError(f"The recipe {where} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(
            f"The recipe {where} is not valid TOML: {error}.", hint="Correct that line."
        ) from error


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `under` with the values of `over` in their place, section by section."""
    both = dict(under)
    for key, value in over.items():
        kept = both.get(key)
        both[key] = merged(kept, value) if isinstance(value, dict) and isinstance(kept, dict) else value
    return both


def changed(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the values with one key changed, such as train.epochs."""
    section, _dot, rest = key.partition(".")
    return merged(values, {section: {rest: value} if rest else {}})


def overridden(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return the values with `section.key=value` changed, the value as TOML has it; text needs no marks.

    Raises:
        RecipeError: not of that form.
    """
    result = dict(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or "." not in key:
            raise RecipeError(
                f"{override!r} does not change a recipe.",
                hint="Write section.key=value, for example train.seed=1.",
            )
        try:
            value: Any = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        result = changed(result, key.strip(), value)
    return result


def as_recipe(values: Mapping[str, Any], kind: type[R], where: str) -> R:
    """Return the values as a struct.

    Args:
        values: as TOML has them.
        kind: of the recipe.
        where: what to call the file in a message.

    Raises:
        RecipeError: an unknown key, or a value of the wrong type or range.
    """
    _refuse_unknown_keys(values, kind, where, "", [*_all_keys(kind)])
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise RecipeError(f"In {where}: {_readable(error)}.", hint="Correct this value.") from error


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return " Did you mean …?" with the nearest name, or nothing."""
    nearest = difflib.get_close_matches(key, list(known), n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def _readable(error: msgspec.ValidationError) -> str:
    """Turn msgspec's `… - at `$.train.epochs`` into `train.epochs: …`."""
    message, separator, place = str(error).rpartition(" - at `$.")
    return f"{place.rstrip('`')}: {message}" if separator else str(error)


def _refuse_unknown_keys(
    values: Mapping[str, Any], section: type, where: str, prefix: str, everywhere: list[str]
) -> None:
    known = typing.get_type_hints(section)
    for key, value in values.items():
        if key not in known:
            meant = did_you_mean(prefix + key, [*known, *everywhere])
            raise RecipeError(
                f"In {where} there is no key {prefix}{key}.{meant}", hint=f"Known here: {', '.join(known)}."
            )
        if isinstance(value, dict) and _is_section(known[key]):
            _refuse_unknown_keys(value, known[key], where, f"{prefix}{key}.", everywhere)


def _all_keys(kind: type) -> Iterator[str]:
    for section, hint in typing.get_type_hints(kind).items():
        if _is_section(hint):
            yield from (f"{section}.{key}" for key in typing.get_type_hints(hint))


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Section)
