"""For every test: a data folder of its own, and no network."""

from pathlib import Path

import pytest

from edgemed.offline import forbid_sockets

# For the whole session: Python cannot remove an audit hook.
forbid_sockets()


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the test's own data folder, which does not exist yet."""
    folder = tmp_path / "edgemed-home"
    monkeypatch.setenv("EDGEMED_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder
