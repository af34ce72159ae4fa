"""Every screen, in every theme and size, is as it was drawn before, and a text console can draw it."""

import asyncio
from pathlib import Path

import pytest

from tests.screens import FOLDER, SIZES, THEMES, pictures

GLYPHS_FILE = Path(__file__).with_name("console_glyphs.txt")


def console_glyphs() -> set[str]:
    glyphs = set()
    for line in GLYPHS_FILE.read_text(encoding="ascii").splitlines():
        if not line.startswith("#"):
            first, _, last = line.partition("-")
            glyphs |= {chr(code) for code in range(int(first, 16), int(last or first, 16) + 1)}
    return glyphs


@pytest.mark.parametrize("size_name", SIZES)
@pytest.mark.parametrize("theme", THEMES)
def test_the_screens_are_those_of_the_pictures(theme: str, size_name: str) -> None:
    """Draw them anew with `python -m tests.screens`, and look at them."""
    glyphs, different = console_glyphs(), []
    columns, lines = SIZES[size_name]
    for picture in asyncio.run(pictures(theme, size_name)):  # type: ignore[arg-type]
        assert set(picture.text) - glyphs - {"\n"} == set(), picture.name
        rows = picture.text.split("\n")
        assert len(rows) == lines
        assert max(map(len, rows)) <= columns
        if picture.name.startswith("stopped-"):
            # What to do next is never cut, however narrow the screen.
            assert "Tab, then C writes on." in " ".join(picture.text.split())
        file = FOLDER / f"{picture.name}.svg"
        if not file.exists() or file.read_text(encoding="utf-8") != picture.svg:
            different.append(f"{picture.name}\n{picture.text}")
    assert not different, "\n".join(different)
