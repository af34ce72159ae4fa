"""The engine's libraries for Linux: gcc, or its cross compiler for another processor."""

import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from engine_build import X86_64_VARIANTS, BuildError, Places, run

_LIBRARIES = ("libllama.so", "libggml.so", "libggml-base.so")


@dataclass(frozen=True)
class LinuxRecipe:
    """A `Recipe` (engine_build.py) for one family of processors."""

    machine: str
    variants: tuple[str, ...]
    cross_prefix: str
    """Of the cross compiler's programs."""
    build_tag: str = "1edgemed"

    @property
    def prefix(self) -> str:
        """Return the prefix of the compiler's programs; empty on a machine of the platform itself."""
        return "" if platform.machine() == self.machine else self.cross_prefix

    def programs(self) -> list[str]:
        """Return the programs that must be there."""
        if platform.system() != "Linux":
            raise BuildError("The engine for Linux is built on Linux.")
        own = [self.prefix + name for name in ("gcc", "g++", "strip", "readelf")]
        return ["cmake", "ninja", "patchelf", *own]

    def options(self, places: Places) -> dict[str, str]:
        """Return CMake's options for this platform."""
        options = {
            "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
            "CMAKE_INSTALL_RPATH": "$ORIGIN",
            "CMAKE_C_FLAGS": places.path_maps,
            "CMAKE_CXX_FLAGS": places.path_maps,
        }
        if self.prefix:
            options |= {
                "CMAKE_SYSTEM_NAME": "Linux",
                "CMAKE_SYSTEM_PROCESSOR": self.machine,
                "CMAKE_C_COMPILER": f"{self.prefix}gcc",
                "CMAKE_CXX_COMPILER": f"{self.prefix}g++",
            }
        return options

    def place_libraries(self, built: Path, lib: Path) -> list[str]:
        """Copy each library once, under the name that the package loads; return the names."""
        names = [*_LIBRARIES, *(f"libggml-cpu-{variant}.so" for variant in self.variants)]
        sonames: dict[str, str] = {}
        for name in names:
            shutil.copyfile(built / name, lib / name)
            sonames |= dict.fromkeys(self._dynamic(lib / name, "SONAME"), name)
        # Not on every machine; GCC's runtime library exception lets it go along.
        gomp = Path(run(f"{self.prefix}gcc", "-print-file-name=libgomp.so.1")).resolve()
        shutil.copyfile(gomp, lib / "libgomp.so.1")
        names.append("libgomp.so.1")
        for name in names:
            self._finish(lib / name, sonames)
        return names

    def licences(self, built: Path) -> dict[str, Path]:
        """Return no further texts."""
        return {}

    def wheel_tag(self, lib: Path) -> str:
        """Return the tag: the oldest glibc 2 that has all that the libraries ask for."""
        wanted = [
            int(minor)
            for path in lib.iterdir()
            for minor in re.findall(r"GLIBC_2\.(\d+)", run(f"{self.prefix}readelf", "-V", "-W", str(path)))
        ]
        return f"py3-none-manylinux_2_{max(wanted)}_{self.machine}"

    def _finish(self, path: Path, sonames: dict[str, str]) -> None:
        """Strip, and let the library find its neighbours under the names that they have in the wheel."""
        path.chmod(0o755)
        run(f"{self.prefix}strip", "--strip-unneeded", "--remove-section=.comment", str(path))
        # One change a call: patchelf 0.14 does the wrong thing with two.
        for needed in self._dynamic(path, "NEEDED"):
            if sonames.get(needed, needed) != needed:
                run("patchelf", "--replace-needed", needed, sonames[needed], str(path))
        if any(soname != path.name for soname in self._dynamic(path, "SONAME")):
            run("patchelf", "--set-soname", path.name, str(path))
        run("patchelf", "--set-rpath", "$ORIGIN", str(path))

    def _dynamic(self, path: Path, entry: str) -> list[str]:
        """Return what the dynamic section of a library says under NEEDED or SONAME."""
        said = run(f"{self.prefix}readelf", "-d", "-W", str(path))
        return re.findall(rf"\({entry}\).*\[(.*)\]", said)


X86_64 = LinuxRecipe("x86_64", X86_64_VARIANTS, "x86_64-linux-gnu-")
# gcc 12 does not know SME: the plug-ins for armv9.2 would not build; armv8.6_2 serves such machines.
AARCH64 = LinuxRecipe(
    "aarch64",
    ("armv8.0_1", "armv8.2_1", "armv8.2_2", "armv8.2_3", "armv8.6_1", "armv8.6_2"),
    "aarch64-linux-gnu-",
)
