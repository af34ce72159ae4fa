"""The engine's wheel: names that its loaders look for, nothing missing, nothing private, the same bytes twice.

`EDGEMED_ENGINE_SDIST` names the sdist of llama-cpp-python; `EDGEMED_ENGINE_WHEELS` a folder with the engine wheels
for Windows and for Linux on x86-64 that were built here (docs/headquarters.md).
"""

import base64
import csv
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePath, PureWindowsPath
from types import SimpleNamespace

import engine_windows
import pytest
from engine_build import (
    OPTIONS,
    X86_64_VARIANTS,
    BuildError,
    Places,
    check_no_path,
    check_programs,
    unpack_sdist,
)
from engine_linux import AARCH64, X86_64
from engine_smoke import compare, linux_engine, windows_engine
from engine_wheel import PLATFORMS, pack_wheel
from engine_windows import (
    WindowsCross,
    WindowsHost,
    check_alignment,
    check_imports,
    imported_libraries,
    windows_recipe,
)

from edgemed.engine.plugins import plugin_files

SYSTEM_ONLY = "DLL Name: KERNEL32.dll\nDLL Name: api-ms-win-crt-heap-l1-1-0.dll\n"


def fresh_build(folder: Path, recipe: WindowsHost | WindowsCross) -> Path:
    """Write libraries of a few bytes where a build leaves them."""
    built = folder / "bin"
    built.mkdir(parents=True)
    llama = "llama.dll" if isinstance(recipe, WindowsHost) else "libllama.dll"
    for name in (llama, "ggml.dll", "ggml-base.dll", "libomp.dll", "LICENSE-LLVM-OpenMP"):
        (built / name).write_bytes(name.encode())
    for variant in recipe.variants:
        (built / f"ggml-cpu-{variant}.dll").write_bytes(variant.encode())
    return built


def fake_source(folder: Path) -> Path:
    """Write the few files of the sdist that go into the wheel, and some that do not."""
    source = folder / "sdist"
    for name, text in {
        "PKG-INFO": "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.36\nLicense: MIT\n",
        "LICENSE.md": "MIT\n",
        "vendor/llama.cpp/LICENSE": "MIT, the ggml authors\n",
        "llama_cpp/__init__.py": "",
        "llama_cpp/llama_cpp.py": "",
        "llama_cpp/Zeta.py": "",
        "llama_cpp/server/app.py": "import fastapi\n",
        "llama_cpp/lib/old.dll": "",
    }.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    return source


@pytest.fixture
def toolchain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let every program succeed: libraries ask for Windows' own, and the compiler has its runtime."""
    for name in engine_windows._MINGW_RUNTIME:
        (tmp_path / name).write_bytes(name.encode())

    def said(*command: str) -> str:
        runtime = command[1].removeprefix("-print-file-name=")
        return str(tmp_path / runtime) if runtime != command[1] else SYSTEM_ONLY

    monkeypatch.setattr(engine_windows, "run", said)


RECIPES = [WindowsHost(), WindowsCross()]


@pytest.mark.parametrize("recipe", RECIPES, ids=["host", "cross"])
@pytest.mark.usefixtures("toolchain")
def test_llama_cpp_and_the_engine_find_the_libraries_on_windows(
    recipe: WindowsHost | WindowsCross, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With llama_cpp's own loader, told that it runs on Windows."""
    from llama_cpp._ctypes_extensions import load_shared_library

    lib = tmp_path / "lib"
    lib.mkdir()
    names = recipe.place_libraries(fresh_build(tmp_path, recipe), lib)
    assert sorted(names) == sorted(path.name for path in lib.iterdir())
    assert plugin_files(lib) == sorted(lib / f"ggml-cpu-{variant}.dll" for variant in X86_64_VARIANTS)

    loaded: list[str] = []

    def load(path: str, **_more: object) -> SimpleNamespace:
        loaded.append(path)
        return SimpleNamespace()

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "add_dll_directory", lambda _folder: None, raising=False)
    monkeypatch.setenv("PATH", "before")
    monkeypatch.setattr(ctypes, "CDLL", load)
    for base in ("llama", "ggml"):
        load_shared_library(base, lib)
    monkeypatch.undo()
    assert loaded == [str(lib / "llama.dll"), str(lib / "ggml.dll")]


def test_a_library_that_some_machines_lack_is_refused() -> None:
    own = {
        "llama.dll": ["KERNEL32.dll", "GGML-BASE.dll", "api-ms-win-crt-heap-l1-1-0.dll"],
        "ggml-base.dll": [],
    }
    check_imports(own)
    for missing in ("VCRUNTIME140.dll", "MSVCP140.dll", "libomp140.x86_64.dll", "libgomp-1.dll"):
        with pytest.raises(BuildError, match=f"ggml.dll asks for {re.escape(missing)}"):
            check_imports(own | {"ggml.dll": ["ggml-base.dll", missing]})


def test_a_plug_in_that_asks_for_an_aligned_stack_is_refused() -> None:
    """GCC bug 54412: the crash comes on Windows, and never under Wine."""
    lines = [
        "vmovups %ymm0,-0x50(%rbp)",
        "vmovaps %ymm0,%ymm1",
        "vmovaps %xmm6,0x20(%rsp)",
        "movaps %xmm6,(%rsp)",
    ]
    good = "".join(f"   1a2b:\t{line}\n" for line in lines)
    check_alignment("ggml-cpu-haswell.dll", good)
    for line in ("vmovdqa %ymm0,-0x50(%rbp)", "vmovaps 0x40(%rsp),%ymm7", "vmovdqa64 %zmm17,0x80(%rsp)"):
        with pytest.raises(BuildError, match=r"ggml-cpu-haswell\.dll would crash on Windows: vmov"):
            check_alignment("ggml-cpu-haswell.dll", f"{good}   1a2f:\t{line}\n{good}")


@pytest.mark.parametrize("recipe", RECIPES, ids=["host", "cross"])
@pytest.mark.usefixtures("toolchain")
def test_a_build_without_one_of_its_libraries_is_refused(
    recipe: WindowsHost | WindowsCross, tmp_path: Path
) -> None:
    built = fresh_build(tmp_path, recipe)
    (built / "ggml-cpu-haswell.dll").unlink()
    (tmp_path / "lib").mkdir()
    with pytest.raises(BuildError, match=r"made no ggml-cpu-haswell\.dll"):
        recipe.place_libraries(built, tmp_path / "lib")


@pytest.mark.usefixtures("toolchain")
def test_two_packings_on_two_systems_give_the_same_installable_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from packaging.utils import parse_wheel_filename

    wheels = []
    for system in ("linux", "win32"):
        folder = tmp_path / f"built-on-{system}"
        # zipfile looks at it.
        monkeypatch.setattr(sys, "platform", system)
        built = fresh_build(folder, WindowsHost())
        places = Places(fake_source(folder), folder / "build")
        wheels.append(pack_wheel(WindowsHost(), places, built, folder / "out", folder=folder))
    monkeypatch.undo()
    assert wheels[0].read_bytes() == wheels[1].read_bytes()

    name, version, build, tags = parse_wheel_filename(wheels[0].name)
    assert (name, str(version), build) == ("llama-cpp-python", "0.3.36", (1, "edgemed"))
    assert [str(tag) for tag in tags] == ["py3-none-win_amd64"]
    with zipfile.ZipFile(wheels[0]) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    record = "llama_cpp_python-0.3.36.dist-info/RECORD"
    listed = {row[0]: row[1] for row in csv.reader(content[record].decode().splitlines())}
    assert listed.keys() == content.keys()
    # Not as Windows sorts paths, where capitals do not count.
    assert list(listed) == [*sorted(content.keys() - {record}, key=lambda path: path.split("/")), record]
    for path in content.keys() - {record}:
        digest = base64.urlsafe_b64encode(hashlib.sha256(content[path]).digest()).rstrip(b"=").decode()
        assert listed[path] == f"sha256={digest}"
    tag_line = b"Tag: py3-none-win_amd64\n"
    assert tag_line in content["llama_cpp_python-0.3.36.dist-info/WHEEL"]
    assert "llama_cpp_python-0.3.36.dist-info/licenses/LICENSE-LLVM-OpenMP" in content
    assert "llama_cpp/llama_cpp.py" in content
    assert not any("server" in path or path.endswith("old.dll") for path in content)


@pytest.mark.usefixtures("toolchain")
def test_the_kit_takes_the_wheel_for_windows_and_for_no_other_platform(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="building kits needs the extra hq")
    from kit_wheelhouse import read_engine_wheel

    from edgemed.errors import UsageError

    built = fresh_build(tmp_path, WindowsCross())
    places = Places(fake_source(tmp_path), tmp_path / "build")
    wheel = pack_wheel(WindowsCross(), places, built, tmp_path / "out", folder=tmp_path)
    assert read_engine_wheel(wheel, "windows-x86_64").name == "llama-cpp-python"
    with pytest.raises(UsageError, match="is not for linux-x86_64"):
        read_engine_wheel(wheel, "linux-x86_64")


@pytest.mark.parametrize(
    ("folder", "content"),
    [
        (PurePath("/home/ana/build"), b"..\0/home/ana/build/ggml/src/ggml.c\0"),
        (PureWindowsPath(r"C:\Users\ana\build"), rb"C:\Users\ana\build\ggml\src\ggml.c"),
        (PureWindowsPath(r"C:\Users\ana\build"), b"c:/users/ana/build/ggml/src/ggml.c"),
        (PureWindowsPath(r"C:\Users\ana\build"), r"C:\Users\ana\build\ggml.pdb".encode("utf-16-le")),
    ],
    ids=["posix", "windows", "slashes", "wide"],
)
def test_a_library_that_tells_where_it_was_built_is_refused(
    folder: PurePath, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "ggml.dll").write_bytes(b"llama.cpp/ggml/src/ggml.c")
    check_no_path(tmp_path, ["ggml.dll"], [folder])
    (tmp_path / "ggml.dll").write_bytes(content)
    with pytest.raises(BuildError, match=r"ggml\.dll holds the path"):
        check_no_path(tmp_path, ["ggml.dll"], [folder])


def test_each_platform_has_a_recipe_and_windows_one_for_each_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemed.kit_format import KIT_PLATFORMS

    assert set(PLATFORMS) == set(KIT_PLATFORMS)
    monkeypatch.setattr("platform.system", lambda: "Windows")
    assert isinstance(windows_recipe(), WindowsHost)
    for recipe in (X86_64, AARCH64):
        with pytest.raises(BuildError, match="built on Linux"):
            recipe.programs()
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert isinstance(windows_recipe(), WindowsCross)
    assert PLATFORMS["linux-aarch64"]().variants == AARCH64.variants


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match="cmake is missing"):
        check_programs(WindowsHost().programs())


# With the real source, compilers and Wine.


@pytest.fixture(scope="session")
def sdist() -> Path:
    named = os.environ.get("EDGEMED_ENGINE_SDIST")
    if not named:
        pytest.skip("EDGEMED_ENGINE_SDIST does not name the sdist of llama-cpp-python")
    return Path(named)


@pytest.mark.slow
def test_cmake_makes_of_the_recipe_for_a_windows_host_all_that_is_packed(tmp_path: Path, sdist: Path) -> None:
    """CMake is told that it runs for Windows; nothing is compiled: Visual C++'s libraries are not here."""
    programs = ("cmake", "ninja", "clang", "clang++", "lld-link", "llvm-ar", "llvm-rc")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    recipe = WindowsHost()
    places = Places(unpack_sdist(sdist, tmp_path), tmp_path / "build")
    target = "x86_64-pc-windows-msvc"
    options = OPTIONS | recipe.options(places)
    options |= {
        "CMAKE_SYSTEM_NAME": "Windows",
        "CMAKE_SYSTEM_PROCESSOR": "AMD64",
        "CMAKE_C_COMPILER_TARGET": target,
        "CMAKE_CXX_COMPILER_TARGET": target,
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
        "GGML_OPENMP_FETCH": "OFF",  # no network in tests
    }
    settings = [f"-D{name}={value}" for name, value in options.items()]
    configure = ["cmake", "-S", str(places.llama), "-B", str(places.build), "-G", "Ninja", *settings]
    subprocess.run(configure, check=True, capture_output=True)

    def ninja(*arguments: str) -> str:
        command = ["ninja", "-C", str(places.build), *arguments]
        return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout

    made = set(re.findall(r"^bin/(\S+\.dll): ", ninja("-t", "targets", "all"), re.MULTILINE))
    assert made == {"llama.dll", *engine_windows._library_names(recipe.variants)}
    for name in made:
        *_, link = ninja("-t", "commands", f"bin/{name}").strip().splitlines()
        for flag in (
            "/Brepro",
            "--dependent-lib=libcmt",
            "/NODEFAULTLIB:libucrt.lib",
            "/DEFAULTLIB:ucrt.lib",
        ):
            assert flag in link, name
        assert "/debug" not in link.lower(), name


@pytest.fixture(scope="session")
def engine_wheels() -> dict[str, Path]:
    folder = os.environ.get("EDGEMED_ENGINE_WHEELS", "")
    patterns = {
        "windows": "llama_cpp_python-*-win_amd64.whl",
        "linux": "llama_cpp_python-*-manylinux*_x86_64.whl",
    }
    found = {name: sorted(Path(folder).glob(pattern)) for name, pattern in patterns.items()}
    if not folder or not all(found.values()):
        pytest.skip("EDGEMED_ENGINE_WHEELS names no folder with engine wheels for Windows and Linux")
    return {name: paths[-1] for name, paths in found.items()}


@pytest.mark.slow
def test_the_wheel_for_windows_is_whole_and_tells_no_path(
    tmp_path: Path, engine_wheels: dict[str, Path]
) -> None:
    objdump = shutil.which("x86_64-w64-mingw32-objdump") or shutil.which("llvm-objdump")
    if objdump is None:
        pytest.skip("not installed: objdump for Windows' libraries")
    with zipfile.ZipFile(engine_wheels["windows"]) as archive:
        archive.extractall(tmp_path)
    lib = tmp_path / "llama_cpp" / "lib"
    libraries = sorted(lib.glob("*.dll"))
    check_imports({path.name: imported_libraries(path, objdump) for path in libraries})
    assert {path.name for path in plugin_files(lib)} == {
        f"ggml-cpu-{variant}.dll" for variant in X86_64_VARIANTS
    }
    for path in libraries:
        content = path.read_bytes()
        # Assertions name files of llama.cpp from its own folder on.
        names = re.findall(rb"[ -~]*ggml[/\\]src[/\\][ -~]*", content)
        assert all(name.startswith(b"llama.cpp") for name in names), (path.name, names[:3])
        for private in (Path.home(), Path.cwd(), engine_wheels["windows"].parent):
            assert f"{private}/".encode() not in content, path.name
        if "_mingw-" in engine_wheels["windows"].name and path.name.startswith(("ggml", "llama")):
            header = int.from_bytes(content[0x3C:0x40], "little")
            assert content[header + 8 : header + 12] == bytes(4), f"{path.name} carries the date of its build"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_under_wine_every_plug_in_computes_as_on_linux(
    tmp_path: Path, sdist: Path, engine_wheels: dict[str, Path]
) -> None:
    for program in ("gcc", "x86_64-w64-mingw32-gcc-posix"):
        if shutil.which(program) is None:
            pytest.skip(f"not installed: {program}")
    if shutil.which("wine64") is None and not Path("/usr/lib/wine/wine64").exists():
        pytest.skip("not installed: wine64")
    source = unpack_sdist(sdist, tmp_path)
    windows = windows_engine(engine_wheels["windows"], source, tmp_path)
    linux = linux_engine(engine_wheels["linux"], source, tmp_path)
    model = Path(__file__).parents[1] / "edgemed/data/edge-chat-8m/edge-chat-8m-Q8_0.gguf"
    found, apart = compare(windows, linux, model)
    assert len(found) >= 2
    for one in found:
        assert one.largest_difference <= apart, one
        assert one.same_choices == one.choices, one
