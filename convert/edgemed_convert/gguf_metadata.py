"""GGUF metadata from plain values: an int becomes a uint32, a float a float32, a list an array."""

from collections.abc import Mapping
from typing import Any

import gguf


def add_metadata(writer: gguf.GGUFWriter, fields: Mapping[str, Any]) -> None:
    """Add keys and values to a file that is not yet written. Empty texts and lists are left out."""
    for key, value in fields.items():
        # bool before int: Python's bool is an int.
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            raise TypeError(f"{key} has a value of type {type(value).__name__}")
