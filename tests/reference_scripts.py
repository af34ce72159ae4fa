"""Runs the scripts that made the demonstration model, on small data: what their steps saw, and their losses.

They lie beside the shared models. A process of its own takes their text unchanged but for the sizes named here,
records what goes into the model, and compiles nothing.
"""

import json
import lzma
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.shared_material import shared_path

_DRIVER = """
import json, os, sys
from pathlib import Path
import torch, transformers
transformers.utils.logging.disable_progress_bar()
wanted = json.loads(Path("wanted.json").read_text())
torch.set_num_threads(wanted["threads"])
torch.set_num_threads = lambda count: None
torch.compile = lambda model: model
losses, batches = [], []
forward = transformers.LlamaForCausalLM.forward
def recorded(self, *given, **named):
    result = forward(self, *given, **named)
    losses.append(result.loss.item())
    batches.append((named["input_ids"].clone(), named["labels"].clone()))
    if len(losses) == wanted["decay_after"]:
        Path("decay_now").write_text(str(wanted["decay_steps"]))
    return result
transformers.LlamaForCausalLM.forward = recorded
source = Path(wanted["script"]).read_text(encoding="utf-8")
for old, new in wanted["changes"].items():
    assert old in source, old
    source = source.replace(old, new)
sys.argv = [wanted["script"], *wanted["arguments"]]
space = {"__name__": "__main__"}
exec(compile(source, wanted["script"], "exec"), space)
torch.save({"losses": losses, "batches": batches, "pairs": space.get("pairs")}, "seen.pt")
"""


def run_script(
    name: str,
    folder: Path,
    *,
    arguments: list[str] | None = None,
    changes: Mapping[str, str] | None = None,
    decay: tuple[int, int] = (0, 0),
    threads: int = 1,
) -> dict[str, Any]:
    """Run one script in `folder` and return losses, batches (ids and labels of each step) and pairs.

    Args:
        name: of the script.
        folder: its working folder; `../../data` is where it looks for data.
        arguments: of its command line.
        changes: text of the script → what stands there instead.
        decay: steps after which, and in which, the learning rate falls.
        threads: for computing.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        "script": str(shared_path("models", "recipe", name)),
        "arguments": arguments or [],
        "changes": dict(changes or {}),
        "decay_after": decay[0],
        "decay_steps": decay[1],
        "threads": threads,
    }
    (folder / "wanted.json").write_text(json.dumps(wanted), encoding="utf-8")
    subprocess.run([sys.executable, "-c", _DRIVER], cwd=folder, check=True, timeout=600, capture_output=True)
    seen: dict[str, Any] = torch.load(folder / "seen.pt", weights_only=True)
    return seen


def write_sources(data: Path, medquad: list[tuple[str, str]], wikidoc: list[tuple[str, str]]) -> None:
    """Write questions and answers as the two files that the scripts read."""
    data.mkdir(parents=True, exist_ok=True)
    with lzma.open(data / "medquad.jsonl.xz", "wt", encoding="utf-8") as file:
        for question, answer in medquad:
            file.write(json.dumps({"question": question, "answer": answer, "id": "", "focus": ""}) + "\n")
    with lzma.open(data / "wikidoc_patient_information.jsonl.xz", "wt", encoding="utf-8") as file:
        for question, answer in wikidoc:
            file.write(json.dumps({"input": question, "output": answer}) + "\n")
