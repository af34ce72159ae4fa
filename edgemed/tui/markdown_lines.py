"""A finished answer's Markdown as lines of a fixed width, made of letters that a text console has.

Imported with the first finished answer: its parser takes a tenth of the time to the first screen.
"""

import io
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import BlockQuote, Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.theme import Theme

from edgemed.tui.plain_lines import plain_lines

LONGEST_MARKDOWN = 50_000
"""Characters; anything longer is shown as it stands."""

_STYLES = {
    "markdown.code": "bold",
    "markdown.code_block": "none",
    "markdown.h1": "bold underline",
    "markdown.h2": "bold underline",
    "markdown.h3": "bold",
    "markdown.h4": "bold",
    "markdown.h5": "bold",
    "markdown.h6": "bold",
    "markdown.h7": "bold",
    "markdown.item.bullet": "bold",
    "markdown.item.number": "bold",
    "markdown.block_quote": "none",
    "markdown.hr": "none",
    "markdown.em": "underline",
    "markdown.emph": "underline",
    "markdown.strong": "bold",
    "markdown.s": "none",
    "markdown.link": "none",
    "markdown.link_url": "none",
    "table.header": "bold",
    "table.cell": "none",
    "table.footer": "none",
    "table.title": "none",
    "table.caption": "none",
    "markdown.table.border": "none",
    "markdown.table.header": "bold",
    "markdown.paragraph": "none",
    "markdown.text": "none",
    "markdown.list": "none",
    "markdown.item": "none",
}


class _PlainHeading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class _PlainQuote(BlockQuote):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self.elements, options.update(width=max(1, options.max_width - 2))):
            yield Segment("| ")
            yield from line
            yield Segment("\n")


class _PlainMarkdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _PlainHeading,
        "blockquote_open": _PlainQuote,
        # A code block is shown as it stands: no colours, no loading of a highlighter.
        "fence": Markdown.elements["code_block"],
    }


def markdown_lines(text: str, width: int) -> list[list[Segment]]:
    """Return the lines of a Markdown text, each at most `width` cells wide. The text must be clean."""
    console = Console(
        width=width,
        file=io.StringIO(),
        theme=Theme(_STYLES, inherit=False),
        color_system=None,
        legacy_windows=False,
    )
    if len(text) > LONGEST_MARKDOWN:
        return plain_lines(text, width)
    try:
        markdown = _PlainMarkdown(text, hyperlinks=False)
        lines = [
            list(Segment.remove_color(line))
            for line in console.render_lines(markdown, console.options, pad=False)
        ]
    except (RecursionError, ValueError, IndexError):
        # Brackets nested a thousand deep: shown as they stand.
        return plain_lines(text, width)
    while lines and not "".join(segment.text for segment in lines[0]).strip():
        lines.pop(0)
    while lines and not "".join(segment.text for segment in lines[-1]).strip():
        lines.pop()
    return lines
