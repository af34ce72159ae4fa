"""The kit's folder `licences`: the texts of all that it carries, one overview, and whom the models name."""

from collections.abc import Iterable

from kit_files import Entry
from kit_lock import FOLDER
from kit_wheel import Wheel
from kit_wheelhouse import Wheelhouse

from edgemed.errors import UsageError
from edgemed.manifest import ModelManifest
from edgemed.reference_manifest import ReferenceManifest

_OWN_TEXTS = FOLDER / "licences"
_OWN_NOTICE = (
    "edgemed, Copyright the edgemed founders, under the Apache License 2.0.\n"
    "It runs models with llama.cpp, Copyright the ggml authors, under the MIT licence (llama.cpp.txt)."
)


def licence_entries(
    wheelhouse: Wheelhouse,
    models: Iterable[ModelManifest],
    references: Iterable[ReferenceManifest],
    carried_python: str | None,
) -> list[Entry]:
    """Return the files of the folder.

    Raises:
        UsageError: a wheel says nothing of its licence.
    """
    wheels = _one_of_each(wheelhouse.all)
    entries = [
        Entry(f"licences/{wheel.name}-{wheel.version}/{name}", text)
        for wheel in wheels
        for name, text in wheel.licence_texts.items()
    ]
    entries += [Entry(f"licences/{path.name}", path.read_bytes()) for path in _OWN_TEXTS.glob("*.txt")]
    entries.append(Entry("licences/OVERVIEW.txt", _overview(wheels, carried_python)))
    entries.append(Entry("licences/NOTICE.txt", notice(models, references)))
    return entries


def notice(models: Iterable[ModelManifest], references: Iterable[ReferenceManifest]) -> bytes:
    """Return the words that the licences of models, of their data, and of libraries ask for."""
    blocks = [_OWN_NOTICE]
    for model in models:
        lines = [f"Model {model.name}"]
        lines += [f"  licence: {model.license}"] if model.license else ["  licence: not stated by its file"]
        lines += [f"  from: {model.source}"] if model.source else []
        lines += [f"  base model: {model.base_model}"] if model.base_model else []
        lines += [f"  data: {data.name}\n    {data.source}, licence {data.license}" for data in model.data]
        lines += [f"  {model.notice}"] if model.notice else []
        blocks.append("\n".join(lines))
    for reference in references:
        kind = "Library" if reference.kind == "library" else "Rule set"
        blocks.append(
            f"{kind} {reference.name}: {reference.title}\n  licence: {reference.license}\n"
            f"  from: {reference.source}\n  edition: {reference.edition}"
        )
    return ("\n\n".join(blocks) + "\n").encode("utf-8")


def _one_of_each(wheels: list[Wheel]) -> list[Wheel]:
    """Return one wheel of each version: those for several Pythons carry the same texts."""
    return list({(wheel.name, wheel.version): wheel for wheel in wheels}.values())


def _overview(wheels: list[Wheel], carried_python: str | None) -> bytes:
    lines = [
        "What this kit carries, and under which licence. The texts lie in the folders beside this file.",
        "",
    ]
    for wheel in wheels:
        if not wheel.licence and not wheel.licence_texts:
            raise UsageError(
                f"{wheel.path.name} says nothing of its licence.", hint="A kit may not carry it like this."
            )
        lines.append(f"{wheel.name} {wheel.version}: {wheel.licence or 'see its text'}")
        lines += [f"    {wheel.home}"] if wheel.home else []
        if not wheel.licence_texts:
            lines.append("    The package carries no text of its licence.")
    lines.append("llama.cpp, inside llama-cpp-python: MIT (llama.cpp.txt)")
    if carried_python:
        lines.append(f"Python {carried_python}: Python-2.0 (../python/LICENSE.txt)")
    return ("\n".join(lines) + "\n").encode("utf-8")
