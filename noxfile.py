"""All guards in one command: `nox`. Each runs in the environment that holds nox itself."""

import sys

import nox

nox.options.default_venv_backend = "none"


def _python(session: nox.Session, *arguments: str) -> None:
    session.run(sys.executable, "-m", *arguments, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    _python(session, "ruff", "check", ".")
    _python(session, "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types."""
    _python(session, "mypy")


@nox.session
def layers(session: nox.Session) -> None:
    """Who may import whom."""
    session.run(
        sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", external=True
    )


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, the slow ones too."""
    _python(session, "pytest", "-m", "not gpu", *session.posargs)
