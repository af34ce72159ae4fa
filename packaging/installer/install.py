"""Install edgemed from this stick. On Linux: sh install.sh; on Windows: install.cmd.

Every Python 3 can read this file, so that one which is too old says what is missing.
"""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 - whoever starts this may have any Python
    sys.stderr.write(
        "error: edgemed needs Python 3.11 or newer; this is Python %d.%d.\n"  # noqa: UP031 - as above
        "hint: Start it with: sh install.sh (it looks for a newer one and says where to get it).\n"
        % sys.version_info[:2]
    )
    sys.exit(1)

# From here on this is Python 3.11. The stick stays as it is: no compiled files beside the modules.
sys.dont_write_bytecode = True
_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - before anything else is loaded
if _HERE not in sys.path:
    # Isolated mode, and the Python that a Windows kit carries, leave it out.
    sys.path.insert(0, _HERE)


def _damaged_module() -> str:
    """Return the path of an own module that is not as SHA256SUMS has it; nothing if all are.

    Only against accidents, so that no damaged code runs: the signature is checked by that code.
    """
    import hashlib
    from pathlib import Path

    kit = Path(_HERE).parent
    try:
        lines = (kit / "SHA256SUMS").read_bytes().decode("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        # The stick has none, or a damaged one; `stick.py` says so.
        return ""
    for sha256, _, path in (line.partition(" *") for line in lines):
        if path.startswith("install/") and path.endswith(".py"):
            try:
                data = (kit / path).read_bytes()
            except (OSError, ValueError):
                return path
            if hashlib.sha256(data).hexdigest() != sha256:
                return path
    return ""


if __name__ == "__main__":
    damaged = _damaged_module()
    if damaged:
        sys.exit(f"error: {damaged} is damaged or missing.\nhint: Copy the kit again from where it came.")
    try:
        from command_line import main
    except (ImportError, OSError) as error:
        sys.exit(f"error: The installer cannot be read: {error}.\nhint: Is the stick connected? Start again.")
    sys.exit(main())
