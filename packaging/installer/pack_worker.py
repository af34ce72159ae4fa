"""What the installer asks of the edgemed that it just built; runs with that one's Python, as a program.

Reads one order (JSON) from standard input; writes lines of JSON: progress, then one answer or one error.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SHOW_EVERY_SECONDS = 0.2


def main() -> int:
    """Do what standard input says; return the exit code."""
    from edgemed.errors import EdgemedError

    order = json.loads(sys.stdin.buffer.read())
    actions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]
    actions = {
        "install": _install,
        "install_reference": _install_reference,
        "check_references": _check_references,
        "choose": _choose,
        "use": _use,
        "use_references": _use_references,
        "trust": _trust,
    }
    try:
        _say(actions[order["do"]](order))
    except EdgemedError as error:
        _say({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})
        return error.exit_code
    return 0


def _install(order: dict[str, Any]) -> dict[str, Any]:
    """Install one pack as `edgemed models install` does; a cut one is put together first."""
    from edgemed import models
    from edgemed.errors import ModelCorrupt

    source, name = Path(order["folder"]), _free_name(order)
    joined = Path(order["join_in"]) if "join_in" in order else None
    if joined is not None and not _is_installed(name, order["sha256"]):
        _join(order["files"], joined)
        source = joined
    if joined is not None and source != joined:
        return {"installed": name}
    installed = models.install_model(source, name=name, move=joined is not None, progress=_Progress().show)
    if installed.manifest.sha256 != order["sha256"]:
        # The stick gave other bytes than those that were checked a moment before.
        models.remove_model(installed.name)
        raise ModelCorrupt(
            f"{order['folder']} changed while it was installed.",
            hint="Copy the kit again from where it came.",
        )
    if joined is not None:
        shutil.rmtree(joined, ignore_errors=True)
    return {"installed": installed.name}


def _install_reference(order: dict[str, Any]) -> dict[str, Any]:
    """Install one library or rule set beside its older versions; a cut one is put together first."""
    from edgemed import reference_packs

    there = reference_packs.find_sound(order["name"], order["version"], order["sha256"])
    if there is not None:
        return {"installed": there}
    source = Path(order["folder"])
    joined = Path(order["join_in"]) if "join_in" in order else None
    if joined is not None:
        _join(order["files"], joined)
        source = joined
    # The manifest names all files by their SHA-256: the stick may give other bytes than a moment before.
    installed = reference_packs.install_pack(
        source, manifest_sha256=order["sha256"], move=joined is not None, progress=_Progress().show
    )
    if joined is not None:
        shutil.rmtree(joined, ignore_errors=True)
    return {"installed": installed.name}


def _check_references(_order: dict[str, Any]) -> dict[str, Any]:
    """Read every byte of the installed libraries and rule sets."""
    from edgemed import reference_packs
    from edgemed.errors import ModelCorrupt

    found = reference_packs.list_packs()
    for damaged in found.damaged:
        raise ModelCorrupt(f"{damaged.name} is damaged: {damaged.problem}", hint="Install the kit again.")
    for pack in found.packs:
        reference_packs.verify_pack(pack, _Progress().show)
    return {"checked": len(found.packs)}


def _use_references(order: dict[str, Any]) -> dict[str, Any]:
    from edgemed import update_switch

    return {"removed": update_switch.use_kit_packs(order["names"])}


def _free_name(order: dict[str, Any]) -> str:
    """Return the pack's name, or one with its hash where another model has that name."""
    from edgemed import models

    for model in models.list_models().models:
        if model.name == order["name"] and model.manifest.sha256 != order["sha256"]:
            return f"{order['name'][:70]}-{order['sha256'][:8]}"
    return str(order["name"])


def _is_installed(name: str, sha256: str) -> bool:
    from edgemed import models

    return any(
        model.name == name and model.manifest.sha256 == sha256 for model in models.list_models().models
    )


def _join(files: list[dict[str, Any]], folder: Path) -> None:
    """Put the pieces together; what an interrupted run put together stays."""
    from edgemed.pieces import Piece, join

    folder.mkdir(parents=True, exist_ok=True)
    total_bytes = sum(size for file in files for _, size, _ in file["pieces"])
    progress, before_bytes = _Progress(), 0
    for file in files:
        pieces = [Piece(Path(path), size, sha256) for path, size, sha256 in file["pieces"]]

        def show(done_bytes: int, _file_bytes: int, before_bytes: int = before_bytes) -> None:
            progress.show(before_bytes + done_bytes, total_bytes)

        join(pieces, folder / file["name"], sha256=file["sha256"], progress=show)
        before_bytes += sum(piece.size_bytes for piece in pieces)


def _choose(order: dict[str, Any]) -> dict[str, Any]:
    """Name the model to use from now on: the chosen one's new version, or the largest that fits."""
    from edgemed import models
    from edgemed.settings import read_settings

    names: dict[str, str] = order["names"]
    chosen = read_settings()[0].model
    if chosen is not None:
        changed = names.get(chosen, chosen) != chosen
        return {"chosen": names[chosen] if changed else None}
    installed = [model for model in models.list_models().models if model.name in names.values()]
    by_size = sorted(installed, key=lambda model: model.manifest.size_bytes, reverse=True)
    return {"chosen": next((model.name for model in by_size if _fits(model)), None)}


def _use(order: dict[str, Any]) -> dict[str, Any]:
    from edgemed import models

    models.use_model(order["name"])
    return {"used": order["name"]}


def _fits(model: Any) -> bool:
    from edgemed import machine
    from edgemed.engine.memory import memory_need
    from edgemed.session import DEFAULT_CONTEXT_LENGTH

    length = min(model.manifest.context_length, DEFAULT_CONTEXT_LENGTH)
    need = memory_need(model.manifest.shape, model.manifest.size_bytes, length).total_bytes
    return bool(need <= machine.available_memory_bytes())


def _trust(order: dict[str, Any]) -> dict[str, Any]:
    """Trust the kit's root for updates; another one that is trusted stays."""
    from edgemed import update_record
    from edgemed.errors import UpdateRefused, UsageError

    path = Path(order["root"])
    try:
        root = update_record.examine_root(path)
    except UsageError as error:
        return {"note": error.message}
    if hashlib.sha256(root.data).hexdigest() != order["sha256"]:
        raise UpdateRefused(
            f"{path} changed while it was installed.", hint="Copy the kit again from where it came."
        )
    if not root.trusted:
        update_record.trust_root(root)
    return {"note": ""}


class _Progress:
    """Says how far a copy is, not too often."""

    def __init__(self) -> None:
        self._said_at = 0.0

    def show(self, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if now - self._said_at >= _SHOW_EVERY_SECONDS:
            self._said_at = now
            _say({"done_bytes": done_bytes, "total_bytes": total_bytes})


def _say(words: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
