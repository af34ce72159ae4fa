"""The kit on the build machine: the same bytes from the same inputs, all of them listed, none from elsewhere."""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("cryptography", reason="building kits needs the extra hq")
pytest.importorskip("cyclonedx", reason="building kits needs the extra hq")

import build_kit as command_line
from kit_assemble import build_kit
from kit_lock import DEFAULT_PYTHONS, FOLDER, PYTHONS, normal_name, read_lock, read_wheels
from kit_parts import Order, source_date
from kit_wheelhouse import Locked, choose
from packaging.requirements import Requirement

from edgemed.checksums import encode_sums, is_safe_path, parse_sums
from edgemed.errors import EdgemedError, StorageError, UsageError
from edgemed.kit_format import KIT_PLATFORMS, KitManifest, decode_kit, encode_kit, read_kit
from edgemed.manifest import encode_manifest, read_manifest
from edgemed.minisign import read_public_key, verify_bytes
from edgemed.models import install_model
from edgemed.paths import models_folder
from edgemed.pieces import Piece, join
from edgemed.reference_manifest import read_reference_manifest
from edgemed.reference_packs import install_pack
from tests.gguf_files import write_tiny_adapter, write_tiny_llama
from tests.kit_fakes import fake_order, write_app_wheel, write_engine_wheel, write_wheel
from tests.update_sticks import make_reference


@pytest.fixture(autouse=True)
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip fail at once where it would ask the package index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack of a tiny model."""
    install_model(write_tiny_llama(tmp_path / "tiny.gguf"), name="tiny")
    folder = tmp_path / "packs-of-the-build-machine/tiny"
    shutil.copytree(models_folder() / "tiny", folder)
    (folder / "installed.json").unlink()
    (folder / "MODEL_CARD.md").write_text("# tiny\n", encoding="utf-8")
    return folder


def build(order: Order) -> Path:
    folder = build_kit(order)
    assert folder is not None
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What a kit is.


def test_two_builds_in_two_places_give_the_same_bytes(tmp_path: Path, pack: Path) -> None:
    library = make_reference(pack.with_name("guides"), "guides", 1)
    first_order = fake_order(tmp_path / "one", models=[pack], libraries=[pack / "MODEL_CARD.md", library])
    first = build(first_order)
    moved = tmp_path / "somewhere-else"
    shutil.copytree(pack, moved / "renamed")
    shutil.copytree(library, moved / "books")
    shutil.copytree(tmp_path / "one/key", moved / "key")
    for number, path in enumerate(moved.rglob("*")):
        os.utime(path, (number, number))
    libraries = [moved / "books", moved / "renamed/MODEL_CARD.md"]
    second = build(fake_order(moved, models=[moved / "renamed"], libraries=libraries))
    assert contents(first) == contents(second)
    assert first.name == "edgemed-kit-9.9.9-linux-x86_64"
    for content in contents(first).values():
        assert str(tmp_path).encode() not in content and str(FOLDER.parent).encode() not in content


def test_every_byte_is_listed_and_the_list_is_signed(tmp_path: Path, pack: Path) -> None:
    kit = build(fake_order(tmp_path, models=[pack]))
    found = contents(kit)
    sums, signature = found.pop("SHA256SUMS"), found.pop("SHA256SUMS.minisig").decode()
    key = read_public_key(kit / "install/edgemed.pub")
    comment = verify_bytes(sums, signature, key, name="SHA256SUMS")
    assert comment == "edgemed 9.9.9 linux-x86_64 2026-09-21T14:13:20Z"
    hashes = {path: hashlib.sha256(content).hexdigest() for path, content in found.items()}
    assert parse_sums(sums) == hashes
    manifest = read_kit(kit / "kit.json")
    found.pop("kit.json")
    assert {file.path: file.sha256 for file in manifest.files} == {path: hashes[path] for path in found}
    assert [file.path for file in manifest.files] == sorted(found)
    assert manifest.size_bytes == sum(map(len, found.values()))
    assert manifest.signed and manifest.public_key == key.line and manifest.portable_engine
    assert [(one.name, one.folder) for one in manifest.packs] == [("tiny", "packs/tiny")]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=kit, check=True)
    if shutil.which("minisign"):
        subprocess.run(
            ["minisign", "-V", "-m", "SHA256SUMS", "-p", "install/edgemed.pub"],
            cwd=kit,
            check=True,
            capture_output=True,
        )


def test_a_kit_serves_the_pythons_it_names_and_no_other(tmp_path: Path) -> None:
    kit = build(fake_order(tmp_path, pythons=[*DEFAULT_PYTHONS, "3.14", "3.11"]))
    wheels = {path.name for path in (kit / "wheels").glob("beta-*")}
    assert {name.split("-")[2] for name in wheels} == {"cp311", "cp313", "cp314"}
    requirements = (kit / "wheels/requirements.lock").read_text(encoding="utf-8")
    for name in wheels:
        assert hashlib.sha256((kit / "wheels" / name).read_bytes()).hexdigest() in requirements
    manifest = read_kit(kit / "kit.json")
    assert manifest.pythons == ["3.11", "3.13", "3.14"] and manifest.python_minimum == "3.11"


def test_pip_installs_the_kit_with_its_list_of_hashes_and_refuses_a_changed_wheel(tmp_path: Path) -> None:
    running = f"3.{sys.version_info.minor}"
    if running not in PYTHONS:
        pytest.skip(f"no wheels are locked for Python {running}")
    kit = build(fake_order(tmp_path, pythons=[running]))
    command = [sys.executable, "-m", "pip", "--isolated", "install", "--no-index", "--no-deps", "-q"]
    command += ["--require-hashes", "--find-links", str(kit / "wheels"), "--target", str(tmp_path / "target")]
    command += ["-r", str(kit / "wheels/requirements.lock")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "target/edgemed.py").is_file() and (tmp_path / "target/beta_native").is_file()
    wheel = next((kit / "wheels").glob("diskcache-*"))
    wheel.write_bytes(wheel.read_bytes() + b"x")
    again = subprocess.run([*command, "--upgrade"], check=False, capture_output=True, text=True)
    assert again.returncode and "THESE PACKAGES DO NOT MATCH THE HASHES" in again.stderr


def test_what_the_installer_shares_with_edgemed_runs_from_the_stick_alone(tmp_path: Path) -> None:
    kit = build(fake_order(tmp_path))
    names = "edgemed.checksums, edgemed.minisign, edgemed.errors"
    program = (
        f"import sys; sys.path.insert(0, {str(kit / 'install')!r}); import {names}; print(edgemed.__file__)"
    )
    # -I and -S: no package that is installed here can help.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith(str(kit))


def test_a_large_file_is_cut_for_fat32_and_comes_together_again(tmp_path: Path, pack: Path) -> None:
    kit = build(fake_order(tmp_path, models=[pack], piece_bytes=20_000))
    whole = pack / read_kit(kit / "kit.json").packs[0].folder.replace("packs/tiny", "tiny.gguf")
    file = next(file for file in read_kit(kit / "kit.json").files if file.path == "packs/tiny/tiny.gguf")
    assert len(file.pieces) > 1 and not (kit / file.path).exists()
    assert file.pieces[0].path == "packs/tiny/tiny.gguf.000"
    assert max(path.stat().st_size for path in kit.rglob("*") if path.is_file()) <= 20_000
    pieces = [Piece(kit / piece.path, piece.size_bytes, piece.sha256) for piece in file.pieces]
    join(pieces, tmp_path / "joined", sha256=file.sha256)
    assert (tmp_path / "joined").read_bytes() == whole.read_bytes()
    listed = parse_sums((kit / "SHA256SUMS").read_bytes())
    assert all(listed[piece.path] == piece.sha256 for piece in file.pieces) and file.path not in listed


def test_an_unsigned_kit_says_so(tmp_path: Path) -> None:
    kit = build(fake_order(tmp_path, key=None))
    assert not (kit / "SHA256SUMS.minisig").exists() and not (kit / "install/edgemed.pub").exists()
    manifest = read_kit(kit / "kit.json")
    assert not manifest.signed and manifest.public_key is None
    for page in ("START-HERE.txt", "MANUAL.html"):
        words = " ".join((kit / page).read_text(encoding="utf-8").split())
        assert "THIS KIT IS NOT SIGNED" in words[:1500] and "sh install.sh --allow-unsigned" in words


def test_an_engine_for_one_processor_is_said(tmp_path: Path) -> None:
    engine = write_wheel(
        tmp_path / "own", "llama-cpp-python", "0.3.36", tag="py3-none-linux_x86_64", requires=("diskcache",)
    )
    lines: list[str] = []
    kit = build_kit(fake_order(tmp_path, engine_wheel=engine), lines.append)
    assert kit and not read_kit(kit / "kit.json").portable_engine
    assert any("one processor" in line for line in lines)
    assert "BUILT FOR ONE PROCESSOR" in " ".join((kit / "START-HERE.txt").read_text(encoding="utf-8").split())


def python_zip(folder: Path, name: str = "python.exe") -> tuple[Path, Path]:
    """Write a stand-in for python.org's embeddable zip, and the list that pins it."""
    path, pins = folder / "python-3.12.10-embed-amd64.zip", folder / "pins.toml"
    with zipfile.ZipFile(path, "w") as archive:
        for file in (name, "python312._pth", "LICENSE.txt"):
            archive.writestr(file, file)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    pins.write_text(f'[[python]]\nversion = "3.12.10"\nsha256 = "{sha256}"\n', encoding="utf-8")
    return path, pins


def test_a_windows_kit_carries_its_python(tmp_path: Path) -> None:
    archive, pins = python_zip(tmp_path)
    kit = build(fake_order(tmp_path, "windows-x86_64", python_embed=archive, embed_pins=pins))
    manifest = read_kit(kit / "kit.json")
    assert manifest.carried_python == "3.12.10" and manifest.pythons == ["3.12"]
    assert (kit / "python/python.exe").read_text(encoding="utf-8") == "python.exe"
    assert {path.name.split("-")[-1] for path in (kit / "wheels").glob("beta-*")} == {"win_amd64.whl"}
    start = (kit / "START-HERE.txt").read_text(encoding="utf-8")
    assert "install.cmd" in start and "install.sh" not in start and "Python is on the stick" in start


def test_the_pages_are_plain_and_whole(tmp_path: Path, pack: Path) -> None:
    kit = build(fake_order(tmp_path, models=[pack]))
    start = (kit / "START-HERE.txt").read_bytes().decode("ascii")
    assert start.count("\n") == start.count("\r\n")
    assert all(len(line) <= 79 for line in start.splitlines() if "minisign -Vm" not in line)
    manual = (kit / "MANUAL.html").read_text(encoding="utf-8")
    assert not any(word in manual for word in ("http://", "https://", "<script", "<img", "src=", "href="))
    for page in (start, manual):
        assert "$" not in page and "9.9.9" in page and "packs/tiny" in page and "sh install.sh" in page
        assert read_public_key(kit / "install/edgemed.pub").fingerprint in page
    assert "not for patients" in manual


def test_a_library_is_carried_with_its_manifest_and_named_on_every_page(tmp_path: Path, pack: Path) -> None:
    library = make_reference(tmp_path / "guides", "guides", 3)
    rules = make_reference(tmp_path / "triage", "triage", 1, kind="rules", title="Red <flags>")
    loose = tmp_path / "poster.txt"
    loose.write_bytes(b"Wash your hands.")
    order = fake_order(tmp_path, models=[pack], libraries=[rules, loose, library], piece_bytes=200_000)
    kit = build(order)
    listed = read_kit(kit / "kit.json")
    assert [(one.kind, one.name, one.version) for one in listed.packs] == [
        ("model", "tiny", None),
        ("library", "guides", 3),
        ("rules", "triage", 1),
    ]
    assert listed.libraries == ["library/poster.txt"]
    manifest = read_reference_manifest(kit / "packs/guides/manifest.json")
    assert (
        listed.packs[1].sha256
        == hashlib.sha256((kit / "packs/guides/manifest.json").read_bytes()).hexdigest()
    )
    for file in manifest.files:
        assert hashlib.sha256((kit / "packs/guides" / file.name).read_bytes()).hexdigest() == file.sha256
    assert install_pack(kit / "packs/guides", manifest_sha256=listed.packs[1].sha256).name == "guides-v3"
    start = (kit / "START-HERE.txt").read_text(encoding="utf-8")
    assert "packs/guides           library, 0.2 MB: Water, of year 3, CC-BY-4.0" in start
    assert "library/poster.txt     for people to read from the stick" in start
    manual = (kit / "MANUAL.html").read_text(encoding="utf-8")
    assert "rule set, 0.2 MB: Red &lt;flags&gt;" in manual
    assert "Installing the models and libraries on the stick: 3" in manual
    notice = (kit / "licences/NOTICE.txt").read_text(encoding="utf-8")
    assert "Library guides: Water\n  licence: CC-BY-4.0\n  from: https://example.org/water" in notice
    parts = json.loads((kit / "sbom.cdx.json").read_text(encoding="utf-8"))["components"]
    assert {"data"} == {part["type"] for part in parts if part["name"] in ("guides", "triage")}


def test_licences_and_parts_are_listed(tmp_path: Path, pack: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    kit = build(fake_order(tmp_path, models=[pack]))
    overview = (kit / "licences/OVERVIEW.txt").read_text(encoding="utf-8")
    assert "beta 2.0: MIT" in overview and "llama.cpp, inside llama-cpp-python: MIT" in overview
    assert (kit / "licences/beta-2.0/LICENSE").read_text(encoding="utf-8") == "The licence of beta.\n"
    notice = (kit / "licences/NOTICE.txt").read_text(encoding="utf-8")
    assert "MedQuAD" in notice and "CC BY 4.0" in notice and "Model tiny" in notice
    assert (kit / "licences/models/edge-chat-8m.md").is_file()
    text = (kit / "sbom.cdx.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    sbom = json.loads(text)
    assert {"beta", "diskcache", "edgemed", "llama-cpp-python", "pip", "tiny", "edge-chat-8m"} == {
        part["name"] for part in sbom["components"]
    }
    analysis = sbom["vulnerabilities"][0]["analysis"]
    assert sbom["vulnerabilities"][0]["id"] == "CVE-2025-69872" and analysis["state"] == "not_affected"


# What is refused.


def changed_wheel(tmp_path: Path, _pack: Path) -> dict[str, Any]:
    order = fake_order(tmp_path)
    wheel = next((tmp_path / "wheels").glob("beta-*cp313*"))
    content = bytearray(wheel.read_bytes())
    content[60] ^= 1
    wheel.write_bytes(content)
    return {"locked": order.locked}


def damaged_pack(_tmp_path: Path, pack: Path) -> dict[str, Any]:
    content = bytearray((pack / "tiny.gguf").read_bytes())
    content[-7] ^= 1
    (pack / "tiny.gguf").write_bytes(content)
    return {"models": [pack]}


def missing_file(_tmp_path: Path, pack: Path) -> dict[str, Any]:
    (pack / "tiny.gguf").unlink()
    return {"models": [pack]}


def linked_file(tmp_path: Path, pack: Path) -> dict[str, Any]:
    (pack / "tiny.gguf").rename(tmp_path / "elsewhere.gguf")
    (pack / "tiny.gguf").symlink_to(tmp_path / "elsewhere.gguf")
    return {"models": [pack]}


def folder_in_pack(_tmp_path: Path, pack: Path) -> dict[str, Any]:
    (pack / "more").mkdir()
    return {"models": [pack]}


def adapter_alone(tmp_path: Path, _pack: Path) -> dict[str, Any]:
    install_model(write_tiny_adapter(tmp_path / "adapter.gguf"), name="adapter")
    folder = models_folder() / "adapter"
    manifest = msgspec.structs.replace(read_manifest(folder / "manifest.json"), base_sha256="1" * 64)
    (folder / "manifest.json").write_bytes(encode_manifest(manifest))
    return {"models": [folder]}


def two_names_on_fat(tmp_path: Path, _pack: Path) -> dict[str, Any]:
    files = [tmp_path / "a/Book.txt", tmp_path / "b/book.txt"]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(b"x")
    return {"libraries": files}


def library_without_card(tmp_path: Path, _pack: Path) -> dict[str, Any]:
    folder = make_reference(tmp_path / "guides", "guides", 1)
    (folder / "pack.toml").unlink()
    return {"libraries": [folder]}


def library_named_as_a_model(tmp_path: Path, pack: Path) -> dict[str, Any]:
    return {"models": [pack], "libraries": [make_reference(tmp_path / "library", "Tiny", 1)]}


def bad_name(tmp_path: Path, _pack: Path) -> dict[str, Any]:
    (tmp_path / "what now?.txt").write_bytes(b"x")
    return {"libraries": [tmp_path / "what now?.txt"]}


def no_licence(tmp_path: Path, _pack: Path) -> dict[str, Any]:
    engine = write_wheel(
        tmp_path / "own", "llama-cpp-python", "0.3.36", tag="py3-none-linux_x86_64", licence=""
    )
    return {"engine_wheel": engine}


def unpinned_python(tmp_path: Path, _pack: Path) -> dict[str, Any]:
    return {"platform": "windows-x86_64", "python_embed": python_zip(tmp_path)[0]}


def escaping_python(tmp_path: Path, _pack: Path) -> dict[str, Any]:
    archive, pins = python_zip(tmp_path, "../python.exe")
    return {"platform": "windows-x86_64", "python_embed": archive, "embed_pins": pins}


def incomplete_lock(tmp_path: Path, _pack: Path) -> dict[str, Any]:
    locked = fake_order(tmp_path).locked
    assert locked
    return {"locked": Locked(locked.requirements, [w for w in locked.wheels if "cp313" not in w.file])}


BAD_ORDERS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "pip download failed: .*beta==2.0": changed_wheel,
    "tiny.gguf is damaged": damaged_pack,
    "has no tiny.gguf": missing_file,
    "tiny.gguf is no plain file": linked_file,
    "more is no plain file": folder_in_pack,
    "manifest.json cannot be read": lambda tmp_path, _pack: {"models": [tmp_path / "absent"]},
    "Two packs are named tiny": lambda _tmp_path, pack: {"models": [pack, pack]},
    "adapter adapter needs the base model with the SHA-256 1111": adapter_alone,
    "would have the name library/book.txt": two_names_on_fat,
    r"guides has no pack\.toml": library_without_card,
    "Two packs are named Tiny": library_named_as_a_model,
    "what now\\?.txt' cannot be the name": bad_name,
    "llama_cpp_python.* says nothing of its licence": no_licence,
    "manylinux_2_17_aarch64.whl is not for linux-x86_64": lambda tmp_path, _pack: {
        "engine_wheel": write_engine_wheel(tmp_path / "arm", "linux-aarch64")
    },
    "needs llama-cpp-python==0.3.36; the kit has 0.3.35": lambda tmp_path, _pack: {
        "engine_wheel": write_engine_wheel(tmp_path / "old", "linux-x86_64", version="0.3.35")
    },
    "is no engine wheel": lambda tmp_path, _pack: {"engine_wheel": write_app_wheel(tmp_path / "own")},
    "absent.whl is no wheel": lambda tmp_path, _pack: {"engine_wheel": tmp_path / "absent.whl"},
    "is not edgemed's wheel": lambda tmp_path, _pack: {
        "app_wheel": write_engine_wheel(tmp_path / "own", "linux-x86_64")
    },
    "No wheels are locked for Python 3.10": lambda _tmp_path, _pack: {"pythons": ["3.10"]},
    "no wheel of beta 2.0 for Python 3.13": incomplete_lock,
    "which python_embed.toml does not name": unpinned_python,
    "'python/../python.exe' cannot be the name": escaping_python,
    "--python-embed is for Windows": lambda tmp_path, _pack: {"python_embed": python_zip(tmp_path)[0]},
    "holds no installer": lambda tmp_path, _pack: {"installer": tmp_path},
    "edgemed.key is no minisign secret key": lambda tmp_path, pack: {
        "key": Path(shutil.copy(pack / "MODEL_CARD.md", tmp_path / "edgemed.key"))
    },
}


@pytest.mark.parametrize(
    ("words", "change"), BAD_ORDERS.items(), ids=[c.__name__ for c in BAD_ORDERS.values()]
)
def test_a_bad_input_is_named_and_leaves_nothing(
    words: str, change: Callable[[Path, Path], dict[str, Any]], tmp_path: Path, pack: Path
) -> None:
    order = fake_order(tmp_path, **change(tmp_path, pack))
    with pytest.raises(EdgemedError, match=words):
        build_kit(order)
    assert list((tmp_path / "out").glob("*")) == []


def test_an_older_kit_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    kit = build(fake_order(tmp_path))
    (kit / "mark").write_bytes(b"old")
    with pytest.raises(UsageError, match="is there already"):
        build_kit(fake_order(tmp_path))
    assert (kit / "mark").exists()
    assert build_kit(fake_order(tmp_path, overwrite=True)) == kit
    assert not (kit / "mark").exists() and list((tmp_path / "out").glob("*")) == [kit]


def test_a_full_disk_is_told_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**6))
    with pytest.raises(StorageError, match=r"The kit needs \d MB; the disk of .* has 1 MB free"):
        build_kit(fake_order(tmp_path))
    assert list((tmp_path / "out").glob("*")) == []


def test_a_build_that_is_ended_leaves_the_older_kit_and_nothing_else(tmp_path: Path) -> None:
    kit = build(fake_order(tmp_path))
    before = contents(kit)
    for stop_at in ("fetching", "written 50 %", "written 100 %"):

        def tell(line: str, stop_at: str = stop_at) -> None:
            if line.startswith(stop_at):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_kit(fake_order(tmp_path, overwrite=True, key=None), tell)
        assert contents(kit) == before and list((tmp_path / "out").glob("*")) == [kit]


def test_a_leftover_of_a_killed_build_is_no_obstacle(tmp_path: Path) -> None:
    leftover = tmp_path / "out/edgemed-kit-9.9.9-linux-x86_64.incoming/wheels/half.whl"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    kit = build(fake_order(tmp_path))
    assert not (kit / "wheels/half.whl").exists() and list((tmp_path / "out").glob("*")) == [kit]


def test_the_date_is_that_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert source_date(tmp_path) == 1_000_000_000
    for wrong in ("soon", ""):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(UsageError, match="date of the source is not known"):
            source_date(tmp_path)


def test_the_command_line_asks_for_a_key_or_says_unsigned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    words = ["--platform", "linux-x86_64", "--engine-wheel", str(tmp_path / "x.whl"), "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        command_line.main(words)
    assert "one of the arguments --key --unsigned is required" in capsys.readouterr().err
    assert command_line.main([*words, "--unsigned"]) == 2
    assert capsys.readouterr().err.startswith("error: x.whl is no wheel")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("platform", "macos"),
        ("python_minimum", "3"),
        ("libraries", ["../x"]),
        ("files", [{"path": "/x", "size_bytes": 1, "sha256": "0" * 64}]),
        ("files", [{"path": "x", "size_bytes": -1, "sha256": "0" * 64}]),
        ("created", "yesterday"),
        ("extra", 1),
    ],
)
def test_a_kit_json_of_another_shape_is_refused(field: str, value: object) -> None:
    kit = KitManifest(
        version="1",
        platform="linux-x86_64",
        python_minimum="3.11",
        pythons=["3.11"],
        created="2026-01-01T00:00:00Z",
        signed=True,
        size_bytes=0,
        installed_bytes=0,
        files=[],
    )
    assert decode_kit(encode_kit(kit)) == kit
    changed = json.dumps(json.loads(encode_kit(kit)) | {field: value}).encode()
    with pytest.raises(EdgemedError, match=r"kit\.json is not valid"):
        decode_kit(changed)


# The lock.


@pytest.mark.parametrize(("platform", "python"), list(itertools.product(KIT_PLATFORMS, PYTHONS)))
def test_the_lock_has_a_wheel_of_everything_for_every_platform_and_python(platform: Any, python: str) -> None:
    wheels = choose(Locked(read_lock(), read_wheels()), platform, [python])
    assert [wheel.role for wheel in wheels].count("pip") == 1
    assert all(is_safe_path(f"wheels/{wheel.file}") for wheel in wheels)
    locked = {one.name: one.version for one in read_lock() if one.applies(platform, python)}
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in project["dependencies"]:
        wanted = Requirement(line)
        if wanted.name != "llama-cpp-python":
            version = locked.get(normal_name(wanted.name))
            assert version and wanted.specifier.contains(version), f"run packaging/lock.py: {line}"


# The real one.


@pytest.mark.slow
def test_the_real_kit_is_small_the_same_twice_and_as_large_as_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    cached = os.environ.get("EDGEMED_KIT_WHEELS")
    engines = sorted(Path(cached).glob("llama_cpp_python-*-py3-none-*x86_64.whl")) if cached else []
    if not cached or not engines:
        pytest.skip("EDGEMED_KIT_WHEELS names no folder with the wheels of a kit and an engine wheel")
    fakes = fake_order(tmp_path)
    lines: list[str] = []
    kits = []
    for place in ("one", "two"):
        order = Order(
            platform="linux-x86_64",
            out=tmp_path / place,
            engine_wheel=engines[0],
            key=fakes.key,
            wheels=Path(cached),
            installer=fakes.installer,
        )
        kit = build_kit(order, lines.append)
        assert kit
        kits.append(kit)
    assert contents(kits[0]) == contents(kits[1])
    estimated = float(lines[1].split("about ")[1].split(" MB")[0])
    size_megabytes = sum(map(len, contents(kits[0]).values())) / 1e6
    assert abs(estimated - size_megabytes) < 0.02 * size_megabytes
    if read_kit(kits[0] / "kit.json").portable_engine:
        assert size_megabytes < 60
    for name, content in contents(kits[0]).items():
        unpacked = [content]
        if name.endswith(".whl") and ("edgemed-" in name or "llama_cpp" in name):
            with zipfile.ZipFile(kits[0] / name) as archive:
                unpacked += [archive.read(member) for member in archive.namelist()]
        for private in (FOLDER.parent, Path.home(), Path(cached)):
            assert not any(f"{private}/".encode() in data for data in unpacked), name
    assert (
        encode_sums(parse_sums((kits[0] / "SHA256SUMS").read_bytes()))
        == (kits[0] / "SHA256SUMS").read_bytes()
    )
