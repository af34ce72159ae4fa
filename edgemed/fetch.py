"""Fetch a published model at headquarters, where there is a network: `edgemed models fetch`.

What was downloaded stays in the data folder until it is whole, checked and installed.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgemed.errors import ModelCorrupt, ModelError, StorageError
from edgemed.gguf_header import shard_name
from edgemed.hub import Broken, Hub, HubError, no_repository
from edgemed.hub_files import HubFile, HubModel, choose_model
from edgemed.languages import text as _
from edgemed.models import (
    InstalledModel,
    Origin,
    check_name,
    clean_name,
    hash_file,
    install_model,
    installed_already,
    plain_line,
)
from edgemed.operating_system import lock_file
from edgemed.pack_folders import Progress, storage_error
from edgemed.paths import data_folder, downloads_folder

ProgressFor = Callable[[str], Progress | None]
"""Given a word for what is being done, returns who is told how far it is."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_TRIES = 5
"""Without one new byte in between."""
# Doubled at each such try: half a minute in all.
_WAIT_SECONDS = 1.0
_SPARE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Fetched:
    """A model that is installed now."""

    model: InstalledModel
    source: str
    license: str | None
    was_there: bool
    """The same file was installed before; nothing was downloaded."""


def fetch_model(
    repository: str,
    *,
    quantization_type: str | None = None,
    path: str | None = None,
    name: str | None = None,
    progress_for: ProgressFor | None = None,
) -> Fetched:
    """Download one GGUF model, compare its SHA-256 with the published one, and install it.

    A download that was cut goes on where it stopped, also in a later call.

    Args:
        repository: OWNER/NAME, or OWNER/NAME@REVISION with a branch, tag or commit.
        path: the file in the repository, where the quantization type is not enough.
        name: install under this name; without it, that of the file.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        UsageError: the repository's name is none, or it is not clear which file is meant.
        HubError: no network, no such repository or revision, or no permission.
        ModelError: the file is damaged or no model.
        StorageError: no space, or a disk that fails.
    """
    owner_and_name, _at, revision = repository.partition("@")
    if not _REPOSITORY.fullmatch(owner_and_name) or (_at and not revision):
        raise no_repository(repository)
    if name is not None:
        check_name(name)
    hub = Hub(owner_and_name)
    published = hub.published(revision or None)
    wanted = choose_model(published.files, owner_and_name, quantization_type=quantization_type, path=path)
    name = name or clean_name(wanted.stem)
    source = f"{hub.endpoint}/{owner_and_name}/blob/{published.commit}/{wanted.files[0].path}"
    same = installed_already(name, lambda: wanted.hashes)
    if same is not None:
        return Fetched(same, source, same.manifest.license, was_there=True)
    origin = Origin(source, wanted.hashes, published.license, published.base_model, wanted.quantization_type)
    with _download_lock():
        folder = downloads_folder() / f"{owner_and_name.replace('/', '--')}--{wanted.hashes[0][:12]}"
        first = _download(hub, published.commit, wanted, folder, progress_for or (lambda _label: None))
        model = _install(first, name, origin, (progress_for or (lambda _label: None))("Installing"))
        shutil.rmtree(folder, ignore_errors=True)
    return Fetched(model, source, model.manifest.license, was_there=False)


@contextmanager
def _download_lock() -> Iterator[None]:
    folder = downloads_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error
    with lock_file(folder / ".lock"):
        yield


def _install(first: Path, name: str, origin: Origin, progress: Progress | None) -> InstalledModel:
    try:
        return install_model(first, name=name, progress=progress, origin=origin)
    except (ModelError, StorageError) as error:
        kept = _("The download is kept in {folder}.", folder=first.parent)
        raise type(error)(error.message, hint=f"{error.hint} {kept}".strip()) from error


# The transfer.


def _download(hub: Hub, commit: str, model: HubModel, folder: Path, progress_for: ProgressFor) -> Path:
    """Bring all files of a model into the folder, checked; return the first."""
    stem, count = clean_name(model.stem), len(model.files)
    names = [shard_name(stem, number, count) for number in range(1, count + 1)] if count > 1 else []
    targets = [folder / file_name for file_name in names or [f"{stem}.gguf"]]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, model, sum(max(_size(target), _size(_part(target))) for target in targets))
    except OSError as error:
        raise storage_error(error, folder) from error
    loading, checking = progress_for("Downloading"), progress_for("Checking")
    earlier_bytes = 0
    for file, target in zip(model.files, targets, strict=True):
        part = _part(target)
        try:
            if target.exists():
                # From a call that was ended later than here; checked like any other.
                target.replace(part)
            if _size(part) > file.size_bytes:
                _set_aside(part)
            for done_bytes in _transfer(hub, commit, file, part):
                if loading:
                    loading(earlier_bytes + done_bytes, model.size_bytes)
            _check(file, part, checking)
            part.replace(target)
        except OSError as error:
            raise storage_error(error, part) from error
        earlier_bytes += file.size_bytes
    return targets[0]


def _transfer(hub: Hub, commit: str, file: HubFile, part: Path) -> Iterator[int]:
    """Add to the partial file until it is whole, over as many connections as it takes; yield its bytes."""
    tries = 0
    while _size(part) < file.size_bytes:
        before = _size(part)
        try:
            yield from hub.read_into(part, before, file, commit)
            broken: Broken | None = None
        except Broken as error:
            broken = error
        # A server that ends early without a word is a broken connection too.
        tries = 0 if _size(part) > before else tries + 1
        if _size(part) < file.size_bytes and tries >= _TRIES:
            raise _interrupted(hub, file, part, broken)
        if broken or tries:
            time.sleep(_WAIT_SECONDS * 2**tries)


def _interrupted(hub: Hub, file: HubFile, part: Path, broken: Broken | None) -> HubError:
    return HubError(
        _(
            "The download of {name} broke off at {done:,} of {total:,} bytes: {reason}.",
            name=plain_line(file.path),
            done=_size(part),
            total=file.size_bytes,
            reason=broken.reason if broken else _("{endpoint} sends no more", endpoint=hub.endpoint),
        ),
        hint=_("Run the same command again: it goes on where it stopped."),
    )


def _check(file: HubFile, part: Path, progress: Progress | None) -> None:
    if hash_file(part, file.size_bytes, progress) != file.sha256:
        aside = _set_aside(part)
        raise ModelCorrupt(
            _("{name} arrived damaged: its SHA-256 is not the published one.", name=plain_line(file.path)),
            hint=_(
                "Run the same command again: it begins anew. The damaged file was set aside as {aside}; "
                "a fetch that succeeds deletes it. If it happens again, the network or the mirror "
                "changes files.",
                aside=aside,
            ),
        )


def _check_space(folder: Path, model: HubModel, present_bytes: int) -> None:
    # The installed copy is written before the download is deleted.
    needed = 2 * model.size_bytes - min(present_bytes, model.size_bytes) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            _(
                "{name} needs {needed:,.0f} MB while it is fetched and installed; "
                "{folder} has {free:,.0f} MB free.",
                name=plain_line(model.stem),
                needed=needed / 1e6,
                folder=data_folder(),
                free=free / 1e6,
            ),
            hint=_(
                "Delete files, remove a model, delete old downloads in {folder}, "
                "or let EDGEMED_HOME name a folder on a larger disk.",
                folder=downloads_folder(),
            ),
        )


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _set_aside(part: Path) -> Path:
    return part.replace(part.with_name(f"{part.name.removesuffix('.part')}.damaged"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
