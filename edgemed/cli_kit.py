"""The commands `edgemed kit …`: parse, call one function, print."""

from pathlib import Path

import click

from edgemed.command_line import JSON_OPTION, percent_line, say, write_json, write_text

_KEY_OPTION = click.option(
    "--key",
    metavar="KEY",
    help="A .pub file, or the line in it, from headquarters. Default: the key of the kit that was installed "
    "here, else the one on the stick.",
)
_UNSIGNED_OPTION = click.option(
    "--allow-unsigned", is_flag=True, help="Take a kit that nobody signed; for trials only."
)
_FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@click.group("kit")
def kit_group() -> None:
    """Check a kit on a stick before it travels, and see what it holds.

    To build a kit: packaging/build_kit.py of the source. To install one: start it from the stick.
    """


@kit_group.command("check")
@_FOLDER
@_KEY_OPTION
@_UNSIGNED_OPTION
@JSON_OPTION
def kit_check(folder: Path, key: str | None, allow_unsigned: bool, as_json: bool) -> None:
    """Read every byte of the kit in FOLDER and compare it with the signed list.

    Nothing is written or started.
    """
    from edgemed import kit_stick, paths

    wanted = kit_stick.find_key(folder, key, paths.kit_key_file())
    kit = kit_stick.open_kit(folder, wanted, allow_unsigned=allow_unsigned)
    kit_stick.check_whole(kit, percent_line("Reading") or (lambda _done, _total: None))
    proved = key is not None or paths.kit_key_file().is_file()
    if as_json:
        fingerprint = kit.key.fingerprint if kit.key else None
        write_json(
            {"whole": True, "files": len(kit.sums), "fingerprint": fingerprint, "key_was_known": proved}
        )
        return
    write_text(f"The kit is whole: {len(kit.sums)} files, {sum(kit.listed.sizes.values()) / 1e6:,.1f} MB.")
    if kit.key is None:
        say("NOT SIGNED: nobody vouches for it.")
        return
    write_text(f"Signed with the key {kit.key.fingerprint}.")
    if not proved:
        say("The key lies on the same stick and proves nothing: compare it with the paper, or use --key.")


@kit_group.command("show")
@_FOLDER
@_KEY_OPTION
@_UNSIGNED_OPTION
@JSON_OPTION
def kit_show(folder: Path, key: str | None, allow_unsigned: bool, as_json: bool) -> None:
    """Show what the signed list of the kit in FOLDER says; its files are not read."""
    from edgemed import kit_stick, paths

    wanted = kit_stick.find_key(folder, key, paths.kit_key_file())
    kit = kit_stick.open_kit(folder, wanted, allow_unsigned=allow_unsigned)
    listed = kit.listed
    if as_json:
        write_json(
            {
                "version": listed.version,
                "platform": listed.platform,
                "pythons": listed.pythons,
                "carried_python": listed.carried_python,
                "size_bytes": sum(listed.sizes.values()),
                "packs": [
                    {"kind": pack.kind, "name": pack.name, "size_bytes": pack.size_bytes}
                    for pack in listed.packs
                ],
                "libraries": listed.libraries,
                "fingerprint": kit.key.fingerprint if kit.key else None,
            }
        )
        return
    rows = [
        ("edgemed", listed.version),
        ("for", listed.platform),
        ("Python", listed.carried_python or f"of the computer, {' or '.join(listed.pythons)}"),
        ("size", f"{sum(listed.sizes.values()) / 1e6:,.1f} MB in {len(kit.sums)} files"),
        *((pack.kind, f"{pack.name}, {pack.size_bytes / 1e6:,.1f} MB") for pack in listed.packs),
        *(("to read", path) for path in listed.libraries),
        ("signed with", kit.key.fingerprint if kit.key else "nothing"),
    ]
    write_text("\n".join(f"{label:<12} {value}" for label, value in rows))
