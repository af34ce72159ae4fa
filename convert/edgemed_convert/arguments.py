"""What users write on the command line, read with care: types, adapters with weights, names of models."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgemed.errors import UsageError
from edgemed.manifest import DataSource, Sampling
from edgemed_convert.quantization_types import parse_types

_WEIGHTED = re.compile(r"(?P<folder>..+):(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")


def read_types(text: str) -> list[str]:
    """Return llama.cpp's names of a list such as "F16,Q8_0,Q4_K_M".

    Raises:
        UsageError: the list is empty, or a type is unknown or named twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    found = parse_types(names)
    if len(found) < len(names):
        # `parse_types` takes Q4_K for Q4_K_M, so names are compared by what they stand for.
        meant = [parse_types([name])[0] for name in names]
        twice = next(name for name in meant if meant.count(name) > 1)
        raise UsageError(f"{twice} is named twice.", hint=f"--types {','.join(found)}")
    return found


def read_type(text: str, allowed: Sequence[str]) -> str:
    """Return the spelling of one of a few types.

    Raises:
        UsageError: it is none of them.
    """
    if text.upper() not in allowed:
        raise UsageError(
            f"{text!r} is no type for this.", hint=f"Take {', '.join(allowed[:-1])} or {allowed[-1]}."
        )
    return text.upper()


def read_adapter(text: str) -> tuple[Path, float]:
    """Return folder and weight of "DIR" or "DIR:0.5"; a folder that really has such a name is that folder.

    "C:0.5" is a path on a Windows drive, not a weight: no folder has a name of one letter and a colon.
    """
    weighted = _WEIGHTED.fullmatch(text)
    if weighted is None or Path(text).exists():
        return Path(text), 1.0
    return Path(weighted["folder"]), float(weighted["weight"])


def clean_name(text: str) -> str:
    """Return the nearest text that may be the name of a model, a folder and a file on every system."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:80].rstrip("._-")
    return name or "model"


def checked_name(name: str) -> str:
    """Return a model's name, or refuse it.

    Raises:
        UsageError: it has letters that not every system takes in a file's name, or is too long.
    """
    if name != clean_name(name):
        raise UsageError(
            f"{name!r} cannot be a model's name.",
            hint=f"Take letters, digits, dots, dashes: {clean_name(name)}",
        )
    return name


def read_tensor_types(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return pattern and tensor type of texts such as "ffn_down=Q8_0".

    Raises:
        UsageError: a text is not of that form.
    """
    pairs = []
    for text in texts:
        pattern, equals, type_name = text.rpartition("=")
        if not (pattern and equals and type_name.strip()):
            raise UsageError(
                f"{text!r} names no tensor type.", hint="For example: --tensor-type ffn_down=Q8_0"
            )
        pairs.append((pattern, type_name.strip()))
    return tuple(pairs)


def read_data(texts: Sequence[str]) -> tuple[DataSource, ...]:
    """Return the data sources of texts such as 'MedQuAD,abachaa/MedQuAD,CC BY 4.0'; quotes hold commas.

    Raises:
        UsageError: a text has not three fields.
    """
    sources = []
    for text in texts:
        fields = [field.strip() for field in next(csv.reader([text], skipinitialspace=True), [])]
        if len(fields) != 3 or not all(fields):
            raise UsageError(
                f"{text!r} is not NAME,SOURCE,LICENSE.",
                hint='Put what has commas in quotes: "A, B",source,CC BY 4.0',
            )
        name, source, licence = fields
        sources.append(DataSource(name=name, source=source, license=licence))
    return tuple(sources)


def read_sampling(text: str) -> Sampling:
    """Return the settings of a text such as "temperature=0.3,top_p=0.9".

    Raises:
        UsageError: a setting is unknown, no number, or out of its range.
    """
    fields: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = part.partition("=")
        fields[key.strip()] = value.strip()
    try:
        # From text: "0.3" becomes a number, and the manifest's own limits hold.
        return msgspec.convert(fields, Sampling, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"--sampling {text!r}: {error}.",
            hint=f"Settings: {', '.join(Sampling.__struct_fields__)}, each as NAME=NUMBER, with commas.",
        ) from error
