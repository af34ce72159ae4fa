"""transformers' own GGUF reader, which knows nothing of ours, finds in our files what PEFT's merge holds."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from edgemed_convert.adapter import Adapter, apply_adapters
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.export import export_gguf

from tests.tiny_models import build

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "phi4mini": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}
CHANGES: dict[str, dict[str, Any]] = {
    # The reader takes hidden size / heads for the length of a head.
    "mistral": {"hidden_size": 768},
    "mistral3": {"hidden_size": 768},
}
# It leaves the tables of rotary factors unread; they are compared by themselves below.
WITHOUT_FACTORS = ("llama32", "phi4mini")
NAMES = ["llama3", "llama32", "qwen2", "gpt2", "gemma3", "phi3"]
MORE = ["llama2", "mistral", "mistral3", "smollm2", "smollm3", "qwen3", "gemma", "phi4mini", "edge"]
pytestmark = pytest.mark.filterwarnings("ignore")


def merged_by_both(name: str, folder: Path) -> tuple[Any, Path]:
    """Return PEFT's merged model, and the F32 file that we made of the same base and adapter."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    base = build(name, folder / "base", **CHANGES.get(name, {}))
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    config = peft.LoraConfig(r=8, lora_alpha=24, target_modules=TARGETS.get(name, LINEAR))
    adapted: Any = peft.get_peft_model(model, config)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(std=0.02)
    adapted.save_pretrained(folder / "adapter")
    merged = apply_adapters(Checkpoint.open(base), [Adapter.open(folder / "adapter")])
    export_gguf(merged, folder / "merged.gguf", file_type="F32", prove_tokenizer=False)
    return adapted.merge_and_unload().eval(), folder / "merged.gguf"


def read_by_transformers(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
        )
    except ValueError as error:
        if "not supported yet" in str(error):
            pytest.skip(str(error))
        raise
    return model.eval()


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_every_weight_is_that_of_pefts_merge_to_the_bit(name: str, tmp_path: Path) -> None:
    expected, path = merged_by_both(name, tmp_path)
    found = read_by_transformers(path)
    ours, theirs = (
        {key: value.detach().numpy() for key, value in model.named_parameters()}
        for model in (found, expected)
    )
    assert ours.keys() == theirs.keys()
    for key, weight in theirs.items():
        # Gemma's norms are 1 more in the file; taking 1 off again cannot bring the last bits back.
        added = np.float32(1 if name.startswith("gemma") and key.endswith("norm.weight") else 0)
        assert np.array_equal(ours[key] + added, weight + added), key
    if name not in WITHOUT_FACTORS:
        assert_same_logits(found, expected)


def assert_same_logits(found: Any, expected: Any) -> None:
    """Also with an epsilon, rotary base and window that came through the file."""
    import torch

    generator = np.random.default_rng(0)
    ids = torch.tensor([generator.integers(10, expected.config.vocab_size - 70, 100).tolist()])
    with torch.no_grad():
        one, other = found(ids).logits, expected(ids).logits
    assert torch.equal(one, other)


def test_the_rotary_factors_are_those_that_transformers_divides_by(tmp_path: Path) -> None:
    """The engine multiplies wave lengths by them; transformers changes the frequencies at once."""
    pytest.importorskip("torch")
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    base = build("llama32", tmp_path / "base")
    export_gguf(Checkpoint.open(base), tmp_path / "base.gguf", file_type="F32", prove_tokenizer=False)
    (factors,) = (
        tensor.data for tensor in gguf.GGUFReader(tmp_path / "base.gguf").tensors if "rope" in tensor.name
    )
    config: Any = AutoConfig.from_pretrained(base)
    frequencies, _attention_factor = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    assert np.allclose(plain / np.array(factors, np.float64), frequencies.numpy(), rtol=1e-6)
    assert factors.min() == 1
    assert factors.max() == 32
