"""The check report: what the gate of `edgemed-convert check` found in the files of one model.

Written beside the files by `edgemed-convert`, read by its `pack` and by whoever asks what was proved. It
speaks English: it is read by engineers and programs, never shown in a clinic.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgemed.errors import ModelCorrupt

CHECK_REPORT_NAME = "check.json"

CheckStatus = Literal["passed", "failed", "not_run"]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Strict and immutable: an unknown field is an error, not a silent loss."""


class CheckResult(_Struct, frozen=True, kw_only=True):
    """What one check found in one file."""

    name: str
    file: str
    """Name of the file, without its folder."""
    status: CheckStatus
    sentence: str
    """What was found, or why the check did not run, for a person."""
    numbers: dict[str, float] = {}
    """What was measured; units are in the names."""
    limit: str = ""
    """What had to hold, such as "relative difference ≤ 1e-4"."""
    details: list[str] = []
    """The first differences, one a line."""


class CheckedFile(_Struct, frozen=True, kw_only=True):
    """One file that went through the gate."""

    name: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Sha256
    quantization_type: str
    """What the file says it is, as llama.cpp spells it; "" when it says nothing."""
    tensor_types: dict[str, int] = {}
    """Quantization types really present → number of tensors."""
    bits_per_weight: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class QuantizationLoss(_Struct, frozen=True, kw_only=True):
    """What one quantization type costs, against the unquantized file on the gate's own text."""

    file: str
    parent: str
    text: str
    """What it was measured on: "English", "other languages"."""
    quantization_type: str
    bits_per_weight: Annotated[float, msgspec.Meta(ge=0)]
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    mean_kl_nats: float
    """Kullback-Leibler divergence from the parent's next-token probabilities, mean over positions."""
    mean_kl_uncertainty_nats: float
    """Standard error of the mean."""
    percentile_99_kl_nats: float
    highest_kl_nats: float
    """Of the worst token."""
    top1_share: Share
    """Positions where both files think the same token most probable."""
    parent_perplexity: float
    perplexity: float
    scored_tokens: Annotated[int, msgspec.Meta(ge=0)]


class AppliedAdapter(_Struct, frozen=True, kw_only=True):
    """An adapter that was merged into the base model before the files were compared with it."""

    name: str
    weight: float = 1.0


class CheckReport(_Struct, frozen=True, kw_only=True):
    """All that the gate found."""

    schema_version: Literal[1] = 1
    edgemed_version: str
    model: str
    """Name of the model's folder."""
    model_sha256: Sha256
    """Fingerprint of the model folder's weights and config."""
    adapters: list[AppliedAdapter] = []
    files: list[CheckedFile]
    results: list[CheckResult]
    quantization_losses: list[QuantizationLoss] = []

    @property
    def passed(self) -> bool:
        """Whether no check failed; what did not run is in `not_run`."""
        return all(result.status != "failed" for result in self.results)

    @property
    def not_run(self) -> list[CheckResult]:
        """Return the checks that could not run here: what they prove is not proved."""
        return [result for result in self.results if result.status == "not_run"]

    def failures(self, file: str | None = None) -> list[CheckResult]:
        """Return the failed checks, of one file or of all."""
        return [
            result for result in self.results if result.status == "failed" and file in (None, result.file)
        ]


def read_check_report(path: Path) -> CheckReport:
    """Read and check a report.

    Raises:
        ModelCorrupt: the file cannot be read, is no JSON, or breaks the schema.
    """
    hint = "Run edgemed-convert check again."
    try:
        return msgspec.json.decode(path.read_bytes(), type=CheckReport)
    except OSError as error:
        raise ModelCorrupt(f"The check report {path} cannot be read: {error.strerror}", hint=hint) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelCorrupt(f"The check report {path} is not valid: {error}", hint=hint) from error


def encode_check_report(report: CheckReport) -> bytes:
    """Return the report as readable UTF-8 JSON."""
    # The version is written even where it is the default: later readers decide by it.
    fields = {"schema_version": report.schema_version, **msgspec.to_builtins(report)}
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"
