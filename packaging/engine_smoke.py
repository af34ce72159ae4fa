"""Try the engine wheel for Windows under Wine: its logits against those of the wheel for Linux.

    python packaging/engine_smoke.py --sdist SDIST.tar.gz --windows WINDOWS.whl --linux LINUX.whl

A small C program (`engine_smoke.c`) loads each wheel's libraries as llama_cpp's Python does, then one CPU
plug-in after another, each that this processor can run, and decodes a few tokens. The instructions are really
executed: Wine emulates Windows, not the processor. Needs gcc, mingw-w64 and wine64.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from engine_build import BuildError, check_programs, run, unpack_sdist

TOKENS = tuple(range(10, 50))
"""Enough at once for the plug-ins' code for many tokens; then one at a time."""
_SOURCE = Path(__file__).parent / "engine_smoke.c"
_MODEL = Path(__file__).parents[1] / "edgemed/data/edge-chat-8m/edge-chat-8m-Q8_0.gguf"
_MINGW_GCC = "x86_64-w64-mingw32-gcc-posix"


@dataclass(frozen=True)
class Engine:
    """One wheel's libraries, and the program that loads them."""

    command: tuple[str, ...]
    """Starts the program; the folder of the libraries is its first argument."""
    environment: dict[str, str]
    path_prefix: str
    """What stands before a path of this machine."""
    plugins: dict[str, str]
    """Family of processors → file name."""

    def scores(self) -> dict[str, int]:
        """Return the score of each plug-in on this processor: family → score, 0 for what cannot run."""
        said = self._ask("score", *self.plugins.values())
        found = dict(line.split()[1:] for line in said.splitlines() if line.startswith("score "))
        return {family: int(found[name]) for family, name in self.plugins.items()}

    def decode(self, family: str | None, model: Path) -> tuple[str, list[list[float]]]:
        """Return the features that the engine says it uses, and logits of shape (steps, vocabulary).

        Args:
            family: whose plug-in; None for the one that ggml takes for the best.
        """
        choice = ["best"] if family is None else ["run", self.plugins[family]]
        said = self._ask(*choice, self.path_prefix + str(model), *map(str, TOKENS))
        info, *rows = [line for line in said.splitlines() if line]
        return info, [[float(value) for value in row.split()] for row in rows]

    def _ask(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self.command, *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise BuildError(f"{' '.join(arguments[:2])} ended with code {done.returncode}: {last}")
        return done.stdout


@dataclass(frozen=True)
class Comparison:
    """What one plug-in makes of the tokens in both builds."""

    family: str
    score: int
    largest_difference: float
    """Of a logit, between the builds."""
    same_choices: int
    choices: int


def linux_engine(wheel: Path, source: Path, folder: Path) -> Engine:
    """Unpack a wheel for Linux and build the program for it."""
    libraries = _unpack(wheel, folder / "linux")
    program = _compile(source, "gcc", folder / "engine_smoke", "-ldl")
    return Engine((str(program), str(libraries)), {}, "", _plugins(libraries, "libggml-cpu-*.so"))


def windows_engine(wheel: Path, source: Path, folder: Path) -> Engine:
    """Unpack a wheel for Windows, and build the program and a Wine folder for it."""
    libraries = _unpack(wheel, folder / "windows")
    program = _compile(source, _MINGW_GCC, folder / "engine_smoke.exe", "-static")
    wine = shutil.which("wine64") or "/usr/lib/wine/wine64"
    environment = {"WINEPREFIX": str(folder / "wine"), "WINEDEBUG": "-all"}
    command = (wine, str(program), f"Z:{libraries}")
    return Engine(command, environment, "Z:", _plugins(libraries, "ggml-cpu-*.dll"))


def compare(windows: Engine, linux: Engine, model: Path) -> tuple[list[Comparison], float]:
    """Decode with each plug-in that this processor runs, in both builds.

    The builds differ in the C library (expf, cosf) and in what the compiler fuses: logits may lie apart, as
    those of two plug-ins do. That is the measure: a fault moves logits by whole units.

    Returns:
        The comparisons, and how far the logits of two of Linux's own plug-ins lie apart at most.

    Raises:
        BuildError: a build cannot load or decode, or they disagree on what this processor can do.
    """
    scores = linux.scores()
    if windows.scores() != scores:
        raise BuildError(f"The plug-ins rate this processor otherwise: {windows.scores()}, not {scores}.")
    best, other_best = windows.decode(None, model)[0], linux.decode(None, model)[0]
    if best != other_best:
        raise BuildError(f"The builds chose different plug-ins: {best}; {other_best}")
    families = sorted((family for family in scores if scores[family]), key=scores.__getitem__)
    expected = {family: linux.decode(family, model)[1] for family in families}
    found = [
        _compare_one(family, scores[family], windows.decode(family, model)[1], expected[family])
        for family in families
    ]
    apart = max(_largest_difference(*pair) for pair in combinations(expected.values(), 2))
    return found, apart


def _compare_one(family: str, score: int, rows: list[list[float]], expected: list[list[float]]) -> Comparison:
    same = sum(
        row.index(max(row)) == wanted.index(max(wanted)) for row, wanted in zip(rows, expected, strict=True)
    )
    return Comparison(family, score, _largest_difference(rows, expected), same, len(rows))


def _largest_difference(rows: list[list[float]], others: list[list[float]]) -> float:
    return max(
        abs(value - other)
        for row, other_row in zip(rows, others, strict=True)
        for value, other in zip(row, other_row, strict=True)
    )


def _unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / "llama_cpp" / "lib"


def _plugins(libraries: Path, pattern: str) -> dict[str, str]:
    return {path.stem.split("-cpu-")[1]: path.name for path in sorted(libraries.glob(pattern))}


def _compile(source: Path, compiler: str, program: Path, *last: str) -> Path:
    llama = source / "vendor" / "llama.cpp"
    headers = [f"-I{llama / 'include'}", f"-I{llama / 'ggml' / 'include'}"]
    run(compiler, "-O1", "-Wall", *headers, "-o", str(program), str(_SOURCE), *last)
    return program


def main() -> None:
    """Compare what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", type=Path, required=True, help="of llama-cpp-python, for its headers")
    parser.add_argument("--windows", type=Path, required=True, help="wheel for Windows")
    parser.add_argument("--linux", type=Path, required=True, help="wheel for Linux, of the same version")
    parser.add_argument("--model", type=Path, default=_MODEL, help="GGUF file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            check_programs(["gcc", _MINGW_GCC])
            source = unpack_sdist(arguments.sdist, Path(temporary))
            windows = windows_engine(arguments.windows, source, Path(temporary))
            linux = linux_engine(arguments.linux, source, Path(temporary))
            found, apart = compare(windows, linux, arguments.model.absolute())
        except (BuildError, OSError) as error:
            sys.exit(f"error: {error}")
    for one in found:
        same = f"same choice at {one.same_choices} of {one.choices}"
        print(f"{one.family:16} score {one.score:5}  {one.largest_difference:.2e}  {same}")
    print(f"Linux's own plug-ins lie up to {apart:.2e} apart.")
    if any(one.largest_difference > apart for one in found):
        sys.exit("error: the builds lie further apart than that")


if __name__ == "__main__":
    main()
