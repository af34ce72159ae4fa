"""Lock the kit's wheels: write requirements.lock, tools.lock and wheels.toml anew.

python packaging/lock.py        (needs uv and the package index)
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import tomli_w
from kit_download import DownloadFailed, download
from kit_lock import (
    FOLDER,
    LEFT_OUT,
    PYTHONS,
    REQUIREMENTS_LOCK,
    TOOLS_LOCK,
    WHEELS_FILE,
    LockedRequirement,
    normal_name,
    read_lock,
)

from edgemed.checksums import sha256_of_file
from edgemed.errors import EdgemedError, UsageError
from edgemed.kit_format import KIT_PLATFORMS, KitPlatform

_ENGINE = "llama-cpp-python"
_HEAD = "# Written by packaging/lock.py; {what}. Do not edit.\n"
_Found = dict[str, dict[str, object]]


def main() -> int:
    """Lock, and say what was locked; return the exit code."""
    try:
        lock()
    except EdgemedError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def lock() -> None:
    """Write the three files."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))
    app = [line for line in project["project"]["dependencies"] if not line.startswith(_ENGINE)]
    extra = (FOLDER / "requirements.in").read_text(encoding="utf-8").splitlines()
    _compile([*app, *extra], REQUIREMENTS_LOCK, "what a clinic machine gets, but for the engine and edgemed")
    _compile(
        ["pip>=26", *project["build-system"]["requires"]], TOOLS_LOCK, "pip, and what builds edgemed's wheel"
    )
    found: _Found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for platform in KIT_PLATFORMS:
            for python in PYTHONS:
                print(f"{platform}, Python {python}", file=sys.stderr)
                _choose(platform, python, Path(scratch) / platform / python, found)
    wheels = sorted(found.values(), key=lambda wheel: str(wheel["file"]))
    head = _HEAD.format(what="the very files of requirements.lock and tools.lock")
    WHEELS_FILE.write_text(head + "\n" + tomli_w.dumps({"wheel": wheels}), encoding="utf-8", newline="\n")


def _compile(requirements: list[str], target: Path, what: str) -> None:
    left_out = [word for name in LEFT_OUT for word in ("--no-emit-package", name)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", "-", "--universal", "--generate-hashes"),
            *("--python-version", PYTHONS[0], "--no-header", "--no-annotate", "--no-emit-index-url"),
            *left_out,
        ],
        input="\n".join(requirements),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise UsageError(f"uv pip compile failed: {done.stderr.strip()[-500:]}", hint="pip install uv")
    target.write_text(_HEAD.format(what=what) + done.stdout, encoding="utf-8", newline="\n")


def _choose(platform: KitPlatform, python: str, folder: Path, found: _Found) -> None:
    """Let pip choose the files of one system and Python, and add them to what was found."""
    wanted = [one for one in read_lock(REQUIREMENTS_LOCK) if one.applies(platform, python)]
    tools = [one for one in read_lock(TOOLS_LOCK) if one.applies(platform, python)]
    download([*wanted, *tools], platform, python, folder)
    for path in sorted(folder.glob("*.whl")):
        role = _role(normal_name(path.name.split("-")[0]), wanted)
        size_bytes, sha256 = path.stat().st_size, sha256_of_file(path)
        new = {"file": path.name, "size_bytes": size_bytes, "sha256": sha256, "role": role}
        wheel = found.setdefault(path.name, {**new, "platforms": [], "pythons": []})
        if wheel["sha256"] != sha256:
            raise DownloadFailed(f"{path.name} came with two different contents.")
        for key, value in (("platforms", platform), ("pythons", python)):
            values = wheel[key]
            assert isinstance(values, list)
            if value not in values:
                values.append(value)
        path.unlink()


def _role(name: str, wanted: list[LockedRequirement]) -> str:
    if name == "pip":
        return "pip"
    return "app" if any(name == one.name for one in wanted) else "build"


if __name__ == "__main__":
    sys.exit(main())
