"""Updates from a stick: only what headquarters signed gets in, and a working model is always in use."""

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from edgemed import models, pieces, updates
from edgemed.cli import cli
from edgemed.errors import EdgemedError, FileInUse, ModelCorrupt, StorageError, UpdateRefused, UsageError
from edgemed.manifest import encode_manifest
from edgemed.models import find_model, install_model, verify_model
from edgemed.paths import models_folder, updates_folder
from edgemed.settings import change_settings, read_settings
from edgemed.update_record import examine_root, locked, read_record
from edgemed.updates import roll_back, update_from
from tests.update_sticks import (
    PACKAGING,
    PASSPHRASE,
    Headquarters,
    environment,
    make_adapter_pack,
    make_pack,
    script,
)

pytest.importorskip("tuf")
pytest.importorskip("cryptography")
ROOT = Path(__file__).parents[1]


class World:
    """A headquarters with two versions of a model, and a computer that uses the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.headquarters = Headquarters(folder)
        self.old = make_pack(folder / "old", "clinic", seed=1)
        self.new = make_pack(folder / "new", "clinic", seed=2)
        self.old_stick = self.headquarters.publish(folder / "stick-1", self.old)
        self.stick = self.headquarters.publish(folder / "stick-2", self.new)
        self.home = folder / "home"
        with environment(EDGEMED_HOME=str(self.home)):
            self.headquarters.trust()
            install_model(self.old)
            models.use_model("clinic")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(made: World, tmp_path: Path, data_folder: Path) -> World:
    """Return the module's world for this test to change, and a computer that uses the first version."""
    folder = tmp_path / "world"
    shutil.copytree(made.folder, folder)
    shutil.copytree(made.home, data_folder)
    mine = World.__new__(World)
    for name, value in vars(made).items():
        setattr(mine, name, folder / value.relative_to(made.folder) if isinstance(value, Path) else value)
    mine.folder = folder
    mine.headquarters = Headquarters.__new__(Headquarters)
    mine.headquarters.keys = folder / "keys"
    mine.headquarters.root = folder / "keys" / "root.json"
    return mine


def state() -> dict[str, bytes]:
    """Return all of the data folder that counts: unfinished copies and locks do not."""
    home = updates_folder().parent
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and "incoming" not in path.parts and not path.name.endswith("lock")
    }


def refusal(stick: Path) -> EdgemedError:
    """Update from a stick that must be refused, see that nothing changed, and return the error."""
    before = state()
    with pytest.raises(EdgemedError) as caught:
        update_from(stick)
    assert state() == before
    assert caught.value.message.count(". ") == 0, "one sentence"
    assert caught.value.hint
    return caught.value


# What an update does.


def test_an_update_is_used_and_the_old_version_comes_back_on_request(world: World) -> None:
    told: list[tuple[int, int]] = []
    result = update_from(world.stick, progress=lambda done, total: told.append((done, total)))
    assert (result.installed, result.model, result.switched) == (["clinic-v2"], "clinic-v2", True)
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == sum(path.stat().st_size for path in world.new.iterdir())
    in_use = find_model(None)
    assert in_use.path.read_bytes() == (world.new / "weights.gguf").read_bytes()
    verify_model(in_use)
    assert not list((updates_folder() / "incoming").iterdir())
    assert roll_back().model == "clinic"
    assert find_model(None).path.read_bytes() == (world.old / "weights.gguf").read_bytes()
    with pytest.raises(UsageError, match="no update to go back"):
        roll_back()
    # And forward again, without copying.
    assert update_from(world.stick).present == ["clinic-v2"]
    assert find_model(None).name == "clinic-v2"


def test_a_model_that_came_with_the_kit_is_not_copied_again(world: World) -> None:
    result = update_from(world.old_stick)
    assert (result.installed, result.present, result.switched) == ([], ["clinic"], False)


def test_new_words_beside_the_same_weights_are_an_update(world: World, tmp_path: Path) -> None:
    """A notice lies in the manifest; equal GGUF files alone are not the same pack."""
    pack = make_pack(tmp_path / "pack", "clinic", seed=1, notice="Not for children.")
    update_from(world.headquarters.publish(tmp_path / "stick", pack))
    assert find_model(None).manifest.notice == "Not for children."


def test_the_model_inside_edgemed_is_updated_too(world: World, tmp_path: Path) -> None:
    change_settings(model=None)
    embedded = find_model(None)
    pack = tmp_path / "pack"
    shutil.copytree(embedded.folder, pack)
    manifest = msgspec.structs.replace(embedded.manifest, notice="Newer words.")
    (pack / "manifest.json").write_bytes(encode_manifest(manifest))
    update_from(world.headquarters.publish(tmp_path / "stick", pack, piece_bytes=2**22))
    assert find_model(None).name == f"{embedded.name}-v1"
    assert find_model(None).manifest.notice == "Newer words."
    assert roll_back().model == embedded.name


def test_a_pack_that_nobody_uses_is_installed_and_not_chosen(world: World, tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "pack", "other", seed=3)
    result = update_from(world.headquarters.publish(tmp_path / "stick", pack))
    assert (result.installed, result.model) == (["other-v1"], "clinic")
    with pytest.raises(UsageError, match="no update to go back"):
        roll_back()


def test_two_versions_stay_and_older_ones_go(world: World, tmp_path: Path) -> None:
    update_from(world.stick)
    for number in (3, 4):
        pack = make_pack(tmp_path / f"pack{number}", "clinic", seed=number)
        result = update_from(world.headquarters.publish(tmp_path / f"stick{number}", pack))
    assert result.removed == ["clinic-v2"]
    # What the kit installed is for people to remove.
    assert sorted(path.name for path in models_folder().iterdir() if path.is_dir()) == [
        "clinic",
        "clinic-v3",
        "clinic-v4",
    ]
    assert roll_back().model == "clinic-v3"


def test_a_model_and_its_adapter_change_together(world: World, tmp_path: Path) -> None:
    install_model(make_adapter_pack(tmp_path / "words", "words", world.old, seed=4))
    change_settings(adapter="words")
    newer = make_adapter_pack(tmp_path / "newer", "words", world.new, seed=5)
    update_from(world.headquarters.publish(tmp_path / "stick", world.new, newer))
    settings = read_settings()[0]
    assert (settings.model, settings.adapter) == ("clinic-v2", "words-v1")
    roll_back()
    settings = read_settings()[0]
    assert (settings.model, settings.adapter) == ("clinic", "words")


def test_an_adapter_of_the_old_model_is_not_used_with_the_new_one(world: World, tmp_path: Path) -> None:
    install_model(make_adapter_pack(tmp_path / "words", "words", world.old, seed=4))
    change_settings(adapter="words")
    said: list[str] = []
    result = update_from(world.stick, notice=said.append)
    assert (result.model, result.adapter) == ("clinic-v2", None)
    assert len(said) == 1
    assert "adapter words does not belong" in said[0]


def test_an_adapter_whose_base_is_absent_is_refused_by_name(world: World, tmp_path: Path) -> None:
    stick = world.headquarters.publish(
        tmp_path / "stick", make_adapter_pack(tmp_path / "words", "words", world.new, seed=4)
    )
    assert "base model of the adapter words is not installed" in refusal(stick).message


def test_a_kind_that_this_version_cannot_use_is_refused_by_name_and_the_rest_is_taken(
    world: World, tmp_path: Path
) -> None:
    sign_again(world, kind="voices", name="guides")
    assert "pack guides is of the kind voices" in refusal(world.stick).message
    both = {**signed_targets(world.stick)}
    other = world.headquarters.publish(tmp_path / "stick", make_pack(tmp_path / "pack", "clinic", seed=7))
    shutil.copytree(world.stick / "targets", other / "targets", dirs_exist_ok=True)
    sign(world, other, {**both, **signed_targets(other)})
    result = update_from(other)
    assert result.installed == ["clinic-v3"]
    assert result.refused == [
        "The pack guides is of the kind voices, which this version of edgemed cannot use."
    ]


# Sticks that are not what headquarters signed.


def signed_targets(stick: Path) -> dict[str, Any]:
    from tuf.api.metadata import Metadata

    return dict(Metadata.from_file(str(stick / "metadata" / "targets.json")).signed.targets)  # type: ignore[attr-defined]


def sign(world: World, stick: Path, targets: dict[str, Any], years: int = 10) -> None:
    """Sign a list of targets with the real keys: what headquarters might do by mistake."""
    keys = script()
    signers = {
        role: keys.read_signer(world.headquarters.keys / f"{role}.pem", PASSPHRASE.encode())
        for role in keys.ONLINE_ROLES
    }
    for name, data in keys._sign(
        targets, signers, keys._next_version(stick, world.headquarters.keys), years
    ).items():
        (stick / "metadata" / name).write_bytes(data)
        (world.headquarters.keys / "metadata" / name).write_bytes(data)


def sign_again(world: World, **changes: object) -> None:
    """Sign the second stick with another entry of its pack."""
    targets = signed_targets(world.stick)
    custom = targets["clinic-v2/manifest.json"].unrecognized_fields["custom"]
    custom["pack"] |= changes
    sign(world, world.stick, targets)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def edit(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"version":2', b'"version":9'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((f"metadata/{role}.json", change) for role in ("timestamp", "snapshot", "targets") for change in (flip, cut_short, edit, Path.unlink, link)),
        *((f"targets/clinic-v2/{file}", change) for file in ("weights.gguf.002", "weights.gguf.004", "manifest.json", "MODEL_CARD.md") for change in (flip, cut_short, Path.unlink, link)),
        ("targets/clinic-v2", link),
        ("targets", link),
        ("metadata", link),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)  # fmt: skip
def test_a_changed_stick_is_refused_and_the_file_is_named(world: World, name: str, damage: Any) -> None:
    damage(world.stick / name)
    assert name in refusal(world.stick).message.replace("\\", "/")


def test_a_folder_of_the_stick_that_is_a_link_is_refused_though_its_bytes_are_right(world: World) -> None:
    targets = signed_targets(world.stick)
    entry = targets["clinic-v2/manifest.json"].unrecognized_fields["custom"]["pack"]
    entry["files"][-1]["pieces"][0] = "other/first"
    targets["other/first"] = targets.pop("clinic-v2/weights.gguf.000")
    sign(world, world.stick, targets)
    elsewhere = world.folder / "elsewhere"
    elsewhere.mkdir()
    (world.stick / "targets/clinic-v2/weights.gguf.000").rename(elsewhere / "first")
    (world.stick / "targets/other").symlink_to(elsewhere)
    assert "targets/other on the stick is a link" in refusal(world.stick).message


def test_an_older_stick_is_refused(world: World) -> None:
    update_from(world.stick)
    assert "older than the last update: metadata/timestamp.json" in refusal(world.old_stick).message


def test_an_older_stick_is_refused_when_the_remembered_metadata_was_lost(world: World) -> None:
    update_from(world.stick)
    for name in ("timestamp", "snapshot", "targets"):
        (updates_folder() / "metadata" / f"{name}.json").write_bytes(b"")
    assert "update 1; this computer has accepted update 2" in refusal(world.old_stick).message


@pytest.mark.parametrize("name", ["snapshot.json", "targets.json"])
def test_metadata_of_two_updates_does_not_mix(world: World, name: str) -> None:
    shutil.copyfile(world.old_stick / "metadata" / name, world.stick / "metadata" / name)
    assert f"metadata/{name}" in refusal(world.stick).message


def test_files_of_two_updates_do_not_mix(world: World) -> None:
    for number in range(5):
        name = f"weights.gguf.{number:03}"
        shutil.copyfile(
            world.old_stick / "targets/clinic-v1" / name, world.stick / "targets/clinic-v2" / name
        )
    assert "clinic-v2/weights.gguf.00" in refusal(world.stick).message.replace("\\", "/")


def test_another_headquarters_is_refused(world: World, tmp_path: Path) -> None:
    stick = Headquarters(tmp_path / "theirs").publish(tmp_path / "stick", world.new)
    assert "metadata/timestamp.json is not signed with the keys" in refusal(stick).message


@pytest.mark.parametrize(
    "name", ["../evil.gguf", "/etc/evil", "a/../../evil", "C:evil", "con.json", "a\\b", "x."]
)
def test_a_signed_name_that_would_leave_the_stick_is_refused(world: World, name: str) -> None:
    targets = signed_targets(world.stick)
    target = targets["clinic-v2/weights.gguf.000"]
    sign(world, world.stick, {**targets, name: target})
    error = refusal(world.stick)
    assert "cannot be on a stick" in error.message
    assert name in error.message


def test_signed_names_that_differ_in_case_are_refused(world: World) -> None:
    targets = signed_targets(world.stick)
    sign(world, world.stick, {**targets, "CLINIC-V2/x.gguf": targets["clinic-v2/weights.gguf.000"]})
    assert "differ only in case" in refusal(world.stick).message


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"name": "../x"},
        {"name": "-x"},
        {"version": 0},
        {"files": []},
        {"more": 1},
        {
            "files": [
                {"name": "a/b", "size_bytes": 1, "sha256": "0" * 64, "pieces": ["clinic-v2/MODEL_CARD.md"]}
            ]
        },
        {"files": [{"name": "a", "size_bytes": 1, "sha256": "0" * 64, "pieces": ["nowhere"]}]},
    ],
)
def test_a_signed_entry_that_this_version_does_not_know_is_refused(
    world: World, changes: dict[str, Any]
) -> None:
    sign_again(world, **changes)
    assert "metadata/targets.json" in refusal(world.stick).message


@pytest.mark.parametrize("changes", [{"name": "clinical"}, {"kind": "adapter", "base_sha256": "0" * 64}])
def test_an_entry_that_does_not_fit_its_manifest_is_refused(world: World, changes: dict[str, Any]) -> None:
    if "base_sha256" in changes:
        changes["base_sha256"] = find_model("clinic").manifest.sha256
    sign_again(world, **changes)
    assert "manifest.json and the signed list do not say the same" in refusal(world.stick).message


def test_a_pack_that_headquarters_published_with_an_old_number_is_refused(world: World) -> None:
    update_from(world.stick)
    sign_again(world, version=1)
    assert "clinic on the stick is version 1; this computer has had version 2" in refusal(world.stick).message


# Time.


def test_an_expired_stick_is_refused_with_its_date(world: World, tmp_path: Path) -> None:
    # Whoever publishes it is told at once.
    with (
        environment(SOURCE_DATE_EPOCH=str(int(datetime(2001, 5, 6, tzinfo=UTC).timestamp()))),
        pytest.raises(UpdateRefused, match="expired on 2011-05-06"),
    ):
        world.headquarters.publish(tmp_path / "stick", world.new)
    error = refusal(tmp_path / "stick")
    assert error.message == "metadata/timestamp.json expired on 2011-05-06."
    assert str(datetime.now(UTC).year) in error.hint


def test_a_clock_at_1970_takes_the_update_and_says_that_the_clock_is_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls(1970, 1, 1, 0, 5, tzinfo=tz)

    from tuf.ngclient._internal import trusted_metadata_set

    monkeypatch.setattr(trusted_metadata_set.datetime, "datetime", Clock)
    monkeypatch.setattr(updates, "datetime", Clock)
    said: list[str] = []
    assert update_from(world.stick, notice=said.append).switched
    assert len(said) == 1
    assert "clock says 1970-01-01" in said[0]
    assert "expired was not judged" in said[0]


def test_metadata_lives_ten_years_and_more(world: World) -> None:
    from tuf.api.metadata import Metadata

    in_ten_years = datetime.now(UTC) + timedelta(days=3649)
    for path in (world.stick / "metadata").iterdir():
        assert Metadata.from_file(str(path)).signed.expires > in_ten_years, path.name


# Faults of disks and people.


def test_a_stick_that_was_pulled_goes_on_where_it_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = world.stick / "targets/clinic-v2/weights.gguf.003"
    pulled.rename(pulled.with_name("elsewhere"))
    assert "weights.gguf.003 is missing" in refusal(world.stick).message
    pulled.with_name("elsewhere").rename(pulled)
    copied: list[str] = []
    copy = pieces._copy

    def counted(piece: pieces.Piece, *rest: Any) -> None:
        copied.append(piece.path.name)
        copy(piece, *rest)

    monkeypatch.setattr(pieces, "_copy", counted)
    assert update_from(world.stick).switched
    assert copied == ["weights.gguf.003", "weights.gguf.004"]


def test_a_read_error_of_the_stick_is_one_sentence_with_the_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def broken(path: Path, *given: Any, **more: Any) -> Any:
        if path.name == "weights.gguf.001":
            raise OSError(5, "Input/output error", str(path))
        return opened(path, *given, **more)

    monkeypatch.setattr(Path, "open", broken)
    error = refusal(world.stick)
    assert isinstance(error, StorageError)
    assert "weights.gguf.001" in error.message


def test_an_update_larger_than_the_free_space_is_refused_before_it_is_copied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9, 10**7))
    assert "The update needs 17 MB" in refusal(world.stick).message
    assert not list((updates_folder() / "incoming").iterdir())


def test_nothing_is_written_on_the_stick(world: World) -> None:
    def listing() -> list[tuple[str, int, int]]:
        paths = sorted([world.stick, *world.stick.rglob("*")])
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]

    before = listing()
    for path in [*world.stick.rglob("*"), world.stick]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        update_from(world.stick)
    finally:
        for path in [world.stick, *world.stick.rglob("*")]:
            path.chmod(0o755)
    assert listing() == before


def test_models_on_another_disk_than_the_copies_are_copied_once_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = Path.rename

    def across(path: Path, target: Path) -> Path:
        if path.suffix == ".gguf":
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(path))
        return renamed(path, target)

    monkeypatch.setattr(Path, "rename", across)
    update_from(world.stick)
    verify_model(find_model("clinic-v2"))


def test_a_second_update_waits_for_the_first(world: World) -> None:
    with locked(), pytest.raises(FileInUse, match=r"update\.lock is in use"):
        update_from(world.stick)


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema_version":2}'])
def test_a_damaged_record_is_not_guessed(world: World, content: bytes) -> None:
    (updates_folder() / "record.json").write_bytes(content)
    assert "record.json is damaged" in refusal(world.stick).message


def test_unreadable_settings_stop_an_update_before_it_forgets_what_was_in_use(world: World) -> None:
    (updates_folder().parent / "settings.toml").write_bytes(b"model = ")
    with pytest.raises(StorageError, match=r"settings\.toml"):
        update_from(world.stick)
    assert read_record().previous is None


def test_an_adapter_that_cannot_be_read_just_now_is_not_forgotten(world: World, tmp_path: Path) -> None:
    install_model(make_adapter_pack(tmp_path / "words", "words", world.old, seed=4))
    change_settings(adapter="words")
    manifest = models_folder() / "words" / "manifest.json"
    manifest.rename(tmp_path / "manifest")
    with pytest.raises(ModelCorrupt, match="words"):
        update_from(world.stick)
    (tmp_path / "manifest").rename(manifest)
    assert read_settings()[0].adapter == "words"


def test_going_back_is_refused_when_the_old_version_was_removed(world: World) -> None:
    update_from(world.stick)
    models.remove_model("clinic")
    with pytest.raises(EdgemedError, match="No model is named clinic"):
        roll_back()
    assert find_model(None).name == "clinic-v2"


def test_something_else_under_the_new_name_is_not_replaced(world: World) -> None:
    install_model(world.old, name="clinic-v2")
    assert "Something else is installed under the name clinic-v2" in refusal(world.stick).message


def test_no_folder_no_stick_and_no_trust_are_told_apart(world: World, tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", tmp_path):
        assert "no update stick" in refusal(folder).message
    (updates_folder() / "metadata" / "root.json").unlink()
    assert "trusts no headquarters" in refusal(world.stick).message


# Keys and trust.


def test_new_keys_are_taken_from_a_stick_and_the_old_ones_sign_nothing_more(
    world: World, tmp_path: Path
) -> None:
    stolen = {path.name: path.read_bytes() for path in world.headquarters.keys.glob("*.pem")}
    world.headquarters.rotate("targets", "snapshot", "timestamp", "root-1")
    update_from(world.headquarters.publish(tmp_path / "stick", world.new))
    assert json.loads((updates_folder() / "metadata" / "root.json").read_bytes())["signed"]["version"] == 2
    # Whoever has the old keys signs a newer update.
    for name, data in stolen.items():
        (world.headquarters.keys / name).write_bytes(data)
    stick = tmp_path / "stick"
    sign(world, stick, signed_targets(stick))
    assert "metadata/timestamp.json is not signed" in refusal(stick).message


def test_a_root_that_the_old_root_did_not_sign_is_refused(world: World, tmp_path: Path) -> None:
    theirs = Headquarters(tmp_path / "theirs")
    theirs.rotate("root-1")
    shutil.copyfile(theirs.keys / "metadata/2.root.json", world.stick / "metadata/2.root.json")
    assert "metadata/2.root.json is not signed" in refusal(world.stick).message


def test_a_new_root_that_is_missing_is_named(world: World, tmp_path: Path) -> None:
    world.headquarters.rotate("timestamp")
    stick = world.headquarters.publish(tmp_path / "stick", world.new)
    (stick / "metadata/2.root.json").unlink()
    assert "there is no metadata/2.root.json" in refusal(stick).message


def test_root_keys_that_are_too_few_sign_no_new_root(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    with environment(EDGEMED_KEY_PASSPHRASE=PASSPHRASE):
        script().make_keys(keys, 3, 2)
        (keys / "root-2.pem").unlink()
        (keys / "root-3.pem").rename(tmp_path / "in the safe")
        before = {path.name: path.read_bytes() for path in keys.iterdir() if path.is_file()}
        with pytest.raises(UsageError, match="Too few root keys"):
            script().rotate_keys(keys, ["timestamp"])
        assert {path.name: path.read_bytes() for path in keys.iterdir() if path.is_file()} == before
        # With the one from the safe, the lost one is replaced.
        (tmp_path / "in the safe").rename(keys / "root-3.pem")
        script().rotate_keys(keys, ["root-2"])
        with pytest.raises(UsageError, match="names no key root-4"):
            script().rotate_keys(keys, ["root-4"])
    root = json.loads((keys / "root.json").read_bytes())["signed"]
    assert (root["version"], len(root["roles"]["root"]["keyids"])) == (2, 3)


def test_private_keys_are_encrypted_and_only_their_owner_reads_them(world: World) -> None:
    for path in world.headquarters.keys.glob("*.pem"):
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        if sys.platform != "win32":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with environment(EDGEMED_KEY_PASSPHRASE="a guess"), pytest.raises(UsageError, match="cannot be opened"):
        script().publish_stick(world.stick, world.headquarters.keys, [world.new])


def test_a_root_is_trusted_once_and_never_replaced(world: World, tmp_path: Path) -> None:
    theirs = Headquarters(tmp_path / "theirs")
    with pytest.raises(UsageError, match="trusts another root already"):
        examine_root(theirs.root)
    assert examine_root(world.headquarters.root).trusted


@pytest.mark.parametrize("damage", [flip, cut_short, lambda path: path.write_bytes(b"{}")])
def test_what_is_no_root_is_not_trusted(world: World, damage: Any) -> None:
    shutil.rmtree(updates_folder())
    damage(world.headquarters.root)
    with pytest.raises(UpdateRefused, match="no root file"):
        examine_root(world.headquarters.root)


def test_other_signed_metadata_is_no_root(world: World) -> None:
    shutil.rmtree(updates_folder())
    with pytest.raises(UpdateRefused, match="no root file"):
        examine_root(world.stick / "metadata" / "targets.json")


# Publishing.


def test_versions_rise_and_the_same_pack_keeps_its_own(world: World, tmp_path: Path) -> None:
    stick = world.headquarters.publish(tmp_path / "stick", world.new)
    assert json.loads((stick / "metadata/timestamp.json").read_bytes())["signed"]["version"] == 3
    assert (stick / "targets" / "clinic-v2").is_dir()
    stick = world.headquarters.publish(stick, world.old)
    assert json.loads((stick / "metadata/timestamp.json").read_bytes())["signed"]["version"] == 4
    assert [path.name for path in (stick / "targets").iterdir()] == ["clinic-v3"]


def test_a_stick_that_knows_more_than_the_keys_folder_is_not_undercut(world: World) -> None:
    """The folder came from a backup: a version that was used must not be given twice."""
    for name in ("targets", "snapshot", "timestamp"):
        shutil.copyfile(
            world.old_stick / f"metadata/{name}.json", world.headquarters.keys / f"metadata/{name}.json"
        )
    world.headquarters.publish(world.stick, world.new)
    assert json.loads((world.stick / "metadata/timestamp.json").read_bytes())["signed"]["version"] == 3


def test_the_same_packs_at_the_same_time_give_the_same_stick(world: World, tmp_path: Path) -> None:
    hashes = []
    for number in (1, 2):
        keys = tmp_path / f"copy{number}"
        shutil.copytree(world.headquarters.keys, keys)
        with environment(EDGEMED_KEY_PASSPHRASE=PASSPHRASE, SOURCE_DATE_EPOCH="1790000000"):
            script().publish_stick(tmp_path / f"stick{number}", keys, [world.old])
        stick = tmp_path / f"stick{number}"
        hashes.append({str(p.relative_to(stick)): hashlib.sha256(p.read_bytes()).digest() for p in stick.rglob("*") if p.is_file()})  # fmt: skip
    assert hashes[0] == hashes[1]


def test_a_damaged_pack_is_not_published(world: World, tmp_path: Path) -> None:
    flip(world.new / "weights.gguf")
    with pytest.raises(EdgemedError, match=r"weights\.gguf"):
        world.headquarters.publish(tmp_path / "stick", world.new)
    assert not (tmp_path / "stick/metadata/timestamp.json").exists()


def test_a_folder_that_no_update_wrote_is_not_replaced(world: World, tmp_path: Path) -> None:
    (tmp_path / "stick/targets").mkdir(parents=True)
    (tmp_path / "stick/targets/letters.txt").write_bytes(b"mine")
    with pytest.raises(UsageError, match="no update wrote it"):
        world.headquarters.publish(tmp_path / "stick", world.new)
    assert (tmp_path / "stick/targets/letters.txt").exists()


def test_a_pack_with_a_link_is_not_published(world: World, tmp_path: Path) -> None:
    (world.new / "notes.txt").symlink_to(world.old / "manifest.json")
    with pytest.raises(UsageError, match=r"notes.txt is a link"):
        world.headquarters.publish(tmp_path / "stick", world.new)


# Pieces.


@pytest.mark.parametrize("size_bytes", [0, 1, 9, 10, 11, 20, 25])
def test_a_file_cut_and_joined_is_the_same(tmp_path: Path, size_bytes: int) -> None:
    data = bytes(range(size_bytes))
    (tmp_path / "file").write_bytes(data)
    made = pieces.cut(tmp_path / "file", tmp_path / "cut", piece_bytes=10)
    assert [piece.path.name for piece in made.pieces] == (
        ["cut"] if size_bytes <= 10 else [f"cut.{number:03}" for number in range(-(-size_bytes // 10))]
    )
    pieces.join(made.pieces, tmp_path / "joined", sha256=made.sha256)
    assert (tmp_path / "joined").read_bytes() == data
    assert not (tmp_path / "joined.part").exists()


@pytest.mark.parametrize(
    "left", [b"", b"0123456789", b"x123456789ab", b"0123456789abcdefghij-too long", b"0123456789x"]
)
def test_what_an_interrupted_copy_left_is_kept_only_where_it_is_right(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "file").write_bytes(b"0123456789abcdefghijk")
    made = pieces.cut(tmp_path / "file", tmp_path / "cut", piece_bytes=10)
    (tmp_path / "joined.part").write_bytes(left)
    pieces.join(made.pieces, tmp_path / "joined", sha256=made.sha256)
    assert (tmp_path / "joined").read_bytes() == b"0123456789abcdefghijk"


def test_right_pieces_in_a_wrong_order_make_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789abcdefghij")
    made = pieces.cut(tmp_path / "file", tmp_path / "cut", piece_bytes=10)
    with pytest.raises(ModelCorrupt, match="joined"):
        pieces.join(made.pieces[::-1], tmp_path / "joined", sha256=made.sha256)
    assert not (tmp_path / "joined").exists()


def test_a_disk_that_gives_back_other_bytes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    made = pieces.cut(tmp_path / "file", tmp_path / "cut")
    monkeypatch.setattr(pieces, "_hash_region", lambda *_given: "0" * 64)
    with pytest.raises(StorageError, match="gave back other bytes"):
        pieces.join(made.pieces, tmp_path / "joined", sha256=made.sha256)


# The command line.


def run(*arguments: str, given: str | None = None) -> Any:
    return CliRunner().invoke(cli, ["update", *arguments], input=given)


def test_the_command_trusts_updates_and_goes_back(world: World) -> None:
    root = str(world.headquarters.root)
    shutil.rmtree(updates_folder())
    refused = run("--trust", root, given="n\n")
    assert refused.exit_code == 1
    assert not (updates_folder() / "metadata").exists()
    digits = hashlib.sha256(world.headquarters.root.read_bytes()).hexdigest()
    assert digits[:4] in refused.output
    assert isinstance(run("--trust", root, "--fingerprint", "0" * 64).exception, UpdateRefused)
    assert run("--trust", root, "--fingerprint", digits.upper()).exit_code == 0
    done = run(str(world.stick))
    assert done.exit_code == 0
    assert "Installed: clinic-v2\nIn use: clinic-v2\n" in done.output
    assert json.loads(run(str(world.stick), "--json").output)["present"] == ["clinic-v2"]
    assert run("--rollback").output == "In use: clinic\n"
    assert run("--rollback", str(world.stick)).exit_code == 2


def test_an_update_needs_no_http_client_and_no_library_for_keys(world: World) -> None:
    """A clinic install has neither; python-tuf verifies Ed25519 by itself then."""
    program = """
import sys
class Nothing:
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("urllib3", "cryptography", "requests", "http", "ssl"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
from edgemed.cli import main
main(["update", sys.argv[1]])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(world.stick)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "In use: clinic-v2" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts forked processes")
@pytest.mark.slow
def test_no_fault_lets_a_wrong_byte_in_or_leaves_no_working_model(tmp_path: Path) -> None:
    from tests.measurements import update_faults

    scene = update_faults.Scene.make(tmp_path)
    sticks = update_faults.try_sticks(scene, count=100, seed=7)
    assert sticks.refused + sticks.harmless == 100
    assert not [*sticks.wrong_bytes, *sticks.changed_although_refused, *sticks.unnamed, *sticks.unplanned]
    faults = update_faults.interrupt(scene, count=60)
    assert not faults.bad
    assert "unplanned error" not in faults.ended
    assert faults.old_in_use
    assert faults.new_in_use


def test_the_script_speaks_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PACKAGING / "publish_update.py"), "keys", str(tmp_path / "keys")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "EDGEMED_KEY_PASSPHRASE": "short", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == UsageError.exit_code
    assert done.stderr.startswith("error: The passphrase has fewer than 12 letters.\nhint: ")
    assert not (tmp_path / "keys").exists()
