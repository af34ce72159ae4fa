"""A headquarters with keys, and update sticks with packs of tiny models, for tests and measurements."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgemed.manifest import encode_manifest, read_manifest
from edgemed.models import install_model
from edgemed.paths import models_folder
from edgemed.update_record import examine_root, trust_root
from tests.gguf_files import write_tiny_adapter, write_tiny_llama

PACKAGING = Path(__file__).parents[1] / "packaging"
PASSPHRASE = "five random words for tests"
PIECE_BYTES = 100_000
"""The tiny model makes several pieces of this size."""


def script() -> Any:
    """Return packaging/publish_update.py as a module."""
    if str(PACKAGING) not in sys.path:
        sys.path.insert(0, str(PACKAGING))
    import publish_update

    return publish_update


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Headquarters:
    """Keys, and what was published with them."""

    def __init__(self, folder: Path) -> None:
        self.keys = folder / "keys"
        self.root = self.keys / "root.json"
        with environment(EDGEMED_KEY_PASSPHRASE=PASSPHRASE):
            script().make_keys(self.keys)

    def publish(self, stick: Path, *packs: Path, **options: int) -> Path:
        """Write a stick and return it."""
        with environment(EDGEMED_KEY_PASSPHRASE=PASSPHRASE):
            script().publish_stick(stick, self.keys, list(packs), **{"piece_bytes": PIECE_BYTES, **options})
        return stick

    def rotate(self, *names: str) -> None:
        """Replace keys."""
        with environment(EDGEMED_KEY_PASSPHRASE=PASSPHRASE):
            script().rotate_keys(self.keys, list(names))

    def trust(self) -> None:
        """Let this computer trust the headquarters."""
        trust_root(examine_root(self.root))


def make_pack(folder: Path, name: str, *, seed: int, **changes: Any) -> Path:
    """Make the pack of a tiny model; the seed decides its weights, `changes` its manifest."""
    return _pack(write_tiny_llama(_source(folder), seed=seed), folder, name, changes)


def make_adapter_pack(folder: Path, name: str, base: Path, *, seed: int) -> Path:
    """Make the pack of an adapter for the model of another pack."""
    base_sha256 = read_manifest(base / "manifest.json").sha256
    changes = {"base_sha256": base_sha256}
    return _pack(write_tiny_adapter(_source(folder), seed=seed), folder, name, changes)


def make_reference(folder: Path, name: str, version: int, /, **changes: Any) -> Path:
    """Write the folder of a library (or of what `changes` says) as headquarters does; one file makes pieces."""
    import tomli_w

    folder.mkdir(parents=True)
    files = {"passages.txt": f"{name} {version}: drink water.\n" * 8000, "index.csv": f"water;{version}\n"}
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8", newline="\n")
    card = {
        "kind": "library",
        "name": name,
        "version": version,
        "title": "Water",
        "language": "en",
        "license": "CC-BY-4.0",
        "source": "https://example.org/water",
        "edition": f"of year {version}",
        "files": sorted(files),
    }
    (folder / "pack.toml").write_text(tomli_w.dumps(card | changes), encoding="utf-8")
    return folder


def _source(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder / "weights.gguf"


def _pack(source: Path, folder: Path, name: str, changes: dict[str, Any]) -> Path:
    import msgspec

    with environment(EDGEMED_HOME=str(folder / "home")):
        install_model(source, name=name)
        shutil.copytree(models_folder() / name, folder / "pack")
    shutil.rmtree(folder / "home")
    pack = folder / "pack"
    (pack / "installed.json").unlink()
    manifest = msgspec.structs.replace(read_manifest(pack / "manifest.json"), **changes)
    (pack / "manifest.json").write_bytes(encode_manifest(manifest))
    (pack / "MODEL_CARD.md").write_text(f"# {name}\n", encoding="utf-8")
    return pack
