"""Export: every family's file says what transformers says, and what cannot be said is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from edgemed_convert import export
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.errors import CheckpointError, UnsupportedArchitecture
from edgemed_convert.export import export_gguf
from edgemed_convert.families.registry import find_family, supported_architectures
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.safetensors_file import FloatArray, StoredTensor, Weights, read_whole
from edgemed_convert.tokenizer.reader import read_tokenizer
from edgemed_convert.tokenizer.vocabulary_file import engine_name

from edgemed.errors import UsageError
from edgemed.gguf_header import read_header
from tests.tiny_models import NAMES, build, change_json

# Largest difference of a logit, in standard deviations of all logits. GPT-2 and Gemma use an approximate GELU.
MAX_DIFFERENCE = 1e-4
MAX_DIFFERENCE_GELU = 5e-3
POSITIONS = 160

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Return a function that builds each tiny model once."""
    built: dict[str, Path] = {}

    def get(name: str, **changes: Any) -> Path:
        key = f"{name} {json.dumps(changes, sort_keys=True)}"
        if key not in built:
            built[key] = build(name, tmp_path_factory.mktemp(name) / name, **changes)
        return built[key]

    return get


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaProcess]:
    with LlamaProcess(threads=1) as process:
        yield process


def exported(folder: Path, target: Path, **options: Any) -> Path:
    export_gguf(Checkpoint.open(folder), target, **{"file_type": "F32", "prove_tokenizer": False, **options})
    return target


def contents(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def tensors(reader: gguf.GGUFReader) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        tensor.name: (tensor.tensor_type.name, tuple(tensor.shape), tensor.data.tobytes())
        for tensor in reader.tensors
    }


def difference(folder: Path, path: Path, llama: LlamaProcess) -> float:
    """Return the largest difference between llama.cpp's logits and transformers'."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    llama.load(path, context_length=256)
    size = model.config.vocab_size
    ids = [int(number) for number in np.random.default_rng(0).integers(10, size - 70, POSITIONS)]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].float().numpy()
    found = llama.logits(ids)
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.98
    return float(np.abs(found - expected).max() / expected.std())


def limit(name: str) -> float:
    return MAX_DIFFERENCE_GELU if "gpt2" in name or "gemma" in name else MAX_DIFFERENCE


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_answers_as_transformers_does(
    name: str, tiny: Build, llama: LlamaProcess, tmp_path: Path
) -> None:
    exported(tiny(name), tmp_path / "model.gguf")
    assert difference(tiny(name), tmp_path / "model.gguf", llama) < limit(name)


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama3", {"rope_parameters": YARN, "max_position_embeddings": 256}),
    (
        "llama3",
        {
            "rope_parameters": {**YARN, "attention_factor": 1.4, "beta_fast": 16.0},
            "max_position_embeddings": 256,
        },
    ),
    ("llama3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    ("llama3", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("smollm2", {"tie_word_embeddings": False}),
    ("smollm3", {"tie_word_embeddings": False, "rope_parameters": YARN, "max_position_embeddings": 256}),
    ("qwen2", {"tie_word_embeddings": False, "rope_parameters": YARN, "max_position_embeddings": 256}),
    ("qwen3", {"tie_word_embeddings": True}),
    (
        "gemma3",
        {
            "layer_types": [
                f"{kind}_attention" for kind in ("full", "sliding", "sliding", "full", "full", "sliding")
            ],
            "num_hidden_layers": 6,
            "final_logit_softcapping": 20.0,
        },
    ),
    (
        "gemma3",
        {
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    ("distilgpt2", {"n_inner": 512, "tie_word_embeddings": False}),
    ("phi3", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    ("phi4mini", {"tie_word_embeddings": False}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=lambda value: str(value)[:40])
def test_options_that_the_engine_has_a_place_for_arrive_there(
    name: str, changes: dict[str, Any], tmp_path: Path, llama: LlamaProcess
) -> None:
    folder = build(name, tmp_path / name, **changes)
    exported(folder, tmp_path / "model.gguf")
    assert difference(folder, tmp_path / "model.gguf", llama) < limit(name)


# Against llama.cpp's own converter.

_CONVERT = """
import sys
root, pre = sys.argv[1:3]
sys.argv = ["convert_hf_to_gguf.py", *sys.argv[3:]]
sys.path[:0] = [root + "/gguf-py", root]
from conversion import base
# Its table of hashes knows no newly trained tokenizer.
known = base.TextModel.get_vocab_base_pre
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre or known(self, tokenizer)
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""
# Every key whose value may differ, and why.
DIFFERENCES = {
    "general.name": "ours is the folder's name as it is, the converter's has capitals",
    "general.size_label": "we leave it out: nothing reads it",
    "tokenizer.ggml.add_bos_token": "always said: the engine's default depends on the tokenizer's kind",
    "tokenizer.ggml.add_eos_token": "always said",
    "tokenizer.ggml.add_space_prefix": "always said",
    "tokenizer.ggml.add_sep_token": "no model here separates texts, and the engine's default is no",
    "tokenizer.ggml.eot_token_id": "further end tokens of the configs; the converter's 107 for Gemma is a guess",
    "tokenizer.ggml.eom_token_id": "further end tokens of the configs",
    "gemma.rope.freq_base": "always said; the converter trusts the engine's default",
    "tokenizer.ggml.tokens": "runs of spaces that tokenizer.json adds (Gemma); the converter reads another file",
    "tokenizer.ggml.token_type": "special tokens that only tokenizer.json lists; <unk> stays unknown",
    "tokenizer.ggml.scores": "<unk>, <s> and </s> keep their pieces' scores, which nothing reads",
}


@pytest.mark.slow
@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_that_of_llama_cpps_own_converter(
    name: str, file_type: str, tiny: Build, tmp_path: Path
) -> None:
    """Byte-identical tensors in the same order; each difference in metadata is one of the table."""
    llama_cpp = os.environ.get("EDGEMED_LLAMA_CPP")
    if not llama_cpp:
        pytest.skip("EDGEMED_LLAMA_CPP does not name a folder with llama.cpp's source")
    folder = tiny(name)
    ours = gguf.GGUFReader(exported(folder, tmp_path / "ours.gguf", file_type=file_type))
    copy = tmp_path / name
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    if "gpt2" in name:
        # The converter looks for a field that transformers 5 no longer writes.
        (copy / "config.json").unlink()
        (copy / "config.json").write_bytes((folder / "config.json").read_bytes())
        change_json(copy / "config.json", n_ctx=Checkpoint.open(folder).config["n_positions"])
    pre = contents(ours)["tokenizer.ggml.pre"]
    arguments = [llama_cpp, pre, str(copy), "--outfile", str(tmp_path / "theirs.gguf"), "--outtype"]
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT, *arguments, file_type.lower()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = gguf.GGUFReader(tmp_path / "theirs.gguf")
    assert tensors(ours) == tensors(theirs)
    assert [tensor.name for tensor in ours.tensors] == [tensor.name for tensor in theirs.tensors]
    one, other = contents(ours), contents(theirs)
    assert {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} <= DIFFERENCES.keys()


# Streaming and rounding.


def test_small_row_blocks_make_the_same_file(
    tiny: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reordered, transposed, shifted and copied rows: a block's end must not show."""
    for name, file_type in (("llama32", "BF16"), ("distilgpt2", "F16"), ("gemma3", "Q8_0"), ("qwen2", "F32")):
        exported(tiny(name), tmp_path / f"{name}.gguf", file_type=file_type)
        with monkeypatch.context() as patch:
            patch.setattr(export, "BLOCK_BYTES", 300_000)
            exported(tiny(name), tmp_path / f"{name}-blocks.gguf", file_type=file_type)
        assert (tmp_path / f"{name}.gguf").read_bytes() == (tmp_path / f"{name}-blocks.gguf").read_bytes()


def test_numbers_are_rounded_once_and_to_the_nearest(tiny: Build, tmp_path: Path) -> None:
    import torch

    path = exported(tiny("qwen3", dtype="bfloat16"), tmp_path / "model.gguf", file_type="F16")
    weights = Checkpoint.open(tiny("qwen3", dtype="bfloat16")).weights
    found = next(
        tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.ffn_up.weight"
    ).data
    expected = torch.from_numpy(read_whole(weights["model.layers.0.mlp.up_proj.weight"])).half().numpy()
    assert found.tobytes() == expected.tobytes()


def test_a_head_of_its_own_is_written_even_if_the_config_says_tied(tiny: Build, tmp_path: Path) -> None:
    """An adapter that trained the head leaves such a model; a copy of the embedding is left out."""
    checkpoint = Checkpoint.open(tiny("llama32"))
    embedding = checkpoint.weights["model.embed_tokens.weight"]
    for head, written in ((embedding, False), (_Changed(embedding, read_whole(embedding) + 1), True)):
        model = _with_weights(checkpoint, {**checkpoint.weights, "lm_head.weight": head})
        export_gguf(model, tmp_path / f"{written}.gguf", file_type="F32", prove_tokenizer=False)
        names = [tensor.name for tensor in read_header(tmp_path / f"{written}.gguf").tensors]
        assert ("output.weight" in names) == written


def test_rows_that_32_does_not_divide_stay_at_16_bits(tmp_path: Path) -> None:
    folder = build("llama3", tmp_path / "model", intermediate_size=520)
    header = read_header(exported(folder, tmp_path / "m.gguf", file_type="Q8_0"))
    types = {tensor.name: tensor.type_name for tensor in header.tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"


# The file.


def test_extra_metadata_and_the_report_tell_the_truth(tiny: Build, tmp_path: Path) -> None:
    report = export_gguf(
        Checkpoint.open(tiny("mistral3")),
        tmp_path / "model.gguf",
        file_type="Q8_0",
        prove_tokenizer=False,
        extra_metadata={
            "general.name": "Clinic",
            "general.license": "apache-2.0",
            "general.tags": ["medical"],
        },
    )
    fields = read_header(tmp_path / "model.gguf").metadata
    assert (fields["general.name"], fields["general.license"]) == ("Clinic", "apache-2.0")
    assert fields["general.tags"] == ["medical"]
    assert report.size_bytes == (tmp_path / "model.gguf").stat().st_size
    assert report.tensor_types == {"Q8_0": 16, "F32": 5}
    assert any("very beginning" in note for note in report.notes)


def test_an_existing_file_is_kept(tiny: Build, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"old")
    with pytest.raises(UsageError, match="exists"):
        exported(tiny("edge"), tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == b"old"
    exported(tiny("edge"), tmp_path / "model.gguf", overwrite=True)


def test_an_interrupted_export_leaves_nothing(tiny: Build, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int, unit: str = "bytes") -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exported(tiny("edge"), tmp_path / "out" / "model.gguf", progress=interrupt)
    assert not list((tmp_path / "out").iterdir())


def test_the_name_makes_the_engine_treat_phi_3_and_only_phi_3_specially(tiny: Build) -> None:
    """llama.cpp looks for "phi-3" in the name, and does not load a file so named without certain tokens."""
    phi, edge = (read_tokenizer(tiny(name), Checkpoint.open(tiny(name)).config) for name in ("phi3", "edge"))
    assert "phi-3" in engine_name("Clinic", phi)
    assert engine_name("My-Phi-3-clinic", phi) == "My-Phi-3-clinic"
    assert engine_name("My-Phi-3-clinic and phi3", edge) == "My-Phi 3-clinic and phi 3"


# Bad input: weights.


class _Changed:
    """A weight with other numbers."""

    def __init__(self, tensor: Any, numbers: FloatArray) -> None:
        self.type_name = tensor.type_name
        self._numbers = numbers.astype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._numbers.shape

    def read(self, rows: Any) -> FloatArray:
        numbers: FloatArray = self._numbers[rows]
        return numbers

    def read_stored(self, rows: Any) -> None:
        return None


class _Model:
    """A checkpoint with other weights or another config."""

    def __init__(self, checkpoint: Checkpoint, weights: Weights, config: dict[str, Any]) -> None:
        self.folder = self.tokenizer_folder = checkpoint.folder
        self.architecture = checkpoint.architecture
        self.generation_config = checkpoint.generation_config
        self.weights = weights
        self.config = config


def _with_weights(checkpoint: Checkpoint, weights: Mapping[str, Any]) -> _Model:
    return _Model(checkpoint, weights, checkpoint.config)


def _spoiled(tensor: StoredTensor, value: float) -> _Changed:
    numbers = read_whole(tensor)
    numbers.flat[numbers.size // 2] = value
    return _Changed(tensor, numbers)


UP = "model.layers.1.mlp.up_proj.weight"
QUERIES = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
WRONG_WEIGHTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (lambda weights: weights.pop(UP), UP),
    "norm missing": (lambda weights: weights.pop("model.norm.weight"), "model.norm.weight is missing"),
    "left over": (lambda weights: weights.update({"model.layers.0.mlp.extra.weight": weights[UP]}), "no place"),
    "a layer too many": (lambda weights: weights.update({"model.layers.2.mlp.up_proj.weight": weights[UP]}), "no place"),
    "bias in one layer": (
        lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": weights["model.norm.weight"]}),
        "model.layers.1.self_attn.q_proj.bias is missing",
    ),
    "NaN": (lambda weights: weights.update({UP: _spoiled(weights[UP], np.nan)}), f"{UP} holds NaN"),
    "Inf": (lambda weights: weights.update({UP: _spoiled(weights[UP], -np.inf)}), f"{UP} holds NaN"),
    "too large": (lambda weights: weights.update({UP: _spoiled(weights[UP], 1e6)}), "too large for F16"),
    "columns": (
        lambda weights: weights.update({EMBEDDING: _Changed(weights[EMBEDDING], read_whole(weights[EMBEDDING])[:, 1:])}),
        "rows of 256 numbers",
    ),
    "heads": (
        lambda weights: weights.update({QUERIES: _Changed(weights[QUERIES], read_whole(weights[QUERIES])[1:])}),
        "4 attention heads do not divide",
    ),
    "rows": (
        lambda weights: weights.update({EMBEDDING: _Changed(weights[EMBEDDING], read_whole(weights[EMBEDDING])[:-1])}),
        "8,191 rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_wrong_weights_are_refused_by_name(case: str, tiny: Build, tmp_path: Path) -> None:
    spoil, message = WRONG_WEIGHTS[case]
    checkpoint = Checkpoint.open(tiny("edge"))
    if checkpoint.config["vocab_size"] != 8192 and case == "rows":
        pytest.skip("needs the shared tokenizer")
    weights = dict(checkpoint.weights)
    spoil(weights)
    with pytest.raises(CheckpointError, match=message):
        export_gguf(
            _with_weights(checkpoint, weights), tmp_path / "m.gguf", file_type="F16", prove_tokenizer=False
        )
    assert not list(tmp_path.glob("*.gguf"))


def test_stored_nan_is_found_where_rows_are_copied(tiny: Build, tmp_path: Path) -> None:
    for dtype, file_type, bits in (
        ("float32", "F32", b"\x00\x00\xc0\x7f"),
        ("bfloat16", "BF16", b"\x80\xff"),
    ):
        folder = build("qwen3", tmp_path / dtype, dtype=dtype)
        tensor = Checkpoint.open(folder).weights[UP]
        assert isinstance(tensor, StoredTensor)
        with tensor.path.open("r+b") as file:
            file.seek(tensor.offset + 1000 * len(bits))
            file.write(bits)
        with pytest.raises(CheckpointError, match=f"{UP} holds NaN"):
            exported(folder, tmp_path / "m.gguf", file_type=file_type)


# Bad input: configs.

LLAMA = {
    "vocab_size": 100, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6, "rms_norm_eps": 1e-5,
    "num_attention_heads": 4, "max_position_embeddings": 1024, "hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 64, "head_dim": 64, "sliding_window": 64, "original_max_position_embeddings": 1024,
}  # fmt: skip
GPT2 = {
    "vocab_size": 100, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 64, "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
}  # fmt: skip
WRONG_CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("LlamaForCausalLM", {"rms_norm_eps": None}, "no rms_norm_eps"),
    ("LlamaForCausalLM", {"num_hidden_layers": "6"}, "num_hidden_layers"),
    ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act"),
    ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "odd": 3}}, "'odd'"),
    ("MistralForCausalLM", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
    ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 3}, "no_rope_layer_interval"),
    ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 1, 0, 1, 1, 1]}, "no_rope_layers"),
    ("SmolLM3ForCausalLM", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "'llama3'"),
    ("Qwen2ForCausalLM", {"use_sliding_window": True}, "use_sliding_window"),
    ("Qwen2ForCausalLM", {"head_dim": 128}, "head_dim"),
    ("GemmaForCausalLM", {"hidden_act": "silu"}, "hidden_act"),
    ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("Gemma3ForCausalLM", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar"),
    ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("GPT2LMHeadModel", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("GPT2LMHeadModel", {"activation_function": "relu"}, "activation_function"),
    ("Phi3ForCausalLM", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn'"),
    ("Phi3ForCausalLM", {"sliding_window": "wide"}, "sliding_window"),
    ("LlamaForCausalLM", {"rope_parameters": {"rope_type": ["yarn"]}}, "rotary positions"),
    ("SmolLM3ForCausalLM", {"no_rope_layers": 4}, "no_rope_layers"),
    ("Gemma3ForCausalLM", {"layer_types": [["full_attention"]] * 6}, "layer_types"),
    ("Gemma3ForCausalLM", {"sliding_window_pattern": "6"}, "sliding_window_pattern"),
    ("LlamaForCausalLM", {"head_dim": None, "num_attention_heads": 3}, "do not divide"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "changes", "message"), WRONG_CONFIGS, ids=lambda value: str(value)[:40]
)
def test_options_that_the_engine_would_not_run_are_refused_by_name(
    architecture: str, changes: dict[str, Any], message: str
) -> None:
    sound = _sound_config(architecture)
    find_family(_bare(architecture)).metadata(sound)
    with pytest.raises(CheckpointError, match=message):
        find_family(_bare(architecture)).metadata({**sound, **changes})


def test_another_architecture_is_told_which_ones_there_are() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"Qwen3ForCausalLM.*Phi3ForCausalLM") as caught:
        find_family(_bare("FalconForCausalLM"))
    assert "--with-llama-cpp" in caught.value.hint
    assert len(supported_architectures()) == 9


def test_older_forms_of_rotary_positions_are_read() -> None:
    """Before transformers 5: rope_theta and rope_scaling beside each other; Gemma 3 with two bases."""
    old = {
        **LLAMA,
        "rope_theta": 500000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "sliding_window_pattern": 6,
        "rope_local_base_freq": 20000.0,
    }
    llama = find_family(_bare("LlamaForCausalLM")).metadata(old)
    assert (llama["llama.rope.freq_base"], llama["llama.rope.scaling.factor"]) == (500000.0, 2.0)
    gemma = find_family(_bare("Gemma3ForCausalLM")).metadata(old)
    assert (gemma["gemma3.rope.freq_base"], gemma["gemma3.rope.freq_base_swa"]) == (500000.0, 20000.0)


def _sound_config(architecture: str) -> dict[str, Any]:
    if "GPT2" in architecture:
        return GPT2
    return {**LLAMA, "hidden_act": "gelu_pytorch_tanh"} if "Gemma" in architecture else LLAMA


def _bare(architecture: str) -> Any:
    return type("Bare", (), {"architecture": architecture, "config": {}, "weights": {}})()
