"""Whether a file is of the quantization type that it and its name claim. Called by `gate.py`."""

import re
from math import prod

import gguf

from edgemed.check_report import CheckResult, CheckStatus
from edgemed_convert.check.gguf_file import GGUFFile

_LABEL = re.compile(
    r"(?<![A-Za-z0-9])(I?Q\d\w*|TQ\d\w*|MXFP4\w*|NVFP4|BF16|F16|F32)(?![A-Za-z0-9])", re.IGNORECASE
)
# What a type is allowed to leave as it is: small vectors, rows that fit no block.
_ALWAYS = {"F32"}
_MIXTURES = {
    "IQ2_S": "IQ2_XS",
    "IQ2_M": "IQ2_S",
    "IQ3_XS": "IQ3_S",
    "IQ3_M": "IQ3_S",
    "MXFP4_MOE": "MXFP4",
}
# Not in the gguf package yet.
_NEWER_LABELS = {41: "Q2_0"}
_FALLBACKS: dict[str, set[str]] = {"F16": {"F32"}, "BF16": {"F32"}, "F32": set(), "Q8_0": {"F32", "F16"}}


def type_of_label(label: str) -> str:
    """Return llama.cpp's type of most weights under a label: Q4_K of Q4_K_M, IQ3_S of IQ3_M."""
    return _MIXTURES.get(label) or re.sub(r"(_K)_[SML]$", r"\1", label)


def label_of(file: GGUFFile) -> str:
    """Return what a file says it is, such as Q4_K_M; "" when it says nothing known."""
    number = file.metadata.get("general.file_type")
    if not isinstance(number, int):
        return ""
    if number in _NEWER_LABELS:
        return _NEWER_LABELS[number]
    try:
        name = gguf.LlamaFileType(number).name
    except ValueError:
        return ""
    return str(name.removeprefix("MOSTLY_").removeprefix("ALL_"))


def check_label(file: GGUFFile) -> CheckResult:
    """Compare the types present with the claim of `general.file_type` and of the file's name."""
    label = label_of(file)
    present = file.tensor_types
    claimed = type_of_label(label)
    share = _share(file, claimed)
    named = _LABEL.findall(file.path.stem)
    faults = []
    if not label:
        faults.append(f"general.file_type is {file.metadata.get('general.file_type')}: no known type")
    elif claimed not in present:
        faults.append(f"the file says {label}, but holds no {claimed} tensor: {_listed(present)}")
    others = set(present) - _ALWAYS - {claimed} - _FALLBACKS.get(label, set(present))
    if label and others:
        faults.append(f"the file says {label}, but holds {', '.join(sorted(others))} tensors")
    if label and named and named[-1].upper() != label:
        faults.append(f"the file's name says {named[-1]}, the file itself {label}")
    status: CheckStatus = "failed" if faults else "passed"
    return CheckResult(
        name="types",
        file=file.path.name,
        status=status,
        sentence=faults[0] + "."
        if faults
        else f"{share:.0%} of the weights are {claimed}: {_listed(present)}.",
        numbers={"share_of_claimed_type": share, "bits_per_weight": file.bits_per_weight},
        limit="the claimed type is present; the file's name agrees",
        details=faults,
    )


def _share(file: GGUFFile, type_name: str) -> float:
    weights = sum(prod(tensor.shape) for tensor in file.tensors)
    of_type = sum(prod(tensor.shape) for tensor in file.tensors if tensor.type_name == type_name)
    return of_type / weights if weights else 0.0


def _listed(present: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in present.items())
