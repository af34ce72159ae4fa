"""Build the portable engine wheel: llama-cpp-python with one CPU plug-in for each family of processors.

    python packaging/engine_wheel.py --sdist llama_cpp_python-0.3.36.tar.gz --platform linux-x86_64 --out out

The stock build either serves one processor (and dies of an illegal instruction on an older one) or, with
plug-ins, puts them where the package does not find them. Here llama.cpp is built from the sdist's own source
with all plug-ins, and packed with the sdist's Python files: one `py3-none` wheel, each library once, the same
bytes from the same sources and the same compiler, in whatever folder. Needs cmake, ninja, patchelf, binutils
and gcc (aarch64 elsewhere: g++-aarch64-linux-gnu). There is no recipe for Windows yet.
"""

import argparse
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from platform import machine

VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
BUILD_TAG = "1edgemed"
ZIP_DATE = (2020, 1, 1, 0, 0, 0)
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
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": "$ORIGIN",
}
LIBRARIES = ("libllama.so", "libggml.so", "libggml-base.so")
LEFT_OUT = ("server", "mtmd_cpp.py", "llava_cpp.py")
"""Python files of the sdist for what this wheel does not do: a web server and images."""


class BuildError(Exception):
    """What is missing or failed, in one sentence."""


@dataclass(frozen=True)
class Platform:
    """What differs between the platforms."""

    machine: str
    """As in the wheel's tag."""
    variants: tuple[str, ...]
    """CPU plug-ins, as llama.cpp names them; the oldest processors' first."""
    prefix: str = ""
    """Of the cross compiler's programs; empty on a machine of the platform itself."""


PLATFORMS = {
    "linux-x86_64": Platform(
        "x86_64",
        (
            *("x64", "sse42", "sandybridge", "ivybridge", "piledriver", "haswell", "alderlake"),
            *("skylakex", "cannonlake", "cascadelake", "icelake", "cooperlake", "zen4", "sapphirerapids"),
        ),
    ),
    # gcc 12 does not know SME: the plug-ins for armv9.2 would not build; armv8.6_2 serves such machines.
    "linux-aarch64": Platform(
        "aarch64",
        ("armv8.0_1", "armv8.2_1", "armv8.2_2", "armv8.2_3", "armv8.6_1", "armv8.6_2"),
        prefix="aarch64-linux-gnu-",
    ),
}


def build_wheel(sdist: Path, platform: Platform, out: Path, *, folder: Path, jobs: int) -> Path:
    """Build the wheel and return its path.

    Args:
        folder: for sources and objects; kept, so that a build that was cut goes on.

    Raises:
        BuildError: a program is missing, the sdist is another one, or the compiler fails.
    """
    own = machine() == platform.machine
    prefix = "" if own else platform.prefix
    programs = ["cmake", "ninja", "patchelf", *(prefix + name for name in ("gcc", "g++", "strip", "readelf"))]
    for program in programs:
        if shutil.which(program) is None:
            raise BuildError(f"The program {program} is missing: install it (docs/headquarters.md).")
    source = _unpack(sdist, folder)
    libraries = _compile(source, platform, prefix, folder / f"build-{platform.machine}", jobs)
    package = folder / f"package-{platform.machine}"
    shutil.rmtree(package, ignore_errors=True)
    _copy_python(source, package)
    lib = package / "llama_cpp" / "lib"
    lib.mkdir()
    names = _place_libraries(libraries, platform, prefix, lib)
    tag = f"py3-none-manylinux_2_{_glibc_minor(lib, prefix)}_{platform.machine}"
    _write_metadata(source, package, tag, names)
    return _zip(package, out, tag)


def _unpack(sdist: Path, folder: Path) -> Path:
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


def _leave_out_variants(file: Path) -> None:
    """Take the plug-ins out that gcc 12 cannot build (SME): the library depends on all that are declared."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.lstrip().startswith("ggml_add_cpu_backend_variant(armv9.2_")]
    if len(kept) != len(lines) - 2:
        raise BuildError(f"{file.name} of llama.cpp is not the one this recipe was written for.")
    file.write_text("".join(kept), encoding="utf-8", newline="\n")


def _compile(source: Path, platform: Platform, prefix: str, build: Path, jobs: int) -> Path:
    llama = source / "vendor" / "llama.cpp"
    # Assertions carry file names: never the folder in which somebody built.
    flags = f"-ffile-prefix-map={llama}=llama.cpp -ffile-prefix-map={build}=build"
    options = OPTIONS | {"CMAKE_C_FLAGS": flags, "CMAKE_CXX_FLAGS": flags}
    if prefix:
        options |= {
            "CMAKE_SYSTEM_NAME": "Linux",
            "CMAKE_SYSTEM_PROCESSOR": platform.machine,
            "CMAKE_C_COMPILER": f"{prefix}gcc",
            "CMAKE_CXX_COMPILER": f"{prefix}g++",
        }
    settings = [f"-D{name}={value}" for name, value in options.items()]
    _run("cmake", "-S", str(llama), "-B", str(build), "-G", "Ninja", *settings)
    targets = ["llama", "ggml", *(f"ggml-cpu-{variant}" for variant in platform.variants)]
    _run("ninja", "-C", str(build), f"-j{jobs}", *targets)
    return build / "bin"


def _copy_python(source: Path, package: Path) -> None:
    shutil.copytree(
        source / "llama_cpp",
        package / "llama_cpp",
        ignore=shutil.ignore_patterns("__pycache__", "lib", *LEFT_OUT),
    )


def _place_libraries(built: Path, platform: Platform, prefix: str, lib: Path) -> list[str]:
    """Copy each library once, under the name that the package loads; return the names."""
    names = [*LIBRARIES, *(f"libggml-cpu-{variant}.so" for variant in platform.variants)]
    sonames: dict[str, str] = {}
    for name in names:
        shutil.copyfile(built / name, lib / name)
        sonames |= dict.fromkeys(_dynamic(lib / name, "SONAME", prefix), name)
    # Not on every machine; GCC's runtime library exception lets it go along.
    gomp = Path(_run(f"{prefix}gcc", "-print-file-name=libgomp.so.1")).resolve()
    shutil.copyfile(gomp, lib / "libgomp.so.1")
    names.append("libgomp.so.1")
    for name in names:
        path = lib / name
        path.chmod(0o755)
        _run(f"{prefix}strip", "--strip-unneeded", "--remove-section=.comment", str(path))
        # One change a call: patchelf 0.14 does the wrong thing with two.
        for needed in _dynamic(path, "NEEDED", prefix):
            if sonames.get(needed, needed) != needed:
                _run("patchelf", "--replace-needed", needed, sonames[needed], str(path))
        if any(soname != name for soname in _dynamic(path, "SONAME", prefix)):
            _run("patchelf", "--set-soname", name, str(path))
        _run("patchelf", "--set-rpath", "$ORIGIN", str(path))
    return names


def _dynamic(path: Path, entry: str, prefix: str) -> list[str]:
    """Return what the dynamic section of a library says under NEEDED or SONAME."""
    said = _run(f"{prefix}readelf", "-d", "-W", str(path))
    return re.findall(rf"\({entry}\).*\[(.*)\]", said)


def _glibc_minor(lib: Path, prefix: str) -> int:
    """Return the minor version of the oldest glibc 2 that has all that the libraries ask for."""
    wanted = [
        int(minor)
        for path in lib.iterdir()
        for minor in re.findall(r"GLIBC_2\.(\d+)", _run(f"{prefix}readelf", "-V", "-W", str(path)))
    ]
    return max(wanted)


def _write_metadata(source: Path, package: Path, tag: str, libraries: Sequence[str]) -> None:
    info = package / f"llama_cpp_python-{VERSION}.dist-info"
    (info / "licenses").mkdir(parents=True)
    shutil.copyfile(source / "PKG-INFO", info / "METADATA")
    shutil.copyfile(source / "LICENSE.md", info / "licenses" / "LICENSE.md")
    shutil.copyfile(source / "vendor" / "llama.cpp" / "LICENSE", info / "licenses" / "LICENSE-llama.cpp")
    wheel = (
        f"Wheel-Version: 1.0\nGenerator: edgemed\nRoot-Is-Purelib: false\nBuild: {BUILD_TAG}\nTag: {tag}\n"
    )
    (info / "WHEEL").write_text(wheel, encoding="utf-8", newline="\n")
    plugins = [name for name in libraries if "-cpu-" in name]
    # Read by the engine's fingerprint: which build this is, without a path or a date.
    text = f"llama-cpp-python {VERSION}, sdist {SDIST_SHA256}\nCPU plug-ins: {' '.join(plugins)}\n"
    (package / "llama_cpp" / "lib" / "BUILD.txt").write_text(text, encoding="utf-8", newline="\n")


def _zip(package: Path, out: Path, tag: str) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    wheel = out / f"llama_cpp_python-{VERSION}-{BUILD_TAG}-{tag}.whl"
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
    files = sorted(path for path in package.rglob("*") if path.is_file())
    for path in files:
        yield path.relative_to(package).as_posix(), path.read_bytes()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, ZIP_DATE)
    entry.external_attr = (0o100755 if ".so" in name else 0o100644) << 16
    return entry


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise BuildError(f"{command[0]} ended with code {done.returncode}:\n{last}")
    return done.stdout.strip()


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
                PLATFORMS[arguments.platform],
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
