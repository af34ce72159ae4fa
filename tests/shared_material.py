"""Where the optional test material lies: data and models that the project does not carry."""

import os
from pathlib import Path

import pytest


def shared_folder() -> Path | None:
    """Return the folder with the shared data and models, where there is one."""
    named = os.environ.get("EDGEMED_SHARED")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared"
    return folder if (folder / "README.md").is_file() else None


def shared_path(*parts: str) -> Path:
    """Return one file or folder of the shared material, or skip the test and say what is missing."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("needs the shared data folder beside the repository")
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the shared data folder")
    return path
