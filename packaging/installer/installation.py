"""Install a kit, from the first look at the stick to the first answer of the model."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from app_build import build, find_whole, name_of
from fitness import TargetPython, check_space, choose_python
from operating_system import (
    check_holds_programs,
    data_folder,
    home_folder,
    locked,
    refuse_sudo,
)
from packs import Worker, install_packs, trust_root, use_packs
from places import Places, link_for_user, make_folder, write_atomically, write_starter
from talk import Talk, in_words, megabytes
from trial import Answer, ask, look_at_computer

from edgemed.errors import EdgemedError, UsageError
from edgemed.kit_stick import Kit, check_whole, find_key, open_kit

LOCK_NAME = ".lock"
STEPS = 6


@dataclass(frozen=True)
class Choices:
    """What the command line says about the kit."""

    folder: Path
    """The kit's."""
    key: str | None = None
    allow_unsigned: bool = False
    yes: bool = False


def look_at_kit(choices: Choices, places: Places | None, talk: Talk) -> Kit:
    """Check the signature of the kit's list and show whose it is.

    Raises:
        EdgemedError: the kit is not what was signed, or no kit at all.
    """
    trusted = places.trusted_key if places else None
    key = find_key(choices.folder, choices.key, trusted)
    kit = open_kit(choices.folder, key, allow_unsigned=choices.allow_unsigned)
    talk.say(f"      edgemed {kit.listed.version} for {kit.listed.platform}, {megabytes(_size(kit))}")
    if kit.key is None:
        talk.say("      THIS KIT IS NOT SIGNED. Nobody vouches for it. It is for trials, not for clinics.")
    else:
        talk.say(f"      signed with the key {kit.key.fingerprint}")
        talk.say(f"      {kit.key.line}")
    return kit


def _size(kit: Kit) -> int:
    return sum(kit.listed.sizes.values())


def install(choices: Choices) -> str:
    """Install the kit and return the closing words.

    Raises:
        EdgemedError: what was in use before still is.
    """
    started_at = time.monotonic()
    refuse_sudo()
    talk = Talk(STEPS)
    places = Places(data_folder())
    _refuse_second(places)
    talk.step("Looking at the kit and at this computer")
    kit = look_at_kit(choices, places, talk)
    python = choose_python(kit)
    name = name_of(kit, python)
    check_space(kit, places, python.version, version_is_there=(places.versions / name).is_dir())
    _ask_for_key(kit, choices, places, talk)
    talk.step("Checking every file of the kit")
    check_whole(kit, talk.progress)
    make_folder(places.app)
    with locked(places.app / LOCK_NAME) as lock:
        return _install(kit, python, places, lock, talk, started_at)


def _refuse_second(places: Places) -> None:
    """Say at once that another installation runs, not after the stick was read for minutes."""
    if (places.app / LOCK_NAME).is_file():
        with locked(places.app / LOCK_NAME):
            pass


def _ask_for_key(kit: Kit, choices: Choices, places: Places, talk: Talk) -> None:
    """The first kit cannot prove itself: a person compares its key with the one on paper."""
    if choices.yes or (kit.key is not None and (choices.key or places.trusted_key.is_file())):
        return
    question = "      Is this the key that headquarters gave you?"
    if kit.key is None:
        question = "      Install it all the same?"
    if not talk.agreed(question):
        raise UsageError(
            "The kit was not installed: its key was not confirmed.",
            hint="Ask the people who made the kit. Nothing was changed on this computer.",
        )


def _install(kit: Kit, python: TargetPython, places: Places, lock: int, talk: Talk, started_at: float) -> str:
    places.clean(keep=[places.joining(pack.sha256) for pack in kit.listed.packs])
    check_holds_programs(places.app)
    talk.step("Installing the program")
    name = find_whole(places, name_of(kit, python))
    if name is None:
        name = build(kit, python, places, lock, talk)
    else:
        talk.say("      This version is installed already, and whole.")
    worker = Worker(places.versions / name, lock)
    talk.step(f"Installing the models and libraries on the stick: {len(kit.listed.packs) or 'none'}")
    to_use = install_packs(kit, worker, places, talk)
    trust_root(kit, worker, talk)
    talk.step("Checking this computer")
    look_at_computer(places.versions / name, lock, talk)
    talk.step("Asking the model one question (a large one takes minutes on an old computer)")
    answer = _tried(places, name, lock, to_use.model)
    use_packs(to_use, worker, talk)
    start = _put_into_use(kit, places, name)
    places.delete_unused()
    return _closing_words(kit, answer, start, time.monotonic() - started_at)


def _tried(places: Places, name: str, lock: int, model: str | None) -> Answer:
    """Return the answer; a version that does not answer takes no working one's place."""
    old = places.current()
    try:
        return ask(places.versions / name, lock, model)
    except EdgemedError as error:
        if old not in (None, name):
            error.hint = f"edgemed {old} stays in use. {error.hint}"
        else:
            # There is nothing better, and with it the doctor can be asked.
            _put_into_use(None, places, name)
            error.hint = f"It is installed all the same. {places.starter} doctor looks for the cause."
        raise


def _put_into_use(kit: Kit | None, places: Places, name: str) -> list[str]:
    """Write the starter, then the pointer; return how the user starts it."""
    write_starter(places, own_home=bool(os.environ.get("EDGEMED_HOME")), version=places.versions / name)
    if kit is not None and kit.key is not None:
        text = f"untrusted comment: minisign public key {kit.key.fingerprint}\n{kit.key.line}\n"
        write_atomically(places.trusted_key, text.encode("ascii"))
    places.switch(name)
    link = link_for_user(places, home_folder())
    if link is None:
        return [f"Start it with: {places.starter}"]
    if link.parent in [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]:
        return ["Start it with: edgemed"]
    return [f"Start it with: {link}", "After the next login, `edgemed` alone may do."]


def _closing_words(kit: Kit, answer: Answer, start: list[str], seconds: float) -> str:
    lines = [
        f'The model {answer.model} answered in {in_words(answer.seconds)}: "{answer.text}"',
        *([f"Note on this model: {answer.notice}"] if answer.notice else []),
        f"edgemed {kit.listed.version} works. The installation took {in_words(seconds)}.",
        *start,
    ]
    if kit.listed.libraries:
        lines.append("The files in the folder library of the stick are for people to read; they stay there.")
    return "\n".join(lines)
