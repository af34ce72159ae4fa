"""The pages that people read first: START-HERE.txt and MANUAL.html, from the templates in `manual/`."""

import html
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from string import Template

from kit_files import Entry
from kit_lock import FOLDER

from edgemed.kit_format import KitPlatform
from edgemed.manifest import ModelManifest
from edgemed.minisign import PublicKey
from edgemed.reference_manifest import ReferenceManifest

_TEMPLATES = FOLDER / "manual"
_PLATFORM_TEXTS: dict[KitPlatform, str] = {
    "linux-x86_64": "Linux on a PC (x86-64)",
    "linux-aarch64": "Linux on 64-bit ARM (Raspberry Pi 4 and 5)",
    "windows-x86_64": "Windows on a PC (x86-64)",
}
_UNSIGNED = (
    "THIS KIT IS NOT SIGNED. Nobody vouches for it: its files can be compared with their list, but not the "
    "list with its makers. It is for trials, not for clinics."
)
_ONE_PROCESSOR = (
    "THE ENGINE OF THIS KIT WAS BUILT FOR ONE PROCESSOR. On an older one it stops: "
    "it needs an instruction that this processor lacks."
)
_COMPARE = (
    "The installer checks the signature with the key on the stick. A forger could have changed both. So, at "
    "the first installation, compare the key with the one that headquarters gave you on paper:"
)
_OR_MINISIGN = "Or, on a computer that has minisign, in this folder:"
_NO_UPDATES = (
    "This kit brings no root.json: before the first update, trust the one of headquarters with "
    "edgemed update --trust FILE."
)
_WIDTH = 79


@dataclass(frozen=True)
class Facts:
    """What the pages say about one kit."""

    version: str
    platform: KitPlatform
    created: str
    kit_bytes: int
    installed_bytes: int
    pythons: list[str]
    carried_python: str | None
    key: PublicKey | None
    portable_engine: bool
    embedded: list[ModelManifest]
    packs: list[ModelManifest]
    references: list[ReferenceManifest]
    """Libraries and rule sets that are installed."""
    library_files: list[str]
    """File names."""
    update_root: bool
    """Whether the kit has the root.json by which updates are checked."""

    @property
    def windows(self) -> bool:
        """Return whether the kit is for Windows."""
        return self.platform == "windows-x86_64"

    @property
    def install(self) -> str:
        """Return the command that installs."""
        return "install.cmd" if self.windows else "sh install.sh"

    @property
    def install_this(self) -> str:
        """Return the command that installs this very kit: one that nobody signed must be allowed."""
        return self.install if self.key else f"{self.install} --allow-unsigned"


def text_entries(facts: Facts) -> list[Entry]:
    """Return START-HERE.txt and MANUAL.html."""
    start = Template(_template("START-HERE.txt")).substitute(_common(facts) | _plain(facts))
    manual = Template(_template("MANUAL.html")).substitute(_common(facts) | _page(facts))
    # Old editors of Windows show only these line ends.
    return [
        Entry("START-HERE.txt", start.replace("\n", "\r\n").encode("utf-8")),
        Entry("MANUAL.html", manual.encode("utf-8")),
    ]


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _common(facts: Facts) -> dict[str, str]:
    return {
        "version": facts.version,
        "platform_text": _PLATFORM_TEXTS[facts.platform],
        "created": facts.created[:10],
        "kit_megabytes": f"{facts.kit_bytes / 1e6:,.0f}",
        "installed_megabytes": f"{facts.installed_bytes / 1e6:,.0f}",
        "install": facts.install,
    }


def _warnings(facts: Facts) -> list[str]:
    found = [] if facts.key else [_UNSIGNED]
    return found + ([] if facts.portable_engine else [_ONE_PROCESSOR])


def _contents(facts: Facts) -> Iterable[tuple[str, str]]:
    yield facts.install.split()[-1], "installs edgemed"
    yield "MANUAL.html", "the manual, for a web browser"
    yield "wheels", "the program" + "".join(f", with the model {model.name}" for model in facts.embedded)
    for model in facts.packs:
        yield f"packs/{model.name}", f"{model.kind}, {model.size_bytes / 1e6:,.0f} MB" + _noticed(model)
    for reference in facts.references:
        kind = "library" if reference.kind == "library" else "rule set"
        megabytes = f"{reference.size_bytes / 1e6:,.1f} MB"
        words = f"{reference.title}, {reference.edition}, {reference.license}"
        yield f"packs/{reference.name}", f"{kind}, {megabytes}: {words}"
    for name in facts.library_files:
        yield f"library/{name}", "for people to read from the stick"
    if facts.carried_python:
        yield "python", f"Python {facts.carried_python}, which runs it"
    yield "licences", "who made the parts, and under which licence"
    yield "kit.json, SHA256SUMS", "the signed list of all files" if facts.key else "the list of all files"


def _noticed(model: ModelManifest) -> str:
    return f": {model.notice}" if model.notice else ""


def _needs(facts: Facts) -> str:
    if facts.carried_python:
        return "Windows 10 or 11, 64 bit. Python is on the stick."
    versions = " or ".join(facts.pythons)
    if facts.windows:
        return f"Windows 10 or 11, 64 bit, with Python {versions}."
    systems = "Debian 12 or 13, Raspberry Pi OS (64 bit) or another Linux with glibc 2.34 or newer"
    return f"{systems}, and Python {versions}. Debian and Raspberry Pi OS have it already."


def _steps(facts: Facts) -> list[str]:
    if facts.windows and facts.key:
        return ["Plug in the stick and open this folder.", "Double-click install.cmd."]
    opening = "Plug in the stick and open this folder in a terminal"
    return [
        f'{opening} (in the file manager: right mouse button, "Open in terminal").',
        f"Type this and press Enter:  {facts.install_this}",
    ]


def _screen(facts: Facts) -> str:
    """Return what the installer shows, as `packaging/installer` has it."""
    megabytes = f"{facts.kit_bytes / 1e6:,.0f} MB"
    signed = (
        [
            f"      signed with the key {facts.key.fingerprint}",
            f"      {facts.key.line}",
            "      Is this the key that headquarters gave you? [yes/no]",
        ]
        if facts.key
        else ["      THIS KIT IS NOT SIGNED.", "      Install it all the same? [yes/no]"]
    )
    return "\n".join(
        [
            "[1/6] Looking at the kit and at this computer",
            f"      edgemed {facts.version} for {facts.platform}, {megabytes}",
            *signed,
            "[2/6] Checking every file of the kit",
            "[3/6] Installing the program",
            f"[4/6] Installing the models and libraries on the stick: {_packs_count(facts)}",
            "[5/6] Checking this computer",
            "      The doctor found nothing wrong.",
            "[6/6] Asking the model one question",
            f"edgemed {facts.version} works.",
        ]
    )


def _packs_count(facts: Facts) -> int | str:
    return len(facts.packs) + len(facts.references) or "none"


def _question(facts: Facts) -> str:
    if facts.key is None:
        return "It asks whether to install what nobody signed."
    return "It shows the key of the kit and asks whether it is that of headquarters (see below): yes or no."


def _python_trouble(facts: Facts) -> str:
    if facts.carried_python:
        return "The folder python is missing from this stick: copy the kit again."
    served = ", ".join(facts.pythons)
    return (
        f"This kit has what Python {served} needs. python3 --version shows which one this computer has. "
        "With another one, ask headquarters for a kit that serves it (--python)."
    )


def _signature_text(key: PublicKey | None) -> list[str]:
    if key is None:
        return [_UNSIGNED]
    return [_COMPARE, key.fingerprint, key.line, _OR_MINISIGN, f"minisign -Vm SHA256SUMS -P {key.line}"]


# Plain text.


def _plain(facts: Facts) -> dict[str, str]:
    title = f"edgemed {facts.version} for {_PLATFORM_TEXTS[facts.platform]}"
    warnings = [f"\n{_wrapped(warning, '')}\n" for warning in _warnings(facts)]
    steps = enumerate(_steps(facts), 1)
    return {
        "underline": "=" * len(title),
        "warnings": "".join(warnings),
        "contents": "\n".join(f"  {name:<22} {text}" for name, text in _contents(facts)),
        "needs": _wrapped(_needs(facts), "  "),
        "question": _wrapped(_question(facts), "        "),
        "steps": "\n".join(_wrapped(f"{number}. {step}", "  ") for number, step in steps),
        "signature": "\n".join(_wrapped(line, "  ") for line in _signature_text(facts.key)),
        "python_trouble": _wrapped(_python_trouble(facts), "      "),
    }


def _wrapped(text: str, indent: str) -> str:
    if text.startswith("minisign "):
        # A command is copied as a whole.
        return indent + text
    return textwrap.fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False
    )


# The page.


def _page(facts: Facts) -> dict[str, str]:
    rows = (
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(text)}</td></tr>"
        for name, text in _contents(facts)
    )
    signature = _signature_text(facts.key)
    lines = signature if facts.key is None else [signature[0], signature[3]]
    commands = [] if facts.key is None else ["\n".join(signature[1:3]), signature[4]]
    return {
        "warnings": "".join(f'<p class="warning">{html.escape(text)}</p>' for text in _warnings(facts)),
        "contents": "\n".join(rows),
        "needs": html.escape(_needs(facts)),
        "steps": "<ol>" + "".join(f"<li>{html.escape(step)}</li>" for step in _steps(facts)) + "</ol>",
        "signature": "".join(
            f"<p>{html.escape(line)}</p>"
            + (f"<pre>{html.escape(commands[number])}</pre>" if commands else "")
            for number, line in enumerate(lines)
        ),
        "python_trouble": html.escape(_python_trouble(facts)),
        "screen": html.escape(_screen(facts)),
        "updates": html.escape(_NO_UPDATES if not facts.update_root else ""),
        "model_warning": html.escape(_model_warning(facts)),
        "engine_trouble": html.escape(
            "The engine picks the fastest instructions that the processor has; write to headquarters which "
            "processor it is (edgemed doctor)."
            if facts.portable_engine
            else _ONE_PROCESSOR
        ),
    }


def _model_warning(facts: Facts) -> str:
    noticed = [model for model in [*facts.embedded, *facts.packs] if model.notice]
    return " ".join(f"{model.name}: {model.notice}." for model in noticed)
