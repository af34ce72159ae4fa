"""Installing and finding models: every byte is checked, and nothing half-done is ever left."""

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgemed import pack_folders
from edgemed.errors import (
    EdgemedError,
    ModelCorrupt,
    ModelNotFound,
    ModelUnsupported,
    StorageError,
    UsageError,
)
from edgemed.gguf_header import context_length_of, read_shards, shape_of, tensor_types
from edgemed.manifest import MODEL_CARD_NAME, encode_manifest, read_manifest
from edgemed.models import (
    InstalledModel,
    check_unchanged,
    find_model,
    install_model,
    list_models,
    remove_model,
    use_model,
    verify_model,
)
from edgemed.operating_system import lock_file
from edgemed.paths import data_folder, embedded_models_folder, models_folder
from edgemed.terminal_text import clean
from tests.gguf_files import write_tiny_adapter, write_tiny_llama

EMBEDDED = "edge-chat-8m"


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMED_HOME", str(tmp_path / "home"))


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack as a kit carries it: what an installation makes, with a model card."""
    install_model(write_tiny_llama(tmp_path / "source.gguf"), name="tiny")
    folder = tmp_path / "tiny.pack"
    shutil.copytree(models_folder() / "tiny", folder)
    (folder / "installed.json").unlink()
    (folder / MODEL_CARD_NAME).write_text("# tiny\n")
    remove_model("tiny")
    return folder


def change_manifest(pack: Path, **changes: object) -> None:
    """Write what the manifest's own schema might refuse."""
    manifest = json.loads((pack / "manifest.json").read_bytes())
    (pack / "manifest.json").write_text(json.dumps(manifest | changes))


def flip_byte(path: Path, position: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def left_in_models_folder() -> list[str]:
    if not models_folder().exists():
        return []
    return sorted(path.name for path in models_folder().iterdir() if path.name != ".lock")


def test_a_bare_file_gets_a_manifest_from_its_header(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "My model (1).gguf", name="Tiny Llama: v1 ")
    progress: list[tuple[int, int]] = []
    model = install_model(source, progress=lambda done, total: progress.append((done, total)))
    assert model.name == "Tiny-Llama-v1"
    assert model.path == models_folder() / "Tiny-Llama-v1" / "My-model-1.gguf"
    assert model.path.read_bytes() == source.read_bytes()
    assert model.manifest.license == "apache-2.0"
    assert model.manifest.context_length == 512
    assert model.manifest.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert progress[-1] == (source.stat().st_size, source.stat().st_size)
    assert read_manifest(model.folder / "manifest.json") == model.manifest
    assert left_in_models_folder() == ["Tiny-Llama-v1"]
    check_unchanged(model)
    verify_model(model)


@pytest.mark.parametrize(("number", "quantization_type"), [(15, "Q4_K_M"), (999, None), (None, None)])
def test_a_bare_file_is_called_what_it_says_it_was_quantized_to(
    tmp_path: Path, number: int | None, quantization_type: str | None
) -> None:
    source = write_tiny_llama(tmp_path / "tiny.gguf", file_type=number)
    assert install_model(source).manifest.quantization_type == quantization_type


@pytest.mark.parametrize("field", ["notice", "license", "base_model"])
@pytest.mark.parametrize("text", ["no\x1b]0;owned\x07tice", "\x9b2J", "read \u202eback"])
def test_a_pack_whose_words_a_terminal_would_obey_is_refused(pack: Path, field: str, text: str) -> None:
    """They stand in the list of models and beside every answer."""
    change_manifest(pack, **{field: text})
    with pytest.raises(ModelCorrupt, match="not valid") as caught:
        install_model(pack)
    assert clean(caught.value.message) == caught.value.message


def test_a_pack_brings_its_card_and_no_other_file(pack: Path) -> None:
    (pack / "setup.exe").write_bytes(b"MZ")
    model = install_model(pack)
    assert sorted(path.name for path in model.folder.iterdir()) == [
        MODEL_CARD_NAME,
        "installed.json",
        "manifest.json",
        "source.gguf",
    ]
    assert model.manifest == read_manifest(pack / "manifest.json")
    assert find_model("tiny") == model
    assert find_model(str(pack)).manifest == model.manifest


def test_a_split_model_is_installed_whole_from_any_shard(tmp_path: Path) -> None:
    first = write_tiny_llama(tmp_path / "big.gguf", name=None, shards=3)
    model = install_model(first.with_name("big-00002-of-00003.gguf"))
    assert model.name == "big"
    assert model.path.name == "big-00001-of-00003.gguf"
    assert [file.name[-8:] for file in model.manifest.files] == ["003.gguf"] * 3
    verify_model(model)
    first.with_name("big-00002-of-00003.gguf").unlink()
    with pytest.raises(ModelCorrupt, match=r"big-00002-of-00003\.gguf is missing"):
        install_model(first, name="other")
    assert left_in_models_folder() == ["big"]


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    adapter = install_model(write_tiny_adapter(tmp_path / "adapter.gguf"))
    assert adapter.manifest.kind == "adapter"
    assert find_model(adapter.name, "adapter") == adapter
    assert [model.name for model in list_models("adapter").models] == [adapter.name]
    assert [model.name for model in list_models("model").models] == [EMBEDDED]
    with pytest.raises(UsageError, match="is an adapter, not a model"):
        find_model(adapter.name)
    with pytest.raises(UsageError, match="is an adapter"):
        use_model(adapter.name)


def test_the_same_model_again_is_no_error_and_another_of_its_name_is(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf", name="same")
    model = install_model(source)
    assert install_model(source) == model
    other = write_tiny_llama(tmp_path / "b.gguf", name="same", seed=1)
    with pytest.raises(UsageError, match="installed already") as caught:
        install_model(other)
    assert "--name" in caught.value.hint
    assert "edgemed models remove same" in caught.value.hint
    assert install_model(other, name="second").name == "second"
    with pytest.raises(UsageError, match="a part of edgemed"):
        install_model(other, name=EMBEDDED)
    with pytest.raises(UsageError, match="nearly the same name"):
        install_model(other, name="SAME")
    with pytest.raises(UsageError, match="cannot be a model's name"):
        install_model(other, name="../outside")


def test_a_flipped_byte_is_found_whenever_it_happens(pack: Path) -> None:
    model = install_model(pack)
    modified = model.path.stat()
    flip_byte(model.path)
    with pytest.raises(ModelCorrupt, match="changed since it was installed") as caught:
        check_unchanged(model)
    assert caught.value.hint.endswith("`edgemed models verify tiny`.")
    os.utime(model.path, ns=(modified.st_atime_ns, modified.st_mtime_ns))
    check_unchanged(model)  # Too cheap to see it: that is what verifying is for.
    with pytest.raises(ModelCorrupt, match=r"source\.gguf of tiny is damaged"):
        verify_model(model)

    flip_byte(pack / "source.gguf")
    with pytest.raises(ModelCorrupt, match="SHA-256"):
        find_model(str(pack))
    with pytest.raises(ModelCorrupt, match="SHA-256"):
        install_model(pack, name="flipped")
    assert left_in_models_folder() == ["tiny"]


def test_a_verified_model_counts_as_unchanged_again(pack: Path) -> None:
    model = install_model(pack)
    os.utime(model.path, ns=(1, 1))
    with pytest.raises(ModelCorrupt):
        check_unchanged(model)
    verify_model(model)
    check_unchanged(model)
    (model.folder / "installed.json").write_bytes(b"\0\0")
    with pytest.raises(ModelCorrupt):
        check_unchanged(model)
    model.path.unlink()
    with pytest.raises(ModelCorrupt, match="is missing"):
        check_unchanged(model)


def test_files_that_are_no_usable_model_are_refused(tmp_path: Path) -> None:
    def refused(path: Path, error: type[EdgemedError], message: str) -> None:
        with pytest.raises(error, match=message) as caught:
            install_model(path)
        assert caught.value.hint
        assert left_in_models_folder() == []

    pickled = tmp_path / "pytorch_model.bin"
    pickled.write_bytes(pickle.dumps({"weights": [1.0]}))
    refused(pickled, ModelUnsupported, "pytorch_model.bin is a Python pickle")
    truncated = write_tiny_llama(tmp_path / "short.gguf")
    truncated.write_bytes(truncated.read_bytes()[:-1000])
    refused(truncated, ModelCorrupt, "short.gguf is cut short")
    refused(write_tiny_llama(tmp_path / "v.gguf", weights=False), ModelUnsupported, "only a vocabulary")
    refused(write_tiny_llama(tmp_path / "n.gguf", vocabulary=False), ModelUnsupported, "has no vocabulary")
    refused(tmp_path / "nowhere.gguf", UsageError, "There is no file or folder")
    refused(tmp_path, UsageError, "has no manifest.json")


def test_a_manifest_cannot_lead_out_of_its_pack(pack: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.gguf"
    (pack / "source.gguf").rename(secret)
    good = json.loads((pack / "manifest.json").read_bytes())["files"][0]
    for name in ("../secret.gguf", str(secret), "..", "a/../../secret.gguf", "..\\secret.gguf"):
        change_manifest(pack, files=[good | {"name": name}])
        with pytest.raises(ModelCorrupt, match="is not valid"):
            install_model(pack)
    for name in ("manifest.json", "MODEL_CARD.md"):
        change_manifest(pack, files=[good | {"name": name}])
        with pytest.raises(ModelCorrupt, match="make no model"):
            install_model(pack)
    change_manifest(pack, files=[good])
    with pytest.raises(ModelCorrupt, match=r"source\.gguf is missing in the pack"):
        install_model(pack)
    (pack / "source.gguf").symlink_to(secret)
    with pytest.raises(ModelCorrupt, match="is a link or a special file"):
        install_model(pack)
    assert left_in_models_folder() == []


def test_a_manifest_must_tell_the_truth_about_its_file(pack: Path) -> None:
    good = (pack / "manifest.json").read_bytes()
    manifest = json.loads(good)
    lies: list[dict[str, Any]] = [
        {"tensor_types": {"Q4_K": 21}},
        {"kind": "adapter"},
        {"context_length": 1_000_000},
        {"shape": manifest["shape"] | {"kv_bytes_per_token": 1}},
        {"files": [manifest["files"][0] | {"size_bytes": 10**6}]},
        {"files": [manifest["files"][0] | {"sha256": "0" * 64}]},
        {"name": "tiny."},
    ]
    for lie in lies:
        (pack / "manifest.json").write_bytes(good)
        change_manifest(pack, **lie)
        with pytest.raises(ModelCorrupt):
            install_model(pack)
        assert left_in_models_folder() == []


def test_too_little_space_is_said_before_copying(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**6))
    with pytest.raises(StorageError, match=r"needs 17 MB, and .* has 1 MB free"):
        install_model(pack)
    assert left_in_models_folder() == []


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError, "disk is full"),
        (OSError(errno.EFBIG, "File too large"), StorageError, "FAT32"),
        (OSError(errno.EIO, "Input/output error"), StorageError, "Input/output error"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
@pytest.mark.parametrize("step", ["write", "fsync_file", "fsync_folder", "rename"])
def test_whatever_ends_an_installation_leaves_nothing(
    step: str,
    failure: BaseException,
    error: type[BaseException],
    message: str | None,
    pack: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise failure

    class FailingFile(io.BytesIO):
        write = fail  # type: ignore[assignment]

    open_path = Path.open

    def open_failing(path: Path, mode: str = "r", **options: Any) -> Any:
        return FailingFile() if mode == "xb" else open_path(path, mode, **options)

    with monkeypatch.context() as patched:
        if step == "write":
            patched.setattr(Path, "open", open_failing)
        else:
            patched.setattr(Path if step == "rename" else pack_folders, step, fail)
        with pytest.raises(error, match=message):
            install_model(pack)
    assert left_in_models_folder() == []
    assert install_model(pack).name == "tiny"


def test_what_a_killed_installation_left_is_cleaned_by_the_next(pack: Path) -> None:
    dead = models_folder() / ".incoming-0123456789abcdef"
    dead.mkdir(parents=True)
    (dead / "half.gguf").write_bytes(b"GGUF")
    assert list_models().damaged == []
    install_model(pack)
    assert left_in_models_folder() == ["tiny"]


def test_two_installations_do_not_meet(pack: Path) -> None:
    models_folder().mkdir(parents=True, exist_ok=True)
    with lock_file(models_folder() / ".lock"), pytest.raises(StorageError):
        install_model(pack)
    assert left_in_models_folder() == []


def test_one_broken_folder_hides_no_other(pack: Path) -> None:
    install_model(pack)
    for name, manifest in (("broken", b"{"), ("renamed", (pack / "manifest.json").read_bytes())):
        (models_folder() / name).mkdir()
        (models_folder() / name / "manifest.json").write_bytes(manifest)
    (models_folder() / "empty").mkdir()
    found = list_models()
    assert [model.name for model in found.models] == [EMBEDDED, "tiny"]
    assert [damaged.name for damaged in found.damaged] == ["broken", "empty", "renamed"]
    assert found.damaged[2].problem == "Its manifest is that of tiny."
    with pytest.raises(ModelCorrupt, match="The model broken is damaged"):
        find_model("broken")
    with pytest.raises(UsageError, match="damaged model"):
        install_model(pack, name="broken")
    for name in ("broken", "empty", "renamed"):
        remove_model(name)
    assert left_in_models_folder() == ["tiny"]


def test_an_unreadable_data_folder_leaves_the_embedded_model(tmp_path: Path) -> None:
    assert [model.name for model in list_models().models] == [EMBEDDED]
    assert not data_folder().exists()
    data_folder().mkdir()
    models_folder().write_text("not a folder")
    found = list_models()
    assert [model.name for model in found.models] == [EMBEDDED]
    assert "cannot be read" in found.damaged[0].problem
    assert find_model(None).embedded
    with pytest.raises(StorageError):
        install_model(write_tiny_llama(tmp_path / "m.gguf"))


def test_the_chosen_model_is_used_until_it_is_gone(pack: Path) -> None:
    assert find_model(None).name == EMBEDDED
    install_model(pack)
    use_model("tiny")
    assert find_model(None).name == "tiny"
    remove_model("tiny")
    assert find_model(None).name == EMBEDDED
    assert left_in_models_folder() == []
    install_model(pack)
    use_model("tiny")
    flip_byte(models_folder() / "tiny" / "manifest.json", 0)
    with pytest.raises(ModelCorrupt, match="tiny is damaged"):
        find_model(None)
    use_model(EMBEDDED)
    assert find_model(None).embedded


def test_an_unknown_name_is_answered_with_the_nearest(pack: Path) -> None:
    install_model(pack, name="tiny-llama")
    for unknown in (find_model, use_model, remove_model):
        with pytest.raises(ModelNotFound, match="No model is named tinylama") as caught:
            unknown("tinylama")
        assert "Did you mean tiny-llama?" in caught.value.hint
        assert EMBEDDED in caught.value.hint
    with pytest.raises(ModelNotFound):
        remove_model("../home/models/tiny-llama")


def test_a_file_used_where_it_lies_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_llama(tmp_path / "elsewhere.gguf")
    hashed: list[Path] = []
    hash_file = pack_folders.hash_file

    def counted(path: Path, done: Any) -> str:
        hashed.append(path)
        return hash_file(path, done)

    monkeypatch.setattr(pack_folders, "hash_file", counted)

    def found() -> InstalledModel:
        return find_model(str(path))

    assert found().manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found().path == path
    check_unchanged(found())
    assert len(hashed) == 1
    flip_byte(path)
    os.utime(path, ns=(5, 5))
    assert found().manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(hashed) == 2
    for broken in (b"[1]", b"\xff", b'{"a": 1}', b"[" * 100_000):
        (data_folder() / "file_hashes.json").write_bytes(broken)
        found()
    (data_folder() / "file_hashes.json").unlink()
    (data_folder() / "file_hashes.json").mkdir()
    found()
    with pytest.raises(UsageError, match="There is no file"):
        find_model(str(tmp_path / "nowhere.gguf"))


def test_the_embedded_model_is_what_its_manifest_says() -> None:
    model = find_model(EMBEDDED)
    assert model.embedded
    check_unchanged(model)
    verify_model(model)
    headers = read_shards(model.path)
    manifest = model.manifest
    assert manifest.shape == shape_of(headers)
    assert manifest.tensor_types == tensor_types(*headers)
    assert manifest.context_length == context_length_of(headers[0])
    assert manifest.chat_template == headers[0].text("tokenizer.chat_template")
    assert manifest.notice == "demonstration model, not for patients"
    assert [source.license for source in manifest.data] == ["CC BY 4.0", "CC BY-SA"]
    card = (model.folder / MODEL_CARD_NAME).read_text(encoding="utf-8")
    for source in manifest.data:
        assert source.source in card
    for type_name, count in manifest.tensor_types.items():
        assert f"{count} tensors {type_name}" in card
    with pytest.raises(UsageError, match="a part of edgemed"):
        remove_model(EMBEDDED)
    # The pack inside edgemed passes the checks of any other pack.
    assert install_model(embedded_models_folder() / EMBEDDED) == model
    renamed = install_model(embedded_models_folder() / EMBEDDED, name="copy")
    assert encode_manifest(renamed.manifest) == encode_manifest(
        msgspec.structs.replace(manifest, name="copy")
    )
