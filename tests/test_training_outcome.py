"""What a run says and leaves: token accuracy that is true, the template it trained with, errors that help."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from edgemed_training import qlora
from edgemed_training.base_model import BaseModel
from edgemed_training.chat_format import QUESTION_ANSWER_TEMPLATE, ChatFormat
from edgemed_training.encoding import IGNORED, encode_pairs
from edgemed_training.errors import BaseModelError, TrainingFailed
from edgemed_training.libraries import prepare_libraries
from edgemed_training.recipe import Recipe, changed_recipe
from edgemed_training.records import HELDOUT_NAME, QAPair, read_pairs

from edgemed.engine.chat_template import ChatTemplate
from edgemed.engine.messages import ChatMessage
from edgemed.errors import MissingExtra, StorageError
from tests.training_models import make_base, make_tokenizer, write_data

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

RECIPE = changed_recipe(
    Recipe(),
    [
        *(
            "base.prompt=question-answer",
            "train.max_length=128",
            "train.epochs=1",
            "train.micro_batch_rows=3",
        ),
        *("train.learning_rate=2e-2", "lora.r=4", "eval.generation_items=2", "eval.max_new_tokens=8"),
    ],
)


class Trained:
    """A GPT-2 without a chat template, its data, and one run."""

    def __init__(self, folder: Path) -> None:
        from edgemed_training.train import run

        self.folder = folder
        self.base, self.data = (
            make_base(folder / "gpt2", kind="gpt2"),
            write_data(folder / "data", heldout=20),
        )
        self.told: list[str] = []
        self.report = run(
            RECIPE,
            data=self.data,
            base=self.base,
            out=folder / "run",
            allow_leaks=True,
            progress=self.told.append,
        )

    def examples(self) -> list[Any]:
        form = ChatFormat(qlora.load_tokenizer(BaseModel.read(self.base)), RECIPE)
        return encode_pairs(read_pairs(self.data / HELDOUT_NAME), form, max_length=128).examples

    def model(self) -> Any:
        base = BaseModel.read(self.base)
        model = qlora.load_base(base, RECIPE)
        return qlora.load_adapter(model, self.report.adapter, base_sha256=base.fingerprint(), base=base)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    import torch

    prepare_libraries()
    torch.set_num_threads(1)
    return Trained(tmp_path_factory.mktemp("outcome"))


def hits_and_count(model: Any, examples: list[Any]) -> tuple[int, int]:
    """Count one example at a time, by transformers' own forward: no padding, no packing, all logits."""
    import torch

    hits = count = 0
    model.eval()
    for example in examples:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0]
        labels = torch.tensor(example.labels)[1:]
        wanted = labels != IGNORED
        hits += int((logits.argmax(-1)[:-1] == labels)[wanted].sum())
        count += int(wanted.sum())
    return hits, count


# Token accuracy.


def test_token_accuracy_is_that_of_transformers_own_logits_padded_and_packed(trained: Trained) -> None:
    from accelerate import Accelerator
    from edgemed_training.loss import use_answer_loss
    from edgemed_training.packing import PackedCollator, PaddedCollator, pack, unpacked
    from edgemed_training.run_plan import heldout_scores

    examples, model = trained.examples(), trained.model()
    assert len({len(example.input_ids) for example in examples}) >= 3
    hits, count = hits_and_count(model, examples)
    assert 0 < hits < count
    use_answer_loss(model.get_base_model())
    for collator, rows in (
        (PaddedCollator(0), unpacked(examples)),
        (PackedCollator(0), pack(examples, 128)),
    ):
        scores = heldout_scores(model, Accelerator(cpu=True), rows, collator, RECIPE)
        assert scores.token_accuracy * count == pytest.approx(hits, abs=1e-6)
    (logged,) = trained.report.card.evaluations
    assert logged["token_accuracy"] * count == pytest.approx(hits, abs=1e-6)


def test_token_accuracy_stands_beside_the_loss_in_log_and_state(trained: Trained) -> None:
    lines = [json.loads(line) for line in (trained.folder / "run" / "log.jsonl").read_bytes().splitlines()]
    (logged,) = [line for line in lines if "eval_loss" in line]
    (state,) = (trained.folder / "run").glob("checkpoint-*/trainer_state.json")
    (kept,) = [line for line in json.loads(state.read_bytes())["log_history"] if "eval_loss" in line]
    assert logged["eval_token_accuracy"] == kept["eval_token_accuracy"] > 0


def test_hits_of_several_processes_are_added_before_they_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of two processes' means would be wrong: they have different numbers of tokens."""
    import torch
    from edgemed_training import run_plan

    class Model:
        training = False

        def eval(self) -> None: ...

        def train(self, mode: bool) -> None: ...

        def __call__(self, **_inputs: Any) -> Any:
            return SimpleNamespace(loss=torch.tensor(2.0), hits=torch.tensor(1))

    accelerator = SimpleNamespace(
        num_processes=2,
        process_index=0,
        device="cpu",
        distributed_type="MULTI_CPU",
        autocast=lambda: torch.no_grad(),
    )
    # The other process had 7 tokens and hit 2.
    monkeypatch.setattr(run_plan, "_gathered", lambda _accelerator, pieces: [*pieces, (4.0, 2, 7)])
    rows = [[IGNORED, 5], [IGNORED, 6]]
    scores = run_plan.heldout_scores(
        Model(),
        accelerator,
        rows,
        lambda batch: {"labels": torch.tensor(batch)},
        changed_recipe(RECIPE, ["train.micro_batch_rows=1"]),
    )
    assert tuple(scores) == (6 / 8, 3 / 8)


# The template that training used.


def test_the_adapter_carries_the_template_its_base_lacks(trained: Trained) -> None:
    adapter = trained.report.adapter
    assert (adapter / "chat_template.jinja").read_text(encoding="utf-8") == QUESTION_ANSWER_TEMPLATE
    for path in adapter.iterdir():
        assert str(trained.folder).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("system", ["Be short.", ""])
@pytest.mark.parametrize("turns", [(), (("Who?", "You."),)])
def test_that_template_writes_what_training_wrote(system: str, turns: tuple[tuple[str, str], ...]) -> None:
    """As transformers renders it, with quotation marks and braces in the text."""
    tokenizer = make_tokenizer(bos="<|endoftext|>", eos="<|endoftext|>", template=None)
    pair = QAPair(id="1", question="What's {{ a }}?\n", answer='"Rest" helps.', system=system, turns=turns)
    frame = ChatFormat(tokenizer, RECIPE).frame(pair)
    messages = [{"role": "system", "content": system}]
    for question, answer in (*turns, (pair.question, pair.answer)):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def rendered(conversation: list[dict[str, str]], *, prompt: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            conversation,
            chat_template=QUESTION_ANSWER_TEMPLATE,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        return text

    assert rendered(messages[:-1], prompt=True) == frame.prompt
    assert rendered(messages, prompt=False) == frame.before + pair.answer + frame.after


class Words:
    """A tokenizer of transformers as the app's chat templates want to see it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.bos_token, self.adds_bos = tokenizer.bos_token_id, False

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=not parse_special
        )["input_ids"]
        return ids

    def text_of(self, token: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token))

    def is_control(self, token: int) -> bool:
        return token in self._tokenizer.all_special_ids

    def is_user_defined(self, token: int) -> bool:
        return False


def test_the_app_asks_with_the_ids_that_training_read(trained: Trained) -> None:
    """Also where the question holds what looks like the end token."""
    tokenizer = qlora.load_tokenizer(BaseModel.read(trained.base))
    form = ChatFormat(tokenizer, RECIPE)
    source = (trained.report.adapter / "chat_template.jinja").read_text(encoding="utf-8")
    end = tokenizer.eos_token
    app = ChatTemplate(source, Words(tokenizer), bos_text=end, eos_text=end)
    pair = QAPair(id="1", question=f"What is {end} fever?", answer="Heat.", system="Be short.")
    asked = app.render([ChatMessage("system", "Be short."), ChatMessage("user", pair.question)])
    assert app.token_ids(asked) == form.token_ids(form.frame(pair).prompt)
    (example,) = encode_pairs([pair], form, max_length=128).examples
    assert example.input_ids[: len(app.token_ids(asked))] == app.token_ids(asked)


# What a run says when it cannot go on, or leaves something out.


def test_too_little_gpu_memory_is_told_with_the_estimate_and_what_to_lower(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from edgemed_training import train
    from edgemed_training.estimate import check
    from transformers import Trainer

    def full(*_args: Any, **_options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Trainer, "train", full)
    recipe = changed_recipe(RECIPE, ["train.activation_checkpointing=on"])
    with pytest.raises(TrainingFailed, match="The GPU has too little memory") as failed:
        train.run(recipe, data=trained.data, base=trained.base, out=trained.folder / "full", allow_leaks=True)
    estimated = check(recipe, data=trained.data, base=trained.base).total_bytes / 2**30
    assert f"estimated to need {estimated:.2f} GiB" in failed.value.message
    assert "Tried to allocate 2.00 GiB" in failed.value.message
    assert "3 rows of 128 tokens" in failed.value.message
    hint = failed.value.hint
    assert hint.index("train.micro_batch_rows (now 3)") < hint.index("train.max_length (below 128)")
    assert "activation_checkpointing" not in hint and failed.value.exit_code == 4


def test_a_bitsandbytes_that_does_not_know_the_gpu_library_is_told_as_such(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from bitsandbytes import cextension

    lib = cextension.ErrorHandlerMockBNBNativeLibrary("CUDA binary not found")
    monkeypatch.setattr(cextension, "lib", lib)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(MissingExtra, match="has no part for CUDA") as refused:
        qlora.load_base(BaseModel.read(trained.base), RECIPE)
    assert "BNB_CUDA_VERSION" in refused.value.hint and refused.value.exit_code == 5


def test_a_run_in_a_place_that_cannot_be_is_refused(trained: Trained, tmp_path: Path) -> None:
    from edgemed_training.train import run

    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be made") as refused:
        run(RECIPE, data=trained.data, base=trained.base, out=tmp_path / "file" / "run", allow_leaks=True)
    assert refused.value.exit_code == 6


def test_cut_answers_are_told_with_their_rate(trained: Trained) -> None:
    from edgemed_training.train import run

    told: list[str] = []
    recipe = changed_recipe(RECIPE, ["train.max_length=56", "eval.generation_items=0"])
    run(
        recipe,
        data=trained.data,
        base=trained.base,
        out=trained.folder / "cut",
        allow_leaks=True,
        progress=told.append,
    )
    assert any("train.jsonl: " in line and "%) are cut at 56 tokens" in line for line in told), told
    assert not any("are cut" in line for line in trained.told)


def test_a_template_that_refuses_one_conversation_is_named_with_its_pair() -> None:
    template = (
        "{% if messages|length > 3 %}{{ raise_exception('one turn only') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    form = ChatFormat(make_tokenizer(template=template), Recipe())
    assert form.own_template is None
    with pytest.raises(BaseModelError, match=r"one turn only \(pair row-9\)"):
        form.frame(QAPair(id="row-9", question="?", answer="a", turns=(("b", "c"),)))


def test_an_evaluation_that_cannot_end_well_does_not_begin(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong adapter, and a folder that cannot be written, are found before hours of answering."""
    from edgemed_training import evaluate as module

    def loaded(*_args: Any, **_options: Any) -> None:
        raise AssertionError("the base model was loaded first")

    monkeypatch.setattr(qlora, "load_base", loaded)
    given: dict[str, Any] = {"data": trained.data / HELDOUT_NAME, "recipe": RECIPE}
    with pytest.raises(BaseModelError, match="There is no adapter"):
        module.evaluate(trained.base, out=tmp_path / "a", adapter=tmp_path / "none", **given)
    other = make_base(tmp_path / "other", kind="gpt2", seed=5)
    with pytest.raises(BaseModelError, match="trained on another base model"):
        module.evaluate(other, out=tmp_path / "b", adapter=trained.report.adapter, **given)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        module.evaluate(trained.base, out=tmp_path / "file" / "scores", **given)
