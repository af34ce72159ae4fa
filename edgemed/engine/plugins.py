"""llama.cpp's CPU plug-ins: a portable wheel has one for each family of processors, and here one is chosen.

A wheel that was built on the machine itself has none: its library holds the only CPU code there is. Called by
the processes that own llama.cpp, before they load a model.
"""

import ctypes
from pathlib import Path
from typing import Any

_PATTERNS = ("libggml-cpu-*.so", "ggml-cpu-*.dll", "libggml-cpu-*.dylib")


def plugin_files(folder: Path) -> list[Path]:
    """Return the CPU plug-ins in the folder of llama.cpp's libraries; empty for a wheel without any."""
    return sorted(file for pattern in _PATTERNS for file in folder.glob(pattern))


def load_best_plugin(libggml: Any, folder: Path) -> None:
    """Load the plug-in that suits this processor best, where the wheel has plug-ins; once in a process.

    Args:
        libggml: the loaded ggml library.
        folder: where llama.cpp's libraries lie.
    """
    if not _loaded_from and plugin_files(folder):
        _loaded_from.append(folder)
        load = libggml.ggml_backend_load_all_from_path
        load.argtypes, load.restype = [ctypes.c_char_p], None
        load(str(folder).encode())


_loaded_from: list[Path] = []
"""llama.cpp would list a plug-in twice that is loaded twice."""
