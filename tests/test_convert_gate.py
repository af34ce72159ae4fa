"""The gate passes right files and stops every planted fault; it says which check saw it.

Logits see a fault of calculation by themselves, without the exact comparison of tensors; what they cannot see
(end tokens, templates, how text is cut) others must.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgemed_convert.adapter import Adapter, apply_adapters
from edgemed_convert.check.gate import CheckOptions, check_files
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.export import Model, export_gguf
from edgemed_convert.llama.process import LlamaProcess

from edgemed.check_report import CheckReport
from tests import tiny_models
from tests.gguf_edits import interleaved, not_interleaved, rewrite, swap_tensors, zero_tensor
from tests.tiny_checkpoints import write_adapter

pytest.importorskip("torch", reason="the gate's reference logits need torch")
pytest.importorskip("transformers", reason="the gate's references need transformers")

pytestmark = pytest.mark.filterwarnings("ignore")
OPTIONS = CheckOptions(random_strings=100, threads=1)
WITHOUT_LOGITS = CheckOptions(random_strings=100, threads=1, with_logits=False)
HEADS, KV_HEADS = 4, 2


@dataclass(frozen=True)
class Made:
    """A model folder and its right F32 file."""

    folder: Path
    file: Path


Models = Callable[..., Made]
Recipe = tuple[str, dict[str, Any]]
Plant = Callable[[Made, Path], Path]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Return what builds a tiny model and exports it, each once a session."""
    made: dict[str, Made] = {}

    def make(name: str, **changes: Any) -> Made:
        key = f"{name} {sorted(changes.items())}"
        if key not in made:
            folder = tiny_models.build(name, tmp_path_factory.mktemp(name) / "model", **changes)
            file = folder.parent / "right.gguf"
            export_gguf(Checkpoint.open(folder), file, file_type="F32")
            made[key] = Made(folder, file)
        return made[key]

    return make


@pytest.fixture(scope="session")
def llama(models: Models) -> Made:
    """Return a small Llama with an output head of its own, its rows long enough for every type."""
    return models("edge", tie_word_embeddings=False)


def failed(report: CheckReport, file: Path | None = None) -> set[str]:
    """Return the names of the checks that failed."""
    return {result.name for result in report.failures(None if file is None else file.name)}


def check(made: Made, *files: Path, options: CheckOptions = OPTIONS) -> set[str]:
    """Return the names of the checks that failed; none may have been left out."""
    report = check_files(made.folder, files, options=options)
    assert report.not_run == []
    return failed(report)


@pytest.mark.parametrize("name", ["llama3", "qwen2"])
def test_a_right_file_passes(models: Models, name: str) -> None:
    made = models(name)
    assert check(made, made.file) == set()


# Faults of calculation: other metadata, other numbers.


def _without_permutation(made: Made, target: Path) -> Path:
    return rewrite(made.file, target, tensors={"blk.0.attn_q.weight": not_interleaved(HEADS)})


def _doubled_permutation(made: Made, target: Path) -> Path:
    return rewrite(made.file, target, tensors={"blk.1.attn_k.weight": interleaved(KV_HEADS)})


def _rope_base(made: Made, target: Path) -> Path:
    return rewrite(made.file, target, fields={"llama.rope.freq_base": 500000.0})


def _epsilon(made: Made, target: Path) -> Path:
    return rewrite(made.file, target, fields={"llama.attention.layer_norm_rms_epsilon": 1e-6})


def _epsilon_of_gemma(made: Made, target: Path) -> Path:
    return rewrite(made.file, target, fields={"gemma.attention.layer_norm_rms_epsilon": 1e-5})


def _nothing(made: Made, target: Path) -> Path:
    return rewrite(made.file, target)


def _no_rope_factors(made: Made, target: Path) -> Path:
    return rewrite(made.file, target, tensors={"rope_freqs.weight": None})


def _other_rope_factors(made: Made, target: Path) -> Path:
    # As for a factor of 8 instead of 32.
    return rewrite(made.file, target, tensors={"rope_freqs.weight": lambda factors: np.minimum(factors, 8)})


def _linear_scaling(made: Made, target: Path) -> Path:
    fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    return rewrite(made.file, target, fields=fields)


def _no_norm_offset(made: Made, target: Path) -> Path:
    return rewrite(made.file, target, tensors={"output_norm.weight": lambda numbers: numbers - 1})


def _not_transposed(made: Made, target: Path) -> Path:
    return rewrite(made.file, target, tensors={"blk.0.attn_output.weight": lambda numbers: numbers.T})


def _no_head(made: Made, target: Path) -> Path:
    return rewrite(made.file, target, tensors={"output.weight": None})


def _noisy_head(made: Made, target: Path) -> Path:
    embedding = _numbers(made.file, "token_embd.weight")
    noise = np.random.default_rng(7).normal(0, 0.02 * embedding.std(), embedding.shape)
    return rewrite(made.file, target, added={"output.weight": (embedding + noise).astype(np.float32)})


def _copied_head(made: Made, target: Path) -> Path:
    return rewrite(made.file, target, added={"output.weight": _numbers(made.file, "token_embd.weight")})


def _zeroed(made: Made, target: Path) -> Path:
    return zero_tensor(made.file, target, "blk.1.attn_v.weight")


def _swapped(made: Made, target: Path) -> Path:
    return swap_tensors(made.file, target, "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight")


def _swapped_layers(made: Made, target: Path) -> Path:
    return swap_tensors(made.file, target, "blk.0.attn_v.weight", "blk.1.attn_v.weight")


def _numbers(path: Path, name: str) -> Any:
    from edgemed_convert.check.gguf_file import GGUFFile

    file = GGUFFile(path)
    return file.read(name, 0, file.shape(name)[0])


# Small shapes: the gate runs in seconds, the faults show all the same.
_SMALL = {"hidden_size": 128, "intermediate_size": 256}
UNTIED: Recipe = ("edge", {**_SMALL, "head_dim": 32, "tie_word_embeddings": False})
TIED: Recipe = ("edge", {**_SMALL, "head_dim": 32})
SCALED: Recipe = ("llama32", {**_SMALL, "num_attention_heads": 4, "num_key_value_heads": 2})
GEMMA: Recipe = ("gemma", {**_SMALL, "head_dim": 32})
GPT2: Recipe = ("distilgpt2", {"n_embd": 96})
RIGHT = "none"
CALCULATION: Mapping[str, tuple[Recipe, Plant, set[str]]] = {
    "q permutation left out": (UNTIED, _without_permutation, {"tensors", "logits"}),
    "k permutation doubled": (UNTIED, _doubled_permutation, {"tensors", "logits"}),
    "wrong rope base": (UNTIED, _rope_base, {"metadata", "logits"}),
    # Within llama.cpp's own rounding of other models, so that no limit on logits could see it in all.
    "wrong epsilon": (UNTIED, _epsilon, {"metadata"}),
    "rope factors missing": (SCALED, _no_rope_factors, {"tensors", "logits"}),
    "rope factors of another model": (SCALED, _other_rope_factors, {"tensors", "logits"}),
    "rope scaling of another kind": (UNTIED, _linear_scaling, {"metadata", "logits"}),
    "Gemma's norm offset missing": (GEMMA, _no_norm_offset, {"tensors", "logits"}),
    "wrong epsilon of Gemma": (GEMMA, _epsilon_of_gemma, {"metadata"}),
    "Conv1D not transposed": (GPT2, _not_transposed, {"tensors", "logits"}),
    "own head left out": (UNTIED, _no_head, {"tensors", "logits"}),
    "embedding untied, head 2 % off": (TIED, _noisy_head, {"tensors", "logits"}),
    # The same words from a larger file: nothing to see in logits.
    "embedding untied, head a copy": (TIED, _copied_head, {"tensors"}),
    "a tensor zeroed": (UNTIED, _zeroed, {"tensors", "logits"}),
    "two tensors swapped": (UNTIED, _swapped, {"tensors", "logits"}),
    "two layers' tensors swapped": (UNTIED, _swapped_layers, {"tensors", "logits"}),
    **{f"{RIGHT} in {recipe[0]}": (recipe, _nothing, set()) for recipe in (SCALED, GEMMA, GPT2)},
    f"{RIGHT} in an untied model": (UNTIED, _nothing, set()),
    f"{RIGHT} in a tied model": (TIED, _nothing, set()),
}


@pytest.fixture(scope="session")
def verdicts(models: Models) -> Callable[[str], set[str]]:
    """Return what tells which checks failed; all faults of one model go through the gate at once."""
    reports: dict[str, CheckReport] = {}

    def verdict(fault: str) -> set[str]:
        (name, changes), _plant, _expected = CALCULATION[fault]
        key = f"{name} {changes}"
        made = models(name, **changes)
        if key not in reports:
            faults = [one for one, entry in CALCULATION.items() if f"{entry[0][0]} {entry[0][1]}" == key]
            files = [CALCULATION[one][1](made, _faulty(made, one)) for one in faults]
            reports[key] = check_files(made.folder, files, options=OPTIONS)
            assert reports[key].not_run == []
        return failed(reports[key], _faulty(made, fault))

    return verdict


def _faulty(made: Made, fault: str) -> Path:
    return made.folder.parent / f"{list(CALCULATION).index(fault)}.gguf"


@pytest.mark.parametrize("fault", CALCULATION)
def test_a_fault_of_calculation_is_stopped_by_the_right_checks(
    verdicts: Callable[[str], set[str]], fault: str
) -> None:
    assert verdicts(fault) == CALCULATION[fault][2]


# Adapters.


@pytest.fixture(scope="session")
def adapter(llama: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an adapter that changes its weights by about a tenth, as trained ones do."""
    random = np.random.default_rng(5)
    weights = {}
    for name, tensor in Checkpoint.open(llama.folder).weights.items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            rows, columns = tensor.shape
            weights[f"{module}.lora_A.weight"] = random.normal(0, 0.02, (4, columns)).astype(np.float32)
            weights[f"{module}.lora_B.weight"] = random.normal(0, 0.05, (rows, 4)).astype(np.float32)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    return write_adapter(folder, weights, r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])


def test_a_skipped_layer_and_a_wrong_scale_of_an_adapter_are_stopped(
    llama: Made, adapter: Path, tmp_path: Path
) -> None:
    base = Checkpoint.open(llama.folder)
    merged = apply_adapters(base, [Adapter.open(adapter)])
    skipped = "model.layers.1.self_attn.q_proj.weight"
    models: dict[str, Model] = {
        "right": merged,
        "skipped": dataclasses.replace(merged, weights={**merged.weights, skipped: base.weights[skipped]}),
        "doubled": apply_adapters(base, [Adapter.open(adapter, weight=2.0)]),
        "halved": apply_adapters(base, [Adapter.open(adapter, weight=0.5)]),
        "base": base,
    }
    files = {name: tmp_path / f"{name}.gguf" for name in models}
    for name, model in models.items():
        export_gguf(model, files[name], file_type="F32")
    report = check_files(llama.folder, list(files.values()), [adapter], options=OPTIONS)
    assert {name: failed(report, file) for name, file in files.items()} == {
        "right": set(),
        **{name: {"tensors", "logits"} for name in ("skipped", "doubled", "halved", "base")},
    }


def test_a_merged_file_of_16_bit_passes(llama: Made, adapter: Path, tmp_path: Path) -> None:
    merged = apply_adapters(Checkpoint.open(llama.folder), [Adapter.open(adapter)])
    export_gguf(merged, tmp_path / "merged.gguf", file_type="BF16")
    report = check_files(llama.folder, [tmp_path / "merged.gguf"], [adapter], options=OPTIONS)
    assert report.failures() == []
    assert [result.name for result in report.results if "logits" in result.name] == [
        "logits",
        "logits_first_layers",
    ]


# How text is cut, how a chat is written, where it ends: nothing of this shows in logits.


def test_each_wrong_pre_tokenizer_is_stopped(models: Models, tmp_path: Path) -> None:
    """Four ordinary sentences see none of gpt-4o, whose rule is nearly Llama 3's."""
    made = models("llama3")
    wrong = ("default", "gpt-2", "qwen2", "smollm", "tekken", "gpt-4o")
    files = [
        rewrite(made.file, tmp_path / f"{pre}.gguf", fields={"tokenizer.ggml.pre": pre}) for pre in wrong
    ]
    report = check_files(made.folder, files, options=WITHOUT_LOGITS)
    assert {file.stem for file in files if "tokens" in failed(report, file)} == set(wrong)


def _fields(models: Models, fault: str) -> tuple[Made, dict[str, Any]]:
    """Return a model and the metadata of a faulty file of it."""
    llama3 = models("llama3")
    template = (llama3.folder / "chat_template.jinja").read_text(encoding="utf-8")
    if fault == "BOS added to a model without one":
        fields = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 5}
        return models("qwen2"), fields
    if fault == "a line break ends every answer":
        # An exporter with a constant id for Gemma's <end_of_turn> did that.
        return models(*GEMMA[:1], **GEMMA[1]), {"tokenizer.ggml.eot_token_id": 500}
    other = (models("qwen2").folder / "chat_template.jinja").read_text(encoding="utf-8")
    faults: dict[str, dict[str, Any]] = {
        "BOS left out": {"tokenizer.ggml.add_bos_token": False},
        "BOS doubled by the template": {"tokenizer.chat_template": "{{ bos_token }}" + template},
        "template swapped": {"tokenizer.chat_template": other},
        "template missing": {"tokenizer.chat_template": None},
        "end token missing": {"tokenizer.ggml.eos_token_id": None},
        "end token is an ordinary word": {"tokenizer.ggml.eos_token_id": 300},
    }
    return llama3, faults[fault]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("BOS added to a model without one", {"tokens", "chat_rendering"}),
        ("BOS left out", {"tokens"}),
        ("BOS doubled by the template", {"chat_template", "chat_rendering"}),
        ("template swapped", {"chat_template", "chat_rendering"}),
        ("template missing", {"chat_template", "chat_rendering"}),
        ("end token missing", {"metadata", "end_of_turn"}),
        ("end token is an ordinary word", {"metadata", "end_of_turn"}),
        ("a line break ends every answer", {"end_of_turn"}),
    ],
)
def test_a_fault_of_chat_or_text_is_stopped(
    models: Models, tmp_path: Path, fault: str, expected: set[str]
) -> None:
    made, fields = _fields(models, fault)
    file = rewrite(made.file, tmp_path / "faulty.gguf", fields=fields)
    assert failed(check_files(made.folder, [file], options=WITHOUT_LOGITS)) == expected


# Quantized files.


@pytest.fixture(scope="session")
def quantized(llama: Made) -> Callable[[str], Path]:
    """Return what quantizes the small Llama through llama.cpp, each type once."""

    def make(type_name: str) -> Path:
        target = llama.file.with_name(f"right-{type_name}.gguf")
        if not target.exists():
            with LlamaProcess(threads=1) as process:
                process.quantize(llama.file, target, type_name)
        return target

    return make


def test_right_quantized_files_pass_beside_their_parent(
    llama: Made, quantized: Callable[[str], Path]
) -> None:
    files = [quantized("Q4_K_M"), llama.file, quantized("Q8_0")]
    report = check_files(llama.folder, files, options=WITHOUT_LOGITS)
    assert report.failures() == []
    assert [(loss.quantization_type, loss.text) for loss in report.quantization_losses] == [
        (type_name, text) for text in ("English", "other languages") for type_name in ("Q4_K_M", "Q8_0")
    ]
    by_type = {loss.quantization_type: loss.mean_kl_nats for loss in report.quantization_losses}
    assert 0 < by_type["Q8_0"] < by_type["Q4_K_M"]


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K_M"])
def test_a_zeroed_or_swapped_tensor_is_stopped_in_a_quantized_file_alone(
    llama: Made, quantized: Callable[[str], Path], tmp_path: Path, type_name: str
) -> None:
    zeroed = zero_tensor(
        quantized(type_name), tmp_path / f"zeroed-{type_name}.gguf", "blk.0.attn_output.weight"
    )
    swapped = swap_tensors(
        quantized(type_name),
        tmp_path / f"swapped-{type_name}.gguf",
        "blk.0.ffn_gate.weight",
        "blk.1.ffn_gate.weight",
    )
    report = check_files(llama.folder, [zeroed, swapped], options=WITHOUT_LOGITS)
    assert {(result.file, result.name) for result in report.failures()} == {
        (zeroed.name, "tensors"),
        (swapped.name, "tensors"),
    }


def test_a_label_that_the_tensors_do_not_bear_out_is_stopped(
    llama: Made, quantized: Callable[[str], Path], tmp_path: Path
) -> None:
    liar = rewrite(quantized("Q8_0"), tmp_path / "m-Q4_K_M.gguf", fields={"general.file_type": 15})
    renamed = tmp_path / "other-Q4_K_M.gguf"
    renamed.write_bytes(quantized("Q8_0").read_bytes())
    report = check_files(llama.folder, [liar, renamed], options=WITHOUT_LOGITS)
    assert {(result.file, result.name) for result in report.failures()} == {
        (liar.name, "types"),
        (renamed.name, "types"),
    }


# Damage.


def test_a_nan_a_cut_file_and_a_file_that_llama_cpp_refuses_do_not_stop_the_other_checks(
    llama: Made, tmp_path: Path
) -> None:
    def with_nan(numbers: Any) -> Any:
        numbers = numbers.copy()
        numbers[3, 5] = np.nan
        return numbers

    sick = rewrite(llama.file, tmp_path / "sick.gguf", tensors={"blk.1.ffn_down.weight": with_nan})
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(llama.file.read_bytes()[:-1000])
    refused = rewrite(llama.file, tmp_path / "refused.gguf", tensors={"blk.0.attn_k.weight": None})
    report = check_files(llama.folder, [sick, cut, refused, llama.file], options=OPTIONS)
    found = {(result.file, result.name) for result in report.failures()}
    assert {("sick.gguf", "finite"), ("sick.gguf", "tensors"), ("sick.gguf", "logits")} <= found
    assert ("cut.gguf", "file") in found
    assert {("refused.gguf", "tensors"), ("refused.gguf", "llama_cpp")} <= found
    assert not any(file == llama.file.name for file, _name in found)
    assert "cut.gguf" not in {file.name for file in report.files}


# All families.


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_every_family_passes_at_every_unquantized_type(models: Models, tmp_path: Path, name: str) -> None:
    made = models(name)
    files = [made.file]
    for file_type in ("F16", "BF16"):
        files.append(tmp_path / f"right-{file_type}.gguf")
        export_gguf(Checkpoint.open(made.folder), files[-1], file_type=file_type)
    report = check_files(made.folder, files, options=CheckOptions(threads=2))
    assert [(result.name, result.details) for result in report.failures()] == []
    assert report.not_run == []
