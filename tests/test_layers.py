"""A fresh interpreter that only lists or helps must not pay for the engine, the screen or the tools."""

import subprocess
import sys

import pytest

HEAVY = {"jinja2", "llama_cpp", "numpy", "textual", "torch", "transformers"}
PROGRAM = """
import sys
from {package}.cli import main
try:
    main({arguments!r})
except SystemExit as ended:
    print("\\nexit", ended.code)
print("\\nloaded", *sorted(set(sys.modules) & {heavy!r}))
"""


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("edgemed", ["--version"]),
        ("edgemed", ["--help"]),
        ("edgemed", ["models", "list"]),
        ("edgemed", ["models", "show", "edge-chat-8m", "--json"]),
        ("edgemed_convert", ["--help"]),
        ("edgemed_training", ["--help"]),
        ("edgemed_benchmarks", ["--help"]),
    ],
)
def test_light_commands_load_nothing_heavy(package: str, arguments: list[str]) -> None:
    program = PROGRAM.format(package=package, arguments=arguments, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert "exit 0" in lines
    assert lines[-1] == "loaded"


def test_the_first_screen_waits_for_nothing_that_comes_later() -> None:
    """Each of these costs a tenth of the CPU time to the first screen."""
    later = {"edgemed.models", "edgemed.engine.client", "markdown_it", "pygments", "psutil"}
    program = f"import sys, edgemed.tui.app; print(sorted(set(sys.modules) & {later!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
