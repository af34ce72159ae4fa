"""Every architecture goes the whole way: base and adapter, `run`, the checks, a pack, and an answer."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgemed_convert import cli as command_line
from edgemed_convert import run as run_module
from edgemed_convert.check.gate import CheckOptions

from edgemed import operating_system
from tests import tiny_models

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WITHOUT_TEMPLATE = ("gpt2",)
QUESTION_ANSWER = (
    "{% for message in messages %}{% if message['role'] == 'user' %}Question: {{ message['content'] }}\nAnswer:"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}\n{% endif %}{% endfor %}"
)
TYPES = ("F16", "Q4_K_M")


def random_adapter(base: Path, folder: Path) -> Path:
    """Save a LoRA adapter of random numbers for a base model, as PEFT writes it."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = TARGETS.get(model.config.model_type, LLAMA_TARGETS)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", target_modules=targets)
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.02)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_base_and_adapter_become_checked_files_that_answer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The 10,000 random strings are for test_convert_gate.py.
    monkeypatch.setattr(run_module, "CheckOptions", functools.partial(CheckOptions, random_strings=300))
    monkeypatch.setattr(operating_system, "on_termination", lambda handler: None)
    base = tiny_models.build(name, tmp_path / "base", dtype="float16")
    adapter, out = random_adapter(base, tmp_path / "adapter"), tmp_path / "out"
    arguments = ["run", str(base), "--adapter", str(adapter), "--types", ",".join(TYPES), "--out", str(out)]
    template = tmp_path / "template.jinja"
    template.write_text(QUESTION_ANSWER, encoding="utf-8")
    if name in WITHOUT_TEMPLATE:
        arguments += ["--chat-template", str(template)]
    arguments += ["--name", "tiny", "--license", "mit", "--pack", "--threads", "1", "--json"]
    with pytest.raises(SystemExit) as ended:
        command_line.main(arguments)
    report = json.loads((out / "check.json").read_text(encoding="utf-8"))
    failed = [result for result in report["results"] if result["status"] != "passed"]
    assert (ended.value.code or 0, failed) == (0, [])
    assert _edgemed("models", "install", str(out / "tiny-Q4_K_M.pack")).returncode == 0
    answer = _edgemed("ask", "--json", "--max-tokens", "4", "--model", "tiny-Q4_K_M", "What is fever?")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["generated_tokens"] >= 1


def _edgemed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgemed.cli", *arguments], capture_output=True, text=True, timeout=120
    )
