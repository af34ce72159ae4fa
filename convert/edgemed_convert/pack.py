"""A checked GGUF file becomes a pack: a folder that `edgemed models install` takes.

It holds the file, the manifest, the model card, the check report and the licence's text. A file that failed a
check, or was never checked, is refused; by force it is packed and marked so, for good.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgemed.check_report import CHECK_REPORT_NAME
from edgemed.errors import ModelCorrupt, UsageError
from edgemed.gguf_header import GGUFHeader, read_shards, shard_name
from edgemed.manifest import (
    MANIFEST_NAME,
    MODEL_CARD_NAME,
    ModelFile,
    ModelManifest,
    encode_manifest,
)
from edgemed.models import examine_model
from edgemed.terminal_text import clean
from edgemed_convert.arguments import checked_name, clean_name
from edgemed_convert.errors import CheckFailed
from edgemed_convert.licence import one_line
from edgemed_convert.model_card import CardFacts, model_card
from edgemed_convert.output import Progress, check_free_space, new_folder, no_progress
from edgemed_convert.pack_manifest import Evidence, PackFacts, make_manifest, pieces, read_evidence
from edgemed_convert.provenance import LICENSE_KEY

PACK_ENDING = ".pack"
_MOST_CARD_BYTES = 256 * 1024
"""Installing takes a card of at most 1 MiB."""


@dataclass(frozen=True)
class Pack:
    """A pack that was written."""

    folder: Path
    name: str
    size_bytes: int
    unchecked: bool
    not_run: list[str]
    """Names of the checks that could not run."""


def pack_path(file: Path, folder: Path) -> Path:
    """Return where a file's pack goes: tiny-Q8_0.gguf → folder/tiny-Q8_0.pack."""
    return folder / f"{clean_name(_stem(file))}{PACK_ENDING}"


def pack_files(
    files: Sequence[Path],
    folder: Path,
    *,
    report_path: Path | None = None,
    facts: PackFacts,
    name: str | None = None,
    force: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> list[Pack]:
    """Write a pack of each file; the first that is refused ends it. See `pack_file`."""
    if name is not None and len(files) > 1:
        raise UsageError(
            "One name cannot stand for several files.", hint="Pack them one by one, or without --name."
        )
    for path in facts.files():
        if not path.is_file():
            raise UsageError(f"There is no file {path}.", hint="Check the spelling.")
    names = [path.name.lower() for path in facts.licence_files]
    if len(set(names)) < len(names) or {MANIFEST_NAME, MODEL_CARD_NAME.lower(), CHECK_REPORT_NAME} & set(
        names
    ):
        raise UsageError(
            "The licence's files need names of their own in the pack.", hint="For example LICENSE and NOTICE."
        )
    if len({pack_path(file, folder) for file in files}) < len(files):
        raise UsageError("Two of the files would make the same pack.", hint="Name each file once.")
    return [
        pack_file(
            file,
            folder,
            report_path=report_path,
            facts=facts,
            name=name,
            force=force,
            overwrite=overwrite,
            progress=progress,
        )
        for file in files
    ]


def pack_file(
    file: Path,
    folder: Path,
    *,
    report_path: Path | None = None,
    facts: PackFacts,
    name: str | None = None,
    force: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Pack:
    """Write the pack of one file.

    Args:
        file: a GGUF file, or the first part of a split one; a model or a LoRA adapter.
        folder: where the pack's folder will be.
        report_path: the check report; None: check.json beside the file, if there.
        name: of the model; None: the file's name without its ending.
        force: pack what failed or was not checked, marked so.
        overwrite: replace an existing pack.

    Raises:
        CheckFailed: a check failed, or this very file was never checked.
        UsageError: the pack exists, the licence is not known, a fact cannot stand in a manifest.
        ModelError: the file is damaged, or nothing that edgemed could install.
        StorageError: the disk is full or read-only.
    """
    headers = read_shards(file)
    first = headers[0]
    model_name = checked_name(name) if name else clean_name(_stem(file))
    licence = one_line(facts.licence or first.text(LICENSE_KEY) or "")
    if not licence:
        raise UsageError(
            f"Nothing says under which licence {file.name} may be used.",
            hint="Look it up where the base model came from, and name it: --license apache-2.0",
        )
    target = pack_path(file, folder)
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists.", hint="Name another folder; --overwrite replaces the old pack.")
    files = [
        _described(header, name, progress) for header, name in zip(headers, _names(headers), strict=True)
    ]
    evidence = read_evidence(
        report_path or file.parent / CHECK_REPORT_NAME,
        needed=report_path is not None,
        file=file.name,
        sha256=files[0].sha256,
    )
    if evidence.missing and not force:
        raise CheckFailed(
            f"{file.name} is not packed. {evidence.missing[0]}",
            hint="edgemed-convert check --report checks it; --force packs it marked as unchecked, for good.",
        )
    manifest = make_manifest(headers, files, name=model_name, licence=licence, evidence=evidence, facts=facts)
    check_free_space(folder, sum(header.file_size for header in headers))
    card = model_card(
        manifest,
        CardFacts(
            report=evidence.report,
            file=file.name,
            unchecked_because=evidence.missing,
            importance_matrix=first.text("quantize.imatrix.file"),
            training_card=_text(facts.training_card),
            intended_use=facts.intended_use,
            limits=facts.limits,
            licence_files=[path.name for path in facts.licence_files],
        ),
    )
    _write(target, headers, manifest, card, evidence, facts, overwrite=overwrite)
    return Pack(
        target,
        model_name,
        manifest.size_bytes,
        manifest.unchecked,
        manifest.check.not_run if manifest.check else [],
    )


def _stem(file: Path) -> str:
    stem, _, rest = file.stem.partition("-00001-of-")
    return stem if rest.isdigit() else file.stem


def _names(headers: Sequence[GGUFHeader]) -> list[str]:
    prefix = clean_name(_stem(headers[0].path))
    if len(headers) == 1:
        return [f"{prefix}.gguf"]
    return [shard_name(prefix, number, len(headers)) for number in range(1, len(headers) + 1)]


def _described(header: GGUFHeader, name: str, progress: Progress) -> ModelFile:
    digest = hashlib.sha256()
    done = 0
    for data in pieces(header.path):
        digest.update(data)
        done += len(data)
        progress("reading", done, header.file_size)
    return ModelFile(name=name, size_bytes=done, sha256=digest.hexdigest())


def _write(
    target: Path,
    headers: Sequence[GGUFHeader],
    manifest: ModelManifest,
    card: str,
    evidence: Evidence,
    facts: PackFacts,
    *,
    overwrite: bool,
) -> None:
    old = target.with_name(f".{target.name}.old")
    try:
        if overwrite and target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        with new_folder(target) as folder:
            for header, file in zip(headers, manifest.files, strict=True):
                _place(header.path, folder / file.name, file)
            (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
            (folder / MODEL_CARD_NAME).write_text(card, encoding="utf-8", newline="\n")
            if evidence.report is not None:
                (folder / CHECK_REPORT_NAME).write_bytes(evidence.report_bytes)
            for path in facts.licence_files:
                shutil.copyfile(path, folder / path.name)
            # Whatever installing would refuse is refused here.
            examine_model(folder)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _place(source: Path, target: Path, file: ModelFile) -> None:
    """Put a model's file into the pack: a second name of the same bytes, or a copy where a disk has none."""
    try:
        os.link(source, target)
    except OSError:
        digest = hashlib.sha256()
        with target.open("wb") as copy:
            for data in pieces(source):
                copy.write(data)
                digest.update(data)
        if digest.hexdigest() != file.sha256:
            raise ModelCorrupt(
                f"{source} changed while it was packed.", hint="Leave it alone meanwhile, and pack it again."
            ) from None
    if target.stat().st_size != file.size_bytes:
        raise ModelCorrupt(f"{source} changed while it was packed.", hint="Pack it again.")


def _text(path: Path | None) -> str:
    """Return a text that people wrote, without anything a terminal would obey."""
    if path is None:
        return ""
    try:
        data = b"".join(pieces(path))
        if len(data) > _MOST_CARD_BYTES:
            raise UsageError(
                f"{path} is too long for a model card.", hint=f"At most {_MOST_CARD_BYTES // 1024} KiB."
            )
        return clean(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text.", hint="Save it as UTF-8.") from error
