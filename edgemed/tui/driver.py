"""The terminal's side of textual, made to bear what terminals really send. The module for it alone."""

import codecs
import functools
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.driver import Driver


def forgiving_driver() -> "type[Driver] | None":
    """Return the driver to use; None is textual's own choice.

    Textual 8.2.8 decodes the keyboard strictly: one byte that is no UTF-8 ends the app with a traceback. Here
    it becomes U+FFFD, which the chat reports.
    """
    if sys.platform == "win32":
        return None
    from textual.drivers import linux_driver

    def decoder(encoding: str) -> object:
        return functools.partial(codecs.getincrementaldecoder(encoding), errors="replace")

    # The name that its `run_input_thread` looks up; tests/test_full_screen.py types such bytes.
    linux_driver.getincrementaldecoder = decoder  # type: ignore[assignment,attr-defined]
    return linux_driver.LinuxDriver
