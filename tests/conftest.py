"""For every test: a data folder of its own, and no network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemed.offline import forbid_sockets
from tests.loopback import loopback_only

# For the whole session, but for the tests that ask for `loopback`.
_guards = [forbid_sockets()]


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the test's own data folder, which does not exist yet."""
    folder = tmp_path / "edgemed-home"
    monkeypatch.setenv("EDGEMED_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def loopback() -> Iterator[None]:
    """Allow a server on this computer's loopback; everything else stays forbidden."""
    with loopback_only():
        _guards.pop().stop()
        try:
            yield
        finally:
            _guards.append(forbid_sockets())
