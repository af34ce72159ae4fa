"""A kit of small fakes: wheels of a few bytes, a lock of them, an installer that does nothing, a signing key."""

import base64
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit_lock import LockedRequirement, LockedWheel
from kit_parts import Order
from kit_signature import make_key
from kit_wheelhouse import Locked

from edgemed.kit_format import KIT_PLATFORMS, KitPlatform

CREATED_SECONDS = 1_790_000_000
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
EMBEDDED_MODEL = Path(__file__).parents[1] / "edgemed/data/edge-chat-8m/manifest.json"
_PLATFORM_TAGS = {
    "linux-x86_64": "manylinux_2_17_x86_64",
    "linux-aarch64": "manylinux_2_17_aarch64",
    "windows-x86_64": "win_amd64",
}


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    tag: str = "py3-none-any",
    requires: tuple[str, ...] = (),
    files: dict[str, bytes] | None = None,
    licence: str = "MIT",
) -> Path:
    """Write an installable wheel; the same arguments give the same bytes."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"
    metadata += f"License-Expression: {licence}\n" if licence else ""
    metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
    content = {
        f"{module}.py": f"name = {name!r}\n".encode(),
        **(files or {}),
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    if licence:
        content[f"{info}/licenses/LICENSE"] = f"The licence of {name}.\n".encode()
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for path, data in content.items()
    )
    content[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{module}-{version}-{tag}.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in content.items():
            archive.writestr(zipfile.ZipInfo(file, (2020, 1, 1, 0, 0, 0)), data)
    return path


def write_app_wheel(folder: Path, *, engine: str = "0.3.36") -> Path:
    """Write a wheel that calls itself edgemed and carries the manifest of the embedded model."""
    return write_wheel(
        folder,
        "edgemed",
        "9.9.9",
        requires=(f"llama-cpp-python=={engine}", "beta>=2", "gamma; sys_platform == 'win32'"),
        files={
            "edgemed/data/edge-chat-8m/manifest.json": EMBEDDED_MODEL.read_bytes(),
            "edgemed/data/edge-chat-8m/MODEL_CARD.md": b"# edge-chat-8m\n",
        },
    )


def write_engine_wheel(folder: Path, platform: KitPlatform, *, version: str = "0.3.36") -> Path:
    """Write a wheel that calls itself the engine, with two CPU plug-ins."""
    tag = f"py3-none-{_PLATFORM_TAGS[platform]}"
    plugins = {f"llama_cpp/lib/libggml-cpu-{kind}.so": kind.encode() for kind in ("x64", "haswell")}
    return write_wheel(
        folder, "llama-cpp-python", version, tag=tag, requires=("diskcache",), files=plugins, licence="MIT"
    )


def fake_locked(folder: Path, platform: KitPlatform) -> Locked:
    """Write the wheels of a small lock into a folder: two for every Python, one for each."""
    plain = {
        "app": [write_wheel(folder, "diskcache", "5.6.3", licence="Apache-2.0")],
        "pip": [write_wheel(folder, "pip", "26.3")],
    }
    wheels = [_locked(path, role, PYTHONS) for role, paths in plain.items() for path in paths]
    wheels.append(_locked(write_wheel(folder, "gamma", "1.0"), "app", PYTHONS, ["windows-x86_64"]))
    for python in PYTHONS:
        short = f"cp{python.replace('.', '')}"
        tag = f"{short}-{short}-{_PLATFORM_TAGS[platform]}"
        path = write_wheel(folder, "beta", "2.0", tag=tag, files={"beta_native": python.encode() * 2000})
        wheels.append(_locked(path, "app", [python]))
    names = [("beta", "2.0", ""), ("diskcache", "5.6.3", ""), ("gamma", "1.0", "sys_platform == 'win32'")]
    requirements = [
        LockedRequirement(name, version, marker, frozenset(w.sha256 for w in wheels if w.name == name))
        for name, version, marker in names
    ]
    return Locked(requirements, wheels)


def _locked(
    path: Path, role: Any, pythons: list[str], platforms: Sequence[KitPlatform] = KIT_PLATFORMS
) -> LockedWheel:
    data = path.read_bytes()
    return LockedWheel(
        file=path.name,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        role=role,
        platforms=list(platforms),
        pythons=pythons,
    )


def fake_installer(folder: Path) -> Path:
    """Write an installer's files that do nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("install.sh", "install.cmd", "install.py"):
        (folder / name).write_text("# nothing\n", encoding="utf-8")
    return folder


def fake_order(folder: Path, platform: KitPlatform = "linux-x86_64", **changes: Any) -> Order:
    """Return what builds a small signed kit in `folder/out`, without a network."""
    key = folder / "key/edgemed.key"
    if not key.exists():
        make_key(key.parent, "")
    fields: dict[str, Any] = {
        "platform": platform,
        "out": folder / "out",
        "engine_wheel": write_engine_wheel(folder / "own", platform),
        "key": key,
        "wheels": folder / "wheels",
        "app_wheel": write_app_wheel(folder / "own"),
        "installer": fake_installer(folder / "installer"),
        "created_seconds": CREATED_SECONDS,
    }
    if "locked" not in changes:
        fields["locked"] = fake_locked(folder / "wheels", platform)
    return Order(**(fields | changes))
