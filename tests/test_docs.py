"""The docs say what is true: commands, links, the test command, the schema."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from edgemed.cli import cli
from edgemed.manifest import ModelManifest
from edgemed.records import Record
from edgemed.reference_manifest import ReferenceManifest

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
SCHEMAS = {
    REFERENCE / "model_manifest.schema.json": ModelManifest,
    REFERENCE / "reference_manifest.schema.json": ReferenceManifest,
    REFERENCE / "benchmark_record.schema.json": Record,
}
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


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_the_published_schema_is_that_of_the_code(path: Path) -> None:
    """Write it again with: python -m tests.test_docs"""
    assert path.read_bytes() == _schema(path)


def _schema(path: Path) -> bytes:
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(SCHEMAS[path])), indent=2) + b"\n"


if __name__ == "__main__":
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for path in SCHEMAS:
        path.write_bytes(_schema(path))
