"""Conversations as files for people: Markdown and plain text, fit for printing. Used by the chat."""

import contextlib
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgemed.errors import StorageError
from edgemed.history import UNFINISHED, Conversation, SavedMessage, local_time
from edgemed.languages import text as _
from edgemed.operating_system import fsync_file
from edgemed.terminal_text import clean

PRINTED_COLUMNS = 76
"""A4 and Letter in the usual 10-point fixed font, with margins."""

Format = Literal["markdown", "text"]
SUFFIXES: dict[Format, str] = {"markdown": ".md", "text": ".txt"}


def as_markdown(conversation: Conversation, messages: Sequence[SavedMessage]) -> str:
    """Return one conversation as Markdown."""
    lines = [f"# {_one_line(conversation.title) or _('Conversation')}", ""]
    lines += [f"- {fact}" for fact in _facts(conversation, messages)]
    for message in messages:
        lines += ["", f"## {_heading(message)}", ""]
        if mark := unfinished_mark(message):
            lines += [f"**{mark}**", ""]
        text = clean(message.text).strip() or _("(nothing)")
        # Quoted, a question cannot pass for a heading or an answer.
        lines += [f"> {line}".rstrip() for line in text.split("\n")] if message.role == "user" else [text]
    return "\n".join(lines) + "\n"


def as_text(conversation: Conversation, messages: Sequence[SavedMessage]) -> str:
    """Return one conversation as plain text in lines of at most `PRINTED_COLUMNS`, long words apart."""
    lines = [_one_line(conversation.title) or _("Conversation"), *_facts(conversation, messages)]
    for message in messages:
        mark = unfinished_mark(message)
        lines += ["", f"{_heading(message)}:{' ' + mark if mark else ''}"]
        lines += (clean(message.text).strip() or _("(nothing)")).split("\n")
    return "\n".join(folded for line in lines for folded in _folded(line)) + "\n"


def export_name(conversation: Conversation, format: Format) -> str:  # noqa: A002 - what users call it
    """Return the file name that is proposed: date and number, nothing that was said."""
    date = local_time(conversation.created_at, "%Y-%m-%d") or "undated"
    return f"edgemed-{date}-{conversation.id}{SUFFIXES[format]}"


def write_export(
    wanted: Path,
    conversation: Conversation,
    messages: Sequence[SavedMessage],
    format: Format | None = None,  # noqa: A002
) -> Path:
    """Write a file that was not there, adding -2, -3, ... to its name where one was; return its path.

    Args:
        wanted: a file, or a folder that takes the proposed name.
        format: None: plain text for a name that ends in .txt, else Markdown.

    Raises:
        StorageError: it cannot be written; nothing half-written stays where the disk still obeys.
    """
    try:
        if wanted.is_dir():
            wanted /= export_name(conversation, format or "markdown")
        plain = format == "text" or (format is None and wanted.suffix.lower() == ".txt")
        text = (as_text if plain else as_markdown)(conversation, messages)
        return _write_new_file(wanted, text).absolute()
    except (OSError, ValueError) as error:
        # A NUL in the name: ValueError.
        reason = error.strerror if isinstance(error, OSError) else None
        raise StorageError(
            _(
                "The conversation could not be written to {wanted}: {reason}.",
                wanted=wanted,
                reason=reason or error,
            ),
            hint=_("It is still saved on this computer. Choose a folder that exists and can be written."),
        ) from error


def unfinished_mark(message: SavedMessage) -> str:
    """Return the mark that an unfinished answer carries wherever it is shown; empty for a whole one."""
    reason = UNFINISHED.get(message.status)
    return _("NOT FINISHED ({reason})", reason=_(reason)) if reason else ""


def _facts(conversation: Conversation, messages: Sequence[SavedMessage]) -> list[str]:
    notices = dict.fromkeys(message.notice for message in messages if message.notice)
    return [
        _("Date: {date}", date=local_time(conversation.created_at, "%Y-%m-%d %H:%M (UTC%z)")),
        _(
            "Model: {name} (SHA-256 {sha256})",
            name=clean(conversation.model_name),
            sha256=clean(conversation.model_sha256),
        ),
        *(_("Notice: {notice}", notice=_one_line(notice)) for notice in notices),
        _("AI text can be wrong. You decide."),
    ]


def _heading(message: SavedMessage) -> str:
    if message.role == "user":
        return _("Question")
    return f"{_('AI')} ({_one_line(message.notice)})" if message.notice else _("AI")


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())


def _folded(line: str) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())][:20]
    return textwrap.wrap(
        line, PRINTED_COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [""]


def _write_new_file(wanted: Path, text: str) -> Path:
    target, number = wanted, 1
    while True:
        try:
            file = target.open("x", encoding="utf-8", newline="\n")
            break
        except FileExistsError:
            number += 1
            target = wanted.with_stem(f"{wanted.stem}-{number}")
    try:
        with file:
            file.write(text)
            file.flush()
            # People pull a stick as soon as they read "Written".
            fsync_file(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            target.unlink()
        raise
    return target
