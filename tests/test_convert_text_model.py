"""The text model of a Gemma 3 that reads images: taken out whole, it says what it said before."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgemed_convert import cli
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.errors import CheckpointError, UnsupportedArchitecture
from edgemed_convert.export import export_gguf
from edgemed_convert.text_model import write_text_model

from edgemed.errors import EdgemedError, UsageError
from edgemed.gguf_header import read_header
from tests import tiny_models
from tests.tiny_tokenizers import TOKENIZERS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.filterwarnings("ignore")

# A published config names no more of its text model; the library that reads it knows the rest.
PUBLISHED = ("hidden_size", "intermediate_size", "model_type", "num_hidden_layers", "sliding_window")
WEIGHTS = "model.safetensors"


def _build(folder: Path) -> Path:
    """Write a tiny random Gemma 3 with vision tower as save_pretrained does, in BF16."""
    folder.mkdir(parents=True)
    tokenizer = TOKENIZERS["gemma"](folder)
    size = tokenizer.size + 64
    config = transformers.Gemma3Config(
        text_config={
            "vocab_size": size,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 7,  # the sixth attends to everything
            "sliding_window": 32,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        image_token_index=size - 1,
        boi_token_index=size - 2,
        eoi_token_index=size - 3,
        eos_token_id=[tokenizer.eos, tokenizer.ids["<end_of_turn>"]],
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    chance = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        parameter.data.copy_(torch.randn(parameter.shape, generator=chance) * scale)
    transformers.logging.disable_progress_bar()
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: gemma\n---\n", encoding="utf-8")
    (folder / "preprocessor_config.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as save_pretrained writes it: with every value in text_config."""
    return _build(tmp_path_factory.mktemp("saved") / "gemma-3-tiny-it")


@pytest.fixture(scope="module")
def published(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as Gemma 3 4B is published: little in text_config, `language_model.model.` tensors."""
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("published") / "gemma-3-tiny-it"))
    config = json.loads((folder / "config.json").read_bytes())
    text = {key: config["text_config"][key] for key in PUBLISHED}
    text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
    tiny_models.change_json(folder / "config.json", text_config=text, dtype=None, torch_dtype="bfloat16")
    return folder


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(published, tmp_path / "source"))


def _rename(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    weights = change(safetensors.load_file(folder / WEIGHTS))
    safetensors.save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _other_layout(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the names of transformers' own modules, which some of its versions saved."""
    layout = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
    renamed = {}
    for name, tensor in weights.items():
        old = next((old for old in layout if name.startswith(old)), "")
        renamed[layout[old] + name.removeprefix(old) if old else f"model.{name}"] = tensor
    return renamed


def _logits(model_class: Any, folder: Path) -> Any:
    model = model_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    ids = torch.randint(5, 200, (2, 80), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("layout", ["as published", "of the modules", "in full", "in shards"])
def test_the_text_model_alone_says_what_the_whole_model_says(
    layout: str, saved: Path, copy: Path, tmp_path: Path
) -> None:
    whole = _logits(transformers.Gemma3ForConditionalGeneration, saved)
    if layout in ("of the modules", "in full"):
        shutil.copyfile(saved / "config.json", copy / "config.json")
    if layout == "of the modules":
        _rename(copy, _other_layout)
        assert torch.equal(_logits(transformers.Gemma3ForConditionalGeneration, copy), whole)
    shard_bytes = 8_000_000 if layout == "in shards" else 5 * 10**9
    report = write_text_model(copy, tmp_path / "text", shard_bytes=shard_bytes)
    assert len(report.weight_files) == (4 if layout == "in shards" else 1)
    assert (report.tensors, report.left_out) == (93, {"vision_tower": 48, "multi_modal_projector": 2})
    assert torch.equal(_logits(transformers.Gemma3ForCausalLM, tmp_path / "text"), whole)


def test_every_byte_and_every_file_of_the_text_model_is_kept_and_the_source_named(
    published: Path, tmp_path: Path
) -> None:
    out = tmp_path / "text"
    write_text_model(published, out)
    source, written = safetensors.load_file(published / WEIGHTS), safetensors.load_file(out / WEIGHTS)
    for name, tensor in written.items():
        assert torch.equal(tensor, source[f"language_model.{name}"]) and tensor.dtype == torch.bfloat16
    assert "lm_head.weight" not in written
    names = {path.name for path in published.iterdir()} - {"preprocessor_config.json"}
    assert {path.name for path in out.iterdir()} == names | {"text_model.json"}
    for name in names - {WEIGHTS, "config.json"}:
        assert (out / name).read_bytes() == (published / name).read_bytes()
    config = json.loads((out / "config.json").read_bytes())
    assert (config["architectures"], config["model_type"]) == (["Gemma3ForCausalLM"], "gemma3_text")
    assert config["torch_dtype"] == "bfloat16" and len(config["eos_token_id"]) == 2
    note = json.loads((out / "text_model.json").read_bytes())
    assert note["source"] == "gemma-3-tiny-it" and note["left_out"]["vision_tower"] == 48
    assert len(note["source_sha256"][WEIGHTS]) == 64
    assert not any(str(published.parent) in path.read_text("utf-8") for path in out.glob("text_model.json"))


def test_filled_in_values_are_those_that_the_library_fills_in(published: Path, tmp_path: Path) -> None:
    write_text_model(published, tmp_path / "text")
    config = json.loads((tmp_path / "text" / "config.json").read_bytes())
    known = transformers.Gemma3TextConfig(hidden_size=256).to_dict()
    filled = {key: value for key, value in config.items() if key not in PUBLISHED and key in known}
    own = {"architectures", "dtype", "vocab_size", "eos_token_id", "bos_token_id", "pad_token_id"}
    assert len(filled.keys() - own) > 12
    assert {key: known[key] for key in filled.keys() - own} == {
        key: filled[key] for key in filled.keys() - own
    }


def test_the_new_folder_is_exported_and_trained_and_the_whole_one_sends_there(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgemed_training.base_model import BaseModel
    from edgemed_training.errors import BaseModelError

    command = "`edgemed-convert text-model FOLDER --out DIR`"
    with pytest.raises(UnsupportedArchitecture) as refused:
        Checkpoint.open(published)
    assert command in refused.value.hint
    with pytest.raises(BaseModelError) as refused_by_training:
        BaseModel.read(published)
    assert command in refused_by_training.value.hint
    with pytest.raises(SystemExit) as ended:
        cli.main(["text-model", str(published), "--out", str(tmp_path / "text"), "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["tensors"] == 93
    assert BaseModel.read(tmp_path / "text").layers == 7
    export_gguf(
        Checkpoint.open(tmp_path / "text"), tmp_path / "text.gguf", file_type="F16", prove_tokenizer=False
    )
    metadata = read_header(tmp_path / "text.gguf").metadata
    assert metadata["general.architecture"] == "gemma3"
    assert (metadata["gemma3.rope.scaling.factor"], metadata["gemma3.attention.head_count"]) == (8.0, 8)


def test_a_head_that_repeats_the_embedding_is_left_out_and_another_is_refused(
    copy: Path, tmp_path: Path
) -> None:
    head, embedding = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    _rename(copy, lambda weights: {**weights, head: weights[embedding].clone()})
    report = write_text_model(copy, tmp_path / "text")
    assert report.left_out["lm_head that repeats the embedding"] == 1
    assert "lm_head.weight" not in Checkpoint.open(tmp_path / "text").weights
    _rename(copy, lambda weights: {**weights, head: weights[embedding] + 1})
    with pytest.raises(CheckpointError, match="of its own, though its config"):
        write_text_model(copy, tmp_path / "other")


def _without(*endings: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        _rename(folder, lambda weights: {k: t for k, t in weights.items() if not k.endswith(endings)})

    return change


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: tiny_models.change_json(folder / "config.json", **changes)


def _text_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = json.loads((folder / "config.json").read_bytes())["text_config"]
        tiny_models.change_json(folder / "config.json", text_config={**text, **changes})

    return change


def _cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_without("layers.3.mlp.up_proj.weight"), "lacks mlp.up_proj.weight in layer 3"),
        (_text_config(num_hidden_layers=8), "holds 7 layers, and its config.json says 8"),
        (_without("embed_tokens.weight"), "no token embedding"),
        (
            _text_config(num_attention_heads=4),
            "q_proj.weight is (2048, 256), and config.json makes it (1024, 256)",
        ),
        (_text_config(head_dim="x"), "head_dim = 'x'"),
        (_text_config(hidden_size=None), "has no hidden_size"),
        (_config(text_config=None), "has no text_config"),
        (
            _config(text_config=None, vision_config=None, architectures=["Gemma3ForCausalLM"]),
            "is no model of several",
        ),
        (_config(architectures=["Mistral3ForConditionalGeneration"]), "only the text model of a Gemma3"),
        (_config(quantization_config={"quant_method": "x"}), "holds quantized weights"),
        (
            lambda folder: _rename(folder, lambda w: {**w, "audio.x": torch.ones(2)}),
            "audio.x, which is of no known part",
        ),
        (_cut, "is cut short: 100 bytes are missing"),
        (lambda folder: (folder / WEIGHTS).unlink(), "has no weights"),
        (shutil.rmtree, "There is no model folder"),
    ],
)
def test_what_cannot_be_taken_out_is_refused_in_one_sentence(
    damage: Callable[[Path], object], sentence: str, copy: Path, tmp_path: Path
) -> None:
    damage(copy)
    with pytest.raises(EdgemedError) as caught:
        write_text_model(copy, tmp_path / "text")
    assert sentence in caught.value.message and caught.value.exit_code == 3
    assert not (tmp_path / "text").exists() and not list(tmp_path.glob(".text*"))


def test_nothing_that_stands_there_is_replaced(published: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="exists"):
        write_text_model(published, tmp_path / "text")
