"""Text made harmless for a terminal: used for all that a model, a user or a file says.

A terminal obeys control sequences: they can clear the screen, change its title, fill the clipboard or make
text read in another order than it stands. Nothing of that may come out of a model's answer.
"""

import re

LONGEST_SEQUENCE = 128
"""Characters inside a sequence; a longer or unterminated one loses its introducer and is plain text."""

# CSI; strings that ST or BEL ends (DCS, SOS, OSC, PM, APC and the title of screen); other escapes.
_CSI = rf"(?:\x1b\[|\x9b)[0-?]{{0,{LONGEST_SEQUENCE}}}[ -/]{{0,8}}"
_STRING = rf"(?:\x1b[PX\]^_k]|[\x90\x98\x9d-\x9f])[^\x07\x18\x1a\x1b\x9c\n]{{0,{LONGEST_SEQUENCE}}}"
_COMPLETE = rf"{_CSI}[@-~]|{_STRING}(?:\x07|\x9c|\x1b\\)|\x1b[ -/]{{1,8}}[0-~]|\x1b(?![\[PX\]^_k])[0-~]"
# What the next piece may complete. Each alternative reaches to the end of the text.
_PARTIAL = rf"(?P<partial>(?:{_CSI}|{_STRING}\x1b?|\x1b[ -/]{{0,8}}|\r)\Z)"
_LINE_END = r"(?P<line_end>\r\n?|[\x85\u2028\u2029])"
# C0 but tab and newline, DEL, C1, bidi embeddings, overrides and isolates, lone surrogates, byte order mark.
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"

_WHOLE = re.compile(f"{_COMPLETE}|{_LINE_END}|{_CONTROL}")
_STREAMED = re.compile(f"{_COMPLETE}|{_PARTIAL}|{_LINE_END}|{_CONTROL}")


def clean(text: str) -> str:
    """Return the text without anything a terminal would obey; lines end with a newline alone."""
    return _WHOLE.sub(_replacement, text)


class StreamCleaner:
    """`clean` for text that comes in pieces: a sequence cut in two is never let through.

    Holds back at most `LONGEST_SEQUENCE` and a few characters. The pieces together are what `clean` returns
    for the whole.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """Take the next piece; return what can be shown by now."""
        text, self._held = self._held + piece, ""
        return _STREAMED.sub(self._hold_or_replace, text)

    def flush(self) -> str:
        """Return the rest, at the end of the text."""
        held, self._held = self._held, ""
        return clean(held)

    def _hold_or_replace(self, found: re.Match[str]) -> str:
        if found.lastgroup == "partial":
            self._held = found[0]
            return ""
        return _replacement(found)


def _replacement(found: re.Match[str]) -> str:
    return "\n" if found.lastgroup == "line_end" else ""
