"""The words of the interface: English in the code, other languages from gettext catalogues.

`edgemed/locale/edgemed.pot` lists all words; a translator makes `<code>/LC_MESSAGES/edgemed.mo` of it, beside
that file or in the data folder's `locale`, and the language can be chosen.
"""

from pathlib import Path
from typing import Any, NamedTuple

from edgemed import paths

ENGLISH = "en"
OWN_NAMES = {
    "ar": "العربية",
    "en": "English",
    "fr": "Français",
    "pt": "Português",
    "sw": "Kiswahili",
}
_RIGHT_TO_LEFT = {"ar", "fa", "he", "ps", "ur"}


class _Words(NamedTuple):
    code: str
    catalogue: Any
    """gettext.GNUTranslations, or None for English."""


_words = _Words(ENGLISH, None)


def use_language(code: str) -> str:
    """Speak this language from now on; return a sentence for the user if it cannot be, else nothing."""
    global _words
    if code == ENGLISH:
        _words = _Words(ENGLISH, None)
        return ""
    # Imported late: most machines never need it.
    import gettext

    for folder in _folders():
        file = folder / code / "LC_MESSAGES" / "edgemed.mo"
        try:
            with file.open("rb") as catalogue:
                _words = _Words(code, gettext.GNUTranslations(catalogue))
            return ""
        except FileNotFoundError:
            continue
        except (OSError, ValueError, UnicodeError) as error:
            _words = _Words(ENGLISH, None)
            return f"The language file {file} cannot be read ({error}); English is used."
    _words = _Words(ENGLISH, None)
    return f"There is no language {code[:20]!r} on this computer; English is used."


def language() -> str:
    """Return the code of the language in use."""
    return _words.code


def right_to_left() -> bool:
    """Return whether the language in use is written from right to left."""
    return _words.code.split("_")[0] in _RIGHT_TO_LEFT


def available_languages() -> dict[str, str]:
    """Return the codes of the languages on this computer, each with its own name."""
    codes = {ENGLISH}
    for folder in _folders():
        codes |= {file.parent.parent.name for file in folder.glob("*/LC_MESSAGES/edgemed.mo")}
    return {code: OWN_NAMES.get(code, code) for code in sorted(codes)}


def text(message: str, /, **values: object) -> str:
    """Return a sentence in the language in use, its `{names}` filled in. Imported as `_`."""
    catalogue = _words.catalogue
    return _filled(message if catalogue is None else catalogue.gettext(message), message, values)


def later(message: str, /) -> str:
    """Return a sentence as it is: a constant that `text` translates when it is said."""
    return message


def plural(singular: str, several: str, count: int, /, **values: object) -> str:
    """Return the sentence for a number of things; `{count}` is the number."""
    english, catalogue = singular if count == 1 else several, _words.catalogue
    translated = english if catalogue is None else catalogue.ngettext(singular, several, count)
    return _filled(translated, english, {**values, "count": count})


def _filled(translated: str, english: str, values: dict[str, object]) -> str:
    if not values:
        return translated
    try:
        return translated.format(**values)
    except (LookupError, ValueError, AttributeError):
        # A translator's slip must not cost anybody an answer.
        return english.format(**values)


def _folders() -> list[Path]:
    return [paths.data_folder() / "locale", Path(__file__).parent / "locale"]
