"""Install the kit's packs and trust its root.json, through the edgemed that was just built."""

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app_build import clean_environment
from operating_system import sharing_lock
from places import Places, python_of
from talk import Talk, megabytes

from edgemed.errors import EdgemedError
from edgemed.kit_list import REFERENCE_KINDS, plain
from edgemed.kit_stick import Kit

ROOT = "root.json"
_WORKER = Path(__file__).with_name("pack_worker.py").read_text(encoding="utf-8")
"""Read at once: the stick may be pulled later."""


class PackRefused(EdgemedError):
    """The installed edgemed did not take a pack; it keeps that error's exit code."""

    def __init__(self, message: str, *, hint: str, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Worker:
    """Runs `pack_worker.py` with the Python of an installed version."""

    version: Path
    lock: int

    def ask(self, order: dict[str, Any], progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Give one order and return the answer.

        Raises:
            PackRefused: edgemed's own error, or that it ended without an answer.
        """
        # Files, not pipes: neither side ever waits for the other.
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as complaint:
            given.write(json.dumps(order).encode("ascii"))
            given.seek(0)
            process = subprocess.Popen(
                [str(python_of(self.version)), "-I", "-c", _WORKER],
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=complaint,
                env=clean_environment(),
                **sharing_lock(self.lock),
            )
            with process:
                try:
                    answer = _answer(process, progress)
                except BaseException:
                    # Also Ctrl+C: nothing goes on behind the person's back.
                    process.kill()
                    raise
            if answer:
                return answer
            complaint.seek(0)
            words = complaint.read().decode("utf-8", "replace").strip().splitlines()
        raise PackRefused(
            f"The new edgemed could not be asked: {plain(words[-1]) if words else 'it ended without a word'}",
            hint="Start again; if it fails again, send this line to your IT staff.",
            exit_code=EdgemedError.exit_code,
        )


def _answer(process: "subprocess.Popen[bytes]", progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Read what the worker says; nothing if it ended without an answer."""
    answer: dict[str, Any] = {}
    for line in process.stdout or ():
        said = _decoded(line)
        if "done_bytes" in said:
            progress(said["done_bytes"], said["total_bytes"])
        elif "error" in said:
            raise PackRefused(plain(said["error"]), hint=plain(said["hint"]), exit_code=said["exit_code"])
        else:
            answer = said or answer
    return answer


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


@dataclass(frozen=True)
class ToUse:
    """What should be in use from now on."""

    model: str | None
    """None: no change."""
    references: list[str]
    """Libraries and rule sets."""


def install_packs(kit: Kit, worker: Worker, places: Places, talk: Talk) -> ToUse:
    """Install all packs, models first; return what should be used from now on.

    Raises:
        PackRefused: names the file or the pack.
    """
    names = {}
    for pack in kit.listed.packs:
        kind = "rule set" if pack.kind == "rules" else pack.kind
        number = "" if pack.version is None else f" version {pack.version}"
        talk.say(f"      {kind} {pack.name}{number}, {megabytes(pack.size_bytes)}")
        order: dict[str, Any] = {
            "do": "install_reference" if pack.kind in REFERENCE_KINDS else "install",
            "name": pack.name,
            "version": pack.version,
            "sha256": pack.sha256,
            "folder": str(kit.path(pack.folder)),
        }
        if pack.is_cut:
            order["join_in"] = str(places.joining(pack.sha256))
            order["files"] = [
                {
                    "name": file.name,
                    "sha256": file.sha256,
                    "pieces": [[str(kit.path(one.path)), one.size_bytes, one.sha256] for one in file.pieces],
                }
                for file in pack.files
            ]
        names[pack.name] = worker.ask(order, talk.progress)["installed"]
    references = [names[pack.name] for pack in kit.listed.packs if pack.kind in REFERENCE_KINDS]
    models = [pack.name for pack in kit.listed.packs if pack.kind == "model"]
    if not models:
        return ToUse(None, references)
    order = {"do": "choose", "names": {name: names[name] for name in models}}
    return ToUse(worker.ask(order, talk.progress)["chosen"], references)


def use_packs(to_use: ToUse, worker: Worker, talk: Talk) -> None:
    """Use the kit's model, libraries and rule sets from now on.

    Raises:
        PackRefused: the settings cannot be changed.
    """
    if to_use.model is not None:
        worker.ask({"do": "use", "name": to_use.model}, talk.progress)
    if to_use.references:
        worker.ask({"do": "use_references", "names": to_use.references}, talk.progress)


def check_references(worker: Worker) -> int:
    """Compare every byte of the installed libraries and rule sets; return how many there are.

    Raises:
        PackRefused: names the file that is damaged or missing.
    """
    return int(worker.ask({"do": "check_references"}, lambda _done, _all: None)["checked"])


def trust_root(kit: Kit, worker: Worker, talk: Talk) -> None:
    """Trust the kit's root.json for updates, if it has one and the kit is signed."""
    if ROOT not in kit.sums:
        return
    if kit.key is None:
        talk.say("      root.json is not trusted: this kit is not signed.")
        return
    order = {"do": "trust", "root": str(kit.path(ROOT)), "sha256": kit.sums[ROOT]}
    note = worker.ask(order, talk.progress)["note"]
    if note:
        talk.say(f"      {plain(note)}")
