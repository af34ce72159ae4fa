"""The four themes, and the style sheet that all screens share.

Only lines and letters that the text console's fonts have (Debian's Lat15 and Uni2): no half blocks, which
textual's own borders and scrollbars are made of. Nothing is said by colour alone.
"""

import os

from textual.theme import BUILTIN_THEMES, Theme

from edgemed.settings import Settings

STYLES = """
Screen { background: $background; color: $foreground; overflow: hidden hidden; scrollbar-size: 0 0; }
* { scrollbar-size: 0 0; }
#header { background: $primary; color: $background; text-style: bold; }
#banner { display: none; height: auto; max-height: 6; text-style: bold reverse; }
#banner.shown { display: block; }
#middle { height: 1fr; }
#conversation { width: 1fr; height: 1fr; }
#evidence { display: none; width: 34; border-left: solid $foreground; }
#evidence.shown { display: block; }
#activity { color: $foreground; height: auto; min-height: 1; max-height: 3; }
#question {
    border: none; border-top: solid $foreground; padding: 0; height: auto; min-height: 2; max-height: 6;
    background: $background; color: $foreground;
}
#question:focus { border: none; border-top: solid $foreground; }
KeyLine { text-style: reverse; }
.small #header, .small #banner.shown { display: none; }
.small #activity { max-height: 1; }
.small #question { border-top: none; min-height: 1; max-height: 1; }
.narrow #evidence.shown { display: none; }
OptionList {
    border: none; background: $background; color: $foreground; height: 1fr; padding: 0;
}
OptionList:focus { border: none; }
OptionList > .option-list--option-highlighted, OptionList:focus > .option-list--option-highlighted {
    text-style: bold reverse; color: $foreground; background: $background;
}
Input { border: none; border-bottom: solid $foreground; height: 2; padding: 0; background: $background; }
Input:focus { border: none; border-bottom: solid $foreground; }
.right-to-left Line { text-align: right; }
.text { height: auto; padding: 0 1; }
.body { height: 1fr; overflow-y: auto; }
"""


def all_themes() -> list[Theme]:
    """Return the themes under their names in the settings."""
    console = BUILTIN_THEMES["ansi-dark"]
    return [
        Theme(
            name="dark",
            primary="#8ab4f8",
            foreground="#e8e8e8",
            background="#101418",
            surface="#101418",
            panel="#101418",
            warning="#ffd166",
            error="#ff8a80",
            dark=True,
        ),
        Theme(
            name="light",
            primary="#0b3d91",
            foreground="#101010",
            background="#ffffff",
            surface="#ffffff",
            panel="#ffffff",
            warning="#8a4b00",
            error="#a30000",
            dark=False,
        ),
        Theme(
            name="high-contrast",
            primary="#ffff00",
            foreground="#ffffff",
            background="#000000",
            surface="#000000",
            panel="#000000",
            warning="#ffff00",
            error="#ffff00",
            dark=True,
        ),
        Theme(
            name="console",
            ansi=True,
            primary="ansi_white",
            foreground="ansi_white",
            background="ansi_black",
            surface="ansi_black",
            panel="ansi_black",
            boost="ansi_black",
            secondary="ansi_white",
            warning="ansi_yellow",
            error="ansi_yellow",
            success="ansi_white",
            accent="ansi_white",
            dark=True,
            variables=dict(console.variables),
        ),
    ]


def theme_name(settings: Settings) -> str:
    """Return the theme in use: the user's choice, or what suits the terminal."""
    if settings.theme is not None:
        return settings.theme
    return "console" if os.environ.get("TERM") in ("linux", "vt100", "vt220", "ansi") else "dark"
