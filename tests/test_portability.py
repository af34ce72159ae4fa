"""Windows laptops run edgemed too: what only one system has lives in `operating_system.py`."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("edgemed", "convert", "training", "benchmarks", "packaging")
EXEMPT = {
    "operating_system.py": "all",
    "machine.py": "paths",
    "machine_counters.py": "paths",
    # Text to be tokenized, with a path in it.
    "probe_strings.py": "paths",
}
MODULES = {
    *("fcntl", "grp", "msvcrt", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty", "winreg"),
}
ATTRIBUTES = {
    "os": {
        *(
            "fork",
            "getuid",
            "geteuid",
            "getgid",
            "kill",
            "killpg",
            "setsid",
            "uname",
            "statvfs",
            "getloadavg",
        ),
        *(
            "mkfifo",
            "chown",
            "O_DIRECTORY",
            "sched_getaffinity",
            "sched_setaffinity",
            "nice",
            "sysconf",
            "wait",
        ),
    },
    "signal": {
        *("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGBREAK", "alarm", "pause"),
    },
    "socket": {"AF_UNIX"},
}
SYSTEM_PATHS = ("/tmp", "/proc", "/dev/", "/sys/", "/etc/", "C:\\")


def offences(source: str, exempt: str = "") -> Iterator[str]:
    """Yield what would break, or behave otherwise, on another system."""
    for node in ast.walk(ast.parse(source)):
        line = f"line {getattr(node, 'lineno', 0)}"
        if exempt != "all" and isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                {node.module} if isinstance(node, ast.ImportFrom) else {alias.name for alias in node.names}
            )
            yield from (f"{line}: import {name}" for name in names & MODULES)
        if exempt != "all" and isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in ATTRIBUTES.get(node.value.id, ()):
                yield f"{line}: {node.value.id}.{node.attr}"
        if not exempt and isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith(SYSTEM_PATHS):
                yield f"{line}: {node.value}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keywords = {keyword.arg for keyword in node.keywords}
            mode = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            text = node.func.attr in ("read_text", "write_text") or (
                node.func.attr == "open" and not any("b" in str(value) for value in mode) and _is_path(node)
            )
            if text and "encoding" not in keywords:
                yield f"{line}: {node.func.attr} without encoding"


def _is_path(node: ast.Call) -> bool:
    # `os.open` and a class's own, such as `History.open`, take no encoding.
    value = node.func.value if isinstance(node.func, ast.Attribute) else None
    return not (isinstance(value, ast.Name) and (value.id in ("os", "webbrowser") or value.id[0].isupper()))


def test_what_only_one_system_has_stays_in_its_module() -> None:
    found = [
        f"{path.relative_to(ROOT)} {offence}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for offence in offences(path.read_text(encoding="utf-8"), EXEMPT.get(path.name, ""))
    ]
    assert found == []


def test_a_planted_offence_is_found() -> None:
    planted = "import fcntl, os\nos.fork()\np.read_text()\np.open('w')\nq = '/tmp/x'\n"
    assert len(list(offences(planted))) == 5
    assert list(offences("os.open(p, 1)\np.open('rb')\np.read_text(encoding='utf-8')\n")) == []
