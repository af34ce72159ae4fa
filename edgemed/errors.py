"""Every error a user can meet, and the exit code of each family.

EdgemedError                exit 1    anything planned that fits no family below
├── UsageError              exit 2    a wrong option, setting or question
│   └── QuestionTooLong
├── ModelError              exit 3    a model or adapter file
│   ├── ModelNotFound
│   ├── ModelCorrupt                  its bytes are not what they should be
│   ├── ModelUnsupported              sound, but this version cannot run it
│   └── NotEnoughMemory
├── EngineError             exit 4    the process that runs the model
│   └── EngineDied
├── MissingExtra            exit 5    a part of edgemed that is not installed
├── StorageError            exit 6    the data folder or the disk
└── UpdateRefused           exit 7    an update that is not what headquarters signed, or no newer

130 (interrupted from the keyboard), 143 (terminated) and 129 (terminal closed) follow the shell's custom.
The message says what and which file; `hint` says what to do. Of the four command lines only
`command_line.py` catches them.
"""


class EdgemedError(Exception):
    """A planned error: one clear sentence, and a hint with the next action."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgemedError):
    """A wrong option, setting or question."""

    exit_code = 2


class QuestionTooLong(UsageError):
    """The question alone does not fit into the context length."""


class ModelError(EdgemedError):
    """Something is wrong with a model or adapter file."""

    exit_code = 3


class ModelNotFound(ModelError):
    """No installed model has this name."""


class ModelCorrupt(ModelError):
    """The file's bytes are not what its manifest or its format says."""


class ModelUnsupported(ModelError):
    """The file is sound, but this version cannot run it."""


class NotEnoughMemory(ModelError):
    """The model needs more memory than is free."""


class EngineError(EdgemedError):
    """The process that runs the model failed."""

    exit_code = 4


class EngineDied(EngineError):
    """The engine process ended by itself: a crash, or the system stopped it."""


class MissingExtra(EdgemedError):
    """A part of edgemed that is not installed."""

    exit_code = 5


class StorageError(EdgemedError):
    """The data folder or the disk refuses to take or give data."""

    exit_code = 6


class FileInUse(StorageError):
    """Another edgemed holds the lock of this file."""


class UpdateRefused(EdgemedError):
    """An update stick, or a pack on it, is not what headquarters signed, or cannot be used here."""

    exit_code = 7


class Terminated(BaseException):
    """The system asks the app to end (SIGTERM, SIGHUP, a closed window).

    No `Exception`: nothing but the outermost handler may swallow it on its way.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"terminated with exit code {exit_code}")
        self.exit_code = exit_code
