"""From results to what JSON can hold: named tuples become objects, and keys of several parts one text."""

import datetime
from pathlib import Path
from typing import Any

import msgspec


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {
            " ".join(filter(None, key)) if isinstance(key, tuple) else str(key): plain(part)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if isinstance(value, datetime.date | Path):
        return str(value)
    return value
