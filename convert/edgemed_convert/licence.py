"""The licence of a base model, found where its makers put it.

Called by `run` and `export`, which write it into the GGUF, and by `pack`, which refuses a model without one.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from edgemed_convert.checkpoint import Checkpoint

README_NAMES = ("README.md", "README")
_TEXT_NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "USE_POLICY")
_MOST_BYTES = 2**20
# The first of these found in a licence's text names it. Identifiers are those of Hugging Face's cards.
_BEGINNINGS = (
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"LLAMA 3\.2 COMMUNITY LICENSE", "llama3.2"),
    (r"LLAMA 3\.1 COMMUNITY LICENSE", "llama3.1"),
    (r"META LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
    (r"Gemma Terms of Use", "gemma"),
    (r"Permission is hereby granted, free of charge", "mit"),
    (r"Attribution-ShareAlike 4\.0 International", "cc-by-sa-4.0"),
    (r"Attribution-NonCommercial 4\.0 International", "cc-by-nc-4.0"),
    (r"Attribution 4\.0 International", "cc-by-4.0"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 3", "gpl-3.0"),
)
_FRONT_MATTER = re.compile(r"\A\s*---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_FIELD = re.compile(r"^(license|license_name|license_link)\s*:\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Licence:
    """What a base model's folder says of its licence."""

    name: str
    """Such as apache-2.0; the makers' own name where theirs is none of the known ones."""
    source: str
    """File that says so."""


def find_licence(model: Checkpoint) -> Licence | None:
    """Return the licence that the folder states: in config.json, its README, or the licence's own text."""
    stated = model.config.get("license")
    if isinstance(stated, str) and one_line(stated):
        return Licence(one_line(stated), "config.json")
    for name in README_NAMES:
        found = _from_front_matter(_text(model.folder / name))
        if found:
            return Licence(found, name)
    for path in licence_files(model.folder):
        text = _text(path)
        for beginning, licence in _BEGINNINGS:
            if re.search(beginning, text[:20_000], re.IGNORECASE):
                return Licence(licence, path.name)
    return None


def licence_files(folder: Path) -> list[Path]:
    """Return the licence's texts in a model folder, such as LICENSE and NOTICE."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError:
        return []
    return [folder / name for name in names if re.split(r"[._-]", name.upper())[0] in _TEXT_NAMES]


def one_line(text: str) -> str:
    """Return text of any source as one printable line of at most 200 characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200]


def _from_front_matter(text: str) -> str:
    matter = _FRONT_MATTER.match(text)
    if not matter:
        return ""
    fields = {key: value.strip("\"' ") for key, value in _FIELD.findall(matter[1])}
    name = fields.get("license", "")
    if name in ("other", "unknown", ""):
        # "other" stands before a name of its own.
        name = fields.get("license_name", "") or fields.get("license_link", "")
    return one_line(name)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
