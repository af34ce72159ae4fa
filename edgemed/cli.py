"""The command line: parse, call one function, print. `main` is the only catcher of planned errors."""

import gc
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from edgemed import __version__
from edgemed.errors import EdgemedError, UpdateRefused

BROKEN_PIPE_EXIT_CODE = 141
INTERRUPTED_EXIT_CODE = 130

MODEL_OPTION = click.option(
    "--model", metavar="NAME", help="An installed model, or the path of a GGUF file. Default: the one in use."
)
ADAPTER_OPTION = click.option(
    "--adapter", metavar="NAME", help="An installed LoRA adapter for the model, or the path of its GGUF file."
)
CONTEXT_OPTION = click.option(
    "--context-length",
    type=int,
    metavar="TOKENS",
    help="How much the model can read at once. Default: up to 4096.",
)
THREADS_OPTION = click.option(
    "--threads", type=int, metavar="N", help="Use this many threads. Default: follow the cores that are free."
)
MAX_TOKENS_OPTION = click.option(
    "--max-tokens", type=int, default=512, show_default=True, metavar="N", help="The longest answer."
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, message="edgemed %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """A medical language model that answers on this computer, with no network.

    Without a command it opens the chat. AI text can be wrong. You decide.
    """
    if context.invoked_subcommand is None:
        context.invoke(chat)


@cli.command()
@click.argument("question")
@MODEL_OPTION
@ADAPTER_OPTION
@JSON_OPTION
@MAX_TOKENS_OPTION
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="The same seed gives the same answer."
)
@THREADS_OPTION
@CONTEXT_OPTION
def ask(
    question: str,
    model: str | None,
    adapter: str | None,
    as_json: bool,
    max_tokens: int,
    seed: int | None,
    threads: int | None,
    context_length: int | None,
) -> None:
    """Answer one QUESTION; "-" reads it from standard input."""
    from edgemed.ask import ask_once, read_question
    from edgemed.session import open_session

    text = read_question(question, sys.stdin.buffer)
    _raise_on_termination()
    session = open_session(model, adapter_name=adapter, context_length=context_length, threads=threads)
    try:
        if session.model.manifest.notice and not as_json:
            click.echo(session.model.manifest.notice, err=True)
        result = ask_once(
            session, text, max_tokens=max_tokens, seed=seed, out=None if as_json else sys.stdout
        )
    except BrokenPipeError:
        _end_without_reader()
    finally:
        session.engine.close()
    if as_json:
        _echo_json(result)
    if result.explanation:
        click.echo(f"error: {result.explanation}", err=True)
    if result.stop_reason == "length" and not as_json:
        click.echo("(The answer was cut at its longest. --max-tokens allows more.)", err=True)
    sys.exit({"engine_died": 4, "cancelled": INTERRUPTED_EXIT_CODE}.get(result.stop_reason, 0))


@cli.command()
@click.option("--plain", is_flag=True, help="Line mode, for screen readers and slow links.")
@MODEL_OPTION
@ADAPTER_OPTION
@MAX_TOKENS_OPTION
@THREADS_OPTION
@CONTEXT_OPTION
def chat(
    plain: bool,
    model: str | None,
    adapter: str | None,
    max_tokens: int,
    threads: int | None,
    context_length: int | None,
) -> None:
    """Talk with the model. F1 helps on every screen; in line mode, /help does.

    Line mode also comes by itself where no full screen is possible: a pipe, TERM=dumb, EDGEMED_PLAIN=1.
    """
    from edgemed.chat import Chat, open_history
    from edgemed.control import Control, Options

    talk = Chat(open_history(), max_tokens=max_tokens)
    control = Control(talk, Options(model, adapter, context_length, threads))
    try:
        if plain or not _has_screen():
            exit_code = _chat_in_lines(control)
        else:
            # Looking for garbage takes a twentieth of the time to the first screen, and there is none yet.
            gc.disable()
            from edgemed.tui.app import run_full_screen

            exit_code = run_full_screen(control)
    except BrokenPipeError:
        _end_without_reader()
    finally:
        talk.close()
    sys.exit(exit_code)


def _has_screen() -> bool:
    return (
        not os.environ.get("EDGEMED_PLAIN")
        and sys.stdin.isatty()
        and sys.stdout.isatty()
        # Where the full screen is drawn.
        and sys.stderr.isatty()
        and (sys.platform == "win32" or os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown"))
    )


def _chat_in_lines(control: Any) -> int:
    from edgemed.line_commands import line_commands
    from edgemed.line_mode import run_line_mode

    _raise_on_termination()
    for problem in control.problems:
        click.echo(problem, err=True)
    control.load()
    return run_line_mode(control.chat, line_commands(control))


@cli.group("models")
def models_group() -> None:
    """Install, list, check and choose models."""


@models_group.command("list")
@JSON_OPTION
def models_list(as_json: bool) -> None:
    """List the models on this computer."""
    from edgemed import models

    found = models.list_models()
    if as_json:
        _echo_json([_as_dict(model) for model in found.models])
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

    model = models.install_model(path, name=name, progress=_progress("Copying"))
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

    fetched = fetch_model(repository, quantization_type=quant, path=path, name=name, progress_for=_progress)
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
            models.verify_model(model, progress=_progress(f"Reading {model.name}"))
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
        _echo_json(_as_dict(model))
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


@cli.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--rollback", is_flag=True, help="Use again what was in use before the last update.")
@click.option(
    "--trust", type=click.Path(path_type=Path), metavar="FILE", help="Trust the kit's root.json, once."
)
@click.option("--fingerprint", metavar="DIGITS", help="With --trust: take this fingerprint only; do not ask.")
@JSON_OPTION
def update(
    path: Path | None, rollback: bool, trust: Path | None, fingerprint: str | None, as_json: bool
) -> None:
    """Check the update stick PATH, install its packs, and use the new versions."""
    if sum((path is not None, rollback, trust is not None)) != 1:
        raise click.UsageError("Name the update stick, or one of --rollback and --trust FILE.")
    if trust is not None:
        _trust(trust, fingerprint, as_json=as_json)
        return
    from edgemed import updates

    _raise_on_termination()
    if path is None:
        used = updates.roll_back()
        _echo_json(used) if as_json else click.echo(_in_use_line(used.model, used.adapter))
        return
    done = updates.update_from(
        path, progress=_progress("Copying"), notice=lambda sentence: click.echo(sentence, err=True)
    )
    if as_json:
        _echo_json(done)
    else:
        for label, names in (
            ("Installed", done.installed),
            ("Was there", done.present),
            ("Removed", done.removed),
        ):
            for name in names:
                click.echo(f"{label}: {name}")
        click.echo(_in_use_line(done.model, done.adapter))
    for sentence in done.refused:
        click.echo(f"Not installed: {sentence}", err=True)
    if done.refused:
        sys.exit(UpdateRefused.exit_code)


def _trust(path: Path, fingerprint: str | None, *, as_json: bool) -> None:
    from edgemed import update_record

    root = update_record.examine_root(path)
    if as_json:
        _echo_json({"fingerprint": root.fingerprint, "expires": root.expires, "was_trusted": root.trusted})
    else:
        click.echo(f"Fingerprint: {root.fingerprint}")
        click.echo(f"Valid until: {root.expires:%Y-%m-%d}")
    if fingerprint is not None and fingerprint.replace(" ", "").lower() != root.fingerprint.replace(" ", ""):
        raise UpdateRefused(
            f"{path} has another fingerprint than the one given.", hint="Take root.json from the kit again."
        )
    if not root.trusted:
        if fingerprint is None:
            click.confirm("Is this the fingerprint that headquarters gave you?", abort=True, err=True)
        update_record.trust_root(root)
    if not as_json:
        click.echo("Updates of this headquarters are taken from now on.")


def _in_use_line(model: str | None, adapter: str | None) -> str:
    return f"In use: {model}" + (f" with the adapter {adapter}" if adapter else "")


@cli.command()
@JSON_OPTION
@click.option(
    "--prove-offline", is_flag=True, help="Ask a whole question and fail on any use of the network."
)
def doctor(as_json: bool, prove_offline: bool) -> None:
    """Check this computer and say what to do about what is wrong."""
    from edgemed import doctor as checks

    found = [_prove_offline()] if prove_offline else checks.run_checks()
    if as_json:
        _echo_json(found)
    else:
        click.echo(checks.render_text(found))
    sys.exit(checks.exit_code(found))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    from edgemed import operating_system

    operating_system.utf8_standard_streams()
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    from edgemed.errors import Terminated

    try:
        cli.main(args=arguments, prog_name="edgemed", standalone_mode=False)
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else 0
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        click.echo("hint: edgemed --help shows what there is.", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped.", err=True)
        return INTERRUPTED_EXIT_CODE
    except Terminated as termination:
        click.echo("\nEnded by the system.", err=True)
        return termination.exit_code
    except EdgemedError as error:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        return error.exit_code
    except OSError as error:
        # Disk full or unplugged under a place that no module foresaw: still one sentence.
        where = f" ({error.filename})" if error.filename else ""
        click.echo(f"error: The system refused: {error.strerror or error}{where}.", err=True)
        click.echo("hint: edgemed doctor checks disk, memory and folders.", err=True)
        return EdgemedError.exit_code
    return 0


def _end_without_reader() -> NoReturn:
    # Whoever read the output is gone; Python must not try to flush it once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(BROKEN_PIPE_EXIT_CODE)


def _raise_on_termination() -> None:
    from edgemed import operating_system
    from edgemed.errors import Terminated

    def end(exit_code: int) -> None:
        raise Terminated(exit_code)

    operating_system.on_termination(end)


def _echo_json(value: Any) -> None:
    import msgspec

    click.echo(msgspec.json.encode(value).decode())


def _as_dict(model: Any) -> dict[str, Any]:
    from edgemed import models

    chosen = models.find_model(None).name
    import msgspec

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


def _progress(label: str) -> Any:
    """Return a callback that shows a percentage on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    shown = -1

    def show(done_bytes: int, total_bytes: int) -> None:
        nonlocal shown
        percent = 100 * done_bytes // max(1, total_bytes)
        if percent != shown:
            shown = percent
            click.echo(
                f"\r{label}: {percent} %" + ("\n" if done_bytes >= total_bytes else ""), nl=False, err=True
            )

    return show


def _prove_offline() -> Any:
    from edgemed import doctor
    from edgemed.ask import AskResult, ask_once
    from edgemed.session import open_session

    def ask_one(question: str) -> AskResult:
        session = open_session(forbid_sockets=True)
        try:
            return ask_once(session, question, max_tokens=48, seed=1, out=None)
        finally:
            session.engine.close()

    return doctor.prove_offline(ask_one)


if __name__ == "__main__":
    main()
