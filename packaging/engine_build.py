"""Compile llama.cpp from the sdist of llama-cpp-python, with one CPU plug-in for each family of processors.

What every platform shares; what differs is a recipe (`engine_linux.py`, `engine_windows.py`).
"""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "OFF",
    "GGML_BACKEND_DL": "ON",
    "GGML_CPU_ALL_VARIANTS": "ON",
    # libgomp's threads stop to spin after a while: other programs keep their share (docs/experiments.md).
    "GGML_OPENMP": "ON",
    "GGML_CCACHE": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_COMMON": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_TOOLS": "OFF",
}
"""CMake's, on every platform."""
X86_64_VARIANTS = (
    *("x64", "sse42", "sandybridge", "ivybridge", "piledriver", "haswell", "alderlake"),
    *("skylakex", "cannonlake", "cascadelake", "icelake", "cooperlake", "zen4", "sapphirerapids"),
)
"""CPU plug-ins, as llama.cpp names them; the oldest processors' first."""


class BuildError(Exception):
    """What is missing or failed, in one sentence."""


@dataclass(frozen=True)
class Places:
    """The folders of one build."""

    source: Path
    """The sdist, unpacked."""
    build: Path
    """Objects and fresh libraries."""

    @property
    def llama(self) -> Path:
        """Return the folder of llama.cpp's source."""
        return self.source / "vendor" / "llama.cpp"

    @property
    def path_maps(self) -> str:
        """Return the compiler's flags that keep the folder in which somebody built out of the libraries.

        Assertions carry file names. Forward slashes: CMake takes a backslash for an escape.
        """
        maps = {self.llama: "llama.cpp", self.build: "build"}
        return " ".join(f"-ffile-prefix-map={path.as_posix()}={name}" for path, name in maps.items())


class Recipe(Protocol):
    """What differs between the platforms."""

    @property
    def machine(self) -> str:
        """Return the processor's family, as the wheel's tag has it."""

    @property
    def build_tag(self) -> str:
        """Return the wheel's build tag: two builds that differ in more than a folder differ here."""

    @property
    def variants(self) -> tuple[str, ...]:
        """Return the CPU plug-ins, as llama.cpp names them."""

    def programs(self) -> list[str]:
        """Return the programs that must be there."""

    def options(self, places: Places) -> dict[str, str]:
        """Return CMake's options besides `OPTIONS`."""

    def place_libraries(self, built: Path, lib: Path) -> list[str]:
        """Copy each library once, under the name that the package loads; return the names.

        Raises:
            BuildError: a library asks for another one that would not be there.
        """

    def licences(self, built: Path) -> dict[str, Path]:
        """Return the licence texts of what was not compiled here: file name in the wheel → file."""

    def wheel_tag(self, lib: Path) -> str:
        """Return the tag of a wheel with the placed libraries."""


def check_programs(programs: Iterable[str]) -> None:
    """Refuse to begin where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            raise BuildError(f"The program {program} is missing: install it (docs/headquarters.md).")


def unpack_sdist(sdist: Path, folder: Path) -> Path:
    """Unpack the sdist once; return the folder of its files.

    Raises:
        BuildError: it is another file than the one that this recipe was written for.
    """
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise BuildError(f"{sdist} is not llama-cpp-python {VERSION}: its SHA-256 is {digest}.")
    source = folder / f"llama_cpp_python-{VERSION}"
    if not (source / ".unpacked").exists():
        shutil.rmtree(source, ignore_errors=True)
        shutil.unpack_archive(sdist, folder, filter="data")
        _leave_out_variants(source / "vendor" / "llama.cpp" / "ggml" / "src" / "CMakeLists.txt")
        (source / ".unpacked").touch()
    return source


def compile_libraries(recipe: Recipe, places: Places, jobs: int) -> Path:
    """Compile; return the folder of the libraries. A build that was cut goes on."""
    if re.search(r"\s", f"{places.source}{places.build}"):
        raise BuildError(f"The compilers need a path without spaces: not {places.build.parent}.")
    options = OPTIONS | recipe.options(places)
    settings = [f"-D{name}={value}" for name, value in options.items()]
    run("cmake", "-S", str(places.llama), "-B", str(places.build), "-G", "Ninja", *settings)
    targets = ["llama", "ggml", *(f"ggml-cpu-{variant}" for variant in recipe.variants)]
    run("ninja", "-C", str(places.build), f"-j{jobs}", *targets)
    return places.build / "bin"


def check_no_path(lib: Path, names: Iterable[str], folders: Iterable[PurePath]) -> None:
    """Refuse libraries that tell in which folder they were built."""
    private = {form.lower() for folder in folders for form in (str(folder), folder.as_posix())}
    forms = [form.encode(encoding) for form in private for encoding in ("utf-8", "utf-16-le")]
    for name in names:
        content = (lib / name).read_bytes().lower()
        if any(form in content for form in forms):
            raise BuildError(f"{name} holds the path of the build folder.")


def run(*command: str) -> str:
    """Run a program; return what it says.

    Raises:
        BuildError: it failed; the message has its last lines.
    """
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise BuildError(f"{command[0]} ended with code {done.returncode}:\n{last}")
    return done.stdout.strip()


def _leave_out_variants(file: Path) -> None:
    """Take the plug-ins out that gcc 12 cannot build (SME): the library depends on all that are declared."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.lstrip().startswith("ggml_add_cpu_backend_variant(armv9.2_")]
    if len(kept) != len(lines) - 2:
        raise BuildError(f"{file.name} of llama.cpp is not the one this recipe was written for.")
    file.write_text("".join(kept), encoding="utf-8", newline="\n")
