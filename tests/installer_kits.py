"""Small kits for the tests of the installer: real signatures, lists, wheels and pip, a fake edgemed inside.

The fake edgemed answers questions, keeps models, and can be told to fail (the variable EDGEMED_FAKE).
"""

import base64
import ensurepip
import functools
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from edgemed.checksums import SIGNATURE_NAME, SUMS_NAME, encode_sums
from edgemed.kit_format import KitFile, KitManifest, KitPack, KitPlatform, Piece, encode_kit

ROOT = Path(__file__).parents[1]
INSTALLER = ROOT / "packaging" / "installer"
for folder in (ROOT / "packaging", INSTALLER):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from kit_signature import SecretKey, make_key, sign  # noqa: E402 - packaging is no package

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
PLATFORM: KitPlatform = "linux-aarch64" if platform.machine() == "aarch64" else "linux-x86_64"
OWN_MODULES = ("__init__.py", "errors.py", "minisign.py", "checksums.py", "kit_list.py", "kit_stick.py")
PACK_NAME = "small-model"
LIBRARY_NAME = "guides"

_CLI = """
import json, os, sys

def main():
    from edgemed import VERSION, models
    words, fake = sys.argv[1:], os.environ.get("EDGEMED_FAKE", "")
    if words[:1] == ["--version"]:
        print("edgemed", VERSION)
    elif words[:1] == ["doctor"]:
        print(json.dumps([{"name": "clock", "status": "warn", "detail": "It is 1970.", "remedy": "Set it."}]))
    elif words[:1] == ["ask"] and fake == f"mute {VERSION}":
        print("error: The engine died.", file=sys.stderr)
        return 4
    elif words[:1] == ["ask"]:
        print(json.dumps({"text": "A lack of red cells\\x1b[2J.", "explanation": "", "model": "m", "notice": None}))
    return 0
"""
_MODELS = """
import json, os, shutil
from pathlib import Path
from types import SimpleNamespace
from edgemed.errors import ModelCorrupt

def _folder():
    home = os.environ.get("EDGEMED_HOME") or os.path.expanduser("~/.local/share/edgemed")
    return Path(home) / "models"

def _read(folder):
    import hashlib
    data = (folder / "model.gguf").read_bytes()
    manifest = SimpleNamespace(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    return SimpleNamespace(name=folder.name, manifest=manifest)

def list_models(kind=None):
    folders = sorted(_folder().glob("[!.]*/")) if _folder().is_dir() else []
    return SimpleNamespace(models=[_read(folder) for folder in folders if folder.is_dir()])

def install_model(source, *, name=None, progress=None, move=False):
    target = _folder() / name
    if not (source / "model.gguf").is_file():
        raise ModelCorrupt(f"{source / 'model.gguf'} is missing.", hint="Copy it again.")
    if not target.exists():
        incoming = target.with_name(".incoming-x")
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(parents=True)
        for path in source.iterdir():
            (shutil.move if move else shutil.copyfile)(path, incoming / path.name)
        incoming.rename(target)
    return _read(target)

def remove_model(name):
    shutil.rmtree(_folder() / name)

def use_model(name):
    (_folder().parent / "settings.toml").write_text(f"model = {json.dumps(name)}")
"""
_SETTINGS = """
import tomllib
from types import SimpleNamespace
from edgemed.models import _folder

def read_settings():
    path = _folder().parent / "settings.toml"
    found = tomllib.loads(path.read_text()) if path.is_file() else {}
    return SimpleNamespace(model=found.get("model")), []
"""
_PIECES = """
import hashlib
from edgemed.errors import ModelCorrupt

class Piece:
    def __init__(self, path, size_bytes, sha256):
        self.path, self.size_bytes, self.sha256 = path, size_bytes, sha256

def join(pieces, target, *, sha256, progress=None):
    data = b""
    for piece in pieces:
        data += piece.path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ModelCorrupt(f"{target.name} is damaged.")
    target.write_bytes(data)
"""
_REFERENCE_PACKS = """
import hashlib, json, shutil
from types import SimpleNamespace
from edgemed.errors import ModelCorrupt
from edgemed.models import _folder

def _parent():
    return _folder().parent / "reference_packs"

def find_sound(name, version, manifest_sha256):
    return None

def install_pack(source, *, manifest_sha256, move, progress):
    raw = (source / "manifest.json").read_bytes()
    if hashlib.sha256(raw).hexdigest() != manifest_sha256:
        raise ModelCorrupt("manifest.json is damaged.")
    target = _parent() / "{name}-v{version}".format(**json.loads(raw))
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return SimpleNamespace(name=target.name)

def list_packs():
    return SimpleNamespace(packs=sorted(_parent().iterdir()), damaged=[])

def verify_pack(pack, progress):
    manifest = json.loads((pack / "manifest.json").read_bytes())
    if hashlib.sha256((pack / "passages.txt").read_bytes()).hexdigest() != manifest["sha256"]:
        raise ModelCorrupt(f"{pack / 'passages.txt'} is damaged.")
"""
_UPDATE_SWITCH = """
from edgemed.models import _folder

def use_kit_packs(names):
    with (_folder().parent / "settings.toml").open("a") as file:
        file.write(f"\\nreferences = {names!r}\\n")
    return []
"""
_UPDATE_RECORD = """
from types import SimpleNamespace
from edgemed.models import _folder

def _root():
    return _folder().parent / "updates" / "metadata" / "root.json"

def examine_root(path):
    return SimpleNamespace(data=path.read_bytes(), trusted=_root().is_file())

def trust_root(root):
    _root().parent.mkdir(parents=True, exist_ok=True)
    _root().write_bytes(root.data)
"""
_FITS = {
    "machine.py": "def available_memory_bytes():\n    return 1\n",
    "session.py": "DEFAULT_CONTEXT_LENGTH = 1\n",
    "engine/__init__.py": "",
    "engine/memory.py": "def memory_need(*_):\n    return type('Need', (), {'total_bytes': 0})\n",
}


def fake_edgemed(version: str, *, padding_bytes: int = 0) -> bytes:
    """Return the wheel of a fake edgemed."""
    files = {
        "__init__.py": f"VERSION = {version!r}\n",
        "errors.py": (ROOT / "edgemed" / "errors.py").read_text(encoding="utf-8"),
        "cli.py": _CLI,
        "models.py": _MODELS + "\n",
        "settings.py": _SETTINGS,
        "pieces.py": _PIECES,
        "reference_packs.py": _REFERENCE_PACKS,
        "update_record.py": _UPDATE_RECORD,
        "update_switch.py": _UPDATE_SWITCH,
        "padding.txt": "x" * padding_bytes,
        **_FITS,
    }
    # The manifests of the fake have no shape.
    files["models.py"] = files["models.py"].replace(
        "size_bytes=len(data))", "size_bytes=len(data), context_length=1, shape=None)"
    )
    return wheel("edgemed", version, {f"edgemed/{name}": text for name, text in files.items()})


def wheel(name: str, version: str, files: Mapping[str, str]) -> bytes:
    """Return a wheel for every Python; the same input gives the same bytes."""
    info = f"{name}-{version}.dist-info"
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}.cli:main\n",
    }
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},"
        f"{len(text.encode())}"
        for path, text in contents.items()
    ]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in contents.items():
            archive.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), text)
    return buffer.getvalue()


def pip_wheel() -> Path | None:
    """Return the wheel of pip that came with this Python, None if it has none."""
    return next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"), None)


@functools.cache
def new_key(name: str = "headquarters") -> SecretKey:
    """Return a key; the same name gives the same key in this process."""
    with tempfile.TemporaryDirectory() as folder:
        return make_key(Path(folder) / name, "")


def build_kit(
    folder: Path,
    *,
    version: str = "1.0",
    key: SecretKey | None = None,
    signed: bool = True,
    pack: bytes | None = None,
    library: bytes | None = None,
    piece_bytes: int | None = None,
    changes: Mapping[str, object] | None = None,
    padding_bytes: int = 0,
    more: Mapping[str, bytes] | None = None,
    with_pip: bool = True,
) -> Path:
    """Write a kit for this computer and return its folder.

    Args:
        pack: the content of a model file; cut when there is `piece_bytes`.
        library: the content of the only file of a library.
        changes: fields of kit.json, in place of the right ones.
        more: files that the list names, beside the usual ones.
        with_pip: leave pip, the largest file, out where nothing is installed.
    """
    key = key or new_key()
    files = _files(version, key if signed else None, padding_bytes, with_pip=with_pip) | dict(more or {})
    listed = [_listed(path, data) for path, data in files.items()]
    packs: list[KitPack] = []
    if pack is not None:
        packs, cut, packed = _pack(pack, piece_bytes)
        files |= cut
        listed += packed
    if library is not None:
        listed_library, contents = _library(library)
        packs.append(listed_library)
        files |= contents
        listed += [_listed(path, data) for path, data in contents.items()]
    manifest = KitManifest(
        version=version,
        platform=PLATFORM,
        python_minimum=PYTHON,
        pythons=[PYTHON],
        created="2026-11-01T00:00:00Z",
        signed=signed,
        size_bytes=sum(file.size_bytes for file in listed),
        installed_bytes=1_000_000,
        packs=packs,
        files=sorted(listed, key=lambda file: file.path),
    )
    import msgspec

    files["kit.json"] = encode_kit(msgspec.structs.replace(manifest, **(changes or {})))
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    seal(folder, {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}, key, signed=signed)
    return folder


def seal(folder: Path, sums: Mapping[str, str], key: SecretKey | None = None, *, signed: bool = True) -> None:
    """Write SHA256SUMS and its signature."""
    raw = encode_sums(sums)
    (folder / SUMS_NAME).write_bytes(raw)
    if signed:
        text = sign(raw, key or new_key(), "edgemed test")
        (folder / SIGNATURE_NAME).write_text(text, encoding="utf-8", newline="\n")


def _files(version: str, key: SecretKey | None, padding_bytes: int, *, with_pip: bool) -> dict[str, bytes]:
    app = fake_edgemed(version, padding_bytes=padding_bytes)
    files = {f"install/{path.name}": path.read_bytes() for path in INSTALLER.glob("*.py")}
    files |= {path.name: path.read_bytes() for path in INSTALLER.glob("install.*") if path.suffix != ".py"}
    files |= {f"install/edgemed/{name}": (ROOT / "edgemed" / name).read_bytes() for name in OWN_MODULES}
    files[f"wheels/edgemed-{version}-py3-none-any.whl"] = app
    lock = f"edgemed=={version} --hash=sha256:{hashlib.sha256(app).hexdigest()}\n"
    files["wheels/requirements.lock"] = lock.encode()
    pip = pip_wheel()
    if with_pip and pip is not None:
        files[f"wheels/{pip.name}"] = pip.read_bytes()
    else:
        files["wheels/pip-1.0-py3-none-any.whl"] = b"no pip"
    files["START-HERE.txt"] = b"sh install.sh\r\n"
    files["root.json"] = b'{"signed": {}}'
    if key is not None:
        files["install/edgemed.pub"] = key.public_text.encode("ascii")
    return files


def _listed(path: str, data: bytes) -> KitFile:
    return KitFile(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _pack(data: bytes, piece_bytes: int | None) -> tuple[list[KitPack], dict[str, bytes], list[KitFile]]:
    folder = f"packs/{PACK_NAME}"
    contents = {f"{folder}/model.gguf": data, f"{folder}/manifest.json": b"{}"}
    files, listed = {}, []
    for path, content in contents.items():
        if piece_bytes is None or len(content) <= piece_bytes:
            files[path] = content
            listed.append(_listed(path, content))
            continue
        cuts = [content[start : start + piece_bytes] for start in range(0, len(content), piece_bytes)]
        pieces = {f"{path}.{number:03}": cut for number, cut in enumerate(cuts)}
        files |= pieces
        made = [
            Piece(path=name, size_bytes=len(cut), sha256=hashlib.sha256(cut).hexdigest())
            for name, cut in pieces.items()
        ]
        whole = hashlib.sha256(content).hexdigest()
        listed.append(KitFile(path=path, size_bytes=len(content), sha256=whole, pieces=made))
    sha256 = hashlib.sha256(data).hexdigest()
    pack = KitPack(kind="model", name=PACK_NAME, folder=folder, size_bytes=len(data), sha256=sha256)
    return [pack], files, listed


def _library(data: bytes) -> tuple[KitPack, dict[str, bytes]]:
    folder = f"packs/{LIBRARY_NAME}"
    words = {"name": LIBRARY_NAME, "version": 3, "sha256": hashlib.sha256(data).hexdigest()}
    files = {f"{folder}/manifest.json": json.dumps(words).encode(), f"{folder}/passages.txt": data}
    sha256 = hashlib.sha256(files[f"{folder}/manifest.json"]).hexdigest()
    pack = KitPack(
        kind="library", name=LIBRARY_NAME, version=3, folder=folder, size_bytes=len(data), sha256=sha256
    )
    return pack, files


def copy_kit(kit: Path, target: Path) -> Path:
    """Copy a kit onto another stick."""
    shutil.copytree(kit, target, symlinks=True)
    return target


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return what a fresh user's shell has, for one whose home is this folder."""
    paths = [str(home / ".local" / "bin"), str(Path(sys.executable).parent), "/usr/bin", "/bin"]
    return {"HOME": str(home), "PATH": os.pathsep.join(paths), "LANG": "C", **more}
