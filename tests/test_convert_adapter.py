"""PEFT adapters: merged weights have PEFT's bits where PEFT is right, and what does not fit is refused."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgemed_convert.adapter import Adapter, MergedCheckpoint, apply_adapters, lora_pairs, not_expressible
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.errors import AdapterError
from edgemed_convert.merge import write_merged
from edgemed_convert.safetensors_file import from_float32, read_whole, row_blocks
from numpy.typing import NDArray

from edgemed.errors import UsageError
from tests.tiny_checkpoints import (
    HIDDEN,
    RANK,
    VOCABULARY,
    adapter_weights,
    base_weights,
    random_arrays,
    write_adapter,
    write_base,
    write_json,
)

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
CONV1D = ["c_attn", "c_proj", "c_fc"]

Recipe = tuple[str, dict[str, Any]]
PEFT_IS_RIGHT: dict[str, Recipe] = {
    "plain": ("llama", {"target_modules": LINEAR, "lora_alpha": 16}),
    "rank 64": ("llama", {"target_modules": LINEAR, "r": 64}),
    "rank-stabilised": ("llama", {"target_modules": LINEAR, "r": 16, "lora_alpha": 7, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": LINEAR,
            "rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 16},
            "alpha_pattern": {"v_proj": 32, "^model.layers.0.self_attn.k_proj": 3},
        },
    ),
    "some layers": ("llama", {"target_modules": LINEAR, "layers_to_transform": [1]}),
    "one layer of a pattern": (
        "llama",
        {"target_modules": LINEAR, "layers_to_transform": 0, "layers_pattern": "layers"},
    ),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "expression": ("llama", {"target_modules": r".*\.[01]\.self_attn\.[qv]_proj"}),
    "some left out": ("llama", {"target_modules": LINEAR, "exclude_modules": ["layers.1.mlp.up_proj"]}),
    "modules saved": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "container saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
    "embedding and head": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "resized": ("llama resized", {"target_modules": ["q_proj"]}),
    "resized and saved": (
        "llama resized",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "resized and adapted": ("llama resized", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "tied": ("llama tied", {"target_modules": LINEAR}),
    "tied and resized": ("llama tied resized", {"target_modules": ["q_proj"]}),
    "Conv1D": ("gpt2", {"target_modules": CONV1D, "fan_in_fan_out": True}),
    "Conv1D, all biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}),
    "Conv1D, its biases": (
        "gpt2",
        {"target_modules": ["c_attn"], "bias": "lora_only", "fan_in_fan_out": True},
    ),
    "Conv1D, bias of B": (
        "gpt2",
        {"target_modules": ["c_attn"], "lora_bias": True, "lora_alpha": 12, "fan_in_fan_out": True},
    ),
    "all biases": ("qwen2", {"target_modules": LINEAR, "bias": "all"}),
    "its biases": ("qwen2", {"target_modules": LINEAR, "bias": "lora_only"}),
}
DORA: dict[str, Recipe] = {
    "Linear": ("llama", {"target_modules": LINEAR, "use_dora": True}),
    "embedding and head": ("llama", {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}),
    "Conv1D": ("gpt2", {"target_modules": CONV1D, "use_dora": True, "fan_in_fan_out": True}),
}
needs_peft = pytest.mark.filterwarnings("ignore")


def new_model(kind: str) -> Any:
    """Return a tiny random transformers model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shared = {
        "vocab_size": 320,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": "tied" in kind or kind == "gpt2",
    }
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=256, n_layer=2, n_head=4, n_positions=64, **shared)
        return transformers.GPT2LMHeadModel(config)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    name = "Qwen2" if kind == "qwen2" else "Llama"
    return getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**sizes, **heads, **shared)
    )


class Peft:
    """A base model and adapters on the disk, and what PEFT makes of them."""

    def __init__(self, folder: Path, kind: str, dtype: str = "float32") -> None:
        self.folder, self.kind = folder, kind
        self.torch, self.peft = pytest.importorskip("torch"), pytest.importorskip("peft")
        self.dtype = getattr(self.torch, dtype)
        self.torch.set_num_threads(1)
        self.base = folder / "base"
        new_model(kind).to(self.dtype).save_pretrained(self.base)

    def load(self, folder: Path | None = None) -> Any:
        """Return the base model, its vocabulary resized where the kind says so."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder or self.base, dtype=self.dtype)
        if "resized" in self.kind and folder is None:
            self.torch.manual_seed(1)
            model.resize_token_embeddings(328, mean_resizing=False)
        return model

    def train(self, name: str, *, on: Path | None = None, **options: Any) -> Path:
        """Save an adapter whose every number is as after some training."""
        config = self.peft.LoraConfig(task_type="CAUSAL_LM", **options)
        model = self.peft.get_peft_model(self.load(on), config)
        self.torch.manual_seed(len(name))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * self.torch.randn_like(parameter)
        model.save_pretrained(self.folder / name)
        return self.folder / name

    def unmerged(self, adapter: Path) -> Any:
        """Return the base with the adapter beside it, as it was trained, in float32."""
        model = self.peft.PeftModel.from_pretrained(self.load(), adapter)
        for name, parameter in model.named_parameters():
            if "lora_embedding" in name:
                # PEFT brings all other factors to float32 by itself.
                parameter.data = parameter.data.float()
        return model

    def merged(self, adapter: Path, *, in_float32: bool = False) -> dict[str, NDArray[Any]]:
        """Return PEFT's merged weights as they would be stored."""
        model = self.unmerged(adapter)
        state = (model.float() if in_float32 else model).merge_and_unload().to(self.dtype).state_dict()
        bits = self.torch.uint16 if self.dtype == self.torch.bfloat16 else self.torch.float32
        return {name: tensor.detach().view(bits).numpy() for name, tensor in state.items()}


def ours(model: MergedCheckpoint) -> dict[str, NDArray[Any]]:
    return {name: from_float32(read_whole(one), one.type_name) for name, one in model.weights.items()}


def merge(base: Path, *adapters: Path, weights: tuple[float, ...] = ()) -> MergedCheckpoint:
    opened = [
        Adapter.open(folder, weight=weight)
        for folder, weight in zip(adapters, weights or (1.0,) * len(adapters), strict=True)
    ]
    return apply_adapters(Checkpoint.open(base), opened)


# Against PEFT.


@needs_peft
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", PEFT_IS_RIGHT)
def test_merged_weights_have_the_bits_of_peft_s(tmp_path: Path, variant: str, dtype: str) -> None:
    kind, options = PEFT_IS_RIGHT[variant]
    peft = Peft(tmp_path, kind, dtype)
    adapter = peft.train("adapter", **options)
    model = merge(peft.base, adapter)
    # PEFT rounds the change of an adapted embedding before it adds it, and the sum again.
    rounds_twice = "embed_tokens" in options["target_modules"]
    theirs, mine = peft.merged(adapter, in_float32=rounds_twice), ours(model)
    assert theirs.keys() - mine.keys() <= {"lm_head.weight"}
    assert ("lm_head.weight" in mine) == ("tied" not in kind and kind != "gpt2")
    for name, numbers in mine.items():
        assert numbers.shape == theirs[name].shape
        assert np.array_equal(numbers, theirs[name]), name
    assert model.config["vocab_size"] == (328 if "resized" in kind else 320)
    assert any(not np.array_equal(read_whole(one), mine[name]) for name, one in model.base.weights.items())


@needs_peft
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", DORA)
def test_dora_differs_from_peft_s_by_the_rounding_of_its_norms_alone(
    tmp_path: Path, variant: str, dtype: str
) -> None:
    """PEFT sums the squares in float32, in an order of its own; here they are summed in float64."""
    kind, options = DORA[variant]
    peft = Peft(tmp_path, kind, dtype)
    adapter = peft.train("adapter", **options)
    theirs, mine = peft.merged(adapter), ours(merge(peft.base, adapter))
    for name, numbers in mine.items():
        if dtype == "float32":
            np.testing.assert_allclose(numbers, theirs[name], rtol=1e-6, atol=0)
        else:
            steps = np.abs(numbers.astype(np.int32) - theirs[name].astype(np.int32))
            assert steps.max() <= 1
            assert np.count_nonzero(steps) <= max(2, steps.size // 5000)


@needs_peft
def test_dora_is_nearer_to_the_exact_merge_than_peft_s(tmp_path: Path) -> None:
    peft = Peft(tmp_path, "llama")
    adapter = peft.train("adapter", **DORA["Linear"][1])
    theirs, mine = peft.merged(adapter), ours(merge(peft.base, adapter))
    peft.dtype = peft.torch.float64
    exact = peft.peft.PeftModel.from_pretrained(peft.load(), adapter, autocast_adapter_dtype=False)
    exact = exact.double().merge_and_unload().state_dict()
    name = "model.layers.1.mlp.down_proj.weight"
    error = [np.abs(numbers[name] - exact[name].numpy()).mean() for numbers in (mine, theirs)]
    assert error[0] <= error[1]


@needs_peft
def test_adapters_apply_in_order_each_to_what_the_ones_before_it_made(tmp_path: Path) -> None:
    peft = Peft(tmp_path, "llama")
    first = peft.train("first", target_modules=LINEAR)
    peft.unmerged(first).merge_and_unload().save_pretrained(tmp_path / "between")
    second = peft.train("second", on=tmp_path / "between", target_modules=LINEAR, use_dora=True)
    model = peft.peft.PeftModel.from_pretrained(peft.load(tmp_path / "between"), second)
    theirs = model.merge_and_unload().state_dict()
    mine, reverse = ours(merge(peft.base, first, second)), ours(merge(peft.base, second, first))
    for name, numbers in mine.items():
        np.testing.assert_allclose(numbers, theirs[name].numpy(), rtol=1e-6, atol=0)
    assert not np.allclose(
        reverse["model.layers.0.mlp.up_proj.weight"], mine["model.layers.0.mlp.up_proj.weight"]
    )


@needs_peft
def test_the_weight_of_a_plain_adapter_is_peft_s_scale(tmp_path: Path) -> None:
    peft = Peft(tmp_path, "llama")
    adapter = peft.train("adapter", target_modules=LINEAR, r=16, lora_alpha=11)
    model = peft.unmerged(adapter)
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(0.3)
    theirs = model.merge_and_unload().state_dict()
    for name, numbers in ours(merge(peft.base, adapter, weights=(0.3,))).items():
        assert np.array_equal(numbers, theirs[name].numpy()), name


TIED: dict[str, tuple[dict[str, Any], bool]] = {
    "both adapted": ({"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, True),
    "embedding adapted": ({"target_modules": ["q_proj", "embed_tokens"]}, True),
    "head adapted": ({"target_modules": ["q_proj", "lm_head"]}, True),
    "both adapted as DoRA": ({"target_modules": ["embed_tokens", "lm_head"], "use_dora": True}, True),
    "both saved": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, True),
    "embedding saved": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, True),
    "head saved": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
    "adapted as one": ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, False),
    "saved as one": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        False,
    ),
}


@needs_peft
@pytest.mark.parametrize("variant", TIED)
@pytest.mark.parametrize("kind", ["llama tied", "gpt2"])
def test_a_tied_base_says_after_the_merge_what_it_says_with_the_adapter_beside_it(
    tmp_path: Path, kind: str, variant: str
) -> None:
    """PEFT's own merge puts both changes into the one matrix; the truth is the model as it was trained."""
    options, becomes_untied = TIED[variant]
    if kind == "gpt2":
        options = {
            key: [{"embed_tokens": "wte", "q_proj": "c_attn"}.get(name, name) for name in value]
            if isinstance(value, list)
            else value
            for key, value in options.items()
        }
    peft = Peft(tmp_path, kind)
    adapter = peft.train("adapter", **options)
    report = write_merged(merge(peft.base, adapter), tmp_path / "merged")
    # PEFT does not know GPT-2's embedding as one that it could tie to the head's adapter.
    assert report.untied == (becomes_untied or (kind, variant) == ("gpt2", "adapted as one"))
    ids = peft.torch.arange(2, 62).reshape(2, 30)
    with peft.torch.no_grad():
        truth = peft.unmerged(adapter).eval()(ids).logits
        merged = peft.load(tmp_path / "merged").eval()(ids).logits
        plain = peft.load().eval()(ids).logits
    scale = truth.std()
    assert (merged - truth).abs().max() < 1e-4 * scale
    assert (plain - truth).abs().max() > 0.05 * scale


@needs_peft
def test_low_rank_pairs_are_the_whole_change(tmp_path: Path) -> None:
    peft = Peft(tmp_path, "llama")
    adapter = Adapter.open(
        peft.train("adapter", target_modules=["q_proj", "embed_tokens"], r=16, use_rslora=True), weight=0.5
    )
    base = Checkpoint.open(peft.base)
    assert not not_expressible(adapter)
    assert adapter.ranks() == {16: 3}
    merged = apply_adapters(base, [adapter])
    for pair in lora_pairs(base, adapter):
        change = read_whole(merged.weights[pair.name]) - read_whole(base.weights[pair.name])
        product = pair.b @ pair.a
        np.testing.assert_allclose(product.T if pair.is_embedding else product, change, atol=1e-6)
    dora = Adapter.open(peft.train("dora", target_modules=["q_proj"], use_dora=True))
    assert "DoRA" in " ".join(not_expressible(dora))
    with pytest.raises(AdapterError, match="DoRA"):
        lora_pairs(base, dora)


# Without PEFT.


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def test_a_row_has_the_same_bits_however_it_is_read(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.lora_embedding_A": (64, 999),
        "model.embed_tokens.lora_embedding_B": (70, 64),
        "lm_head.lora_A.weight": (64, 70),
        "lm_head.lora_B.weight": (999, 64),
    }
    factors = {
        f"base_model.model.{name}": generator.standard_normal(shape, dtype=np.float32)
        for name, shape in shapes.items()
    }
    weights = random_arrays({"model.embed_tokens.weight": (999, 70), "lm_head.weight": (999, 70)}, 0)
    base = write_base(tmp_path / "base", weights=weights, vocab_size=999)
    for use_dora in (False, True):
        if use_dora:
            factors["base_model.model.lm_head.lora_magnitude_vector"] = np.ones(999, np.float32)
            factors["base_model.model.model.embed_tokens.lora_magnitude_vector"] = np.ones(70, np.float32)
        targets = ["embed_tokens", "lm_head"]
        folder = tmp_path / f"adapter {use_dora}"
        write_adapter(folder, factors, r=64, lora_alpha=5, target_modules=targets, use_dora=use_dora)
        for tensor in merge(base, folder).weights.values():
            whole = read_whole(tensor)
            order = np.random.default_rng(0).permutation(999)
            assert np.array_equal(tensor.read(order), whole[order])
            for block_bytes in (280, 2000, 20_000, 100_000):
                blocks = [tensor.read(rows) for rows in row_blocks(tensor.shape, block_bytes=block_bytes)]
                assert np.array_equal(np.concatenate(blocks), whole)


def test_a_weight_between_0_and_1_goes_part_of_the_way(tmp_path: Path, base: Path) -> None:
    factors = adapter_weights(base_weights())
    factors |= {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_magnitude_vector": np.full(
            HIDDEN, 3, np.float32
        )
        for layer in range(2)
    }
    factors |= {"base_model.model.model.norm.weight": np.full(HIDDEN, 2, np.float32)}
    adapter = write_adapter(tmp_path / "adapter", factors, use_dora=True, modules_to_save=["model.norm"])
    none, half, whole = (ours(merge(base, adapter, weights=(weight,))) for weight in (0.0, 0.5, 1.0))
    for name, numbers in base_weights().items():
        np.testing.assert_allclose(none[name], numbers, atol=1e-6)
        np.testing.assert_allclose(half[name], (numbers + whole[name]) / 2, atol=1e-6)
    with pytest.raises(UsageError):
        Adapter.open(adapter, weight=float("nan"))


def test_a_resized_vocabulary_cannot_be_weighted(tmp_path: Path, base: Path) -> None:
    resized = {
        f"base_model.model.{name}.weight": np.ones((VOCABULARY + 3, HIDDEN), np.float32)
        for name in ("model.embed_tokens", "lm_head")
    }
    adapter = write_adapter(tmp_path / "adapter", adapter_weights(base_weights()) | resized)
    assert merge(base, adapter).config["vocab_size"] == VOCABULARY + 3
    with pytest.raises(AdapterError, match="its weight cannot be"):
        merge(base, adapter, weights=(0.5,))
    del resized["base_model.model.lm_head.weight"]
    lone = write_adapter(tmp_path / "lone", adapter_weights(base_weights()) | resized)
    with pytest.raises(AdapterError, match="embedding one of 15 tokens, and the output head one of 12"):
        merge(base, lone)


def test_a_tokenizer_saved_with_the_adapter_is_the_model_s(tmp_path: Path, base: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", adapter_weights(base_weights()))
    assert merge(base, adapter).tokenizer_folder == base
    write_json(adapter / "tokenizer_config.json", {})
    assert merge(base, adapter).tokenizer_folder == base
    write_json(adapter / "tokenizer.json", {})
    model = merge(base, adapter)
    assert model.tokenizer_folder == adapter
    assert {adapter / "tokenizer.json", base / "model.safetensors"} <= set(model.files())


def test_files_without_the_outermost_name_take_the_same_adapter(tmp_path: Path) -> None:
    """GPT-2 was published so: wte.weight where the running model has transformer.wte."""
    shapes = {"wte.weight": (VOCABULARY, HIDDEN), "h.0.attn.c_attn.weight": (HIDDEN, 3 * HIDDEN)}
    weights = random_arrays(shapes, 0)
    base = write_base(
        tmp_path / "base", weights=weights, architectures=["GPT2LMHeadModel"], model_type="gpt2"
    )
    prefix = "base_model.model.transformer.h.0.attn.c_attn."
    factors = random_arrays(
        {f"{prefix}lora_A.weight": (RANK, HIDDEN), f"{prefix}lora_B.weight": (3 * HIDDEN, RANK)}, 1
    )
    adapter = write_adapter(tmp_path / "adapter", factors, target_modules=["c_attn"])
    a, b = (factors[f"{prefix}lora_{part}.weight"] for part in "AB")
    name = "h.0.attn.c_attn.weight"
    np.testing.assert_allclose(ours(merge(base, adapter))[name], weights[name] + 2 * (b @ a).T, atol=1e-5)


# What does not fit.


def test_an_adapter_with_any_tensor_left_out_is_refused(tmp_path: Path, base: Path) -> None:
    whole = adapter_weights(base_weights())
    merge(base, write_adapter(tmp_path / "whole", whole))
    for number, name in enumerate(whole):
        part = {other: numbers for other, numbers in whole.items() if other != name}
        refuses(base, write_adapter(tmp_path / f"part {number}", part), f"lacks {name}")
    layer = {name: numbers for name, numbers in whole.items() if ".1." not in name}
    refuses(base, write_adapter(tmp_path / "layer", layer), "lacks base_model.model.model.layers.1.self_attn")


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("model.layers.0.self_attn.o_proj.lora_A.weight", (RANK, HIDDEN), "does not account for"),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", (HIDDEN,), "does not account for"),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", (HIDDEN,), "uses the option lora_bias"),
        ("model.layers.0.self_attn.q_proj.lora_C.weight", (HIDDEN,), "a tensor that LoRA does not have"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", (RANK, HIDDEN), "a tensor that LoRA does not have"),
        ("model.layers.0.self_attn.q_proj.weight", (HIDDEN, HIDDEN), "does not account for"),
        ("model.layers.0.self_attn.q_proj.bias", (HIDDEN,), "does not account for"),
        ("model.norm.weight", (HIDDEN,), "does not account for"),
        ("model.layers.7.self_attn.q_proj.lora_A.weight", (RANK, HIDDEN), "this base of 2 layers does not have"),
        ("score.weight", (3, HIDDEN), "adapts score"),
        ("model.embed_tokens.token_adapter.trainable_tokens_delta", (2, HIDDEN), "trainable_token_indices"),
    ],
)  # fmt: skip
def test_an_adapter_with_any_tensor_too_many_is_refused(
    tmp_path: Path, base: Path, name: str, shape: tuple[int, ...], sentence: str
) -> None:
    factors = adapter_weights(base_weights()) | {f"base_model.model.{name}": np.ones(shape, np.float32)}
    refuses(base, write_adapter(tmp_path / "adapter", factors), sentence)


def test_a_tensor_outside_the_model_is_refused(tmp_path: Path, base: Path) -> None:
    factors = adapter_weights(base_weights()) | {"prompt_embeddings": np.ones((2, 2), np.float32)}
    refuses(base, write_adapter(tmp_path / "adapter", factors), "prompt_embeddings")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"peft_type": "IA3"}, "of the type 'IA3', not LORA"),
        ({"peft_type": None}, "of the type None"),
        ({"trainable_token_indices": [0]}, "trainable_token_indices=[0]"),
        ({"target_parameters": ["w"]}, "target_parameters="),
        ({"layer_replication": [[0, 1]]}, "layer_replication="),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens="),
        ({"megatron_config": {"a": 1}}, "megatron_config="),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora="),
        ({"arrow_config": {"top_k": 3}}, "arrow_config="),
        ({"kasa_config": {"beta": 0.1}}, "kasa_config="),
        ({"monteclora_config": {"a": 1}}, "monteclora_config="),
        ({"velora_config": {"a": 1}}, "velora_config="),
        ({"an_option_of_tomorrow": 0}, "an_option_of_tomorrow=0"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
        ({"init_lora_weights": "new"}, "which is unknown"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS'"),
        ({"lora_bias": True}, "lora_B.bias"),
        ({"r": 0}, "`$.r`"),
        ({"r": 4}, "q_proj.lora_A.weight of shape 2 x 8; for this base model it would be 4 x 8"),
        ({"lora_alpha": "x"}, "`$.lora_alpha`"),
        ({"lora_alpha": float("nan")}, "a finite number"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "a finite number"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": "("}, "no regular expression"),
        ({"rank_pattern": {"[": 2}}, "no regular expression"),
        ({"bias": "some"}, "`$.bias`"),
        ({"modules_to_save": ["norm"]}, "layernorm.weight"),
        ({"edgemed_base_sha256": "0" * 64}, "the recorded fingerprint differs"),
    ],
)
def test_an_option_that_is_not_supported_is_refused_by_name(
    tmp_path: Path, base: Path, options: dict[str, Any], sentence: str
) -> None:
    refuses(base, write_adapter(tmp_path / "adapter", adapter_weights(base_weights()), **options), sentence)


def test_a_bias_that_the_base_has_no_place_for_is_refused(tmp_path: Path, base: Path) -> None:
    factors = adapter_weights(base_weights())
    shapes = {name.replace("B.weight", "B.bias"): (HIDDEN,) for name in factors if "lora_B" in name}
    adapter = write_adapter(tmp_path / "a", factors | random_arrays(shapes, 1), lora_bias=True)
    refuses(base, adapter, "uses the option lora_bias")


def test_options_that_are_switched_off_are_none(tmp_path: Path, base: Path) -> None:
    off: dict[str, Any] = {
        "an_option_of_tomorrow": None,
        "use_qalora": False,
        "layer_replication": [],
        "megatron_core": "megatron.core",
    }
    adapter = write_adapter(
        tmp_path / "adapter", adapter_weights(base_weights()), **off, r=RANK, lora_dropout=0.1
    )
    assert merge(base, adapter).adapters[0].base_name == "tiny"


@pytest.mark.parametrize(
    ("layers", "hidden"), [(1, HIDDEN), (3, HIDDEN), (2, HIDDEN + 1)], ids=["shallower", "deeper", "wider"]
)
def test_an_adapter_of_another_base_is_refused(tmp_path: Path, base: Path, layers: int, hidden: int) -> None:
    other = {
        name: np.zeros(tuple(hidden if size == HIDDEN else size for size in numbers.shape), np.float32)
        for name, numbers in base_weights(layers=layers).items()
    }
    sentence = "it is not whole, or" if layers == 1 else "does not have" if layers == 3 else "would be 2 x 8"
    refuses(base, write_adapter(tmp_path / "adapter", adapter_weights(other)), sentence)


def test_an_adapter_saved_with_another_embedding_is_refused(tmp_path: Path, base: Path) -> None:
    frozen = base_weights()["model.embed_tokens.weight"]
    factors = random_arrays(
        {
            "base_model.model.model.embed_tokens.lora_embedding_A": (RANK, VOCABULARY),
            "base_model.model.model.embed_tokens.lora_embedding_B": (HIDDEN, RANK),
        },
        3,
    )
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    fits = write_adapter(tmp_path / "fits", factors | {name: frozen}, target_modules=["embed_tokens"])
    merge(base, fits)
    other = write_adapter(tmp_path / "other", factors | {name: frozen[::-1]}, target_modules=["embed_tokens"])
    refuses(base, other, "the embedding saved with it differs")


def test_adapters_trained_side_by_side_on_one_embedding_add_up(tmp_path: Path, base: Path) -> None:
    frozen = base_weights()["model.embed_tokens.weight"]
    prefix = "base_model.model.model.embed_tokens."
    shapes = {f"{prefix}lora_embedding_A": (RANK, VOCABULARY), f"{prefix}lora_embedding_B": (HIDDEN, RANK)}
    both = [random_arrays(shapes, seed) | {f"{prefix}base_layer.weight": frozen} for seed in (3, 4)]
    folders = [
        write_adapter(tmp_path / str(number), factors, target_modules=["embed_tokens"])
        for number, factors in enumerate(both)
    ]
    change = sum(2 * (f[f"{prefix}lora_embedding_B"] @ f[f"{prefix}lora_embedding_A"]).T for f in both)
    merged = ours(merge(base, *folders))["model.embed_tokens.weight"]
    np.testing.assert_allclose(merged, frozen + change, atol=1e-5)


def test_the_recorded_fingerprint_of_the_base_is_accepted(tmp_path: Path, base: Path) -> None:
    sha256 = Checkpoint.open(base).fingerprint()
    adapter = write_adapter(tmp_path / "a", adapter_weights(base_weights()), edgemed_base_sha256=sha256)
    assert merge(base, adapter).adapters[0].base_sha256 == sha256


def damaged_adapters() -> Iterator[tuple[str, Callable[[Path], object], str]]:
    weights, config = "adapter_model.safetensors", "adapter_config.json"
    yield (
        "pickle",
        lambda folder: (folder / weights).rename(folder / "adapter_model.bin"),
        "which could run any code",
    )
    yield "no weights", lambda folder: (folder / weights).unlink(), "has no adapter_model.safetensors"
    yield "no config", lambda folder: (folder / config).unlink(), "has no adapter_config.json"
    yield "a model", lambda folder: (folder / config).rename(folder / "config.json"), "is a whole model"
    yield "config no JSON", lambda folder: (folder / config).write_bytes(b"{"), "not valid JSON"
    yield (
        "cut short",
        lambda folder: (folder / weights).write_bytes((folder / weights).read_bytes()[:-1]),
        "cut short",
    )
    yield (
        "nothing",
        lambda folder: (folder / weights).write_bytes(b"\2" + bytes(7) + b"{}"),
        "holds no tensors",
    )


@pytest.mark.parametrize(("damage", "sentence"), [row[1:] for row in damaged_adapters()], ids=[row[0] for row in damaged_adapters()])  # fmt: skip
def test_a_damaged_adapter_is_refused(
    tmp_path: Path, base: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    damage(folder := write_adapter(tmp_path / "adapter", adapter_weights(base_weights())))
    refuses(base, folder, sentence)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("type_name", ["F32", "BF16", "F16"])
def test_nan_or_inf_in_an_adapter_is_refused(
    tmp_path: Path, base: Path, type_name: str, number: float
) -> None:
    factors = adapter_weights(base_weights())
    name = next(iter(factors))
    factors[name][1, 3] = number
    refuses(base, write_adapter(tmp_path / "a", factors, type_name=type_name), f"has NaN or Inf in {name}")


def test_an_adapter_of_integers_is_refused(tmp_path: Path, base: Path) -> None:
    refuses(base, write_adapter(tmp_path / "a", adapter_weights(base_weights()), type_name="U8"), "as U8")


def test_what_is_no_adapter_folder_is_refused(tmp_path: Path, base: Path) -> None:
    refuses(base, tmp_path / "nowhere", "does not exist")
    refuses(base, base / "config.json", "is a file")


def refuses(base: Path, adapter: Path, sentence: str) -> None:
    with pytest.raises(AdapterError) as caught:
        merge(base, adapter)
    assert sentence in caught.value.message
    assert caught.value.message.endswith(".")
    assert caught.value.hint
    assert caught.value.exit_code == 3
