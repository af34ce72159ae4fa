"""Libraries and rule sets: published, carried, checked, installed, used, rolled back like models."""

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgemed import doctor, reference_packs
from edgemed.cli import cli
from edgemed.command_line import run_command_line
from edgemed.errors import ModelCorrupt, ModelNotFound, UpdateRefused, UsageError
from edgemed.models import find_model, install_model
from edgemed.paths import reference_packs_folder, settings_file, updates_folder
from edgemed.reference_packs import (
    find_pack,
    install_pack,
    list_packs,
    packs_in_use,
    remove_pack,
    verify_pack,
)
from edgemed.settings import change_settings, read_settings
from edgemed.update_record import read_record
from edgemed.update_switch import use_kit_packs
from edgemed.updates import roll_back, update_from
from tests.update_sticks import PACKAGING, Headquarters, make_pack, make_reference

pytest.importorskip("tuf")
pytest.importorskip("cryptography")
if str(PACKAGING) not in sys.path:
    sys.path.insert(0, str(PACKAGING))


@pytest.fixture(scope="module")
def new_headquarters(tmp_path_factory: pytest.TempPathFactory) -> Headquarters:
    """Return one that has published nothing; tests publish with a copy."""
    return Headquarters(tmp_path_factory.mktemp("headquarters"))


@pytest.fixture
def headquarters(new_headquarters: Headquarters, tmp_path: Path) -> Headquarters:
    mine = copy.copy(new_headquarters)
    mine.keys = tmp_path / "keys"
    mine.root = mine.keys / "root.json"
    shutil.copytree(new_headquarters.keys, mine.keys)
    mine.trust()
    return mine


@pytest.fixture
def publish(headquarters: Headquarters, tmp_path: Path) -> Callable[..., Path]:
    """Publish the library `guides` of a version, alone or with other packs; return the stick."""

    def stick(version: int, *more: Path, **changes: Any) -> Path:
        folder = tmp_path / f"guides-{version}"
        shutil.rmtree(folder, ignore_errors=True)
        pack = make_reference(folder, changes.pop("name", "guides"), version, **changes)
        return headquarters.publish(tmp_path / f"stick-{version}", pack, *more)

    return stick


def written(folder: Path, name: str = "guides", version: int = 1, **changes: Any) -> Path:
    """Return a folder as it lies on a kit: files and manifest."""
    from reference_source import CARD_NAME, read_reference_source

    make_reference(folder, name, version, **changes)
    (folder / "manifest.json").write_bytes(_manifest_of(folder, read_reference_source))
    (folder / CARD_NAME).unlink()
    return folder


def _manifest_of(folder: Path, read: Callable[[Path], Any]) -> bytes:
    return bytes(read(folder).manifest_bytes)


def installed() -> list[str]:
    return [path.name for path in sorted(reference_packs_folder().iterdir()) if path.is_dir()]


def in_use() -> list[str]:
    return [pack.name for pack in packs_in_use()]


# Updates.


def test_a_library_is_installed_used_and_taken_back(publish: Callable[..., Path]) -> None:
    assert update_from(publish(1)).references == ["guides-v1"]
    result = update_from(publish(2))
    assert (result.installed, result.references, result.switched) == (["guides-v2"], ["guides-v2"], True)
    pack = packs_in_use("library")[0]
    assert (pack.manifest.edition, pack.manifest.license) == ("of year 2", "CC-BY-4.0")
    assert (pack.folder / "passages.txt").read_text(encoding="utf-8").startswith("guides 2: drink water.")
    assert packs_in_use("rules") == []
    assert roll_back().references == ["guides-v1"]
    assert (in_use(), installed()) == (["guides-v1"], ["guides-v1", "guides-v2"])
    with pytest.raises(UsageError, match="no update to go back"):
        roll_back()
    # Forward again, without copying.
    assert update_from(publish(2)).present == ["guides-v2"]
    assert in_use() == ["guides-v2"]
    assert not list((updates_folder() / "incoming").iterdir())


def test_model_library_and_rules_change_in_one_step(
    publish: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_pack(tmp_path / "old", "clinic", seed=1)
    install_model(model)
    change_settings(model="clinic")
    update_from(publish(1, make_reference(tmp_path / "rules-1", "triage", 1, kind="rules")))
    lines: list[str] = []
    replace = Path.replace

    def watched(source: Path, target: Path) -> Path:
        if target.name == "settings.toml":
            lines.append(source.read_text(encoding="utf-8"))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", watched)
    newer = make_reference(tmp_path / "rules-2", "triage", 2, kind="rules")
    update_from(publish(2, make_pack(tmp_path / "new", "clinic", seed=2), newer))
    assert len(lines) == 1
    assert find_model(None).name == "clinic-v1"
    assert in_use() == ["guides-v2", "triage-v2"]
    roll_back()
    assert (find_model(None).name, in_use()) == ("clinic", ["guides-v1", "triage-v1"])


def test_the_first_library_goes_out_of_use_again(publish: Callable[..., Path]) -> None:
    update_from(publish(1))
    assert roll_back().references == []
    assert (in_use(), installed()) == ([], ["guides-v1"])


def test_two_versions_stay_and_the_one_to_go_back_to(publish: Callable[..., Path]) -> None:
    for version in (1, 2, 3):
        result = update_from(publish(version))
    assert (result.removed, installed()) == (["guides-v1"], ["guides-v2", "guides-v3"])
    roll_back()
    result = update_from(publish(4))
    # What was in use before stays, although it is the third.
    assert (result.removed, installed()) == ([], ["guides-v2", "guides-v3", "guides-v4"])
    assert roll_back().references == ["guides-v2"]


def test_an_older_stick_is_refused_also_when_only_the_pack_is_older(
    publish: Callable[..., Path], headquarters: Headquarters, tmp_path: Path
) -> None:
    old = publish(1)
    update_from(publish(2))
    with pytest.raises(UpdateRefused, match="older than the last update"):
        update_from(old)
    # Headquarters lost its record and publishes the old text as a newer update.
    (headquarters.keys / "published.json").unlink()
    stick = headquarters.publish(tmp_path / "again", tmp_path / "guides-1")
    with pytest.raises(
        UpdateRefused, match="guides on the stick is version 1; this computer has had version 2"
    ):
        update_from(stick)
    assert in_use() == ["guides-v2"]


@pytest.mark.parametrize("file", ["passages.txt.001", "index.csv", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "removed", "of another version"])
def test_a_changed_library_on_the_stick_is_refused_with_the_file_named(
    file: str, damage: str, publish: Callable[..., Path]
) -> None:
    update_from(publish(1))
    stick = publish(2)
    path = stick / "targets/guides-v2" / file
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "of another version":
        shutil.copyfile(stick.with_name("stick-1") / "targets/guides-v1" / file, path)
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:3] + bytes([data[3] ^ 1]) + data[4:])
    with pytest.raises(ModelCorrupt) as caught:
        update_from(stick)
    assert f"guides-v2/{file} " in caught.value.message.replace("\\", "/")
    assert (in_use(), installed()) == (["guides-v1"], ["guides-v1"])


def test_a_damaged_version_is_made_good_by_the_same_stick(publish: Callable[..., Path]) -> None:
    stick = publish(1)
    update_from(stick)
    (reference_packs_folder() / "guides-v1/index.csv").write_bytes(b"water;9\n")
    assert update_from(stick).installed == ["guides-v1"]
    verify_pack(find_pack("guides-v1"))


def test_a_version_that_a_kit_brought_with_other_files_does_not_stop_the_rest(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    use_kit_packs([install_pack(written(tmp_path / "kit", version=2, title="Another")).name])
    result = update_from(publish(2, make_pack(tmp_path / "pack", "clinic", seed=1)))
    assert result.installed == ["clinic-v1"]
    assert result.refused == ["Other files than those on the stick are installed as guides-v2."]
    assert result.references == ["guides-v2"]


def test_a_newer_version_from_a_kit_and_a_name_of_another_kind_are_refused(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    install_pack(written(tmp_path / "kit", version=3))
    with pytest.raises(UpdateRefused, match="guides on the stick is version 1; version 3 is installed here"):
        update_from(publish(1))
    install_pack(written(tmp_path / "rules", "triage", kind="rules"))
    with pytest.raises(UpdateRefused, match=r"triage is of the kind library; .* the name of the kind rules"):
        update_from(publish(4, name="triage"))


@pytest.mark.parametrize("more", ["version", "file"])
def test_a_signed_list_that_says_more_than_the_manifest_is_refused(
    more: str, publish: Callable[..., Path], headquarters: Headquarters
) -> None:
    from tests.test_updates import sign, signed_targets

    stick = publish(1)
    targets = signed_targets(stick)
    entry = targets["guides-v1/manifest.json"].unrecognized_fields["custom"]["pack"]
    if more == "version":
        entry["version"] = 2
    else:
        entry["files"].append({**entry["files"][0], "name": "more.csv"})
    world: Any = type("World", (), {"headquarters": headquarters})
    sign(world, stick, targets)
    with pytest.raises(UpdateRefused, match=r"manifest\.json and the signed list do not say the same"):
        update_from(stick)


def test_a_record_of_an_older_edgemed_is_read_and_its_rollback_leaves_libraries_alone(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    install_model(make_pack(tmp_path / "old", "clinic", seed=1))
    change_settings(model="clinic")
    update_from(publish(1, make_pack(tmp_path / "new", "clinic", seed=2)))
    path = updates_folder() / "record.json"
    record = json.loads(path.read_bytes())
    del record["previous"]["references"]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert read_record().previous
    assert roll_back().references == ["guides-v1"]
    assert find_model(None).name == "clinic"


# What is installed.


def test_the_very_same_pack_is_installed_once_and_another_of_its_version_not(tmp_path: Path) -> None:
    pack = install_pack(written(tmp_path / "one"))
    assert install_pack(tmp_path / "one").folder == pack.folder
    with pytest.raises(UsageError, match="Other files are installed as guides-v1"):
        install_pack(written(tmp_path / "two", title="Another"))
    with pytest.raises(UsageError, match="Other files are installed as guides-v1"):
        install_pack(written(tmp_path / "three", "GUIDES"))
    # Restored from a backup: other times, the same bytes.
    os.utime(pack.folder / "index.csv", (5, 5))
    assert install_pack(tmp_path / "one").folder == pack.folder
    reference_packs.check_unchanged(pack)


def test_what_ends_an_installation_leaves_the_old_version_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_kit_packs([install_pack(written(tmp_path / "one")).name])
    source = written(tmp_path / "two", version=2)
    (source / "passages.txt").write_bytes(b"x" * (source / "passages.txt").stat().st_size)
    with pytest.raises(ModelCorrupt, match=r"passages\.txt is damaged"):
        install_pack(source)
    monkeypatch.setattr(reference_packs, "write_durably", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        install_pack(written(tmp_path / "three", version=3))
    assert (installed(), in_use()) == (["guides-v1"], ["guides-v1"])


def test_a_new_version_is_not_in_use_by_being_there(tmp_path: Path) -> None:
    install_pack(written(tmp_path / "one"))
    settings_file().unlink()
    assert in_use() == ["guides-v1"]
    install_pack(written(tmp_path / "two", version=2))
    assert in_use() == ["guides-v1"]
    use_kit_packs(["guides-v2"])
    assert read_settings()[0].references == ["guides-v2"]
    # An older kit takes nothing back.
    use_kit_packs(["guides-v1"])
    assert in_use() == ["guides-v2"]


def test_a_library_that_cannot_be_read_just_now_is_not_forgotten(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    update_from(publish(1))
    manifest = reference_packs_folder() / "guides-v1/manifest.json"
    manifest.rename(tmp_path / "away")
    assert in_use() == []
    result = update_from(
        publish(2, make_reference(tmp_path / "rules", "triage", 1, kind="rules"), name="water")
    )
    assert result.references == ["guides-v1", "triage-v1", "water-v2"]
    (tmp_path / "away").rename(manifest)
    assert roll_back().references == in_use() == ["guides-v1"]


def test_a_broken_folder_hides_no_other_and_is_told(tmp_path: Path) -> None:
    install_pack(written(tmp_path / "one"))
    broken = install_pack(written(tmp_path / "two", "triage", kind="rules"))
    (broken.folder / "manifest.json").write_bytes(b"{")
    shutil.copytree(reference_packs_folder() / "guides-v1", reference_packs_folder() / "copy")
    found = list_packs()
    assert [pack.name for pack in found.packs] == ["guides-v1"]
    assert [damaged.name for damaged in found.damaged] == ["copy", "triage-v1"]
    with pytest.raises(ModelCorrupt, match="triage-v1 is damaged"):
        find_pack("triage-v1")
    for name in ("copy", "triage-v1"):
        remove_pack(name)
    for name in ("copy", "../models", "guides"):
        with pytest.raises(ModelNotFound, match="No library or rule set"):
            remove_pack(name)
    assert list_packs().damaged == []


def test_the_doctor_lists_libraries_with_version_and_edition_and_finds_a_changed_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = install_pack(written(tmp_path / "one", version=3))
    use_kit_packs([pack.name])
    install_pack(written(tmp_path / "rules", "triage", kind="rules"))
    checks = list(doctor._references())
    assert [(check.name, check.status) for check in checks] == [
        ("library guides", "ok"),
        ("rule set triage", "ok"),
    ]
    assert checks[0].detail == "version 3, in use: Water, edition of year 3, language en, 180 KiB"
    assert "version 1, not in use" in checks[1].detail
    data = (pack.folder / "index.csv").read_bytes()
    (pack.folder / "index.csv").write_bytes(data[:-2] + b"9\n")
    check = next(doctor._references())
    assert (check.status, "index.csv is damaged" in check.detail) == ("fail", True)
    assert "again" in check.remedy


# What headquarters may publish.


def test_staff_list_check_and_remove_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        return run_command_line(cli, "edgemed", ["library", *words]), *capsys.readouterr()

    assert run("list") == (0, "No library or rule set is installed.\n", "")
    for version in (1, 2):
        install_pack(written(tmp_path / f"v{version}", version=version))
    change_settings(references=["guides-v2"])
    listed = run("list")[1].splitlines()
    assert listed[0].startswith("  guides-v1  library:") and listed[1].startswith("* guides-v2  library:")
    assert run("verify") == (0, "ok       guides-v1\nok       guides-v2\n", "")
    file = next(find_pack("guides-v1").folder.glob("*.txt"))
    file.write_bytes(file.read_bytes().swapcase())
    code, out, _err = run("verify")
    assert code == 3 and out.splitlines()[0] == "ok       guides-v2" and f"{file} is damaged" in out
    assert run("remove", "guides-v1") == (0, "Removed guides-v1.\n", "")
    for words in ("remove", "verify"):
        code, _out, err = run(words, "guides-v1")
        assert code == 3 and "hint: edgemed library list" in err
    assert [pack["manifest"]["name"] for pack in json.loads(run("list", "--json")[1])] == ["guides"]


def _write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _folder_in_place_of_a_file(folder: Path) -> None:
    (folder / "index.csv").unlink()
    (folder / "index.csv").mkdir()


BAD_FOLDERS: dict[str, tuple[dict[str, Any], Callable[[Path], object] | None]] = {
    r"is no pack: it has no manifest\.json, nor a pack\.toml": ({}, lambda folder: (folder / "pack.toml").unlink()),
    r"pack\.toml is not valid: it is no TOML": ({}, _write("pack.toml", b"kind = ")),
    r"pack\.toml is not valid: Invalid enum value 'atlas' - at `\$\.kind`": ({"kind": "atlas"}, None),
    r"pack\.toml is not valid: .*at `\$\.version`": ({"version": 0}, None),
    r"pack\.toml is not valid: Object contains unknown field `colour`": ({"colour": "red"}, None),
    r"pack\.toml is not valid: .*at `\$\.license`": ({"license": ""}, None),
    r"pack\.toml is not valid: .*at `\$\.title`": ({"title": "a\x1b[2Jb"}, None),
    r"pack\.toml is not valid: .*at `\$\.language`": ({"language": "English"}, None),
    r"pack\.toml is not valid: files must be a list": ({"files": "passages.txt"}, None),
    r"pack\.toml lists gone\.txt, which is not there": ({"files": ["index.csv", "passages.txt", "gone.txt"]}, None),
    r"passages\.txt is not listed in pack\.toml": ({"files": ["index.csv"]}, None),
    r"pack\.toml lists 'what now\?\.txt', a name that not every": ({"files": ["what now?.txt"]}, None),
    r"pack\.toml lists '\.\./x', a name that not every": ({"files": ["../x"]}, None),
    r"pack\.toml lists 'con\.txt', a name that not every": ({"files": ["con.txt"]}, None),
    r"INDEX\.csv is listed twice": ({"files": ["index.csv", "INDEX.csv", "passages.txt"]}, None),
    r"manifest\.json is listed twice, or a name of edgemed's own": (
        {"files": ["index.csv", "manifest.json", "passages.txt"]},
        _write("manifest.json", b"{}"),
    ),
    r"not valid: .*at `\$\.name`": ({"name": "../guides"}, None),
    r"pack\.toml is not valid: Expected `str` matching .* at `\$\.name`": ({"name": "-guides"}, None),
    r"index\.csv is empty": ({}, _write("index.csv", b"")),
    r"index\.csv, line 3, is no text in UTF-8": ({}, _write("index.csv", b"a\nb\nc\xff\n")),
    r"index\.csv, line 2, holds the control character 0x00": ({}, _write("index.csv", b"a\nb\x00\n")),
    r"index\.csv, line 1, is no text in UTF-8": ({}, _write("index.csv", "café".encode()[:-1])),
    r"index\.csv is a link, a folder or a special file": ({}, _folder_in_place_of_a_file),
}  # fmt: skip


@pytest.mark.parametrize("words", BAD_FOLDERS)
def test_a_folder_that_is_no_library_is_refused_and_nothing_is_published(
    words: str, headquarters: Headquarters, tmp_path: Path
) -> None:
    changes, change = BAD_FOLDERS[words]
    folder = make_reference(tmp_path / "pack", "guides", 1, **changes)
    if change:
        change(folder)
    with pytest.raises(UsageError, match=words) as caught:
        headquarters.publish(tmp_path / "stick", folder)
    assert str(folder) in caught.value.message
    assert not (tmp_path / "stick").exists()


def test_one_version_is_one_content_and_one_name_is_one_kind(
    headquarters: Headquarters, publish: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_pack(tmp_path / "model", "guides", seed=1)
    library = make_reference(tmp_path / "library", "guides", 2)
    with pytest.raises(UsageError, match="Two packs are named guides"):
        headquarters.publish(tmp_path / "stick", model, library)
    publish(2)
    # The same again is no change.
    publish(2)
    with pytest.raises(
        UsageError, match="says that it is version 2, but version 2 of guides is published and is another"
    ):
        publish(2, edition="corrected")
    with pytest.raises(UsageError, match="version 1, but version 2 of guides is published already"):
        publish(1)
    with pytest.raises(UsageError, match="The name guides is that of a pack of the kind library"):
        headquarters.publish(tmp_path / "stick", model)
    with pytest.raises(UsageError, match="Guides differs from the published guides only in case"):
        publish(3, name="Guides")
    assert json.loads((headquarters.keys / "published.json").read_bytes())["guides"]["version"] == 2


def test_pieces_and_manifest_on_the_stick_are_the_same_each_time(publish: Callable[..., Path]) -> None:
    first = {path.name: path.read_bytes() for path in (publish(1) / "targets/guides-v1").iterdir()}
    assert sorted(first) == ["index.csv", "manifest.json", "passages.txt.000", "passages.txt.001"]
    assert {path.name: path.read_bytes() for path in (publish(1) / "targets/guides-v1").iterdir()} == first


# The kit's installer.


def worker(order: dict[str, Any]) -> dict[str, Any]:
    """Let the installer's worker do one order with this edgemed."""
    sys.path.insert(0, str(PACKAGING / "installer"))
    try:
        import pack_worker
    finally:
        sys.path.remove(str(PACKAGING / "installer"))
    actions = {
        "install_reference": pack_worker._install_reference,
        "use_references": pack_worker._use_references,
        "check_references": pack_worker._check_references,
    }
    return actions[order["do"]](order)


def kit_order(folder: Path, version: int, *, piece_bytes: int | None = None) -> dict[str, Any]:
    """Return the installer's order for a library on the stick, in pieces if they are to be."""
    import hashlib

    from edgemed.pieces import cut

    source = written(folder / "source", version=version)
    sha256 = hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest()
    order: dict[str, Any] = {
        "do": "install_reference",
        "name": "guides",
        "version": version,
        "sha256": sha256,
    }
    if piece_bytes is None:
        return {**order, "folder": str(source)}
    (folder / "stick").mkdir()
    made = {
        path.name: cut(path, folder / "stick" / path.name, piece_bytes=piece_bytes)
        for path in source.iterdir()
    }
    files = [
        {
            "name": name,
            "sha256": one.sha256,
            "pieces": [[str(piece.path), piece.size_bytes, piece.sha256] for piece in one.pieces],
        }
        for name, one in made.items()
    ]
    return {**order, "folder": str(folder / "stick"), "join_in": str(folder / "joined"), "files": files}


@pytest.mark.parametrize("piece_bytes", [None, 50_000])
def test_a_kit_installs_its_library_uses_it_and_repairs_it(piece_bytes: int | None, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        order = kit_order(tmp_path / str(version), version, piece_bytes=piece_bytes)
        assert worker(order) == {"installed": f"guides-v{version}"}
        removed = worker({"do": "use_references", "names": [f"guides-v{version}"]})["removed"]
    assert (removed, installed(), in_use()) == (["guides-v1"], ["guides-v2", "guides-v3"], ["guides-v3"])
    assert worker({"do": "check_references"}) == {"checked": 2}
    victim = reference_packs_folder() / "guides-v3/passages.txt"
    data = victim.read_bytes()
    victim.write_bytes(data[:-2] + b"!\n")
    with pytest.raises(ModelCorrupt, match=r"passages\.txt is damaged"):
        worker({"do": "check_references"})
    assert worker(order) == {"installed": "guides-v3"}
    assert (victim.read_bytes(), worker({"do": "check_references"})) == (data, {"checked": 2})
    # An older kit copies nothing.
    older = kit_order(tmp_path / "older", 1, piece_bytes=piece_bytes)
    assert worker(older) == {"installed": "guides-v3"}
    assert installed() == ["guides-v2", "guides-v3"]


def test_a_library_that_changes_between_two_readings_of_the_stick_is_refused(tmp_path: Path) -> None:
    order = kit_order(tmp_path / "kit", 1)
    shutil.rmtree(tmp_path / "kit/source")
    written(tmp_path / "kit/source", version=1, title="Another")
    with pytest.raises(ModelCorrupt, match=r"manifest\.json is damaged"):
        worker(order)
    assert not reference_packs_folder().exists() or installed() == []
