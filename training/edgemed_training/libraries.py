"""The heavy libraries: made offline before their first import, and named plainly where one is missing.

Called before torch, transformers, peft or bitsandbytes are imported for the first time in a process.
"""

import importlib.util
import logging
import os

from edgemed.errors import MissingExtra

OFFLINE_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_NEEDED = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors")


def prepare_libraries(*names: str) -> None:
    """Make the libraries offline and quiet, and check that they are installed.

    Args:
        names: what the caller is about to import; all of them when none is named.

    Raises:
        MissingExtra: one is not installed.
    """
    os.environ.update(OFFLINE_VARIABLES)
    missing = [name for name in names or _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"Training needs {', '.join(missing)}, which is not installed here.",
            hint="pip install 'edgemed[train]'",
        )
    # bitsandbytes tells at import that it could not fetch a kernel from the network.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if "transformers" in (names or _NEEDED):
        _quieten_transformers()


def _quieten_transformers() -> None:
    """Leave the words to us: the log, the progress lines and the errors."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
