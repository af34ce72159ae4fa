"""Build the portable engine wheel: llama-cpp-python with one CPU plug-in for each family of processors.

    python packaging/engine_wheel.py --sdist llama_cpp_python-0.3.36.tar.gz --platform linux-x86_64 --out out

The stock build either serves one processor (and dies of an illegal instruction on an older one) or, with
plug-ins, puts them where the package does not find them. Here llama.cpp is built from the sdist's own source
with all plug-ins, and packed with the sdist's Python files: one `py3-none` wheel, each library once, the same
bytes from the same sources and the same compiler, in whatever folder. What each platform needs, and which
recipes were run: docs/headquarters.md.
"""

import argparse
import base64
import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from engine_build import (
    SDIST_SHA256,
    VERSION,
    BuildError,
    Places,
    Recipe,
    check_no_path,
    check_programs,
    compile_libraries,
    unpack_sdist,
)
from engine_linux import AARCH64, X86_64
from engine_windows import windows_recipe

ZIP_DATE = (2020, 1, 1, 0, 0, 0)
LEFT_OUT = ("server", "mtmd_cpp.py", "llava_cpp.py")
"""Python files of the sdist for what this wheel does not do: a web server and images."""
PLATFORMS: dict[str, Callable[[], Recipe]] = {
    "linux-x86_64": lambda: X86_64,
    "linux-aarch64": lambda: AARCH64,
    "windows-x86_64": windows_recipe,
}


def build_wheel(sdist: Path, recipe: Recipe, out: Path, *, folder: Path, jobs: int) -> Path:
    """Build the wheel and return its path.

    Args:
        folder: for sources and objects; kept, so that a build that was cut goes on.

    Raises:
        BuildError: a program is missing, the sdist is another one, or the compiler fails.
    """
    check_programs(recipe.programs())
    source = unpack_sdist(sdist, folder)
    places = Places(source, folder / f"build-{recipe.machine}")
    return pack_wheel(recipe, places, compile_libraries(recipe, places, jobs), out, folder=folder)


def pack_wheel(recipe: Recipe, places: Places, built: Path, out: Path, *, folder: Path) -> Path:
    """Pack fresh libraries with the sdist's Python files; return the wheel's path.

    Raises:
        BuildError: a library would miss another one, or holds the path of the build folder.
    """
    package = folder / f"package-{recipe.machine}"
    shutil.rmtree(package, ignore_errors=True)
    _copy_python(places.source, package)
    lib = package / "llama_cpp" / "lib"
    lib.mkdir()
    names = recipe.place_libraries(built, lib)
    check_no_path(lib, names, (places.source, places.build))
    name = f"llama_cpp_python-{VERSION}-{recipe.build_tag}-{recipe.wheel_tag(lib)}.whl"
    _write_metadata(places.source, package, name, names, recipe.licences(built))
    return _zip(package, out / name)


def _copy_python(source: Path, package: Path) -> None:
    shutil.copytree(
        source / "llama_cpp",
        package / "llama_cpp",
        ignore=shutil.ignore_patterns("__pycache__", "lib", *LEFT_OUT),
    )


def _write_metadata(
    source: Path, package: Path, wheel: str, libraries: Sequence[str], licences: Mapping[str, Path]
) -> None:
    info = package / f"llama_cpp_python-{VERSION}.dist-info"
    (info / "licenses").mkdir(parents=True)
    shutil.copyfile(source / "PKG-INFO", info / "METADATA")
    texts = {
        "LICENSE.md": source / "LICENSE.md",
        "LICENSE-llama.cpp": source / "vendor" / "llama.cpp" / "LICENSE",
    }
    for name, text in (texts | dict(licences)).items():
        shutil.copyfile(text, info / "licenses" / name)
    _name, _version, build, tag = wheel.removesuffix(".whl").split("-", 3)
    content = f"Wheel-Version: 1.0\nGenerator: edgemed\nRoot-Is-Purelib: false\nBuild: {build}\nTag: {tag}\n"
    (info / "WHEEL").write_text(content, encoding="utf-8", newline="\n")
    plugins = [name for name in libraries if "-cpu-" in name]
    # Says which build this is, without a path or a date.
    content = f"llama-cpp-python {VERSION}, sdist {SDIST_SHA256}\nCPU plug-ins: {' '.join(plugins)}\n"
    (package / "llama_cpp" / "lib" / "BUILD.txt").write_text(content, encoding="utf-8", newline="\n")


def _zip(package: Path, wheel: Path) -> Path:
    wheel.parent.mkdir(parents=True, exist_ok=True)
    info = f"llama_cpp_python-{VERSION}.dist-info"
    records = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in _contents(package):
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            records.append(f"{name},sha256={digest},{len(data)}\n")
            archive.writestr(_entry(name), data, zipfile.ZIP_DEFLATED, 9)
        record = f"{info}/RECORD"
        archive.writestr(_entry(record), "".join([*records, f"{record},,\n"]), zipfile.ZIP_DEFLATED, 9)
    return wheel


def _contents(package: Path) -> Iterator[tuple[str, bytes]]:
    files = [path.relative_to(package) for path in package.rglob("*") if path.is_file()]
    # By parts: Windows' own order of paths is another one.
    for path in sorted(files, key=lambda path: path.parts):
        yield path.as_posix(), (package / path).read_bytes()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, ZIP_DATE)
    entry.create_system = 3  # Unix, on whatever system this runs
    entry.external_attr = (0o100755 if ".so" in name else 0o100644) << 16
    return entry


def main() -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sdist", type=Path, required=True, help=f"llama_cpp_python-{VERSION}.tar.gz")
    parser.add_argument("--platform", choices=PLATFORMS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the wheel")
    parser.add_argument("--build-folder", type=Path, help="kept: a cut build goes on")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.build_folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            wheel = build_wheel(
                arguments.sdist,
                PLATFORMS[arguments.platform](),
                arguments.out,
                folder=folder,
                jobs=arguments.jobs,
            )
        except (BuildError, OSError) as error:
            sys.exit(f"error: {error}")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    print(f"{digest}  {wheel} ({wheel.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
