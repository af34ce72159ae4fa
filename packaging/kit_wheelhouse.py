"""The kit's folder `wheels`: those of the lock, edgemed's own, the engine's, and their list with hashes."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kit_download import fetch, run_pip
from kit_lock import (
    LEFT_OUT,
    PYTHONS,
    LockedRequirement,
    LockedWheel,
    marker_environment,
    normal_name,
)
from kit_wheel import Wheel, read_wheel, runs_on

from edgemed.checksums import sha256_of_file
from edgemed.errors import UsageError
from edgemed.kit_format import KitPlatform

ENGINE = "llama-cpp-python"
APP = "edgemed"


@dataclass(frozen=True)
class Locked:
    """What `lock.py` wrote."""

    requirements: list[LockedRequirement]
    wheels: list[LockedWheel]


@dataclass(frozen=True)
class Wheelhouse:
    """All wheels of one kit, read."""

    app: Wheel
    engine: Wheel
    pip: Wheel
    others: list[Wheel]
    requirements: bytes
    """The content of `wheels/requirements.lock`: what the installer gives to pip."""

    @property
    def all(self) -> list[Wheel]:
        """Return all wheels, sorted by file name."""
        return sorted([self.app, self.engine, self.pip, *self.others], key=lambda wheel: wheel.path.name)

    @property
    def installed_bytes(self) -> int:
        """Return what the largest choice of wheels for one Python takes once it is installed."""
        largest: dict[str, int] = {}
        for wheel in [self.app, self.engine, *self.others]:
            largest[wheel.name] = max(wheel.installed_bytes, largest.get(wheel.name, 0))
        return sum(largest.values())

    @property
    def portable_engine(self) -> bool:
        """Return whether the engine wheel has plug-ins for several processors."""
        plugins = [name for name in self.engine.files if "ggml-cpu-" in name.rsplit("/", 1)[-1]]
        return len(plugins) > 1


def choose(locked: Locked, platform: KitPlatform, pythons: Iterable[str]) -> list[LockedWheel]:
    """Return the wheels that the kit needs from the index: the app's and pip.

    Raises:
        UsageError: a Python is not among the locked ones, or the lock is not whole.
    """
    for python in pythons:
        if python not in PYTHONS:
            raise UsageError(
                f"No wheels are locked for Python {python}.", hint=f"There are {', '.join(PYTHONS)}."
            )
    wheels = [
        wheel
        for wheel in locked.wheels
        if wheel.role != "build" and platform in wheel.platforms and set(pythons) & set(wheel.pythons)
    ]
    for python in pythons:
        have = {(wheel.name, wheel.version): wheel for wheel in wheels if python in wheel.pythons}
        for wanted in locked.requirements:
            wheel = have.get((wanted.name, wanted.version))
            if wanted.applies(platform, python) and (wheel is None or wheel.sha256 not in wanted.hashes):
                raise UsageError(
                    f"wheels.toml has no wheel of {wanted.name} {wanted.version} "
                    f"for Python {python} on {platform}.",
                    hint="Write it anew: python packaging/lock.py",
                )
    return wheels


def build_app_wheel(source: Path, target: Path, locked: Locked, cache: Path, created_seconds: int) -> Path:
    """Build edgemed's wheel with the locked build tools; the same source gives the same bytes.

    Args:
        source: the repository.
        cache: where fetched wheels lie.

    Raises:
        DownloadFailed: the tools cannot be had, or the build failed.
    """
    tools = [wheel for wheel in locked.wheels if wheel.role == "build"]
    # They are pure Python: any platform's are right.
    fetch(tools, "linux-x86_64", cache)
    with tempfile.TemporaryDirectory() as scratch:
        links = Path(scratch)
        for tool in tools:
            (links / tool.file).write_bytes((cache / tool.file).read_bytes())
        run_pip(
            *("wheel", "--no-deps", "--wheel-dir", str(target), str(source)),
            # The environment, not options: pip passes it on to the one that installs the build tools.
            environment={
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": links.as_uri(),
                "PIP_CONFIG_FILE": os.devnull,
                "SOURCE_DATE_EPOCH": str(created_seconds),
            },
        )
    return next(target.glob(f"{APP}-*.whl"))


def read_app_wheel(path: Path) -> Wheel:
    """Read edgemed's own wheel.

    Raises:
        UsageError: it is another package.
    """
    wheel = read_wheel(path)
    if wheel.name != APP:
        raise UsageError(f"{path.name} is not edgemed's wheel.", hint="Leave out --app-wheel to build it.")
    return wheel


def read_engine_wheel(path: Path, platform: KitPlatform) -> Wheel:
    """Read the engine's wheel and check that it is one, for this platform and every Python.

    Raises:
        UsageError: it is another package, or for another platform.
    """
    wheel = read_wheel(path)
    if wheel.name != ENGINE or path.name.split("-")[-3:-1] != ["py3", "none"]:
        raise UsageError(
            f"{path.name} is no engine wheel for every Python 3.",
            hint="Build it: python packaging/engine_wheel.py",
        )
    if not runs_on(path.name, platform):
        raise UsageError(
            f"{path.name} is not for {platform}.", hint="Name the engine wheel of the kit's platform."
        )
    return wheel


def read_wheelhouse(
    locked: Locked,
    chosen: list[LockedWheel],
    cache: Path,
    *,
    app: Wheel,
    engine: Wheel,
    platform: KitPlatform,
    pythons: list[str],
) -> Wheelhouse:
    """Read all wheels and check that each one's needs are met by another.

    Raises:
        UsageError: a need is not met, so that the installation would fail in the clinic.
    """
    read = {wheel.file: read_wheel(cache / wheel.file) for wheel in chosen}
    pip = next((read[wheel.file] for wheel in chosen if wheel.role == "pip"), None)
    if pip is None:
        raise UsageError("wheels.toml has no pip.", hint="Write it anew: python packaging/lock.py")
    others = [read[wheel.file] for wheel in chosen if wheel.role == "app"]
    for python in pythons:
        present = [app, engine]
        present += [read[wheel.file] for wheel in chosen if wheel.role == "app" and python in wheel.pythons]
        _check_needs(present, platform, python)
    requirements = _requirements(locked, others, [app, engine])
    return Wheelhouse(app, engine, pip, others, requirements)


def _check_needs(present: list[Wheel], platform: KitPlatform, python: str) -> None:
    versions = {wheel.name: wheel.version for wheel in present}
    for wheel in present:
        for need, specifier in _needs(wheel, platform, python):
            version = versions.get(need)
            if need not in LEFT_OUT and (version is None or not _fits(version, specifier)):
                raise UsageError(
                    f"{wheel.path.name} needs {need}{specifier}; the kit has {version or 'none'}.",
                    hint="Lock again with python packaging/lock.py, or name the fitting engine wheel.",
                )


def _needs(wheel: Wheel, platform: KitPlatform, python: str) -> Iterator[tuple[str, str]]:
    from packaging.requirements import Requirement

    for line in wheel.requires:
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate(marker_environment(platform, python)):
            yield normal_name(need.name), str(need.specifier)


def _fits(version: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


def _requirements(locked: Locked, others: list[Wheel], own: list[Wheel]) -> bytes:
    """Return the installer's list: pinned versions with the hashes of the wheels in this kit, no others."""
    hashes: dict[tuple[str, str], set[str]] = {}
    for wheel in [*others, *own]:
        hashes.setdefault((wheel.name, wheel.version), set()).add(sha256_of_file(wheel.path))
    markers = {(one.name, one.version): one.marker for one in locked.requirements}
    lines = ["# For pip install --no-index --no-deps --require-hashes.\n"]
    for (name, version), values in sorted(hashes.items()):
        marker = markers.get((name, version), "")
        line = f"{name}=={version}" + (f" ; {marker}" if marker else "")
        lines.append(" \\\n    ".join([line, *(f"--hash=sha256:{value}" for value in sorted(values))]) + "\n")
    return "".join(lines).encode("utf-8")
