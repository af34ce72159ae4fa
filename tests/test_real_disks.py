"""A disk that is really full and one that is really read-only: small tmpfs mounts in a namespace of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gguf_files import write_tiny_llama


def _may_mount() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return tried.returncode == 0


pytestmark = pytest.mark.skipif(not _may_mount(), reason="needs user namespaces that may mount a tmpfs")


def _on_small_disk(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with `folder` as a tmpfs of 256 KiB and as edgemed's data folder."""
    folder.mkdir()
    command = f'set -e; mount -t tmpfs -o size=256k tmpfs "$EDGEMED_HOME"; {script}'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, "sh", sys.executable, *arguments],
        env={**os.environ, "EDGEMED_HOME": str(folder)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


def test_a_full_disk_refuses_a_model_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    write_tiny_llama(model)
    with model.open("ab") as file:
        file.write(bytes(max(0, 400_000 - model.stat().st_size)))
    done = _on_small_disk(
        tmp_path / "home",
        '"$1" -m edgemed.cli models install "$2" || code=$?; find "$EDGEMED_HOME" -name "*.gguf*" -size +0; exit ${code:-0}',
        str(model),
    )
    assert done.returncode == 6, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_does_not_stop_the_chat_and_it_says_that_nothing_is_saved(tmp_path: Path) -> None:
    done = _on_small_disk(
        tmp_path / "home",
        'dd if=/dev/zero of="$EDGEMED_HOME/fill" bs=1k 2>/dev/null || true; '
        'printf "What is fever?\\n/quit\\n" | "$1" -m edgemed.cli chat --plain --max-tokens 8',
    )
    assert done.returncode == 0, done.stderr
    assert "AI: " in done.stdout
    assert "Nothing is being saved." in done.stdout
    assert "Traceback" not in done.stderr


def test_a_read_only_disk_refuses_a_model_with_a_sentence(tmp_path: Path) -> None:
    model = tmp_path / "tiny.gguf"
    write_tiny_llama(model)
    done = _on_small_disk(
        tmp_path / "home",
        'mount -o remount,ro "$EDGEMED_HOME"; "$1" -m edgemed.cli models install "$2"',
        str(model),
    )
    assert done.returncode == 6, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_read_only_disk_does_not_stop_the_chat(tmp_path: Path) -> None:
    done = _on_small_disk(
        tmp_path / "home",
        'mount -o remount,ro "$EDGEMED_HOME"; '
        'printf "What is fever?\\n/quit\\n" | "$1" -m edgemed.cli chat --plain --max-tokens 8',
    )
    assert done.returncode == 0, done.stderr
    assert "AI: " in done.stdout
    assert "Nothing is being saved." in done.stdout
