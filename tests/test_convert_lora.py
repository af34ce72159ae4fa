"""LoRA GGUF: base file and adapter file answer as transformers with PEFT does, or are refused with the reason."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from edgemed_convert.adapter import Adapter, apply_adapters
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.errors import AdapterError
from edgemed_convert.export import export_gguf
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.lora import BASE_SHA256_KEY, export_adapter
from edgemed_convert.lora_check import check_adapter, check_against_model

from edgemed.errors import ModelError, ModelUnsupported, UsageError
from edgemed.gguf_header import read_header
from tests.tiny_models import build

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PHI3 = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
CONV1D = ["c_attn", "c_proj", "c_fc"]
PATTERNS = {
    "rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 16},
    "alpha_pattern": {"v_proj": 32, "^model.layers.0.self_attn.k_proj": 3},
}
# Limits of base F32 + adapter against transformers with PEFT (design: F16 adapters 1.7e-3 to 5.7e-3).
F16_LIMIT = 1e-2
F32_LIMIT, F32_LIMIT_GELU = 2e-4, 5e-3

Recipe = tuple[str, dict[str, Any], dict[str, Any]]
ADAPTERS: dict[str, Recipe] = {
    # Three key-value heads: a permutation with the wrong count does not stay hidden.
    "llama": ("llama3", {"target_modules": LINEAR}, {}),
    "llama rank-stabilised": ("llama3", {"target_modules": LINEAR, "r": 16, "use_rslora": True}, {}),
    "llama patterns": ("llama3", {"target_modules": LINEAR, **PATTERNS}, {}),
    "llama tied, rope factors": ("llama32", {"target_modules": LINEAR}, {}),
    "llama embedding and head": (
        "llama3",
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {},
    ),
    "mistral": ("mistral", {"target_modules": "all-linear"}, {}),
    "smollm3": ("smollm3", {"target_modules": LINEAR}, {}),
    "qwen2": ("qwen2", {"target_modules": LINEAR, "r": 16, "use_rslora": True}, {}),
    "qwen3": ("qwen3", {"target_modules": LINEAR, **PATTERNS}, {}),
    "gemma": ("gemma", {"target_modules": LINEAR}, {}),
    "gemma3": ("gemma3", {"target_modules": LINEAR}, {}),
    "gpt2": ("distilgpt2", {"target_modules": CONV1D, "fan_in_fan_out": True}, {}),
    "gpt2 rank-stabilised": (
        "distilgpt2",
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_rslora": True, "r": 16},
        {},
    ),
    "phi3": ("phi3", {"target_modules": PHI3}, {}),
    "phi4mini": ("phi4mini", {"target_modules": PHI3, "rank_pattern": {"qkv_proj": 12}}, {}),
}
QUICK = ["llama", "llama patterns", "llama embedding and head", "qwen2", "gemma", "gpt2", "phi3"]
pytestmark = pytest.mark.filterwarnings("ignore")


class Tiny:
    """A tiny base model with a random adapter, its GGUF, and what transformers with PEFT says."""

    def __init__(self, folder: Path, name: str, options: dict[str, Any], **changes: Any) -> None:
        torch, self.peft = pytest.importorskip("torch"), pytest.importorskip("peft")
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.folder, self.name = folder / "base", name
        build(name, self.folder, **changes)
        base = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation="eager"
        )
        torch.manual_seed(3)
        settings = {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", **options}
        self.model: Any = self.peft.get_peft_model(base, self.peft.LoraConfig(**settings))
        with torch.no_grad():
            for parameter_name, parameter in self.model.named_parameters():
                if "lora_" in parameter_name and "magnitude" not in parameter_name:
                    parameter.normal_(std=0.02)
        self.model.eval().save_pretrained(folder / "adapter")
        self.adapter, self.gguf = folder / "adapter", folder / "base.gguf"
        export_gguf(Checkpoint.open(self.folder), self.gguf, file_type="F32", prove_tokenizer=False)

    def logits(self, ids: list[int]) -> Any:
        import torch

        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].float().numpy()

    def difference(self, adapter: Path, llama: LlamaProcess) -> float:
        """Return the largest difference of base file + adapter file, in deviations of PEFT's logits."""
        llama.load(self.gguf, adapter=adapter, context_length=128)
        size = self.model.config.vocab_size
        ids = [int(number) for number in np.random.default_rng(0).integers(10, size - 70, 96)]
        expected, found = self.logits(ids), llama.logits(ids)
        return float(np.abs(found - expected).max() / expected.std())

    def merged(self, target: Path) -> Path:
        model = apply_adapters(Checkpoint.open(self.folder), [Adapter.open(self.adapter)])
        export_gguf(model, target, file_type="F32", prove_tokenizer=False)
        return target


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """Return a function that builds each model with its adapter once."""
    built: dict[str, Tiny] = {}

    def get(case: str) -> Tiny:
        if case not in built:
            name, options, changes = ADAPTERS[case]
            built[case] = Tiny(tmp_path_factory.mktemp("tiny"), name, options, **changes)
        return built[case]

    return get


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaProcess]:
    with LlamaProcess(threads=1) as process:
        yield process


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in ADAPTERS]
)
def test_base_and_adapter_answer_as_transformers_with_peft_does(
    case: str, tiny: Callable[[str], Tiny], llama: LlamaProcess, tmp_path: Path
) -> None:
    model = tiny(case)
    for type_name, limit in (("F32", None), ("F16", F16_LIMIT)):
        export_adapter(model.adapter, model.gguf, tmp_path / f"{type_name}.gguf", type_name=type_name)  # type: ignore[arg-type]
        found = model.difference(tmp_path / f"{type_name}.gguf", llama)
        exact = F32_LIMIT_GELU if model.name.startswith(("gemma", "distilgpt2")) else F32_LIMIT
        assert found < (limit or exact)


def change_tensors(
    source: Path, target: Path, change: Callable[[str, Any], Any], *, alpha: float = 0.0
) -> Path:
    """Copy an F32 LoRA GGUF with its numbers changed; a tensor that becomes None is left out."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for tensor in reader.tensors:
        numbers = change(tensor.name, np.array(tensor.data))
        if numbers is not None:
            writer.add_tensor(tensor.name, np.ascontiguousarray(numbers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def unpermuted(name: str, numbers: Any) -> Any:
    """Undo the file's order of k rows: 3 heads of 128."""
    if not name.endswith("attn_k.weight.lora_b"):
        return numbers
    return numbers.reshape(3, 64, 2, -1).swapaxes(1, 2).reshape(numbers.shape)


FAULTS: dict[str, tuple[Callable[[str, Any], Any], float]] = {
    "scale twice": (lambda name, numbers: numbers * (2 if name.endswith("b") else 1), 0.0),
    "scale half": (lambda name, numbers: numbers * (0.5 if name.endswith("b") else 1), 0.0),
    "scale 2 % too large": (lambda name, numbers: numbers * (1.02 if name.endswith("b") else 1), 0.0),
    "scale folded in and written": (lambda _name, numbers: numbers, 16.0),
    "one layer skipped": (lambda name, numbers: None if name.startswith("blk.1.") else numbers, 0.0),
    "one module skipped": (lambda name, numbers: None if ".1.attn_q." in name else numbers, 0.0),
    "rows of k in Hugging Face's order": (unpermuted, 0.0),
}


def test_the_check_passes_the_right_file_and_finds_each_fault(
    tiny: Callable[[str], Tiny], llama: LlamaProcess, tmp_path: Path
) -> None:
    model = tiny("llama")
    merged = model.merged(tmp_path / "merged.gguf")
    right = tmp_path / "right.gguf"
    export_adapter(model.adapter, model.gguf, tmp_path / "F16.gguf")
    export_adapter(model.adapter, model.gguf, right, type_name="F32")
    for path in (right, tmp_path / "F16.gguf"):
        agreement = check_adapter(model.gguf, path, merged, process=llama)
        assert agreement.passed, agreement
        assert agreement.effect > 0.05
    for fault, (change, alpha) in FAULTS.items():
        wrong = change_tensors(right, tmp_path / f"{fault}.gguf", change, alpha=alpha)
        agreement = check_adapter(model.gguf, wrong, merged, process=llama)
        assert not agreement.passed, (fault, agreement)
        assert "not as the merged model" in agreement.sentence


def test_a_weak_adapter_of_half_its_strength_is_found(tmp_path: Path, llama: LlamaProcess) -> None:
    """Its logits differ by less than any limit for logits alone."""
    model = Tiny(tmp_path, "edge", {"target_modules": LINEAR, "lora_alpha": 0.05})
    merged = model.merged(tmp_path / "merged.gguf")
    right = tmp_path / "right.gguf"
    export_adapter(model.adapter, model.gguf, right, type_name="F32")
    assert check_adapter(model.gguf, right, merged, process=llama).passed
    half = change_tensors(
        right, tmp_path / "half.gguf", lambda name, numbers: numbers * (0.5 if name.endswith("b") else 1)
    )
    agreement = check_adapter(model.gguf, half, merged, process=llama)
    assert agreement.relative < 0.02
    assert not agreement.passed


def test_the_check_against_the_model_itself_needs_no_files_of_the_user(tmp_path: Path) -> None:
    model = Tiny(tmp_path, "edge", {"target_modules": LINEAR})
    export_adapter(model.adapter, model.gguf, tmp_path / "adapter.gguf", weight=0.5)
    checkpoint = Checkpoint.open(model.folder)
    adapter = tmp_path / "adapter.gguf"
    assert check_against_model(checkpoint, model.adapter, adapter, weight=0.5, threads=1).passed
    assert not check_against_model(checkpoint, model.adapter, adapter, threads=1).passed


def test_an_adapter_without_effect_is_told_apart(tmp_path: Path, llama: LlamaProcess) -> None:
    model = Tiny(tmp_path, "edge", {"target_modules": LINEAR})
    export_adapter(model.adapter, model.gguf, tmp_path / "none.gguf", weight=0.0)
    agreement = check_adapter(model.gguf, tmp_path / "none.gguf", model.gguf, process=llama)
    assert agreement.effect == 0
    assert not agreement.passed
    assert "changes nothing" in agreement.sentence


NOT_EXPRESSIBLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "DoRA": ("llama3", {"target_modules": ["q_proj"], "use_dora": True}, "DoRA"),
    "whole head": (
        "llama3",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "replaces or shifts lm_head",
    ),
    "bias": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}, "replaces or shifts"),
    "bias of B": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}, "replaces or shifts"),
    "tied embedding": ("edge", {"target_modules": ["q_proj", "embed_tokens"]}, "one matrix for both"),
    "tied head": ("edge", {"target_modules": ["q_proj", "lm_head"]}, "one matrix for both"),
    "positions": ("distilgpt2", {"target_modules": ["wpe"]}, "applies none to position_embd"),
}


@pytest.mark.parametrize("case", NOT_EXPRESSIBLE)
def test_what_the_engine_cannot_apply_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    name, options, words = NOT_EXPRESSIBLE[case]
    model = Tiny(tmp_path, name, options)
    with pytest.raises(AdapterError, match=words) as refused:
        export_adapter(model.adapter, model.gguf, tmp_path / "adapter.gguf")
    assert "Merge it into the base model" in refused.value.hint
    assert not list(tmp_path.glob("*adapter.gguf*"))


def test_a_resized_vocabulary_is_refused(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = Tiny(tmp_path, "edge", {"target_modules": ["q_proj"]})
    base = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)
    base.resize_token_embeddings(base.config.vocab_size + 8, mean_resizing=False)
    peft = model.peft.get_peft_model(
        base, model.peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])
    )
    peft.save_pretrained(tmp_path / "resized")
    with pytest.raises(AdapterError):
        export_adapter(tmp_path / "resized", model.gguf, tmp_path / "adapter.gguf")


def test_an_adapter_of_another_base_is_refused(tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    model = tiny("llama")
    other = Tiny(tmp_path, "edge", {"target_modules": LINEAR})
    with pytest.raises(AdapterError, match=r"lacks|for this base model it would be"):
        export_adapter(model.adapter, other.gguf, tmp_path / "adapter.gguf")
    (model_layers := json.loads((other.adapter / "adapter_config.json").read_text()))[
        "layers_to_transform"
    ] = [0]
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "adapter_config.json").write_text(json.dumps(model_layers))
    weights = (other.adapter / "adapter_model.safetensors").read_bytes()
    (tmp_path / "part" / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(AdapterError, match="does not account for"):
        export_adapter(tmp_path / "part", other.gguf, tmp_path / "adapter.gguf")


@pytest.mark.parametrize("type_name", ["F16", "Q8_0"])
def test_a_quantized_base_takes_the_same_adapter(
    type_name: str, tiny: Callable[[str], Tiny], tmp_path: Path
) -> None:
    """Also one that PEFT saved with a copy of the frozen embedding, which a quantized base has in other bits."""
    model = tiny("llama embedding and head")
    base = tmp_path / "base.gguf"
    export_gguf(Checkpoint.open(model.folder), base, file_type=type_name, prove_tokenizer=False)  # type: ignore[arg-type]
    export_adapter(model.adapter, base, tmp_path / "here.gguf")
    report = export_adapter(model.adapter, model.gguf, tmp_path / "there.gguf", overwrite=True)
    here, there = (gguf.GGUFReader(tmp_path / name) for name in ("here.gguf", "there.gguf"))
    assert [(t.name, t.data.tobytes()) for t in here.tensors] == [
        (t.name, t.data.tobytes()) for t in there.tensors
    ]
    assert here.fields[BASE_SHA256_KEY].contents() != there.fields[BASE_SHA256_KEY].contents()
    assert there.fields[BASE_SHA256_KEY].contents() == report.base_sha256


def test_an_embedding_saved_from_another_model_is_refused_by_a_quantized_base(
    tiny: Callable[[str], Tiny], tmp_path: Path
) -> None:
    model = tiny("llama embedding and head")
    assert any("base_layer.weight" in roles for roles in Adapter.open(model.adapter).modules.values())
    other = build("llama3", tmp_path / "other", seed=7)
    export_gguf(Checkpoint.open(other), tmp_path / "other.gguf", file_type="Q8_0", prove_tokenizer=False)
    with pytest.raises(AdapterError, match=r"another base model than other\.gguf"):
        export_adapter(model.adapter, tmp_path / "other.gguf", tmp_path / "adapter.gguf")


def test_what_is_no_base_is_refused(tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    model = tiny("llama")
    export_adapter(model.adapter, model.gguf, tmp_path / "adapter.gguf")
    with pytest.raises(ModelUnsupported, match="is no model"):
        export_adapter(model.adapter, tmp_path / "adapter.gguf", tmp_path / "second.gguf")
    with pytest.raises(ModelError):
        export_adapter(model.adapter, model.folder / "config.json", tmp_path / "second.gguf")
    with pytest.raises(AdapterError, match="is a whole model, not an adapter"):
        export_adapter(model.folder, model.gguf, tmp_path / "second.gguf")
    strange = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(strange, "mamba")
    writer.add_type("model")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelUnsupported, match="is a mamba"):
        export_adapter(model.adapter, strange, tmp_path / "second.gguf")
    assert not (tmp_path / "second.gguf").exists()


def test_a_number_too_large_for_f16_and_an_existing_target_are_refused(
    tiny: Callable[[str], Tiny], tmp_path: Path
) -> None:
    model = tiny("llama")
    with pytest.raises(AdapterError, match="too large for F16"):
        export_adapter(model.adapter, model.gguf, tmp_path / "adapter.gguf", weight=1e6)
    assert not list(tmp_path.glob("*adapter*"))
    (tmp_path / "adapter.gguf").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        export_adapter(model.adapter, model.gguf, tmp_path / "adapter.gguf")
    assert (tmp_path / "adapter.gguf").read_bytes() == b"mine"


def test_the_file_says_what_it_is_and_for_which_base(tiny: Callable[[str], Tiny], tmp_path: Path) -> None:
    model = tiny("llama patterns")
    report = export_adapter(model.adapter, model.gguf, tmp_path / "adapter.gguf", name="cough 1")
    header = read_header(tmp_path / "adapter.gguf")
    assert header.metadata["general.name"] == "cough 1"
    assert header.metadata["adapter.lora.alpha"] == 0
    assert header.metadata[BASE_SHA256_KEY] == report.base_sha256
    assert report.modules == 14
    assert report.ranks == {4: 2, 8: 11, 16: 1}
    assert header.file_size == report.size_bytes


def edgemed(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "edgemed.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_clinic_installs_the_adapter_and_gets_other_answers(tmp_path: Path) -> None:
    """And with another file of the same shapes the app refuses it: the engine would not."""
    model = Tiny(tmp_path, "qwen3", {"target_modules": LINEAR, "lora_alpha": 64})
    export_adapter(model.adapter, model.gguf, tmp_path / "cough.gguf", name="cough")
    other = tmp_path / "other.gguf"
    export_gguf(Checkpoint.open(model.folder), other, file_type="F16", prove_tokenizer=False)
    for path, name in ((model.gguf, "base"), (other, "other"), (tmp_path / "cough.gguf", "cough")):
        assert edgemed("models", "install", path, "--name", name).returncode == 0
    question = ("ask", "What is fever?", "--json", "--max-tokens", "24", "--seed", "1", "--model")
    plain, adapted = edgemed(*question, "base"), edgemed(*question, "base", "--adapter", "cough")
    assert plain.returncode == adapted.returncode == 0, adapted.stderr
    assert json.loads(plain.stdout)["text"] != json.loads(adapted.stdout)["text"]
    refused = edgemed(*question, "other", "--adapter", "cough")
    assert refused.returncode == 3
    assert "cough was made for another base model than other" in refused.stderr
