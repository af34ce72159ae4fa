"""The commands `edgemed models …`: parse, call one function, print."""

import sys
from pathlib import Path
from typing import Any

import click

from edgemed.command_line import JSON_OPTION, percent_line, write_json
from edgemed.errors import EdgemedError


@click.group("models")
def models_group() -> None:
    """Install, list, check and choose models."""


@models_group.command("list")
@JSON_OPTION
def models_list(as_json: bool) -> None:
    """List the models on this computer."""
    from edgemed import models

    found = models.list_models()
    if as_json:
        write_json([_as_dict(model) for model in found.models])
    else:
        chosen = models.find_model(None).name
        for model in found.models:
            click.echo(_line(model, in_use=model.name == chosen))
    for damaged in found.damaged:
        click.echo(f"DAMAGED  {damaged.name}: {damaged.problem}", err=True)


@models_group.command("install")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Install under this name.")
def models_install(path: Path, name: str | None) -> None:
    """Install a model or adapter from PATH: a pack folder, a GGUF file, or the first part of a split one."""
    from edgemed import models

    model = models.install_model(path, name=name, progress=percent_line("Copying"))
    click.echo(f"Installed {model.name}.")
    click.echo(_line(model))
    if model.manifest.kind == "model":
        click.echo(_fits(model))
        click.echo(f"Use it with: edgemed models use {model.name}")


@models_group.command("fetch")
@click.argument("repository", metavar="REPO[@REV]")
@click.option("--quant", metavar="TYPE", help="The quantization type, such as Q4_K_M.")
@click.option(
    "--file", "path", metavar="PATH", help="The file in the repository, where a type is not enough."
)
@click.option("--name", metavar="NAME", help="Install under this name. Default: the file's.")
def models_fetch(repository: str, quant: str | None, path: str | None, name: str | None) -> None:
    """At headquarters: download a model from a hub, check it and install it. Needs a network.

    REPO is OWNER/NAME on huggingface.co, or on the hub that HF_ENDPOINT names; REV a branch, tag or commit.
    A download that was cut goes on where it stopped.
    """
    from edgemed.fetch import fetch_model

    fetched = fetch_model(
        repository, quantization_type=quant, path=path, name=name, progress_for=percent_line
    )
    model = fetched.model
    click.echo(f"{model.name} was installed already." if fetched.was_there else f"Installed {model.name}.")
    click.echo(_line(model))
    click.echo(f"Source: {fetched.source}")
    click.echo(f"License: {fetched.license or 'not stated. Ask the publisher before you pass it on.'}")
    if model.manifest.kind == "model":
        click.echo(_fits(model))
        click.echo(f"Use it with: edgemed models use {model.name}")


@models_group.command("verify")
@click.argument("names", nargs=-1)
def models_verify(names: tuple[str, ...]) -> None:
    """Read every byte of the models NAMES (or of all) and compare it with what was installed."""
    from edgemed import models

    found = models.list_models()
    wanted = [models.find_model(name, kind=None) for name in names] if names else found.models
    failures = []
    for model in wanted:
        try:
            models.verify_model(model, progress=percent_line(f"Reading {model.name}"))
            click.echo(f"ok       {model.name}")
        except EdgemedError as error:
            failures.append(error)
            click.echo(f"DAMAGED  {model.name}: {error.message} {error.hint}")
    for damaged in () if names else found.damaged:
        failures.append(EdgemedError(damaged.problem))
        click.echo(f"DAMAGED  {damaged.name}: {damaged.problem}")
    if failures:
        sys.exit(3)


@models_group.command("remove")
@click.argument("name")
def models_remove(name: str) -> None:
    """Remove the installed model NAME from this computer."""
    from edgemed import models

    models.remove_model(name)
    click.echo(f"Removed {name}.")


@models_group.command("use")
@click.argument("name")
def models_use(name: str) -> None:
    """Use the model NAME from now on."""
    from edgemed import models

    models.use_model(name)
    click.echo(f"{name} is in use from now on.")


@models_group.command("show")
@click.argument("name")
@JSON_OPTION
def models_show(name: str, as_json: bool) -> None:
    """Show what is known of the model NAME."""
    from edgemed import models

    model = models.find_model(name, kind=None)
    if as_json:
        write_json(_as_dict(model))
        return
    manifest = model.manifest
    types = ", ".join(f"{kind} ({count} tensors)" for kind, count in manifest.tensor_types.items())
    rows = [
        ("name", manifest.name),
        ("kind", manifest.kind),
        ("notice", manifest.notice or "none"),
        ("architecture", manifest.shape.architecture),
        ("parameters", f"{manifest.shape.parameters:,}"),
        ("types", types),
        *_check_rows(manifest),
        ("size", f"{manifest.size_bytes:,} bytes in {len(manifest.files)} file(s)"),
        ("context length", f"{manifest.context_length} tokens"),
        ("license", manifest.license or "not stated"),
        ("source", manifest.source or "not stated"),
        ("base model", manifest.base_model or "not stated"),
        *(("data", f"{data.name} ({data.source}, {data.license})") for data in manifest.data),
        ("SHA-256", manifest.sha256),
        ("folder", str(model.folder)),
    ]
    for label, value in rows:
        click.echo(f"{label:<15} {value}")
    if manifest.kind == "model":
        click.echo(f"{'memory':<15} {_fits(model)}")


def _as_dict(model: Any) -> dict[str, Any]:
    import msgspec

    from edgemed import models

    chosen = models.find_model(None).name
    return {
        **msgspec.to_builtins(model.manifest),
        "sha256": model.manifest.sha256,
        "size_bytes": model.manifest.size_bytes,
        "embedded": model.embedded,
        "in_use": model.name == chosen,
        "folder": str(model.folder),
    }


def _line(model: Any, *, in_use: bool = False) -> str:
    manifest = model.manifest
    most = (
        max(manifest.tensor_types, key=lambda kind: manifest.tensor_types[kind])
        if manifest.tensor_types
        else "?"
    )
    size = (
        f"{manifest.size_bytes / 1e6:.0f} MB"
        if manifest.size_bytes < 1e9
        else f"{manifest.size_bytes / 1e9:.1f} GB"
    )
    types = "+".join(sorted(manifest.tensor_types)) or most
    notice = f"  {manifest.notice}" if manifest.notice else ""
    if manifest.unchecked and "unchecked" not in notice:
        notice += "  unchecked"
    kind = "" if manifest.kind == "model" else "  adapter"
    return f"{'*' if in_use else ' '} {manifest.name}  {size}  {types}{kind}{notice}"


def _check_rows(manifest: Any) -> list[tuple[str, str]]:
    """What the gate of edgemed-convert found, as far as the manifest knows."""
    rows = [("adapter", f"{adapter.name} merged in") for adapter in manifest.adapters]
    found = manifest.check
    if manifest.unchecked:
        rows.append(("checks", "UNCHECKED: packed by force although it was not proved to be right"))
    elif found is not None:
        gaps = f"; not run: {', '.join(found.not_run)}" if found.not_run else ""
        rows.append(("checks", f"{found.passed} passed{gaps}"))
    return rows


def _fits(model: Any) -> str:
    from edgemed import machine
    from edgemed.engine.memory import memory_need
    from edgemed.session import DEFAULT_CONTEXT_LENGTH

    length = min(model.manifest.context_length, DEFAULT_CONTEXT_LENGTH)
    need = memory_need(model.manifest.shape, model.manifest.size_bytes, length).total_bytes
    free = machine.available_memory_bytes()
    verdict = "fits" if need <= free else "does NOT fit"
    need_gib, free_gib = need / 2**30, free / 2**30
    return f"{verdict}: needs {need_gib:.2f} GiB at {length} tokens of context, {free_gib:.2f} GiB is free"
