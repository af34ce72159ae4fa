"""The command line `edgemed`: parse, call one function, print."""

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgemed import __version__, operating_system
from edgemed.cli_kit import kit_group
from edgemed.cli_library import library_group
from edgemed.cli_models import models_group
from edgemed.command_line import (
    INTERRUPTED_EXIT_CODE,
    JSON_OPTION,
    CommandLine,
    percent_line,
    run_command_line,
    write_json,
)
from edgemed.errors import Terminated, UpdateRefused

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


@click.group(
    cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True
)
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
    operating_system.raise_on_termination()
    session = open_session(model, adapter_name=adapter, context_length=context_length, threads=threads)
    try:
        if session.model.manifest.notice and not as_json:
            click.echo(session.model.manifest.notice, err=True)
        result = ask_once(
            session, text, max_tokens=max_tokens, seed=seed, out=None if as_json else sys.stdout
        )
    except Terminated:
        # The answer's line is not finished.
        click.echo(err=True)
        raise
    finally:
        session.engine.close()
    if as_json:
        write_json(result)
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

    operating_system.raise_on_termination()
    for problem in control.problems:
        click.echo(problem, err=True)
    control.load()
    return run_line_mode(control.chat, line_commands(control))


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

    operating_system.raise_on_termination()
    if path is None:
        used = updates.roll_back()
        write_json(used) if as_json else click.echo(_in_use_line(used.model, used.adapter, used.references))
        return
    done = updates.update_from(
        path, progress=percent_line("Copying"), notice=lambda sentence: click.echo(sentence, err=True)
    )
    if as_json:
        write_json(done)
    else:
        for label, names in (
            ("Installed", done.installed),
            ("Was there", done.present),
            ("Removed", done.removed),
        ):
            for name in names:
                click.echo(f"{label}: {name}")
        click.echo(_in_use_line(done.model, done.adapter, done.references))
    for sentence in done.refused:
        click.echo(f"Not installed: {sentence}", err=True)
    if done.refused:
        sys.exit(UpdateRefused.exit_code)


def _trust(path: Path, fingerprint: str | None, *, as_json: bool) -> None:
    from edgemed import update_record

    root = update_record.examine_root(path)
    if as_json:
        write_json({"fingerprint": root.fingerprint, "expires": root.expires, "was_trusted": root.trusted})
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


def _in_use_line(model: str | None, adapter: str | None, references: Sequence[str] | None) -> str:
    model_words = f"{model}" + (f" with the adapter {adapter}" if adapter else "")
    return "In use: " + ", ".join([model_words, *(references or ())])


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
        write_json(found)
    else:
        click.echo(checks.render_text(found))
    sys.exit(checks.exit_code(found))


cli.add_command(models_group)
cli.add_command(kit_group)
cli.add_command(library_group)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    hint = "edgemed doctor checks disk, memory and folders."
    sys.exit(run_command_line(cli, "edgemed", arguments, storage_hint=hint))


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
