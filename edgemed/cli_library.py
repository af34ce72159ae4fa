"""The commands `edgemed library …`: parse, call one function, print."""

import sys
from typing import TYPE_CHECKING

import click

from edgemed.command_line import JSON_OPTION, percent_line, write_json, write_text
from edgemed.errors import EdgemedError, ModelCorrupt

if TYPE_CHECKING:
    from edgemed.reference_packs import InstalledPack


@click.group("library")
def library_group() -> None:
    """List, check and remove libraries and rule sets.

    A kit and `edgemed update` bring them, and choose which version is in use.
    """


@library_group.command("list")
@JSON_OPTION
def library_list(as_json: bool) -> None:
    """List the libraries and rule sets on this computer."""
    from edgemed import reference_packs

    found, in_use = reference_packs.list_packs(), reference_packs.names_chosen()
    if as_json:
        write_json(
            [
                {"manifest": pack.manifest, "folder": pack.folder, "in_use": pack.name in in_use}
                for pack in found.packs
            ]
        )
    elif found.packs:
        write_text("\n".join(_line(pack, in_use=pack.name in in_use) for pack in found.packs))
    elif not found.damaged:
        write_text("No library or rule set is installed.")
    for damaged in found.damaged:
        click.echo(f"DAMAGED  {damaged.name}: {damaged.problem}", err=True)


@library_group.command("verify")
@click.argument("names", nargs=-1)
def library_verify(names: tuple[str, ...]) -> None:
    """Read every byte of NAMES (or of all) and compare it with what was installed."""
    from edgemed import reference_packs

    found = reference_packs.list_packs()
    wanted = [reference_packs.find_pack(name) for name in names] if names else found.packs
    damaged = [] if names else [f"{pack.name}: {pack.problem}" for pack in found.damaged]
    for pack in wanted:
        try:
            reference_packs.verify_pack(pack, percent_line(f"Reading {pack.name}"))
            write_text(f"ok       {pack.name}")
        except EdgemedError as error:
            damaged.append(f"{pack.name}: {error.message} {error.hint}")
    for sentence in damaged:
        write_text(f"DAMAGED  {sentence}")
    if damaged:
        sys.exit(ModelCorrupt.exit_code)


@library_group.command("remove")
@click.argument("name")
def library_remove(name: str) -> None:
    """Remove one version, NAME-vVERSION as `list` shows it, from this computer."""
    from edgemed import reference_packs

    reference_packs.remove_pack(name)
    write_text(f"Removed {name}.")


def _line(pack: "InstalledPack", *, in_use: bool) -> str:
    manifest = pack.manifest
    kind = "library" if manifest.kind == "library" else "rule set"
    size = f"{manifest.size_bytes / 1e6:,.1f} MB"
    return (
        f"{'*' if in_use else ' '} {pack.name}  {kind}: {manifest.title}, edition {manifest.edition}, "
        f"language {manifest.language}, {size}"
    )
