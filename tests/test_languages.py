"""The interface speaks the catalogue's language, all of it, from either side.

`python -m tests.test_languages` writes the list of words anew.
"""

import asyncio
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from edgemed import languages, machine, paths, settings
from edgemed.control import SETTING_NAMES
from edgemed.languages import plural, text
from tests.faces import NOTICE, a_control, line_face, screen_face
from tests.fakes import FakeEngine, Script

ROOT = Path(__file__).resolve().parent.parent
WORDS_FILE = ROOT / "edgemed/locale/edgemed.pot"
KEYWORDS = {"_": None, "later": None, "plural": (1, 2)}


def words() -> Catalog:
    """Return all words of the interface, as the code has them."""
    catalogue = Catalog(project="edgemed", charset="utf-8")
    for filename, _line, message, _comments, _context in sorted(
        extract_from_dir(ROOT / "edgemed", keywords=KEYWORDS, method_map=[("**.py", "python")]),
        key=lambda found: (found[0], found[1]),
    ):
        # Sentences with {names} are filled in by str.format: no flag of another format.
        catalogue.add(message, locations=[(filename, 0)], flags=())
    for message in catalogue:
        message.flags.discard("python-format")
        message.flags.discard("python-brace-format")
    return catalogue


def words_file() -> str:
    """Return the list of words as a file: without line numbers and dates, which would change for nothing."""
    buffer = io.BytesIO()
    write_po(buffer, words(), omit_header=True, include_lineno=False, width=100, sort_by_file=False)
    return (
        "# The words of edgemed's interface. A translator fills in msgstr; see docs/architecture.md.\n"
        + buffer.getvalue().decode()
    )


def test_the_list_of_words_is_up_to_date() -> None:
    assert WORDS_FILE.read_text(encoding="utf-8") == words_file(), "run: python -m tests.test_languages"


@pytest.fixture(autouse=True)
def english_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EDGEMED_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(machine, "mounted_media", list)
    yield
    languages.use_language("en")


def install(code: str, translations: dict[str, str | tuple[str, ...]], **header: str) -> None:
    catalogue = Catalog(locale=code, **header)
    for message, translation in translations.items():
        if isinstance(translation, tuple):
            singular, several = message.split("|")
            catalogue.add((singular, several), translation)
        else:
            catalogue.add(message, translation)
    file = paths.data_folder() / "locale" / code / "LC_MESSAGES" / "edgemed.mo"
    file.parent.mkdir(parents=True)
    with file.open("wb") as target:
        write_mo(target, catalogue)


def test_french_has_its_words_and_its_plural() -> None:
    install("fr", {"Settings": "Réglages", "{count} word|{count} words": ("{count} mot", "{count} mots")})
    assert languages.use_language("fr") == ""
    assert text("Settings") == "Réglages"
    assert [plural("{count} word", "{count} words", n) for n in (0, 1, 2)] == ["0 mot", "1 mot", "2 mots"]
    assert text("Not translated {name}", name="x") == "Not translated x"
    assert not languages.right_to_left()
    assert languages.available_languages() == {"en": "English", "fr": "Français"}


def test_arabic_has_six_plurals_and_comes_from_the_right() -> None:
    forms = tuple(f"{{count}} form{number}" for number in range(6))
    install("ar", {"{count} word|{count} words": forms})
    languages.use_language("ar")
    said = [plural("{count} word", "{count} words", count)[-1] for count in (0, 1, 2, 5, 11, 100)]
    assert sorted(said) == ["0", "1", "2", "3", "4", "5"]
    assert languages.right_to_left()


def test_a_translator_s_slip_costs_no_answer() -> None:
    install("fr", {"Model in use: {name}": "Modèle : {nom}", "Written to {path}": "Écrit : {path.x"})
    languages.use_language("fr")
    assert text("Model in use: {name}", name="m") == "Model in use: m"
    assert text("Written to {path}", path="p") == "Written to p"


def test_a_damaged_or_missing_language_is_told_and_english_is_used() -> None:
    assert "no language 'sw'" in languages.use_language("sw")
    install("fr", {"Settings": "Réglages"})
    file = paths.data_folder() / "locale/fr/LC_MESSAGES/edgemed.mo"
    file.write_bytes(b"damaged" * 10)
    assert "cannot be read" in languages.use_language("fr")
    assert text("Settings") == "Settings"


# Nothing but the catalogue's words on the screen: a language whose every word stands in brackets.

OUTSIDE = re.compile(r"[A-Za-z]{2,}")
"""What may stand outside the catalogue: names, keys, paths, numbers with units, what was said."""
ALLOWED = {
    "edgemed", "tiny", "medical", "edge", "chat", "demonstration", "model", "not", "for", "patients", "settings",
    "toml", "data", "tmp", "pytest", "of", "root", "Enter", "Esc", "Tab", "F1", "English", "French", "Fran", "ais",
    "MB", "GB", "question", "answer", "locale", "history", "sqlite3", "Adapter", "home", "fr",
}  # fmt: skip


def bracketed() -> dict[str, str | tuple[str, ...]]:
    translations: dict[str, str | tuple[str, ...]] = {}
    for message in read_po(io.BytesIO(words_file().encode())):
        if isinstance(message.id, tuple):
            translations["|".join(message.id)] = tuple(_in_brackets(each) for each in message.id)
        elif message.id:
            translations[message.id] = _in_brackets(message.id)
    return translations


def _in_brackets(message: str) -> str:
    # Its letters are replaced, its {names} kept.
    return "".join(
        part if part.startswith("{") else re.sub("[A-Za-z]", "ž", part)
        for part in re.split(r"(\{[^}]*\})", message)
    )


def outside(shown: str, tmp_path: Path) -> list[str]:
    for known in (str(tmp_path), str(Path.home())):
        shown = shown.replace(known, "")
    return [word for word in OUTSIDE.findall(shown) if word not in ALLOWED and word not in str(tmp_path)]


def test_no_word_of_the_full_screen_stands_outside_the_catalogue(tmp_path: Path) -> None:
    install("fr", bracketed())
    settings.change_settings(language="fr")

    async def look() -> None:
        engine = FakeEngine(["answer", Script("answer", stop_reason="length")])
        async with screen_face(a_control(engine), (120, 40)) as face:
            for keys in (
                ["f1"],
                ["escape"],
                ["f7"],
                ["escape"],
                ["f6"],
                ["escape"],
                ["f9"],
                ["escape"],
                ["f10"],
            ):
                await face.press(*keys)
                assert outside(face.text(), tmp_path) == [], f"{keys}\n{face.text()}"
            await face.press("escape")
            await face.ask("question")
            assert outside(face.text(), tmp_path) == []
            for keys in (["f5"], ["escape"], ["tab"], ["a"], ["tab"], ["d"], ["u"], ["escape"], ["f2"]):
                await face.press(*keys)
                assert outside(face.text(), tmp_path) == [], f"{keys}\n{face.text()}"

    asyncio.run(look())


def test_no_word_of_line_mode_stands_outside_the_catalogue(tmp_path: Path) -> None:
    install("fr", bracketed())
    settings.change_settings(language="fr")

    async def look() -> str:
        async with line_face(a_control(FakeEngine(["answer"]))) as face:
            await face.ask("question")
            for command in (
                "/help",
                "/again",
                "/other",
                "/history",
                "/settings",
                "/models",
                "/nothing",
                "/delete",
            ):
                await face.ask(command)
            await face.ask("/undo")
            return face.text()

    shown = "\n".join(line for line in asyncio.run(look()).splitlines())
    commands = set(re.findall(r"/([a-z]+)", shown)) | set(SETTING_NAMES)
    left = [word for word in outside(shown, tmp_path) if word not in commands]
    assert [
        word for word in left if word not in {"context", "length", "temperature", "text", "size", "theme"}
    ] == []


def test_a_right_to_left_language_is_drawn_from_the_right(tmp_path: Path) -> None:
    install("ar", {"Type a question below and press Enter.": "اكتب سؤالا"})
    settings.change_settings(language="ar")

    async def look() -> list[str]:
        async with screen_face(a_control(FakeEngine(["answer"]))) as face:
            return face.text().split("\n")

    lines = asyncio.run(look())
    (line,) = [line for line in lines if "اكتب" in line]
    assert len(line) - len(line.lstrip()) > 60
    assert NOTICE in lines[0]
    assert lines[0].endswith("patients)")
    assert lines[0].startswith("   ")


if __name__ == "__main__":
    WORDS_FILE.parent.mkdir(exist_ok=True)
    WORDS_FILE.write_text(words_file(), encoding="utf-8", newline="\n")
    sys.stdout.write(f"{WORDS_FILE}\n")
