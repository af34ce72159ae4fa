"""The manifest of a pack: what the file says, what the gate found, what was told. Called by `pack.py`."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgemed.check_report import CheckReport, CheckResult, read_check_report
from edgemed.errors import StorageError, UsageError
from edgemed.gguf_header import GGUFHeader, context_length_of, shape_of, tensor_types
from edgemed.manifest import (
    CheckSummary,
    DataSource,
    MergedAdapter,
    ModelFile,
    ModelManifest,
    Sampling,
    encode_manifest,
)
from edgemed_convert.licence import one_line
from edgemed_convert.lora import BASE_SHA256_KEY
from edgemed_convert.provenance import BASE_NAME_KEY, merged_adapters
from edgemed_convert.quantization_types import UNQUANTIZED_TYPES, file_type_name

UNCHECKED_NOTICE = "unchecked: not proved to be the trained model"
CHAT_TEMPLATE_KEY = "tokenizer.chat_template"
_MOST_TEMPLATE_BYTES = 256 * 1024
_READ_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class PackFacts:
    """What a pack tells that neither the GGUF file nor the check report says."""

    licence: str | None = None
    """Instead of the one in the file."""
    licence_files: tuple[Path, ...] = ()
    """The licence's text, copied into the pack."""
    base_name: str | None = None
    data: tuple[DataSource, ...] = ()
    training_card: Path | None = None
    """Markdown that becomes a part of the model card."""
    recipe: Path | None = None
    dataset_card: Path | None = None
    notice: str | None = None
    chat_template: Path | None = None
    """Jinja text for a model whose file carries none, such as GPT-2."""
    system_prompt: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    intended_use: str = ""
    limits: str = ""

    def files(self) -> list[Path]:
        """Return the files that a pack depends on beside the model's."""
        named = (self.training_card, self.recipe, self.dataset_card, self.chat_template)
        return [*(path for path in named if path is not None), *self.licence_files]


@dataclass(frozen=True)
class Evidence:
    """What the gate found in one file."""

    file: str
    """Its name in the report."""
    report: CheckReport | None
    report_bytes: bytes
    missing: tuple[str, ...]
    """Why the file does not count as checked, in sentences; empty when it passed."""


def _chat_template(first: GGUFHeader, facts: PackFacts) -> str | None:
    """Return the template that the manifest must carry, if any.

    Raises:
        UsageError: neither the file nor a fact has one, or the file has one of its own.
    """
    in_file = first.text(CHAT_TEMPLATE_KEY) is not None
    if facts.chat_template is None:
        if not in_file and first.text("general.type") != "adapter":
            raise UsageError(
                f"{first.path.name} has no chat template: nobody could ask it anything.",
                hint="Name the one it was trained with: --chat-template FILE.",
            )
        return None
    if in_file:
        raise UsageError(
            f"{first.path.name} has its own chat template, which the engine would use.",
            hint="Leave --chat-template out, or put the template into the model's folder and export again.",
        )
    data = b"".join(pieces(facts.chat_template))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{facts.chat_template} is not UTF-8 text.", hint="Save it as UTF-8.") from error
    if not text.strip() or len(data) > _MOST_TEMPLATE_BYTES:
        raise UsageError(
            f"{facts.chat_template} is empty or far too long for a chat template.",
            hint="Name a Jinja file such as chat_template.jinja.",
        )
    return text


def read_evidence(report_path: Path, *, needed: bool, file: str, sha256: str) -> Evidence:
    """Read what is proved about a file.

    Args:
        report_path: the check report.
        needed: whether it must be there.
        sha256: of the file as it is now.

    Raises:
        ModelCorrupt: the report cannot be read.
    """
    if not needed and not report_path.exists():
        return Evidence(file, None, b"", ("It was not checked: there is no check report.",))
    report = read_check_report(report_path)
    return Evidence(file, report, b"".join(pieces(report_path)), tuple(_reasons(report, file, sha256)))


def make_manifest(
    headers: Sequence[GGUFHeader],
    files: list[ModelFile],
    *,
    name: str,
    licence: str,
    evidence: Evidence,
    facts: PackFacts,
) -> ModelManifest:
    """Return the manifest.

    Raises:
        UsageError: something that was told cannot stand in a manifest.
    """
    first, report = headers[0], evidence.report
    unchecked = bool(evidence.missing)
    is_adapter = first.text("general.type") == "adapter"
    number = first.metadata.get("general.file_type")
    base = facts.base_name or first.text(BASE_NAME_KEY) or (report.model if report else None)
    notices = [facts.notice, UNCHECKED_NOTICE if unchecked else None]
    manifest = ModelManifest(
        kind="adapter" if is_adapter else "model",
        name=name,
        files=files,
        shape=shape_of(headers),
        tensor_types=tensor_types(*headers),
        context_length=context_length_of(first) or 1,
        license=licence,
        base_model=one_line(base) if base else None,
        base_sha256=first.text(BASE_SHA256_KEY),
        data=list(facts.data),
        quantization_type=file_type_name(number) if isinstance(number, int) else None,
        base_fingerprint=report.model_sha256 if report else None,
        adapters=[] if is_adapter else _adapters(first, report),
        recipe_sha256=_sha256(facts.recipe),
        dataset_sha256=_sha256(facts.dataset_card),
        check=_summary(report, evidence) if report else None,
        unchecked=unchecked,
        chat_template=_chat_template(first, facts),
        system_prompt=facts.system_prompt,
        sampling=facts.sampling,
        notice="; ".join(notice.strip() for notice in notices if notice) or None,
    )
    try:
        msgspec.json.decode(encode_manifest(manifest), type=ModelManifest)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"The manifest cannot hold what was given: {error}.", hint="Write the facts as plain text."
        ) from error
    return manifest


def _adapters(header: GGUFHeader, report: CheckReport | None) -> list[MergedAdapter]:
    """Return the adapters in the file; where llama.cpp exported it, the report alone names them."""
    applied = report.adapters if report else []
    return merged_adapters(header) or [
        MergedAdapter(name=one_line(adapter.name), weight=adapter.weight) for adapter in applied
    ]


def _summary(report: CheckReport, evidence: Evidence) -> CheckSummary:
    results = [result for result in report.results if result.file == evidence.file]
    losses = [loss for loss in report.quantization_losses if loss.file == evidence.file]
    return CheckSummary(
        report_sha256=hashlib.sha256(evidence.report_bytes).hexdigest(),
        passed=sum(result.status == "passed" for result in results),
        failed=sum(result.status == "failed" for result in results),
        not_run=list(dict.fromkeys(_shown(result) for result in report.not_run)),
        mean_kl_nats=max(0.0, losses[0].mean_kl_nats) if losses else None,
        top1_share=losses[0].top1_share if losses else None,
    )


def _reasons(report: CheckReport, file: str, sha256: str) -> Iterator[str]:
    """Yield why a file does not count as checked."""
    for result in report.failures(file):
        yield f"The check {_shown(result)} failed: {result.sentence}"
    found = [checked for checked in report.files if checked.name == file]
    if not found and not report.failures(file):
        yield "It was not checked: the check report does not name it."
    elif found and found[0].sha256 != sha256:
        yield "The check report is about other bytes: the file was changed or made anew after its check."
    # Faults of the whole model show only in the unquantized file: the noise of a quantized one hides them.
    for checked in report.files:
        if checked.quantization_type in UNQUANTIZED_TYPES and checked.name != file:
            for result in report.failures(checked.name):
                yield f"The check {_shown(result)} of {checked.name} failed: {result.sentence}"


def _shown(result: CheckResult) -> str:
    return result.name.replace("_", " ")


def _sha256(path: Path | None) -> str | None:
    if path is None:
        return None
    digest = hashlib.sha256()
    for data in pieces(path):
        digest.update(data)
    return digest.hexdigest()


def pieces(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes.

    Raises:
        StorageError: the disk does not give them.
    """
    try:
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                yield data
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.", hint="Check the path.") from error
