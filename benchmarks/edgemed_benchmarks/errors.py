"""The planned errors of edgemed-bench; exit codes as in `edgemed.errors`, and those of its verdicts."""

from edgemed.errors import EdgemedError, UsageError

VERDICT_NO = 2
"""Exit code: the machine does not meet the limits."""
UNDECIDED = 3
"""Exit code: more questions are needed to tell."""
INVALID_ENVIRONMENT = 4
"""Exit code: the machine was too busy, too hot or otherwise unfit for numbers that mean something."""


class RecordError(EdgemedError):
    """A record file is damaged, of another schema version, or does not fit the others."""


class ItemError(UsageError):
    """A file of questions cannot be used."""


class UnfitEnvironment(EdgemedError):
    """The machine is not in a state in which measuring means something."""

    exit_code = INVALID_ENVIRONMENT
