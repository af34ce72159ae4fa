"""The engine's libraries for Windows: on a Windows build machine, or across from Linux.

`WindowsHost` has never been run: it is written after llama.cpp's own release build for Windows and CMake's
modules, and only what needs no Windows is tested. `WindowsCross` is run: what it makes answers under Wine
(engine_smoke.py); it was never tried on a Windows machine.
"""

import platform
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine_build import X86_64_VARIANTS, BuildError, Places, Recipe, run

_MINGW_HEADER = Path(__file__).parent / "engine_mingw.h"
_MINGW = "x86_64-w64-mingw32-"
_MINGW_RUNTIME = ("libgomp-1.dll", "libstdc++-6.dll", "libgcc_s_seh-1.dll", "libwinpthread-1.dll")
_MINGW_COPYRIGHT = Path("/usr/share/doc/mingw-w64-x86-64-dev/copyright")
_SYSTEM = re.compile(r"(kernel32|advapi32|user32|msvcrt|ucrtbase|api-ms-win-[a-z0-9-]+)\.dll")
"""What every Windows 10 brings. Not Visual C++'s runtime: a machine may lack it, or have an old one."""


_ALIGNED_MOVE = re.compile(r"\tvmov(ap[sd]|dqa(32|64)?|nt\w+) (.*%[yz]mm\d+.*\(%.*|.*\(%.*%[yz]mm\d+.*)")


@dataclass(frozen=True)
class WindowsHost:
    """A `Recipe` for a Windows build machine: clang for Visual C++'s libraries, as llama.cpp's own releases.

    Runs in a developer prompt of Visual Studio (its headers, libraries and linker) with LLVM 20 on PATH.
    """

    machine: str = "amd64"
    build_tag: str = "1edgemed"
    variants: tuple[str, ...] = X86_64_VARIANTS

    def programs(self) -> list[str]:
        """Return the programs that must be there."""
        return ["cmake", "ninja", "clang", "clang++", "lld-link", "llvm-objdump", "7z"]

    def options(self, places: Places) -> dict[str, str]:
        """Return CMake's options for this platform."""
        linker = [
            "/Brepro",  # no date in the library
            # The C++ runtime goes into each library, the C runtime stays Windows' own: an adapter's file is
            # opened by one library and read by another, so that all must share one C runtime.
            "/NODEFAULTLIB:libucrt.lib",
            "/DEFAULTLIB:ucrt.lib",
        ]
        linker_flags = " ".join(f"-Xlinker {flag}" for flag in linker)
        return {
            # clang, not clang-cl: CMake would take that for Visual C++, and leave out five plug-ins.
            "CMAKE_C_COMPILER": "clang",
            "CMAKE_CXX_COMPILER": "clang++",
            "CMAKE_C_FLAGS": places.path_maps,
            "CMAKE_CXX_FLAGS": places.path_maps,
            "CMAKE_MSVC_RUNTIME_LIBRARY": "MultiThreaded",
            "CMAKE_SHARED_LINKER_FLAGS": linker_flags,
            "CMAKE_MODULE_LINKER_FLAGS": linker_flags,
            # LLVM's own libomp.dll, fetched by CMake from LLVM's release page: the SHA-256 is in llama.cpp.
            "GGML_OPENMP_FETCH": "ON",
        }

    def place_libraries(self, built: Path, lib: Path) -> list[str]:
        """Copy each library once, under the name that the package loads; return the names."""
        sources = {name: built / name for name in ("llama.dll", *_library_names(self.variants), "libomp.dll")}
        return _place(sources, lib, "llvm-objdump")

    def licences(self, built: Path) -> dict[str, Path]:
        """Return the text of LLVM's OpenMP."""
        return {"LICENSE-LLVM-OpenMP": built / "LICENSE-LLVM-OpenMP"}

    def wheel_tag(self, lib: Path) -> str:
        """Return the tag."""
        return "py3-none-win_amd64"


@dataclass(frozen=True)
class WindowsCross:
    """A `Recipe` for Linux with Debian's mingw-w64 (gcc-mingw-w64-x86-64-posix, g++-…)."""

    machine: str = "amd64"
    build_tag: str = "1edgemed_mingw"
    variants: tuple[str, ...] = X86_64_VARIANTS

    def programs(self) -> list[str]:
        """Return the programs that must be there."""
        own = ("gcc-posix", "g++-posix", "objdump", "strip", "windres")
        return ["cmake", "ninja", *(_MINGW + name for name in own)]

    def options(self, places: Places) -> dict[str, str]:
        """Return CMake's options for this platform."""
        flags = [
            "-D_WIN32_WINNT=0x0A00",  # Windows 10
            f"-DNOMINMAX -include {_MINGW_HEADER.as_posix()}",
            # GCC takes the stack for aligned to 32 bytes where Windows promises 16 (GCC bug 54412): plug-ins
            # from AVX up would crash, on Windows and not under Wine. Debian's GCC is mended, others are not.
            "-Wa,-muse-unaligned-vector-move",
            places.path_maps,
        ]
        linker_flags = "-Wl,--no-insert-timestamp"
        return {
            "CMAKE_SYSTEM_NAME": "Windows",
            "CMAKE_SYSTEM_PROCESSOR": "x86_64",
            "CMAKE_C_COMPILER": f"{_MINGW}gcc-posix",
            "CMAKE_CXX_COMPILER": f"{_MINGW}g++-posix",
            "CMAKE_RC_COMPILER": f"{_MINGW}windres",
            "CMAKE_C_FLAGS": " ".join(flags),
            "CMAKE_CXX_FLAGS": " ".join(flags),
            "CMAKE_SHARED_LINKER_FLAGS": linker_flags,
            "CMAKE_MODULE_LINKER_FLAGS": linker_flags,
        }

    def place_libraries(self, built: Path, lib: Path) -> list[str]:
        """Copy each library once, under the name that the package loads; return the names."""
        sources = {"llama.dll": built / "libllama.dll"}
        sources |= {name: built / name for name in _library_names(self.variants)}
        # Shared, not linked in: all libraries must have one pool of threads. GCC's runtime library exception
        # and the MIT licence of winpthreads let them go along.
        sources |= {name: self._runtime(name) for name in _MINGW_RUNTIME}
        names = _place(sources, lib, f"{_MINGW}objdump")
        for variant in self.variants:
            name = f"ggml-cpu-{variant}.dll"
            check_alignment(name, run(f"{_MINGW}objdump", "-d", "--no-show-raw-insn", str(lib / name)))
        for name in names:
            # Else strip writes the present date into the library.
            options = ("--preserve-dates", "--strip-unneeded", "--remove-section=.comment")
            run(f"{_MINGW}strip", *options, str(lib / name))
        return names

    def licences(self, built: Path) -> dict[str, Path]:
        """Return the texts of mingw-w64 and its threads."""
        return {"LICENSE-mingw-w64": _MINGW_COPYRIGHT} if _MINGW_COPYRIGHT.exists() else {}

    def wheel_tag(self, lib: Path) -> str:
        """Return the tag."""
        return "py3-none-win_amd64"

    def _runtime(self, name: str) -> Path:
        found = Path(run(f"{_MINGW}gcc-posix", f"-print-file-name={name}"))
        if not found.is_absolute():
            raise BuildError(f"{_MINGW}gcc-posix has no {name}.")
        return found


def windows_recipe() -> Recipe:
    """Return the recipe for the machine that this runs on."""
    return WindowsHost() if platform.system() == "Windows" else WindowsCross()


def check_imports(imports: dict[str, list[str]]) -> None:
    """Check that each library finds all that it asks for: beside it, or in every Windows.

    Args:
        imports: name of a library → names of those that it asks for.

    Raises:
        BuildError: one would be missing on some machines.
    """
    there = {name.lower() for name in imports}
    for name, wanted in imports.items():
        for other in wanted:
            if other.lower() not in there and not _SYSTEM.fullmatch(other.lower()):
                raise BuildError(
                    f"{name} asks for {other}, which is neither in the wheel nor in every Windows."
                )


def check_alignment(name: str, disassembly: str) -> None:
    """Refuse a plug-in that moves more than 16 bytes in a way that asks for an aligned address.

    Windows promises 16 (GCC bug 54412); under Wine such code is said to run all the same.
    """
    if found := _ALIGNED_MOVE.search(disassembly):
        raise BuildError(f"{name} would crash on Windows: {found[0].strip()}")


def imported_libraries(path: Path, objdump: str) -> list[str]:
    """Return the names of the libraries that a library asks for; GNU's and LLVM's objdump say it alike."""
    return re.findall(r"DLL Name: (\S+)", run(objdump, "-p", str(path)))


def _library_names(variants: Iterable[str]) -> list[str]:
    return ["ggml.dll", "ggml-base.dll", *(f"ggml-cpu-{variant}.dll" for variant in variants)]


def _place(sources: dict[str, Path], lib: Path, objdump: str) -> list[str]:
    for name, source in sources.items():
        if not source.exists():
            raise BuildError(f"The build made no {source.name}: see the compiler's messages above.")
        shutil.copyfile(source, lib / name)
    check_imports({name: imported_libraries(lib / name, objdump) for name in sources})
    return list(sources)
