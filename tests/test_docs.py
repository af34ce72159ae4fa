"""The docs say what is true: commands, links, the test command, the schema."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from edgemed.cli import cli
from edgemed.manifest import ModelManifest

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "docs" / "reference" / "model_manifest.schema.json"
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def _commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def test_the_readme_is_short_and_its_test_command_is_what_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    last_line = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert "nox" in last_line
    assert last_line in readme.splitlines()


def test_every_command_and_option_has_help_and_a_place_in_the_docs() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    for name, command in _commands(cli, "edgemed"):
        assert command.help, name
        assert all(option.help for option in command.params if isinstance(option, click.Option)), name
        assert name in text, f"{name} is in no document"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_published_schema_is_that_of_the_code() -> None:
    """Write it again with: python -m tests.test_docs"""
    assert SCHEMA.read_bytes() == _schema()


def _schema() -> bytes:
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(ModelManifest)), indent=2) + b"\n"


if __name__ == "__main__":
    SCHEMA.parent.mkdir(parents=True, exist_ok=True)
    SCHEMA.write_bytes(_schema())
