"""The gate's parts one by one: the report, the independent tables, the rules for texts, what runs without torch."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgemed_convert.check import gate, logits, probe_strings
from edgemed_convert.check.end_of_turn import check_end_of_turn
from edgemed_convert.check.first_layers import metadata_bytes, write_first_layers
from edgemed_convert.check.gate import CheckOptions, check_files
from edgemed_convert.check.gguf_file import GGUFFile, rounded
from edgemed_convert.check.metadata import check_metadata
from edgemed_convert.check.model_config import ModelConfig
from edgemed_convert.check.quantization_label import type_of_label
from edgemed_convert.check.reference_tokenizer import ReferenceTokenizer
from edgemed_convert.check.report_text import report_text
from edgemed_convert.check.templates import EngineVocabulary, check_rendering
from edgemed_convert.check.tensor_sources import llama3_factors, rotated_rows
from edgemed_convert.check.tokens import LETTERS, OWN_FILES, SPACE_SIGN, check_tokens
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.errors import CheckpointError
from edgemed_convert.export import export_gguf
from edgemed_convert.llama.process import TokenTable

from edgemed import machine
from edgemed.check_report import (
    AppliedAdapter,
    CheckedFile,
    CheckReport,
    CheckResult,
    QuantizationLoss,
    encode_check_report,
    read_check_report,
)
from edgemed.errors import ModelCorrupt, UsageError
from tests import tiny_models
from tests.gguf_edits import interleaved

pytest.importorskip("transformers", reason="tiny models are built with transformers")

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parent.parent
_SMALL: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256}


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a small tied Llama with 3 layers: its folder and its F16 file."""
    folder = tiny_models.build(
        "edge", tmp_path_factory.mktemp("edge") / "model", num_hidden_layers=3, head_dim=32, **_SMALL
    )
    file = folder.parent / "m-F16.gguf"
    export_gguf(Checkpoint.open(folder), file, file_type="F16")
    return folder, file


# The report.


def _report(*results: CheckResult) -> CheckReport:
    file = CheckedFile(
        name="a-very-long-name-of-a-model-file-with-its-version-2024-02-29-Q4_K_M.gguf",
        size_bytes=5_800_000,
        sha256="0" * 64,
        quantization_type="Q4_K_M",
        tensor_types={"Q4_K": 48, "F32": 17},
        bits_per_weight=5.26,
    )
    loss = QuantizationLoss(
        file=file.name,
        parent="m-F16.gguf",
        text="other languages",
        quantization_type="Q4_K_M",
        bits_per_weight=5.26,
        size_bytes=4_800_000_000,
        mean_kl_nats=0.04415,
        mean_kl_uncertainty_nats=0.00122,
        percentile_99_kl_nats=10.189,
        highest_kl_nats=16.299,
        top1_share=0.851,
        parent_perplexity=115.09,
        perplexity=380_904.77,
        scored_tokens=1530,
    )
    return CheckReport(
        edgemed_version="0.1.0",
        model="edge-base-8m",
        model_sha256="f" * 64,
        adapters=[AppliedAdapter(name="clinic", weight=0.5)],
        files=[file],
        results=[msgspec.structs.replace(result, file=result.file or file.name) for result in results],
        quantization_losses=[loss],
    )


PASSED = CheckResult(name="tensors", file="", status="passed", sentence="All 74 tensors are right.")
FAILED = CheckResult(
    name="chat_rendering",
    file="",
    status="failed",
    sentence="2 conversations are not as in transformers.",
    limit="the same bytes, the same refusals, the same ids with exactly one BOS",
    details=["a difference that is long enough to need a second line, if not a third one " * 2],
)
NOT_RUN = CheckResult(name="logits", file="", status="not_run", sentence="torch is not installed.")


def test_a_report_survives_its_file_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    report = _report(PASSED, FAILED)
    path.write_bytes(encode_check_report(report))
    assert read_check_report(path) == report
    assert b'"schema_version": 1' in path.read_bytes()
    for damage in (
        path.read_bytes().replace(b'"model":', b'"modle":'),
        path.read_bytes().replace(b'"schema_version": 1', b'"schema_version": 2'),
        path.read_bytes().replace(b'"failed"', b'"perhaps"'),
        path.read_bytes()[:-20],
        b"",
    ):
        path.write_bytes(damage)
        with pytest.raises(ModelCorrupt, match=r"check\.json is not valid"):
            read_check_report(path)


def test_a_check_that_did_not_run_is_neither_a_failure_nor_hidden() -> None:
    report = _report(PASSED, NOT_RUN)
    assert report.passed
    assert report.not_run[0].name == "logits"
    assert "1 checks did not run, and what they prove is not proved" in report_text(report)
    assert not _report(PASSED, FAILED).passed


def test_the_report_for_people_fits_80_columns_and_says_the_worst_first_differences() -> None:
    text = report_text(_report(PASSED, FAILED, NOT_RUN))
    assert max(map(len, text.splitlines())) <= 80
    for part in ("FAILED", "chat rendering", "limit: the same bytes", "- a difference", "0.04415", "85.1%"):
        assert part in text


# The independent tables.


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_every_number_of_every_family_is_missed_when_it_is_wrong(tmp_path: Path, name: str) -> None:
    """Each number of the architecture is changed or, where llama.cpp needs it, taken away."""
    folder = tiny_models.build(name, tmp_path / "model")
    model = Checkpoint.open(folder)
    export_gguf(model, tmp_path / "m.gguf", file_type="F32")
    file, config = GGUFFile(tmp_path / "m.gguf"), ModelConfig(model.config)
    end_ids = config.end_ids(model.generation_config)
    assert check_metadata(config, file, end_ids).details == []
    prefix = f"{file.architecture}."
    for key in [key for key in file.metadata if key.startswith(prefix)] + ["tokenizer.ggml.eos_token_id"]:
        right = file.metadata[key]
        # A sliding window that llama.cpp turns off, and the kinds of scaling without a factor, change nothing.
        if key == f"{prefix}rope.scaling.type":
            continue
        assert isinstance(right, int | float)
        file.metadata[key] = right * 1.01 if isinstance(right, float) else right + 50
        assert check_metadata(config, file, end_ids).status == "failed", key
        file.metadata[key] = right
    file.metadata[f"{prefix}attention.causal_mask_of_another_kind"] = 1
    assert "does not belong to this model" in check_metadata(config, file, end_ids).details[0]


def test_what_llama_cpp_has_built_in_is_held_against_the_model(edge: tuple[Path, Path]) -> None:
    folder, path = edge
    file, raw = GGUFFile(path), Checkpoint.open(folder).config
    config = ModelConfig({**raw, "hidden_act": "relu"})
    details = check_metadata(config, file, [0]).details
    assert details == ["the model's activation relu is not llama.cpp's"]


def test_an_architecture_that_the_gate_does_not_know_is_named() -> None:
    with pytest.raises(CheckpointError, match="MambaForCausalLM") as error:
        ModelConfig({"architectures": ["MambaForCausalLM"]})
    assert "Qwen3ForCausalLM" in error.value.hint


def test_the_row_order_of_q_and_k_is_llama_cpps() -> None:
    for heads, length in ((1, 2), (3, 8), (4, 64)):
        rows = np.arange(heads * length, dtype=np.float32)[:, None]
        expected = interleaved(heads)(rows)[:, 0]
        assert np.array_equal(rotated_rows(heads * length, heads), expected.astype(np.intp))


def test_llama_3s_rope_factors_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, head_dim=64, rope_parameters=parameters, vocab_size=8
    )
    scaled, _factor = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (np.arange(0, 64, 2) / 64)
    raw = {**config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    assert np.allclose(llama3_factors(ModelConfig(raw)), plain / scaled.numpy(), rtol=1e-5)


def test_numbers_are_rounded_as_torch_rounds_them() -> None:
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint32)
    # Halfway cases are rare among random bits.
    bits = np.concatenate([bits, (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)])
    numbers = bits.view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    for name, kind in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        expected = torch.from_numpy(numbers).to(kind).to(torch.float32).numpy()
        assert np.array_equal(rounded(numbers, name), expected)


@pytest.mark.parametrize(
    ("label", "expected"),
    [("Q4_K_M", "Q4_K"), ("Q3_K_S", "Q3_K"), ("IQ3_M", "IQ3_S"), ("IQ2_S", "IQ2_XS"), ("Q8_0", "Q8_0"),
     ("IQ4_XS", "IQ4_XS"), ("Q2_K_S", "Q2_K"), ("F16", "F16")],
)  # fmt: skip
def test_a_label_means_llama_cpps_default_type(label: str, expected: str) -> None:
    assert type_of_label(label) == expected


# First layers.


def test_the_first_layers_are_the_files_own_bytes_in_float32(edge: tuple[Path, Path], tmp_path: Path) -> None:
    _folder, path = edge
    file = GGUFFile(path)
    write_first_layers(file, tmp_path / "small.gguf", 2)
    small = GGUFFile(tmp_path / "small.gguf")
    assert set(small.tensor_types) == {"F32"}
    assert "blk.1.ffn_up.weight" in small
    assert "blk.2.ffn_up.weight" not in small
    for tensor in small.tensors:
        rows = small.shape(tensor.name)[0]
        assert np.array_equal(small.read(tensor.name, 0, rows), file.read(tensor.name, 0, rows))
    one, other = metadata_bytes(path), metadata_bytes(small.path)
    assert {key for key in one if one[key] != other[key]} == {"llama.block_count", "general.file_type"}


def test_a_model_too_large_for_this_machine_is_compared_by_its_first_layers(
    edge: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    folder, path = edge
    monkeypatch.setattr(logits, "fits_whole", lambda weights, file: False)
    options = CheckOptions(random_strings=10, threads=1)
    report = check_files(folder, [path], options=options)
    compared = [result for result in report.results if result.name.startswith("logits")]
    assert [(result.name, result.status) for result in compared] == [("logits_first_layers", "passed")]
    # Half precision, but compared as exactly as float32.
    assert compared[0].numbers["relative_difference"] < 1e-4
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 10**6)
    report = check_files(folder, [path], options=options)
    assert [result.name for result in report.not_run] == ["logits_first_layers"]
    assert "GB of free memory" in report.not_run[0].sentence


# Without what the references need.


_WITHOUT_TORCH = """
import sys
from pathlib import Path

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] == "torch" else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from edgemed.check_report import encode_check_report
from edgemed_convert.check.gate import CheckOptions, check_files
report = check_files(
    Path(sys.argv[1]), [Path(sys.argv[2])], options=CheckOptions(random_strings=10, threads=1)
)
sys.stdout.buffer.write(encode_check_report(report))
"""


def test_without_torch_all_but_the_logits_runs_and_the_report_says_so(edge: tuple[Path, Path]) -> None:
    command = [sys.executable, "-c", _WITHOUT_TORCH, *map(str, edge)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "convert")])
    done = subprocess.run(
        command, capture_output=True, check=True, env={**os.environ, "PYTHONPATH": paths}, timeout=120
    )
    report = msgspec.json.decode(done.stdout, type=CheckReport)
    assert report.passed
    assert [result.name for result in report.not_run] == ["logits"]
    assert "pip install transformers torch" in report.not_run[0].sentence
    passed = {result.name for result in report.results if result.status == "passed"}
    assert passed == {
        "file", "metadata", "types", "tensors", "finite", "chat_template", "end_of_turn", "tokens",
        "chat_rendering",
    }  # fmt: skip


def test_without_transformers_the_report_names_all_that_did_not_run(
    edge: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    report = check_files(edge[0], [edge[1]], options=CheckOptions(random_strings=10, threads=1))
    assert report.passed
    assert [result.name for result in report.not_run] == ["tokens", "chat_rendering", "logits"]
    passed = {result.name for result in report.results if result.status == "passed"}
    assert passed == {"file", "metadata", "types", "tensors", "finite", "chat_template", "end_of_turn"}


def test_tokenizer_files_that_transformers_cannot_read_are_a_failure(
    edge: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot read the tokenizer"):
        ReferenceTokenizer(tmp_path)


def test_a_config_that_transformers_refuses_is_a_failure_and_no_traceback(
    edge: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its config classes raise errors of a kind of their own."""
    folder, file = edge
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps(config | {"num_attention_heads": 7}), encoding="utf-8")
    report = check_files(broken, [file], options=CheckOptions(random_strings=10))
    assert not report.passed


def test_files_named_twice_or_not_at_all_are_refused(edge: tuple[Path, Path]) -> None:
    for files in ([], [edge[1], edge[1]]):
        with pytest.raises(UsageError, match="Name each file"):
            check_files(edge[0], files)


def test_quantized_files_without_a_parent_are_compared_with_the_weights_alone(
    edge: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "m-Q8_0.gguf"
    export_gguf(Checkpoint.open(edge[0]), path, file_type="Q8_0")
    report = check_files(edge[0], [path], options=CheckOptions(random_strings=10, threads=1))
    assert report.passed
    assert [result.name for result in report.not_run] == ["quantization_loss"]
    tensors = next(result for result in report.results if result.name == "tensors")
    assert 0 < tensors.numbers["worst_error_Q8_0"] < 0.01


# Texts.


def test_probe_strings_are_the_same_every_time_and_of_many_scripts() -> None:
    texts = probe_strings.random_strings(2000)
    assert texts == probe_strings.random_strings(2000)
    assert len(set("".join(texts))) > 3000
    assert not any("\ud800" <= character <= "\udfff" for text in texts for character in text)
    english, others = probe_strings.clinical_texts().values()
    assert len(english) > 8000
    assert len(others) > 3000


class _FakeReference:
    """A tokenizer of characters, with the quirks that a test asks for."""

    def __init__(self, **quirks: Any) -> None:
        self.frame = ""
        self.normal_form = None
        self.is_sentencepiece = False
        self.rule_knows_marks = False
        self.own_ids: list[list[int]] = []
        self.__dict__.update(quirks)

    def vocabulary_texts(self, count: int) -> list[str]:
        return []

    def encode(self, texts: Sequence[str], *, add_special: bool) -> list[list[int]]:
        return [[ord(character) for character in text] for text in texts]

    def encode_by_own_files(self, texts: Sequence[str], *, add_special: bool) -> list[list[list[int]]]:
        return [[[0] if self.own_ids else [-1]] for _text in texts]


class _FakeEngine:
    """Other ids than the reference's for some texts."""

    def __init__(self, wrong: Sequence[str]) -> None:
        self._wrong = wrong

    def tokenize(self, texts: Sequence[str], *, add_special: bool, parse_special: bool) -> list[list[int]]:
        return [[0] if text in self._wrong else [ord(one) for one in text] for text in texts]


@pytest.mark.parametrize(
    ("wrong", "quirks", "explanation"),
    [
        ("I'm you're we've they'd she'll it's", {}, None),
        ("I'm you're we've they'd she'll it's", {"own_ids": [[0]]}, OWN_FILES),
        (probe_strings.ORDINARY[0], {"own_ids": [[0]]}, None),
        ("▁▁a", {"is_sentencepiece": True}, SPACE_SIGN),
        ("▁▁a", {}, None),
        ("क्षि", {"rule_knows_marks": True}, LETTERS),
        ("ÀÉÎÕÜ àéîõü", {"rule_knows_marks": True}, LETTERS),
        ("MiXeD CaSe WoRdS", {"rule_knows_marks": True}, None),
        ("क्षि", {}, None),
    ],
)
def test_a_difference_is_excused_by_its_own_rule_only(
    wrong: str, quirks: dict[str, Any], explanation: str | None
) -> None:
    reference: Any = _FakeReference(**quirks)
    result = check_tokens(reference, _FakeEngine([wrong]), file="m.gguf", random_count=20)
    assert result.status == ("passed" if explanation else "failed")
    assert result.numbers["explained"] == (2 if explanation else 0)
    assert (explanation or "other token ids") in result.sentence


class _FakeTemplates(_FakeReference):
    """A reference whose template is a function of the messages."""

    has_template = True
    bos_id = None

    def render(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str | None:
        if any(message["role"] not in ("user", "assistant", "system") for message in messages):
            return None
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)


_TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
_REFUSES = (
    "{% for message in messages %}{% if message['role'] in ('nurse', 'tool') %}{{ raise_exception('no') }}"
)


@pytest.mark.parametrize(
    ("template", "details"),
    [
        (f"{_REFUSES}{{% endif %}}{{% endfor %}}{_TEMPLATE}", []),
        (_TEMPLATE, ["unknown role: transformers refuses it", "tool: transformers refuses it"]),
        ("{% for %}", ["The model's chat template is not valid"]),
    ],
)
def test_a_template_must_refuse_what_transformers_refuses(template: str, details: list[str]) -> None:
    reference: Any = _FakeTemplates()
    table: Any = None
    vocabulary = EngineVocabulary(_FakeEngine([]), table, bos_token=None, eos_token=None, adds_bos=False)
    result = check_rendering(template, reference, vocabulary, file="m.gguf")
    assert result.status == ("failed" if details else "passed")
    for detail in details:
        assert any(line.startswith(detail) for line in result.details)


@pytest.mark.parametrize(("text", "status"), [("</s>", "passed"), ("yes", "failed")])
def test_only_an_end_that_no_file_can_take_away_may_be_an_ordinary_token(text: str, status: str) -> None:
    """Every Qwen has an ordinary "</s>", which llama.cpp takes for an end by its text alone."""
    texts = [b"<|end|>", text.encode(), b"word"]
    table = TokenTable(texts, texts, np.zeros(3, np.int32), np.array([True, True, False]))
    vocabulary = EngineVocabulary(_FakeEngine([]), table, bos_token=None, eos_token=0, adds_bos=False)
    result = check_end_of_turn(vocabulary, [0], set(), None, file="m.gguf")
    assert result.status == status
    assert text in result.details[0]


def test_the_gates_own_folder_of_probes_is_shipped_with_it() -> None:
    assert (Path(gate.__file__).parent / "clinical_english.txt").is_file()
