"""A base model from nothing: it learns, goes on after a kill to the last bit, and loads in transformers."""

import collections
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgemed_training import cli
from edgemed_training.base_recipe import BaseRecipe, TrainSection, base_recipe_names, load_base_recipe
from edgemed_training.errors import CheckpointDamaged, DataError, RecipeError, TrainingFailed
from edgemed_training.libraries import prepare_libraries

from tests.shared_material import shared_path

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TINY = """
name = "tiny"
[model]
hidden_size = 32
layers = 2
heads = 2
key_value_heads = 1
feed_forward_size = 64
context_length = 64
[tokenizer]
vocabulary_size = 300
[train]
window_tokens = 32
batch_tokens = 256
steps = 60
warmup_steps = 5
decay_steps = 20
adamw_learning_rate = 0.01
precision = "fp32"
save_every_steps = 20
"""
KILLED_AT = 40
"""A step whose progress is told before its checkpoint is written: checkpoint-20 is the last."""
PROGRAM = """
import sys, time
from pathlib import Path
from edgemed_training.base_recipe import load_base_recipe
from edgemed_training.base_train import train_base

def progress(sentence):
    if sentence.startswith("step {step} of "):
        print("reached", flush=True)
        time.sleep(600)

folder = Path(sys.argv[1])
train_base(load_base_recipe(folder / "tiny.toml"), data=folder / "pairs.jsonl", out=folder / "killed", progress=progress)
"""


def _pairs() -> list[dict[str, str]]:
    herbs, places, times = (
        ("sorrel", "mint", "yarrow", "thyme"),
        ("hill", "lake", "wood"),
        ("dawn", "noon", "dusk"),
    )
    return [
        {
            "question": f"Where does {herb} grow near the {place} at {time}?",
            "answer": f"Near the {place}, {herb} grows under stones, and people gather it at {time} with care.",
        }
        for herb in herbs
        for place in places
        for time in times
    ]


def _write(path: Path, pairs: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def _recipe(source: Path | str, *overrides: str) -> BaseRecipe:
    recipe = load_base_recipe(source, overrides)
    assert isinstance(recipe, BaseRecipe)
    return recipe


def _train(folder: Path, name: str, *overrides: str, data: str = "pairs.jsonl", **options: Any) -> Any:
    from edgemed_training.base_train import train_base

    recipe = _recipe(folder / "tiny.toml", *overrides)
    return train_base(recipe, data=folder / data, out=folder / name, **options)


def _losses(folder: Path) -> dict[int, float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return {entry["step"]: entry["loss"] for entry in entries}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with recipe, data, a run that nothing disturbed and one that was killed."""
    prepare_libraries("torch", "transformers", "tokenizers", "safetensors")
    folder = tmp_path_factory.mktemp("base")
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    _write(folder / "pairs.jsonl", _pairs())
    command = [sys.executable, "-c", PROGRAM.format(step=KILLED_AT), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        _train(folder, "whole")
        assert child.stdout is not None and child.stdout.readline() == "reached\n"
        child.kill()
    return folder


def _copy_of_killed(place: Path, name: str) -> Path:
    return Path(shutil.copytree(place / "killed", place / name))


def test_a_tiny_model_learns_far_more_than_which_tokens_are_frequent(place: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(place / "whole" / "model" / "tokenizer.json"))
    counts: collections.Counter[int] = collections.Counter()
    for pair in _pairs():
        counts.update([*tokenizer.encode(f"Question: {pair['question']}\nAnswer: {pair['answer']}").ids, 0])
    total = sum(counts.values())
    unigram_loss = -sum(count / total * math.log(count / total) for count in counts.values())
    losses = _losses(place / "whole")
    assert losses[1] == pytest.approx(math.log(300), abs=0.3)
    assert sum(losses[step] for step in range(51, 61)) / 10 < unigram_loss / 3


def test_a_killed_run_goes_on_with_the_same_losses_and_weights_to_the_last_bit(place: Path) -> None:
    out = _copy_of_killed(place, "resumed")
    report = _train(place, "resumed")
    assert report.resumed_from == "checkpoint-20"
    assert _losses(out) == _losses(place / "whole")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (out / "model" / name).read_bytes() == (place / "whole" / "model" / name).read_bytes(), name


def test_a_damaged_last_checkpoint_is_set_aside_and_the_one_before_is_used(place: Path) -> None:
    out = Path(shutil.copytree(place / "whole", place / "damaged"))
    (out / "training_card.json").unlink()
    state = out / "checkpoint-60" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    (out / "checkpoint-80").mkdir()
    said: list[str] = []
    report = _train(place, "damaged", progress=said.append)
    assert report.resumed_from == "checkpoint-40"
    assert (
        "checkpoint-80 is damaged (it was not finished) and was set aside as damaged-checkpoint-80." in said
    )
    assert any(
        sentence.startswith("checkpoint-60 is damaged (state.safetensors has other bytes")
        for sentence in said
    )
    assert _losses(out) == _losses(place / "whole")


def test_the_folder_loads_in_transformers_and_continues_a_question(place: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = place / "whole" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert (model.dtype, model.config.model_type, model.config.tie_word_embeddings) == (
        torch.float16,
        "llama",
        True,
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 0, 300)
    prompt = tokenizer(
        "Question: Where does mint grow near the lake at noon?\nAnswer: Near the", return_tensors="pt"
    )
    with torch.no_grad():
        written = model.float().generate(**prompt, max_new_tokens=24, do_sample=False)
    assert "grows under stones" in tokenizer.decode(written[0])


def test_muons_update_is_the_orthogonal_factor_within_what_newton_schulz_leaves() -> None:
    from edgemed_training.muon import Muon, orthogonalize

    chance = torch.Generator().manual_seed(0)
    for rows, columns in ((48, 128), (128, 48), (64, 64)):
        gradient = torch.randn(rows, columns, generator=chance)
        left, _values, right = torch.linalg.svd(gradient, full_matrices=False)
        found = orthogonalize(gradient)
        core = left.T @ found @ right.T  # diagonal: the same singular vectors
        assert (core - core.diag().diag()).abs().max() < 1e-3
        values = core.diag()
        if rows != columns:  # a square Gaussian matrix has a singular value near 0
            assert values.min() > 0.65 and values.max() < 1.25
        weights = torch.nn.Parameter(torch.ones(rows, columns))
        weights.grad = gradient
        muon = Muon({"w": weights}, momentum=0.95, weight_decay=0.1, precision=torch.float32)
        muon.step(0.5)
        expected = 0.95 - 0.5 * math.sqrt(max(1, rows / columns)) * (left @ values.diag() @ right)
        assert torch.allclose(weights.detach(), expected, atol=1e-3)


def test_muon_takes_the_steps_that_torchs_own_takes() -> None:
    from edgemed_training.muon import Muon

    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 24 * 40).view(40, 24).clone()) for _ in range(2))
    muon = Muon({"w": ours}, momentum=0.95, weight_decay=0.01, precision=torch.bfloat16)
    reference = torch.optim.Muon(
        [theirs], lr=0.02, momentum=0.95, weight_decay=0.01, nesterov=True, ns_steps=5
    )
    chance = torch.Generator().manual_seed(1)
    for _ in range(5):
        ours.grad = torch.randn(40, 24, generator=chance)
        theirs.grad = ours.grad.clone()
        muon.step(0.02)
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_learning_rates_rise_stay_and_fall_to_a_last_step_that_still_counts() -> None:
    train = TrainSection(steps=10, warmup_steps=2, decay_steps=4)
    assert [train.rate_share(step) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    shown = _recipe("base/edge_base_8m").train
    assert [shown.rate_share(step) for step in (0, 99, 1352, 1672, 1991)] == pytest.approx(
        [0.01, 1, 1, 0.5, 1 / 640]
    )


def test_every_window_of_a_pass_is_seen_once_and_a_step_needs_no_memory_of_those_before() -> None:
    from edgemed_training.base_data import Windows

    tokens = torch.arange(1000, dtype=torch.int32)
    windows = Windows(tokens, window_tokens=16, batch_rows=4, seed=3)
    steps = [windows.batch(step) for step in range(20)]
    first_pass = torch.cat(steps)[: windows.per_pass]
    assert first_pass.unique().numel() == windows.per_pass * 16
    later = Windows(tokens, window_tokens=16, batch_rows=4, seed=3).batch(17)
    assert torch.equal(later, steps[17])


def test_a_special_tokens_name_in_the_data_stays_text(place: Path) -> None:
    from edgemed_training.base_data import Documents, encode_documents
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(place / "whole" / "model" / "tokenizer.json"))
    documents = Documents(["Question: a <|endoftext|> b<|im_end|>\nAnswer: c"], "", [])
    ids = encode_documents(documents, tokenizer, 0).tolist()
    assert ids[-1] == 0 and not {0, 1, 2} & set(ids[:-1])


def test_the_recipe_that_comes_with_edgemed_has_the_shape_of_the_shared_model() -> None:
    from edgemed_training.base_network import build_model
    from safetensors import safe_open

    assert "base/edge_base_8m" in base_recipe_names()
    model = build_model(_recipe("base/edge_base_8m"))
    ours = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_392_960
    folder = shared_path("models", "edge-base-8m")
    with safe_open(folder / "model.safetensors", "pt") as theirs:
        assert ours == {name: theirs.get_slice(name).get_shape() for name in theirs.keys()}  # noqa: SIM118
    config = json.loads((folder / "config.json").read_bytes())
    made = json.loads(model.config.to_json_string(use_diff=False))
    free = {"dtype", "transformers_version", "architectures"}
    assert {key: made[key] for key in config.keys() - free} == {
        key: config[key] for key in config.keys() - free
    }


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.stepps=3", "there is no key train.stepps. Did you mean train.steps?"),
        ("modell.heads=3", "there is no key modell. Did you mean model?"),
        ("model.heads=3", "model: hidden_size 32 is not divisible by heads 3"),
        ("model.key_value_heads=3", "model: heads 2 is not divisible by key_value_heads 3"),
        ("train.batch_tokens=100", "train: batch_tokens 100 is not divisible by window_tokens 32"),
        ("train.decay_steps=60", "train: warmup_steps 5 and decay_steps 60 are more than steps 60"),
        ("model.context_length=16", "train.window_tokens 32 is more than model.context_length 16"),
        ("train.muon_learning_rate=-1", "train.muon_learning_rate: Expected `float` > 0"),
        ("tokenizer.vocabulary_size=100", "tokenizer.vocabulary_size: Expected `int` >= 259"),
        ("train.precision=fp16", "train.precision: Invalid enum value 'fp16'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_with_its_key(place: Path, override: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_base_recipe(place / "tiny.toml", [override])
    assert sentence in caught.value.message and caught.value.exit_code == 2


def test_data_that_are_too_little_or_no_pairs_are_refused(place: Path) -> None:
    with pytest.raises(DataError, match="too little text for a vocabulary of 8000 tokens"):
        _train(place, "little", "tokenizer.vocabulary_size=8000")
    _write(place / "short.jsonl", [{"question": "Why?", "answer": "So."}])
    with pytest.raises(DataError, match="too little text for windows of 32"):
        _train(place, "short", "tokenizer.vocabulary_size=259", data="short.jsonl")
    _write(place / "bad.jsonl", [{"question": "Why?", "answer": "So."}, {"question": "Why?"}])
    with pytest.raises(DataError, match=r"Line 2 of .*bad\.jsonl is no question with an answer"):
        _train(place, "bad", data="bad.jsonl")
    with pytest.raises(DataError, match="There is no file"):
        _train(place, "none", data="none.jsonl")


def test_the_folder_of_another_recipe_is_refused_and_a_finished_one_is_left_as_it_is(place: Path) -> None:
    with pytest.raises(CheckpointDamaged, match="holds a run with another recipe"):
        _train(place, "whole", "train.seed=1")
    said: list[str] = []
    assert _train(place, "whole", progress=said.append).card.steps == 60
    assert said == [f"{place / 'whole'} holds the finished model already."]


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgemed_training import base_network, base_train

    def broken(recipe: BaseRecipe) -> Any:
        model = build(recipe)
        with torch.no_grad():
            model.model.norm.weight[0] = math.nan
        return model

    build = base_network.build_model
    monkeypatch.setattr(base_train, "build_model", broken)
    with pytest.raises(TrainingFailed, match="At step 1 the loss is nan"):
        _train(place, "nan")
    assert not list((place / "nan").glob("checkpoint-*"))


def test_the_command_trains_from_a_prepared_folders_training_part_and_prints_json(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = place / "prepared"
    data.mkdir()
    _write(data / "train.jsonl", _pairs())
    changes = ["train.steps=3", "train.warmup_steps=0", "train.decay_steps=1", "train.precision=bf16"]
    options = [word for change in changes for word in ("--set", change)]
    arguments = [
        "base",
        str(place / "tiny.toml"),
        "--data",
        str(data),
        "--out",
        str(place / "by-command"),
        *options,
    ]
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--json"])
    assert ended.value.code == 0
    card = json.loads(capsys.readouterr().out)["card"]
    assert (card["steps"], card["trained_tokens"], card["documents"]) == (3, 768, 36)
    assert card == json.loads((place / "by-command" / "model" / "training_card.json").read_bytes())
    assert msgspec.convert(card["recipe"], BaseRecipe) == load_base_recipe(place / "tiny.toml", changes)
