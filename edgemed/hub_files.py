"""Which files of a published repository make one model, and which model is meant.

Pure choice by file names: nothing here knows a network. Called by `hub.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgemed.errors import ModelCorrupt, ModelNotFound, UsageError
from edgemed.gguf_header import shard_name
from edgemed.languages import text as _

_QUANTIZATION_TYPE = re.compile(
    # The "UD-" of some publishers tells two files of one type apart.
    r"(?<![A-Za-z0-9])((?:UD-)?"
    r"(?:I?Q\d(?:_(?:\d+|K|NL|XXS|XS|S|M|L|XL))+|TQ\d_\d|BF16|F16|FP16|F32|FP32|MXFP4(?:_MOE)?|NVFP4))"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_SHARD = re.compile(r"^(.+)-(\d{5})-of-(\d{5})\.gguf$")
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
"""GGUF files that lie beside models: picture readers, and what quantizing was steered by."""
_MOST_SHOWN = 30


@dataclass(frozen=True)
class HubFile:
    """One file of a repository."""

    path: str
    size_bytes: int
    sha256: str | None
    """What Git LFS knows it by; None: kept in Git itself, whose hash is another one."""


@dataclass(frozen=True)
class HubModel:
    """One GGUF file, or the shards of a split one in order."""

    stem: str
    """The file's name without folder, shard number and ending."""
    quantization_type: str | None
    """As the name says it, in capitals."""
    files: list[HubFile]

    @property
    def size_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def hashes(self) -> list[str]:
        """Return the SHA-256 of each file; empty for one that has none."""
        return [file.sha256 or "" for file in self.files]


def choose_model(
    files: Sequence[HubFile], repository: str, *, quantization_type: str | None, path: str | None
) -> HubModel:
    """Return the one model that is meant.

    Args:
        path: of the file in the repository; of a split model, that of any shard.

    Raises:
        ModelNotFound: the repository has no GGUF file, or none of this type or path.
        UsageError: several are possible; the hint names them.
        ModelCorrupt: a shard is not there, or a file has no SHA-256 to check it by.
    """
    models = _models(files)
    if not models:
        raise ModelNotFound(
            _("The repository {repository} holds no GGUF file.", repository=repository),
            hint=_(
                "Look for one that does; the name often ends in -GGUF. "
                "edgemed-convert makes GGUF files of others."
            ),
        )
    if path is not None:
        wanted = [model for model in models if any(file.path == path for file in model.files)]
    else:
        wanted = [model for model in models if not _NO_MODEL.search(model.stem)]
        if quantization_type is not None:
            wanted = [model for model in wanted if model.quantization_type == quantization_type.upper()]
    if not wanted:
        raise ModelNotFound(
            _("{repository} has no GGUF file {what}.", repository=repository, what=path or quantization_type),
            hint=_("It has: {choices}", choices=_choices(models)),
        )
    if len(wanted) > 1:
        raise _not_clear(wanted, repository)
    _check_whole(wanted[0])
    return wanted[0]


def _models(files: Sequence[HubFile]) -> list[HubModel]:
    shards: dict[tuple[str, str], list[HubFile]] = {}
    for file in files:
        if not file.path.endswith(".gguf") or not file.path.isprintable():
            continue
        split = _SHARD.match(file.path)
        key = (split[1], split[3]) if split else (file.path.removesuffix(".gguf"), "")
        shards.setdefault(key, []).append(file)
    return [
        HubModel(
            stem=prefix.rpartition("/")[2],
            quantization_type=_quantization_type(prefix),
            files=sorted(group, key=lambda file: file.path),
        )
        for (prefix, _count), group in sorted(shards.items())
    ]


def _quantization_type(path: str) -> str | None:
    """The file's own name counts before its folders', and the last mention before others."""
    for part in reversed(path.split("/")):
        found = _QUANTIZATION_TYPE.findall(part)
        if found:
            return str(found[-1]).upper()
    return None


def _not_clear(wanted: Sequence[HubModel], repository: str) -> UsageError:
    types = [model.quantization_type for model in wanted]
    by_type = None not in types and len(set(types)) == len(types)
    how = "--quant TYPE" if by_type else "--file PATH"
    return UsageError(
        _("{repository} has {count} models.", repository=repository, count=len(wanted)),
        hint=_("Choose one with {how}: {choices}", how=how, choices=_choices(wanted, by_type=by_type)),
    )


def _choices(models: Sequence[HubModel], *, by_type: bool = False) -> str:
    shown = [
        f"{model.quantization_type if by_type else model.files[0].path} ({model.size_bytes / 1e9:.2f} GB)"
        for model in sorted(models, key=lambda model: model.size_bytes)[:_MOST_SHOWN]
    ]
    more = f" and {len(models) - _MOST_SHOWN} more" if len(models) > _MOST_SHOWN else ""
    return ", ".join(shown) + more


def _check_whole(model: HubModel) -> None:
    split = _SHARD.match(model.files[0].path)
    if split:
        names = [shard_name(split[1], number, int(split[3])) for number in range(1, int(split[3]) + 1)]
        missing = sorted(set(names) - {file.path for file in model.files})
        if missing:
            raise ModelCorrupt(
                _("{name} is missing in the repository.", name=missing[0]),
                hint=_("Take another file, or tell the publisher."),
            )
    for file in model.files:
        if file.sha256 is None or not file.size_bytes:
            raise ModelCorrupt(
                _("The hub has no SHA-256 of {path}, so it could not be checked.", path=file.path),
                hint=_(
                    "Download it yourself, compare it with its source, then `edgemed models install FILE`."
                ),
            )
