"""llama.cpp's log, kept instead of printed. Lives in the child process."""

from collections.abc import Callable
from typing import Any

# ggml_log_level in ggml.h
_WARNING, _ERROR, _CONTINUED = 3, 4, 5
_MAX_LINES = 20_000
_MAX_LINE_CHARACTERS = 500


class Log:
    """The lines that llama.cpp wrote since `clear`, each with its level."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, str]] = []
        self._level = 0
        self._open = ""
        self.on_line: Callable[[str], None] = _ignore
        """Called with each finished line."""
        self.on_text: Callable[[str], None] = _ignore
        """Called with what stands of a line that is not finished yet."""

    def capture(self, lib: Any) -> None:
        """Make llama.cpp write here from now on; `lib` is the module llama_cpp.llama_cpp."""

        def keep(level: int, text: bytes | None, _user_data: object) -> None:
            self.take(level, (text or b"").decode("utf-8", "replace"))

        # ctypes frees a callback that nobody holds; llama.cpp goes on calling it.
        self._callback = lib.llama_log_callback(keep)
        lib.llama_log_set(self._callback, None)

    def take(self, level: int, text: str) -> None:
        """Take a piece of text as llama.cpp writes it: a line may come in several."""
        if level != _CONTINUED:
            # A line that begins as information and ends as a warning is a warning.
            self._level = max(level, self._level) if self._open else level
        *finished, self._open = (self._open + text).split("\n")
        for line in finished:
            self._keep(line)
        if self._open:
            self.on_text(self._open)

    def clear(self) -> None:
        """Forget all lines."""
        self._lines.clear()
        self._open = ""

    def lines(self) -> list[str]:
        """Return every line, oldest first."""
        return [line for _, line in self._lines] + ([self._open] if self._open else [])

    def warnings(self) -> list[str]:
        """Return the lines of level warning, oldest first."""
        return [_plain(line) for level, line in self._lines if level == _WARNING]

    def first_error(self) -> str:
        """Return the first line of level error, without its function's name: the later ones repeat it."""
        for level, line in self._lines:
            if level == _ERROR and line.strip(" =\t"):
                return _plain(line)
        return "it gave no reason"

    def _keep(self, line: str) -> None:
        if not line.strip():
            return
        line = line[:_MAX_LINE_CHARACTERS]
        if len(self._lines) < _MAX_LINES:
            self._lines.append((self._level, line))
        self.on_line(line)


def _ignore(_text: str) -> None:
    pass


def _plain(line: str) -> str:
    """'llama_model_load: error loading model: …' → 'error loading model: …', without a full stop."""
    head, colon, rest = line.partition(": ")
    return (rest if colon and head.replace("_", "").isalnum() else line).strip().rstrip(".")
