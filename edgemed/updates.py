"""Install what an update stick brings, switch to it in one step, and go back on request: `edgemed update`.

A pack is installed as NAME-vVERSION beside the older ones. What is in use stands in settings.toml, which is
replaced in one step, last; so whatever interrupts an update, the old or the new version is in use.
"""

import shutil
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from edgemed import models, reference_packs
from edgemed.errors import EdgemedError, ModelNotFound, StorageError, UpdateRefused, UsageError
from edgemed.languages import text as _
from edgemed.pack_folders import Progress
from edgemed.paths import data_folder
from edgemed.pieces import join
from edgemed.reference_manifest import REFERENCE_KINDS
from edgemed.update_format import METADATA_FOLDER
from edgemed.update_plan import Plan, PlannedPack, make_plan
from edgemed.update_record import (
    InUse,
    Record,
    RecordedPack,
    incoming_folder,
    is_root_trusted,
    locked,
    metadata_folder,
    naming,
    read_record,
    write_record,
)
from edgemed.update_stick import CONNECTED, Stick, accept_metadata, check_no_links, read_stick
from edgemed.update_switch import Notice, check_usable, in_use, next_in_use, switch

_SPARE_BYTES = 16 * 2**20


class UpdateResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one update did."""

    update_version: int
    installed: list[str]
    """Names under which packs are installed now and were not before."""
    present: list[str]
    """Names of packs that were installed already."""
    refused: list[str]
    """One sentence for each pack that this computer cannot use."""
    removed: list[str]
    """Names of old versions that were deleted."""
    switched: bool
    """Something else is in use than before."""
    model: str
    """In use from now on."""
    adapter: str | None
    references: list[str]
    """Libraries and rule sets in use from now on, NAME-vVERSION each."""


def update_from(
    folder: Path, *, progress: Progress | None = None, notice: Notice | None = None
) -> UpdateResult:
    """Verify a stick, install its packs, and use the new versions of what is in use.

    What was copied before a fault is kept, and the next call goes on with it.

    Args:
        progress: told the bytes that are checked and on this computer's disk, and all bytes.
        notice: told what a person should know although it is no error.

    Raises:
        UsageError: there is no such folder, or this computer trusts no headquarters yet.
        UpdateRefused: the stick is not what the trusted keys signed, or nothing on it can be used here.
        ModelError: a file of the stick is missing or damaged, or holds no usable model.
        StorageError: no space, a disk that fails, a stick that was pulled.
        FileInUse: another update is working.
    """
    say = notice or _no_notice
    _check_stick(folder)
    with locked():
        record = read_record()
        stick = read_stick(folder, metadata_folder())
        _check_version(stick, record)
        _judge_clock(stick, say)
        plan = make_plan(folder, stick, record)
        before = in_use()
        new = [pack for pack in plan.packs if not pack.is_installed]
        _copy(folder, new, progress or _no_progress)
        # From here on everything older is refused.
        accept_metadata(stick, metadata_folder())
        for pack in new:
            _install(pack)
        record = _with_packs(record, stick, plan)
        write_record(record)
        now = next_in_use(before, plan, record, say)
        if now != before:
            record = msgspec.structs.replace(record, previous=before)
            write_record(record)
            switch(now)
        removed = _remove_old(record, now, say)
    return UpdateResult(
        update_version=stick.version,
        installed=[pack.installed_name for pack in new],
        present=[pack.installed_name for pack in plan.packs if pack.is_installed],
        refused=plan.refused,
        removed=removed,
        switched=now != before,
        model=models.find_model(None).name,
        adapter=now.adapter,
        references=now.references or [],
    )


def roll_back() -> InUse:
    """Use again what was in use before the last update; return it. The newer version stays installed.

    Raises:
        UsageError: there is nothing to go back to.
        ModelError: what was in use before is gone or damaged.
        StorageError: the disk does not take the change.
        FileInUse: an update is working.
    """
    with locked():
        record, now = read_record(), in_use()
        previous = record.previous
        if previous is not None and previous.references is None:
            previous = msgspec.structs.replace(previous, references=now.references)
        if previous is None or previous == now:
            raise UsageError(
                _("There is no update to go back from."),
                hint=_("`edgemed models use NAME` chooses any installed model."),
            )
        check_usable(previous)
        switch(previous)
        write_record(msgspec.structs.replace(record, previous=None))
    return InUse(models.find_model(None).name, previous.adapter, previous.references)


# What TUF leaves to us.


def _check_stick(folder: Path) -> None:
    with naming(folder, _(CONNECTED)):
        is_stick = (folder / METADATA_FOLDER).is_dir()
    if not is_stick:
        raise UsageError(
            _("{folder} is no update stick: it has no folder {name}.", folder=folder, name=METADATA_FOLDER),
            hint=_("Name the folder that holds `metadata` and `targets`; check that the stick is connected."),
        )
    if not is_root_trusted():
        raise UsageError(
            _("This computer trusts no headquarters yet, so it takes no update."),
            hint=_("Trust the root.json of the kit once: edgemed update --trust KIT/root.json"),
        )


def _check_version(stick: Stick, record: Record) -> None:
    """A second lock behind TUF's own: it holds also when the remembered metadata was lost."""
    if stick.version < record.update_version:
        raise UpdateRefused(
            _(
                "metadata/targets.json is of update {version}; this computer has accepted update {accepted}.",
                version=stick.version,
                accepted=record.update_version,
            ),
            hint=_(
                "Ask headquarters for the newest stick. `edgemed update --rollback` goes back one update."
            ),
        )


def _judge_clock(stick: Stick, say: Notice) -> None:
    """A clock before the update was signed cannot be right; TUF finds nothing expired then."""
    now = datetime.now(UTC)
    if stick.created is not None and now < stick.created:
        say(
            _(
                "This computer's clock says {today}, but the update was made on {created}: the clock is "
                "wrong. The update is taken; whether it has expired was not judged.",
                today=now.date().isoformat(),
                created=stick.created.date().isoformat(),
            )
        )


# Copying and installing.


def _copy(folder: Path, new: list[PlannedPack], progress: Progress) -> None:
    """Join all files of all packs in the data folder; nothing is installed before the last one is whole."""
    _make_room(new)
    total_bytes = sum(pack.entry.size_bytes for pack in new)
    done_bytes = 0
    for pack in new:
        for file in pack.entry.files:
            pieces = pack.pack.pieces[file.name]
            for piece in pieces:
                with naming(piece.path, _(CONNECTED)):
                    check_no_links(folder, piece.path.relative_to(folder).parts)
            join(
                pieces,
                pack.folder / file.name,
                sha256=file.sha256,
                progress=_part_of(progress, done_bytes, total_bytes),
            )
            done_bytes += file.size_bytes


def _part_of(progress: Progress, before_bytes: int, total_bytes: int) -> Progress:
    return lambda done_bytes, _file_bytes: progress(before_bytes + done_bytes, total_bytes)


def _make_room(new: list[PlannedPack]) -> None:
    """Delete what an older, interrupted update left, and see whether the rest fits."""
    incoming = incoming_folder()
    names = {pack.folder.name for pack in new}
    with naming(incoming):
        incoming.mkdir(parents=True, exist_ok=True)
        for path in incoming.iterdir():
            if path.name not in names:
                shutil.rmtree(path)
        here = sum(path.stat().st_size for path in incoming.rglob("*") if path.is_file())
        free = shutil.disk_usage(incoming).free
    needed = sum(pack.entry.size_bytes for pack in new) - here + _SPARE_BYTES
    if new and free < needed:
        raise StorageError(
            _(
                "The update needs {needed:,.0f} MB, and {folder} has {free:,.0f} MB free.",
                needed=needed / 1e6,
                folder=data_folder(),
                free=free / 1e6,
            ),
            hint=_("Delete files or remove a model (`edgemed models remove NAME`), then try again."),
        )


def _install(pack: PlannedPack) -> None:
    """Install one pack; a model through the same checks as `edgemed models install`."""
    if pack.is_reference:
        reference_packs.install_pack(pack.folder, manifest_sha256=pack.manifest_sha256, move=True)
    else:
        models.install_model(pack.folder, name=pack.installed_name, move=True)
    with naming(pack.folder):
        shutil.rmtree(pack.folder)


def _with_packs(record: Record, stick: Stick, plan: Plan) -> Record:
    packs = list(record.packs)
    for planned in plan.packs:
        entry = planned.entry
        packs = [each for each in packs if (each.name, each.version) != (entry.name, entry.version)]
        packs.append(
            RecordedPack(
                name=entry.name,
                kind=entry.kind,
                version=entry.version,
                sha256=planned.manifest_sha256,
                installed_name=planned.installed_name,
            )
        )
    return msgspec.structs.replace(record, update_version=stick.version, packs=packs)


# Old versions.


def _remove_old(record: Record, now: InUse, say: Notice) -> list[str]:
    """Delete versions that nobody can go back to any more; a failure costs space, not the update."""
    before = record.previous or InUse(None, None)
    keep = {*(now.references or ()), *(before.references or ())}
    removed, problems = reference_packs.remove_old_versions(keep)
    for problem in problems:
        say(problem)
    keep = {now.model or "", now.adapter or "", before.model or "", before.adapter or ""}
    remaining = []
    for each in record.packs:
        if each.kind in REFERENCE_KINDS:
            is_kept = each.installed_name not in removed
        else:
            is_kept = _is_model_kept(each, record, keep) or not _removed(each.installed_name, say)
            if not is_kept:
                removed.append(each.installed_name)
        if is_kept:
            remaining.append(each)
    if remaining != record.packs:
        write_record(msgspec.structs.replace(record, packs=remaining))
    return removed


def _is_model_kept(pack: RecordedPack, record: Record, in_use: Collection[str]) -> bool:
    versions = sorted((each.version for each in record.packs if each.name == pack.name), reverse=True)
    # What came with the kit has the pack's own name; people remove that.
    return pack.version in versions[: reference_packs.KEPT_VERSIONS] or pack.installed_name in {
        *in_use,
        pack.name,
    }


def _removed(name: str, say: Notice) -> bool:
    try:
        models.remove_model(name)
    except ModelNotFound:
        return True
    except EdgemedError as error:
        say(error.message)
        return False
    return True


def _no_progress(_done_bytes: int, _total_bytes: int) -> None:
    pass


def _no_notice(_sentence: str) -> None:
    pass
