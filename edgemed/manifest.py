"""The model manifest: what one pack holds, as read by machines.

Written by `edgemed models install` and `edgemed-convert pack`; read by all that loads a model.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgemed.errors import ModelCorrupt
from edgemed.languages import text as _

MANIFEST_NAME = "manifest.json"
MODEL_CARD_NAME = "MODEL_CARD.md"
REFERENCE_LOGITS_NAME = "reference_logits.bin"
"""See `reference_logits.py`."""

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}$"
FileName = Annotated[str, msgspec.Meta(pattern=FILE_NAME)]
PlainText = Annotated[
    str,
    msgspec.Meta(pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]*$", max_length=10_000),
]
"""Text that is shown to people: without anything that a terminal would obey."""
ModelName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,80}$")]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Strict and immutable: an unknown field is an error, not a silent loss."""


class ModelFile(_Struct, frozen=True, kw_only=True):
    """One file of the pack."""

    name: FileName
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Sha256


class DataSource(_Struct, frozen=True, kw_only=True):
    """Data the model was trained on, named as its licence asks."""

    name: PlainText
    source: PlainText
    license: PlainText


class Sampling(_Struct, frozen=True, kw_only=True):
    """How the model's makers say tokens should be chosen."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.3
    """0 always takes the most probable token."""
    top_k: Annotated[int, msgspec.Meta(ge=0)] = 40
    """0 means no limit."""
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=5)] = 1.0
    """1 means none; looks at the last 64 tokens."""


class MergedAdapter(_Struct, frozen=True, kw_only=True):
    """An adapter that was merged into the base model."""

    name: PlainText
    sha256: Sha256 | None = None
    """Over its files, as edgemed-convert takes it; None when the file does not carry it."""
    weight: float = 1.0
    """How much of it was merged; 1 is what was trained."""


class CheckSummary(_Struct, frozen=True, kw_only=True):
    """What the gate of edgemed-convert found in this file; the pack's check report has all of it."""

    report_sha256: Sha256
    passed: Annotated[int, msgspec.Meta(ge=0)]
    """Number of checks."""
    failed: Annotated[int, msgspec.Meta(ge=0)] = 0
    not_run: list[PlainText] = []
    """Names of the checks that could not run: what they prove is not proved."""
    mean_kl_nats: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """What quantizing cost, against the unquantized file on the gate's own text."""
    top1_share: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class ModelShape(_Struct, frozen=True, kw_only=True):
    """The numbers that decide how much memory a model needs."""

    architecture: PlainText
    parameters: Annotated[int, msgspec.Meta(ge=0)]
    block_count: Annotated[int, msgspec.Meta(ge=0)]
    embedding_length: Annotated[int, msgspec.Meta(ge=0)]
    feed_forward_length: Annotated[int, msgspec.Meta(ge=0)]
    vocabulary_size: Annotated[int, msgspec.Meta(ge=0)]
    kv_bytes_per_token: Annotated[int, msgspec.Meta(ge=0)]
    """Bytes of KV cache one token needs in F16, all layers together."""


class ModelManifest(_Struct, frozen=True, kw_only=True):
    """What one model pack holds.

    `files` lists the GGUF file, or the shards of a split one in order; llama.cpp opens the first.
    """

    schema_version: Literal[1] = 1
    kind: Literal["model", "adapter"] = "model"
    name: ModelName
    files: Annotated[list[ModelFile], msgspec.Meta(min_length=1)]
    shape: ModelShape
    tensor_types: dict[str, int]
    """Quantization types really present in the file → number of tensors, as llama.cpp spells them."""
    context_length: Annotated[int, msgspec.Meta(ge=1)]
    """Tokens the model was trained to attend to."""
    license: PlainText | None = None
    source: PlainText | None = None
    """Address of the file as it was fetched, with the commit."""
    base_model: PlainText | None = None
    base_sha256: Sha256 | None = None
    """Of an adapter: the first file of the base model it belongs to."""
    data: list[DataSource] = []
    quantization_type: PlainText | None = None
    """What the file calls itself, such as Q4_K_M."""
    base_fingerprint: Sha256 | None = None
    """Of the base model's weights and config, as edgemed-convert takes it."""
    adapters: list[MergedAdapter] = []
    """Merged into the base model, in order."""
    recipe_sha256: Sha256 | None = None
    """Of the training recipe's file."""
    dataset_sha256: Sha256 | None = None
    """Of the dataset card's file."""
    check: CheckSummary | None = None
    unchecked: bool = False
    """Packed although a check failed or none was made; said wherever the model is shown."""
    reference_logits_sha256: Sha256 | None = None
    """Of the pack's reference logits; None when it has none."""
    chat_template: str | None = None
    """Used when the GGUF carries none."""
    system_prompt: str | None = None
    """None: the application's own (`prompts.SYSTEM_PROMPT`); "": the model was trained without one."""
    sampling: Sampling = Sampling()
    notice: PlainText | None = None
    """Words that must stand beside everything the model writes."""

    @property
    def sha256(self) -> str:
        """Return the SHA-256 that names this model: that of its first file."""
        return self.files[0].sha256

    @property
    def size_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(file.size_bytes for file in self.files)


def read_manifest(path: Path) -> ModelManifest:
    """Read and check a manifest.

    Raises:
        ModelCorrupt: the file cannot be read, is no JSON, or breaks the schema.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ModelManifest)
    except OSError as error:
        raise ModelCorrupt(
            _("The manifest {path} cannot be read: {reason}", path=path, reason=error.strerror),
            hint=_("Copy the model from the kit again."),
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelCorrupt(
            _("The manifest {path} is not valid: {error}", path=path, error=error),
            hint=_("Copy the model from the kit again."),
        ) from error


def encode_manifest(manifest: ModelManifest) -> bytes:
    """Return the manifest as readable UTF-8 JSON."""
    # The version and the kind are written even where they are the default: later readers decide by them.
    fields = {
        "schema_version": manifest.schema_version,
        "kind": manifest.kind,
        **msgspec.to_builtins(manifest),
    }
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"
