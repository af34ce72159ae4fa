"""The quantization types that llama.cpp offers, by its own names."""

import difflib
from collections.abc import Iterable, Sequence

from edgemed.errors import UsageError
from edgemed.ggml_types import FILE_TYPES, GGML_TYPES

UNQUANTIZED_TYPES = ("F32", "F16", "BF16")

# llama.cpp's name → the tensor type that it stands for: what most weights of such a file are.
QUANTIZATION_TYPES = {
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q5_1": "Q5_1",
    "Q5_0": "Q5_0",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q4_1": "Q4_1",
    "Q4_0": "Q4_0",
    "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS",
    "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K",
    "Q3_K_S": "Q3_K",
    "IQ3_M": "IQ3_S",
    "IQ3_S": "IQ3_S",
    "IQ3_XS": "IQ3_S",
    "IQ3_XXS": "IQ3_XXS",
    "Q2_K": "Q2_K",
    "Q2_K_S": "Q2_K",
    "IQ2_M": "IQ2_S",
    "IQ2_S": "IQ2_XS",
    "IQ2_XS": "IQ2_XS",
    "IQ2_XXS": "IQ2_XXS",
    "IQ1_M": "IQ1_M",
    "IQ1_S": "IQ1_S",
    "TQ2_0": "TQ2_0",
    "TQ1_0": "TQ1_0",
    "Q2_0": "Q2_0",
    "Q1_0": "Q1_0",
    "MXFP4_MOE": "MXFP4",
}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def parse_types(names: str | Sequence[str]) -> list[str]:
    """Return llama.cpp's spelling of quantization types, each once.

    Args:
        names: a list, or one text with commas; in capitals or not.

    Raises:
        UsageError: one is unknown.
    """
    wanted = names.split(",") if isinstance(names, str) else names
    found: dict[str, None] = {}
    for name in wanted:
        spelled = name.strip().upper()
        spelled = _ALIASES.get(spelled, spelled)
        if spelled not in QUANTIZATION_TYPES:
            raise _unknown_type(name.strip())
        found[spelled] = None
    if not found:
        raise UsageError("No quantization type is named.", hint="For example: --types Q8_0,Q4_K_M")
    return list(found)


def file_type_name(number: int) -> str:
    """Return llama.cpp's name for the number of a file's type (general.file_type)."""
    return FILE_TYPES.get(number, f"unknown type {number}")


def check_tensor_types(names: Iterable[str | None]) -> None:
    """Refuse a name that is no type of ggml's tensors; None stands for a choice that was not made.

    Raises:
        UsageError: one is unknown.
    """
    known = sorted(name for name, _, _ in GGML_TYPES.values())
    for name in names:
        if name is not None and name.upper() not in known:
            raise UsageError(f"There is no tensor type {name!r}.", hint=_nearest(name, known))


def _unknown_type(name: str) -> UsageError:
    return UsageError(
        f"There is no quantization type {name!r}.", hint=_nearest(name, list(QUANTIZATION_TYPES))
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.upper(), known, n=4, cutoff=0.4)
    return f"Did you mean {' or '.join(near)}?" if near else f"Types: {', '.join(known)}"
