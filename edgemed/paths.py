"""Where edgemed keeps its files: one data folder, `$EDGEMED_HOME` or the system's place for user data."""

import os
from pathlib import Path

import platformdirs


def data_folder() -> Path:
    """Return the data folder's path; it need not exist yet."""
    home = os.environ.get("EDGEMED_HOME")
    if home:
        return Path(home)
    return Path(platformdirs.user_data_dir("edgemed", appauthor=False))


def models_folder() -> Path:
    """Installed models, one folder each."""
    return data_folder() / "models"


def reference_packs_folder() -> Path:
    """Installed libraries and rule sets, one folder for each version (see `reference_packs.py`)."""
    return data_folder() / "reference_packs"


def downloads_folder() -> Path:
    """Unfinished downloads of `edgemed models fetch`; may be deleted while none runs."""
    return data_folder() / "downloads"


def updates_folder() -> Path:
    """What `edgemed update` trusts, remembers and has not finished copying."""
    return data_folder() / "updates"


def kit_key_file() -> Path:
    """The key that signed the kit that edgemed was installed from; the installer keeps it."""
    return data_folder() / "app" / "edgemed.pub"


def prefix_states_folder() -> Path:
    """Saved prefix states (see `engine/prefix_state.py`); may be deleted at any time."""
    return data_folder() / "prefix_states"


def kernels_file() -> Path:
    """What `engine/kernels.py` remembers; may be deleted at any time."""
    return data_folder() / "engine_kernels.json"


def logs_folder() -> Path:
    """Log files; never the text of a question or an answer."""
    return data_folder() / "logs"


def settings_file() -> Path:
    """The settings, in TOML."""
    return data_folder() / "settings.toml"


def history_file() -> Path:
    """The SQLite file of saved conversations."""
    return data_folder() / "history.sqlite3"


def embedded_models_folder() -> Path:
    """Models that come inside the wheel, as packs."""
    return Path(__file__).parent / "data"
