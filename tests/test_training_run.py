"""Real NF4 QLoRA on tiny models: right gradients, exact packing, resume to the last bit, adapters that fit."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgemed_training import checkpoints
from edgemed_training.base_model import BaseModel
from edgemed_training.errors import BaseModelError, CheckpointDamaged, LeakError, TrainingFailed
from edgemed_training.libraries import prepare_libraries
from edgemed_training.recipe import Recipe, changed_recipe
from edgemed_training.records import HELDOUT_NAME, TRAIN_NAME

from tests.training_models import make_base, read_losses, write_data

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

RECIPE = changed_recipe(
    Recipe(),
    [
        *("train.max_length=160", "train.epochs=2", "train.micro_batch_rows=2", "train.learning_rate=1e-3"),
        *("train.save_every_steps=2", "lora.lora_dropout=0.25", "lora.r=4"),
        *("eval.generation_items=3", "eval.max_new_tokens=12", "eval.bootstrap_samples=50"),
    ],
)
# The step is logged before its checkpoint is saved: checkpoint-6 is the last when the log has step 7.
KILLED_AT = 7
PROGRAM = """
import sys, time
from pathlib import Path
import msgspec
from edgemed_training.recipe import Recipe
from edgemed_training.train import run

def progress(sentence):
    if sentence.startswith("step {step} of "):
        print("reached", flush=True)
        time.sleep(600)

folder = Path(sys.argv[1])
recipe = msgspec.json.decode((folder / "recipe.json").read_bytes(), type=Recipe)
run(recipe, data=folder / "data", base=folder / "base", out=folder / "killed", allow_leaks=True, progress=progress)
"""


class Place:
    """A folder with base model and data, the run that nothing disturbed, and one that was killed."""

    def __init__(self, folder: Path, data: Path, base: Path) -> None:
        self.folder, self.data, self.base = folder, data, base
        self.report = self.train("whole")

    def train(self, name: str, recipe: Recipe = RECIPE, **options: Any) -> Any:
        from edgemed_training.train import run

        given: dict[str, Any] = {"base": self.base, "data": self.data, "allow_leaks": True, **options}
        return run(recipe, out=self.folder / name, **given)

    def killed(self, name: str) -> Path:
        """Return a copy of the run that was killed."""
        return Path(shutil.copytree(self.folder / "killed", self.folder / name))


def _start(folder: Path) -> subprocess.Popen[str]:
    (folder / "recipe.json").write_bytes(msgspec.json.encode(RECIPE))
    program = PROGRAM.format(step=KILLED_AT)
    return subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import torch

    prepare_libraries()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("training")
    data, base = write_data(folder / "data"), make_base(folder / "base")
    with _start(folder) as process:  # works while this one does
        try:
            found = Place(folder, data, base)
            assert process.stdout is not None
            assert process.stdout.readline() == "reached\n"
        finally:
            process.kill()
    return found


def nf4_model(place: Place, *changes: str) -> Any:
    """Return the base model in NF4 with an adapter whose B is not zero, so that A has a gradient, too."""
    import torch
    from edgemed_training import qlora

    recipe = changed_recipe(RECIPE, ["lora.lora_dropout=0.0", *changes])
    base = BaseModel.read(place.base)
    torch.manual_seed(1)
    model = qlora.attach_adapter(qlora.load_base(base, recipe), recipe, base)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def gradients(model: Any, batches: list[dict[str, Any]], count: int | None = None) -> dict[str, Any]:
    """Return the adapter's gradients of the summed loss over all batches."""
    import torch

    model.train()
    model.zero_grad()
    total = torch.zeros(())
    for batch in batches:
        total = total + model(**batch, num_items_in_batch=count or 1).loss
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Return the largest relative difference of two sets of gradients."""
    assert first.keys() == second.keys() and first
    return max(float((first[name] - second[name]).norm() / second[name].norm()) for name in first)


def examples(place: Place, name: str = TRAIN_NAME) -> list[Any]:
    from edgemed_training import qlora
    from edgemed_training.chat_format import ChatFormat
    from edgemed_training.encoding import encode_pairs
    from edgemed_training.records import read_pairs

    form = ChatFormat(qlora.load_tokenizer(BaseModel.read(place.base)), RECIPE)
    return encode_pairs(read_pairs(place.data / name)[:7], form, max_length=160).examples


# Gradients and packing.


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_those_of_the_dequantized_model_before_and_after_an_evaluation(
    place: Place, precision: str
) -> None:
    import bitsandbytes
    import torch
    from edgemed_training.loss import use_answer_loss
    from edgemed_training.packing import PaddedCollator, unpacked

    batch = PaddedCollator(0)(unpacked(examples(place)[:3]))
    model = nf4_model(place, f"train.precision={precision}")
    reference = nf4_model(place, f"train.precision={precision}")
    replaced = 0
    for layer in [
        part for part in reference.modules() if isinstance(getattr(part, "base_layer", None), torch.nn.Module)
    ]:
        quantized = layer.base_layer
        weight = bitsandbytes.functional.dequantize_4bit(quantized.weight.data, quantized.weight.quant_state)
        plain = torch.nn.Linear(*reversed(weight.shape), bias=False, dtype=weight.dtype)
        plain.weight.data, plain.weight.requires_grad = weight, False
        layer.base_layer, replaced = plain, replaced + 1
    assert replaced == 2 * 7
    for adapted in (model, reference):
        use_answer_loss(adapted.get_base_model())
    expected = gradients(reference, [batch])
    assert difference(gradients(model, [batch]), expected) < 1e-6
    model.eval()
    with torch.no_grad():
        model(**batch)
        model.generate(input_ids=batch["input_ids"][:, :4], max_new_tokens=2, do_sample=False)
    assert difference(gradients(model, [batch]), expected) < 1e-6


def test_a_packed_gradient_is_the_padded_gradient(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemed_training import attention
    from edgemed_training.attention import ATTENTION_NAME, register_varlen_attention
    from edgemed_training.loss import use_answer_loss
    from edgemed_training.packing import PackedCollator, PaddedCollator, VarlenCollator, pack, unpacked

    found = examples(place)
    model = nf4_model(place)
    use_answer_loss(model.get_base_model())
    rows = pack(found, 160)
    assert len(rows) < len(found)
    padded = gradients(model, [PaddedCollator(0)(unpacked(found))])
    assert difference(gradients(model, [PackedCollator(0)(rows)]), padded) < 1e-5
    masks: list[Any] = []
    attend = attention._attention

    def noted(*arguments: Any, **options: Any) -> Any:
        masks.append(arguments[4])
        return attend(*arguments, **options)

    monkeypatch.setattr(attention, "_attention", noted)
    register_varlen_attention()
    model.get_base_model().set_attn_implementation(ATTENTION_NAME)
    assert difference(gradients(model, [VarlenCollator()(rows)]), padded) < 1e-5
    # With 32,768 tokens a mask would take 1 GiB, and nobody reads it.
    assert masks and all(mask is None for mask in masks)


def test_the_loss_is_the_models_own(place: Place) -> None:
    from edgemed_training.loss import use_answer_loss
    from edgemed_training.packing import PaddedCollator, unpacked

    batch = PaddedCollator(0)(unpacked(examples(place)))
    model = nf4_model(place)
    theirs = model(**batch).loss.item()
    use_answer_loss(model.get_base_model())
    ours = model(**batch)
    assert ours.logits is None
    assert ours.loss.item() == pytest.approx(theirs, rel=1e-5)


def test_documents_that_see_each_other_are_found_out(place: Place) -> None:
    import torch
    from edgemed_training.packing import LEAK_LIMIT, PackedCollator, find_leak

    class WithMaskOfOnes(PackedCollator):
        def __call__(self, rows: Any) -> dict[str, Any]:
            batch = super().__call__(rows)
            return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}

    class WithoutPositions(PackedCollator):
        def __call__(self, rows: Any) -> dict[str, Any]:
            batch = super().__call__(rows)
            return {name: value for name, value in batch.items() if name != "position_ids"}

    model = nf4_model(place)
    assert find_leak(model, PackedCollator(0), vocabulary_size=300) < LEAK_LIMIT / 10
    for faulty in (WithMaskOfOnes(0), WithoutPositions(0)):
        assert find_leak(model, faulty, vocabulary_size=300) > 5 * LEAK_LIMIT


def test_a_model_that_leaks_is_padded_or_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemed_training import packing

    monkeypatch.setattr(packing, "find_leak", lambda *args, **options: 0.9)
    once = changed_recipe(RECIPE, ["train.epochs=0.1", "eval.generation_items=0"])
    with pytest.raises(BaseModelError, match="Packed documents would see each other"):
        place.train("leaking", changed_recipe(once, ["train.packing=on"]))
    told: list[str] = []
    report = place.train("padded", once, progress=told.append)
    assert not report.card.encoding.packed
    assert any("examples are padded, not packed" in sentence for sentence in told)


def test_packing_fills_rows_best_fit_first() -> None:
    from edgemed_training.packing import best_fit_decreasing

    assert best_fit_decreasing([3, 7, 5, 4, 1], 10) == [[1, 0], [2, 3, 4]]


# The run and what it leaves.


def test_the_adapter_names_its_base_by_hash_and_holds_no_local_path(place: Place) -> None:
    adapter = place.report.adapter
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    assert config["edgemed_base_sha256"] == BaseModel.read(place.base).fingerprint()
    assert config["base_model_name_or_path"] == "base"
    assert {path.name for path in adapter.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "training_card.json"),
    }
    for path in adapter.iterdir():
        assert str(place.folder).encode() not in path.read_bytes(), path.name


def test_the_card_counts_what_was_trained(place: Place) -> None:
    card = place.report.card
    assert card.encoding.examples == 24 and card.encoding.packed and card.encoding.fill_share > 0.7
    assert [evaluation["epoch"] for evaluation in card.evaluations] == [1, 2]
    assert set(card.evaluations[0]) >= {
        "loss",
        "exact_match",
        "bleu",
        "rouge_1",
        "rouge_2",
        "rouge_l",
        "token_f1",
        "ended",
    }
    losses = read_losses(place.folder / "whole" / "log.jsonl")
    assert len(losses) == card.steps and losses[-1] < losses[0]
    assert not list((place.folder / "whole").rglob("*.bin"))


def test_the_best_evaluation_is_kept_whichever_came_last() -> None:
    from edgemed_training.card import best_step
    from edgemed_training.trainer import _compare_with_earlier

    history = [{"eval_loss": 2.0, "eval_bleu": 3.0}, {"loss": 9.0}, {"eval_loss": 1.0, "eval_bleu": 2.0}]
    assert _compare_with_earlier({"eval_loss": 1.5, "eval_bleu": 4.0}, history, "loss") == (False, 1)
    assert _compare_with_earlier({"eval_loss": 1.5, "eval_bleu": 4.0}, history, "bleu") == (True, 0)
    assert (
        best_step([{"loss": 2.0, "step": 6}, {"loss": 1.0, "step": 12}, {"loss": 1.0, "step": 18}], "loss")
        == 12
    )


def test_training_stops_early_when_it_gets_no_better(place: Place) -> None:
    """At the largest learning rate the loss soon grows."""
    changes = ["train.epochs=30", "train.early_stopping_evaluations=2", "train.save_every_steps=0"]
    recipe = changed_recipe(RECIPE, [*changes, "train.learning_rate=0.1", "eval.generation_items=0"])
    card = place.train("early", recipe).card
    losses = [evaluation["loss"] for evaluation in card.evaluations]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 30
    assert card.best_step == card.evaluations[best]["step"] < card.steps
    assert heldout_loss_of(place, place.folder / "early" / "adapter") == pytest.approx(min(losses), rel=1e-4)


def heldout_loss_of(place: Place, adapter: Path) -> float:
    """Return the loss of an adapter that was loaded again, over padded rows."""
    from accelerate import Accelerator
    from edgemed_training import qlora
    from edgemed_training.loss import use_answer_loss
    from edgemed_training.packing import PaddedCollator, unpacked
    from edgemed_training.run_plan import heldout_scores

    base = BaseModel.read(place.base)
    model = qlora.load_base(base, RECIPE)
    model = qlora.load_adapter(model, adapter, base_sha256=base.fingerprint(), base=base)
    use_answer_loss(model.get_base_model())
    rows = unpacked(examples(place, HELDOUT_NAME))
    return heldout_scores(model, Accelerator(cpu=True), rows, PaddedCollator(0), RECIPE).loss


@pytest.mark.parametrize(("loss", "steps"), [(float("nan"), 1), (float("inf"), 1), (9.0, 60)])
def test_a_lost_run_stops(tmp_path: Path, loss: float, steps: int) -> None:
    from types import SimpleNamespace

    from edgemed_training.trainer import _stop_when_lost

    history = [{"loss": 2.0}] * 10 + [{"loss": loss}] * steps
    state = SimpleNamespace(global_step=10 + steps, log_history=history)
    with pytest.raises(TrainingFailed, match="training stopped; there is no checkpoint yet") as stopped:
        _stop_when_lost(tmp_path, False).on_log(None, state, None, logs={"loss": loss, "grad_norm": 1.0})
    assert stopped.value.exit_code == 4 and "learning_rate" in stopped.value.hint


def test_gpt2_is_trained_without_a_template_at_its_own_length(place: Place) -> None:
    told: list[str] = []
    base = make_base(place.folder / "gpt2", kind="gpt2")
    recipe = changed_recipe(
        RECIPE, ["base.prompt=question-answer", "train.max_length=2048", "train.epochs=0.5"]
    )
    report = place.train("gpt2-run", recipe, base=base, progress=told.append)
    assert "max_length is 2048, but this model has 256 positions: 256 is used." in told
    config = json.loads((report.adapter / "adapter_config.json").read_bytes())
    assert config["target_modules"] == ["c_attn", "c_fc", "c_proj"]


# Resume.


def evaluations(run: Path) -> list[dict[str, float]]:
    """Return the evaluations in a run's log, without the time that they were made."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [line | {"seconds": 0.0} for line in lines if "eval_loss" in line]
    assert all("eval_token_accuracy" in line for line in found)
    return found


def sound(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_after_a_kill_the_same_command_goes_on_with_the_same_losses_to_the_last_bit(place: Place) -> None:
    killed = place.killed("resumed")
    assert sound(killed) == ["checkpoint-4", "checkpoint-6"]
    report = place.train("resumed")
    assert report.resumed_from == "checkpoint-6"
    assert read_losses(killed / "log.jsonl") == read_losses(place.folder / "whole" / "log.jsonl")
    assert evaluations(killed) == evaluations(place.folder / "whole")
    weights = [
        folder / "adapter" / "adapter_model.safetensors" for folder in (killed, place.folder / "whole")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_damaged_last_checkpoint_is_set_aside_and_the_one_before_is_used(place: Place) -> None:
    killed = place.killed("damaged")
    optimizer = killed / "checkpoint-6" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    told: list[str] = []
    report = place.train("damaged", progress=told.append)
    assert report.resumed_from == "checkpoint-4"
    assert any("checkpoint-6 is damaged (optimizer.pt has " in sentence for sentence in told)
    assert (killed / "damaged-checkpoint-6").is_dir()
    assert read_losses(killed / "log.jsonl") == read_losses(place.folder / "whole" / "log.jsonl")


def _cut(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-50])

    return cut


def _flip(name: str) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return flip


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (_cut("optimizer.pt"), "optimizer.pt has"),
        (_cut("adapter_model.safetensors"), "adapter_model.safetensors has"),
        (
            lambda folder: (folder / "adapter_model.safetensors").unlink(),
            "adapter_model.safetensors is missing",
        ),
        (_flip("adapter_model.safetensors"), "adapter_model.safetensors has other bytes than were written"),
        (lambda folder: (folder / "sealed.json").unlink(), "it was not finished"),
        (_cut("sealed.json"), "sealed.json cannot be read"),
    ],
)
def test_every_kind_of_damage_is_found(
    place: Place, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = Path(shutil.copytree(place.folder / "killed", tmp_path / "run"))
    damage(folder / "checkpoint-6")
    found, sentences = checkpoints.find_checkpoint(folder)
    assert found == folder / "checkpoint-4"
    assert len(sentences) == 1 and said in sentences[0] and "damaged-checkpoint-6" in sentences[0]


def test_without_a_sound_checkpoint_the_run_begins_again(place: Place, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place.folder / "killed", tmp_path / "run"))
    for name in sound(folder):
        (folder / name / "optimizer.pt").unlink()
    found, sentences = checkpoints.find_checkpoint(folder)
    assert found is None and sentences[-1].startswith("No sound checkpoint is left")


def test_a_run_of_another_recipe_base_or_data_is_refused(place: Place) -> None:
    place.killed("other")
    with pytest.raises(CheckpointDamaged, match="another recipe") as refused:
        place.train("other", changed_recipe(RECIPE, ["train.seed=7"]))
    assert refused.value.exit_code == 3
    with pytest.raises(CheckpointDamaged, match="another base model"):
        place.train("other", base=make_base(place.folder / "other-base", seed=9))
    with pytest.raises(CheckpointDamaged, match="another training data"):
        place.train("other", data=write_data(place.folder / "other-data", train=23))


def test_a_run_refused_at_its_start_does_not_keep_its_folder(place: Place, tmp_path: Path) -> None:
    """The corrected recipe was refused as another one, though nothing had been trained."""
    identity = checkpoints.RunIdentity(
        recipe_sha256="0" * 64, base_sha256="1" * 64, train_sha256="2" * 64, heldout_sha256="3" * 64
    )
    corrected = msgspec.structs.replace(identity, recipe_sha256="4" * 64)
    checkpoints.claim_folder(tmp_path / "run", identity)
    checkpoints.claim_folder(tmp_path / "run", corrected)
    (tmp_path / "run" / "checkpoint-1").mkdir()
    with pytest.raises(CheckpointDamaged, match="another recipe"):
        checkpoints.claim_folder(tmp_path / "run", identity)


# What is refused.


def test_held_out_pairs_that_nobody_looked_at_are_refused(place: Place) -> None:
    with pytest.raises(LeakError, match="nobody looked") as refused:
        place.train("unlooked", allow_leaks=False)
    assert "--allow-leaks" in refused.value.hint


def test_an_adapter_meets_only_the_base_it_was_trained_on(place: Place, tmp_path: Path) -> None:
    from edgemed_training import qlora

    adapter = Path(shutil.copytree(place.report.adapter, tmp_path / "adapter"))

    def load(folder: Path, sha256: str | None = None) -> Any:
        base = BaseModel.read(folder)
        model = qlora.load_base(base, RECIPE)
        return qlora.load_adapter(model, adapter, base_sha256=sha256 or base.fingerprint(), base=base)

    assert load(place.base).peft_config["default"].r == 4
    deeper = make_base(tmp_path / "deeper", layers=3)
    with pytest.raises(BaseModelError, match="trained on another base model"):
        load(deeper)
    own = BaseModel.read(place.base).fingerprint()
    with pytest.raises(BaseModelError, match="14 of its matrices are missing"):
        load(deeper, own)  # even where the hash were right
    with pytest.raises(BaseModelError, match="does not fit"):
        load(make_base(tmp_path / "wider", hidden=128), own)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(BaseModelError, match="pickled weights"):
        load(place.base)


def _edit_config(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | fields), encoding="utf-8")

    return edit


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "pickled weights",
        ),
        (_edit_config(auto_map={"AutoModel": "code.Model"}), "asks for Python code"),
        (_edit_config(quantization_config={"quant_method": "gptq"}), "quantized already"),
        (_edit_config(vision_config={}), "several media"),
        (_edit_config(model_type="qwen3"), "model_type llama"),
        (_edit_config(num_hidden_layers=3), r"lack model\.layers\.2"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer in .* cannot be loaded"),
        (_cut("model.safetensors"), "cannot be loaded"),
    ],
)
def test_a_base_model_that_cannot_be_used_gets_a_sentence(
    place: Place, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    base = Path(shutil.copytree(place.base, tmp_path / "base"))
    change(base)
    with pytest.raises(BaseModelError, match=said) as refused:
        place.train("unused", changed_recipe(RECIPE, ["base.model_type=llama"]), base=base, data=place.data)
    assert refused.value.exit_code == 3 and refused.value.hint
    shutil.rmtree(place.folder / "unused", ignore_errors=True)


# Dry run and evaluation.


def test_the_dry_run_counts_what_the_run_then_meets(place: Place, tmp_path: Path) -> None:
    from edgemed_training.estimate import check

    base = Path(shutil.copytree(place.base, tmp_path / "base"))
    (base / "model.safetensors").unlink()
    found, card = check(RECIPE, data=place.data, base=base), place.report.card
    assert (found.tokens, found.answer_tokens) == (card.encoding.tokens, card.encoding.answer_tokens)
    assert (found.packed_rows, found.steps) == (card.encoding.rows, card.steps)
    assert found.fill_share == card.encoding.fill_share
    assert "⟦Corva fever is an invented illness" in found.first_example and found.first_example.endswith(
        "<|im_end|>⟧"
    )


def test_the_estimate_knows_llama_2_7b(tmp_path: Path) -> None:
    """39.98 M adapter parameters at r = 16, 3.6 GiB of NF4 weights."""
    from edgemed_training.estimate import memory_bytes, model_size
    from transformers import LlamaConfig

    config = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    config.save_pretrained(tmp_path)
    size = model_size(BaseModel(tmp_path, json.loads((tmp_path / "config.json").read_bytes()), ()), Recipe())
    assert size.adapter_parameters == 39_976_960
    memory = memory_bytes(size, Recipe(), micro_tokens=2048, recompute=True)
    assert memory["base model"] / 2**30 == pytest.approx(3.6, abs=0.01)


def test_an_evaluation_shows_base_and_look_up_beside_the_adapter(place: Place, tmp_path: Path) -> None:
    from edgemed_training.evaluate import evaluate, recipe_for

    found = evaluate(
        place.base,
        data=place.data / HELDOUT_NAME,
        out=tmp_path / "scores",
        adapter=place.report.adapter,
        recipe=recipe_for(None, place.report.adapter),
    )
    assert found.settings.max_new_tokens == 12  # the adapter's own recipe
    assert [system.system for system in found.systems] == ["adapter", "base", "nearest"]
    for system in found.systems:
        assert all(score.low <= score.value <= score.high for score in system.scores.values())
        assert ("ended" in system.scores) == (system.system != "nearest")
    lines = [
        json.loads(line)
        for line in (tmp_path / "scores" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(lines) == 3 * found.items == 12
    assert {line["system"] for line in lines if line["answer"] == ""} <= {"adapter", "base"}


def test_the_nearest_question_is_found() -> None:
    from edgemed_training.nearest_question import nearest_answers

    from tests.training_models import invented_pairs

    pairs = invented_pairs(24)
    assert nearest_answers(pairs, pairs) == [pair.answer for pair in pairs]


def test_the_command_line_tells_machines_and_people(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    from edgemed_training.cli import main

    recipe = place.folder / "recipe.toml"
    recipe.write_text("[train]\nmax_length = 160\n", encoding="utf-8")
    where = ["--data", str(place.data), "--base", str(place.base)]
    with pytest.raises(SystemExit) as ended:
        main(["check", str(recipe), *where, "--set", "train.epochs=4", "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 4 * found["steps_per_epoch"] == 4 * 3
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "run",
                str(recipe),
                "--data",
                str(place.data),
                "--base",
                str(place.folder / "none"),
                "--out",
                "x",
            ]
        )
    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert "does not exist" in said and "never downloads" in said


# Beside others: more processes, another trainer.


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_rows(place: Place) -> None:
    """Started as accelerate starts them on GPUs; here on the CPU (gloo)."""
    recipe = changed_recipe(RECIPE, ["lora.lora_dropout=0.0", "train.save_every_steps=0"])
    place.train("alone", changed_recipe(recipe, ["train.gradient_accumulation_steps=2"]))
    path = place.folder / "two.toml"
    path.write_text(
        "[lora]\nr = 4\nlora_dropout = 0.0\n[train]\nmax_length = 160\nepochs = 2\nmicro_batch_rows = 2\n"
        "learning_rate = 1e-3\n[eval]\ngeneration_items = 3\nmax_new_tokens = 12\n",
        encoding="utf-8",
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    where = ["--data", str(place.data), "--base", str(place.base), "--out", str(place.folder / "two")]
    command = [*launch, "-m", "edgemed_training.cli", "run", str(path), *where, "--allow-leaks", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    card = json.loads(done.stdout)["card"]
    assert card["identity"]["processes"] == 2
    alone, together = (read_losses(place.folder / name / "log.jsonl") for name in ("alone", "two"))
    assert together == pytest.approx(alone, rel=1e-4)
    single = json.loads((place.folder / "alone" / "training_card.json").read_bytes())
    for ours, theirs in zip(card["evaluations"], single["evaluations"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        # One token of all may stand at a tie.
        assert ours["token_accuracy"] == pytest.approx(theirs["token_accuracy"], abs=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's own
def test_the_loss_of_each_step_is_that_of_trl(place: Place, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from edgemed_training import qlora
    from edgemed_training.packing import unpacked

    changes = [
        "train.packing=off",
        "lora.lora_dropout=0.0",
        "train.save_every_steps=0",
        "eval.generation_items=0",
    ]
    recipe = changed_recipe(RECIPE, [*changes, "train.warmup_ratio=0.0", "train.schedule=linear"])
    place.train("padded-for-trl", recipe)
    base = BaseModel.read(place.base)
    from datasets import Dataset
    from edgemed_training.chat_format import ChatFormat
    from edgemed_training.encoding import IGNORED, encode_pairs
    from edgemed_training.records import read_pairs
    from transformers import set_seed

    set_seed(recipe.train.seed)
    tokenizer = qlora.load_tokenizer(base)
    found = encode_pairs(read_pairs(place.data / TRAIN_NAME), ChatFormat(tokenizer, recipe), max_length=160)
    rows = unpacked(found.examples)
    model = qlora.attach_adapter(qlora.load_base(base, recipe), recipe, base)
    mask = [[int(label != IGNORED) for label in row["labels"]] for row in rows]
    data = Dataset.from_dict({"input_ids": [row["input_ids"] for row in rows], "completion_mask": mask})
    tokenizer.pad_token = tokenizer.eos_token
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_length=160, num_train_epochs=2, per_device_train_batch_size=2, learning_rate=1e-3,
        lr_scheduler_type="linear", logging_steps=1, report_to="none", save_strategy="no", bf16=False, use_cpu=True,
        seed=42, data_seed=42, disable_tqdm=True, completion_only_loss=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # TRL makes them bf16
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    ours = read_losses(place.folder / "padded-for-trl" / "log.jsonl")
    assert ours == pytest.approx(theirs, abs=1e-3)
