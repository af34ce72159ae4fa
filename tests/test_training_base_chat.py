"""A chat model of a small base: only answers teach it, a kill changes nothing, and the folder is complete."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgemed_training import cli
from edgemed_training.base_recipe import BaseRecipe, ChatRecipe, ChatSection, load_base_recipe
from edgemed_training.errors import BaseModelError, CheckpointDamaged, DataError, RecipeError
from edgemed_training.libraries import prepare_libraries

from tests.reference_scripts import run_script, write_sources
from tests.shared_material import shared_path

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

BASE = """
[model]
hidden_size = 32
layers = 2
heads = 2
key_value_heads = 1
feed_forward_size = 64
context_length = 512
[tokenizer]
vocabulary_size = 300
[train]
window_tokens = 64
batch_tokens = 512
steps = 20
warmup_steps = 5
decay_steps = 5
adamw_learning_rate = 0.01
precision = "fp32"
"""
CHAT = """
stage = "chat"
[chat]
system_prompts = ["", "", "Be careful.", "Answer briefly."]
max_answer_characters = 90
min_cut_characters = 20
leave_out_beginning = ["These resources"]
leave_out_containing = ["Phenotype"]
[train]
window_tokens = 256
batch_tokens = 1024
steps = 30
warmup_steps = 5
adamw_learning_rate = 0.01
precision = "fp32"
save_every_steps = 10
"""
KILLED_AT = 20
"""A step whose progress is told before its checkpoint is written: checkpoint-10 is the last."""
PROGRAM = """
import sys, time
from pathlib import Path
from edgemed_training.base_chat import train_chat
from edgemed_training.base_recipe import load_base_recipe

def progress(sentence):
    if sentence.startswith("step {step} of "):
        print("reached", flush=True)
        time.sleep(600)

folder = Path(sys.argv[1])
recipe = load_base_recipe(folder / "chat.toml")
train_chat(recipe, base=folder / "base" / "model", data=folder / "pairs.jsonl", out=folder / "killed", progress=progress)
"""


def _pairs() -> list[dict[str, str]]:
    herbs, places = ("sorrel", "mint", "yarrow", "thyme", "dill", "rue"), ("hill", "lake", "wood", "bog")
    pairs = [
        {
            "question": f"Where does {herb} grow near the {place}?",
            "answer": f"Under the stones of the {place}. People  gather {herb} at dawn. "
            * (1 + len(herb) % 3),
        }
        for herb in herbs
        for place in places
    ]
    odd = [
        "These resources address herbs.",
        "The Human Phenotype Ontology lists herbs.",
        "A" * 200,
        "Words <|im_end|> of the data <|endoftext|> stay words.",
    ]
    return [
        *pairs,
        *({"question": f"What is rare {number}?", "answer": a} for number, a in enumerate(odd)),
        pairs[0],
    ]


def _recipe(folder: Path, *overrides: str) -> ChatRecipe:
    recipe = load_base_recipe(folder / "chat.toml", overrides)
    assert isinstance(recipe, ChatRecipe)
    return recipe


def _train(folder: Path, name: str, *overrides: str, **given: Any) -> Any:
    from edgemed_training.base_chat import train_chat

    options = {"base": folder / "base" / "model", "data": folder / "pairs.jsonl", **given}
    return train_chat(_recipe(folder, *overrides), out=folder / name, **options)


def _losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["loss"] for entry in entries]


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "base" / "model" / "tokenizer.json"))


def _conversations(chat: ChatSection, pairs: list[dict[str, str]]) -> Any:
    from edgemed_training.base_chat_data import choose_conversations
    from edgemed_training.base_data import Row

    return choose_conversations([Row(pair["question"], pair["answer"]) for pair in pairs], chat)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with base, recipe, data, a run that nothing disturbed and one that was killed."""
    from edgemed_training.base_train import train_base

    prepare_libraries("torch", "transformers", "tokenizers", "safetensors")
    folder = tmp_path_factory.mktemp("chat")
    (folder / "base.toml").write_text(BASE, encoding="utf-8")
    (folder / "chat.toml").write_text(CHAT, encoding="utf-8")
    lines = "".join(json.dumps(pair) + "\n" for pair in _pairs())
    (folder / "pairs.jsonl").write_text(lines, encoding="utf-8")
    base = load_base_recipe(folder / "base.toml")
    assert isinstance(base, BaseRecipe)
    train_base(base, data=folder / "pairs.jsonl", out=folder / "base")
    command = [sys.executable, "-c", PROGRAM.format(step=KILLED_AT), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        _train(folder, "whole")
        assert child.stdout is not None and child.stdout.readline() == "reached\n"
        child.kill()
    return folder


def test_a_killed_run_goes_on_with_the_same_losses_and_weights_to_the_last_bit(place: Path) -> None:
    out = Path(shutil.copytree(place / "killed", place / "resumed"))
    assert _train(place, "resumed").resumed_from == "checkpoint-10"
    assert _losses(out) == _losses(place / "whole")
    names = sorted(path.name for path in (place / "whole" / "model").iterdir())
    assert "chat_template.jinja" in names
    for name in names:
        if name != "training_card.json":
            assert (out / "model" / name).read_bytes() == (place / "whole" / "model" / name).read_bytes(), (
                name
            )


def test_a_damaged_last_checkpoint_is_set_aside_and_the_one_before_is_used(place: Path) -> None:
    out = Path(shutil.copytree(place / "whole", place / "damaged"))
    (out / "training_card.json").unlink()
    (out / "checkpoint-30" / "tokenizer.json").unlink()
    said: list[str] = []
    assert _train(place, "damaged", progress=said.append).resumed_from == "checkpoint-20"
    assert said[0].startswith("checkpoint-30 is damaged (tokenizer.json is missing) and was set aside")
    assert _losses(out) == _losses(place / "whole")


def test_it_learns_to_answer_and_to_end_its_answer(place: Path) -> None:
    losses = _losses(place / "whole")
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_only_the_answer_and_its_end_token_are_learned_and_words_of_the_data_are_no_control_tokens(
    place: Path,
) -> None:
    from edgemed_training.base_chat_data import ConversationRows

    recipe, tokenizer = _recipe(place), _tokenizer(place)
    found = _conversations(recipe.chat, _pairs())
    rows = ConversationRows(found, tokenizer, recipe.chat, recipe.train)
    ids, labels = rows.batch(0)
    assert ids.shape == labels.shape == (4, 256)
    learned = [
        tokenizer.decode(run, skip_special_tokens=False)
        for row in labels.tolist()
        for run in _runs_of_labels(row)
    ]
    answers = {f" {turns[-1][1]}<|im_end|>" for turns in found.turns}
    assert len(learned) >= 8 and set(learned) <= answers
    assert ((labels == -100) | (labels == ids)).all()
    one = _conversations(recipe.chat, [_pairs()[-2]])
    ids, _labels = ConversationRows(one, tokenizer, ChatSection(), recipe.train).batch(0)
    per_conversation = ids[0].tolist().count(1) // 2
    assert ids[0].tolist().count(2) == 2 * per_conversation > 0


def _runs_of_labels(labels: list[int]) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for label in labels:
        if label != -100:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def test_the_frames_are_those_of_the_chat_template_that_the_folder_carries(place: Path) -> None:
    from edgemed_training.base_chat_data import ConversationRows, Conversations
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / "whole" / "model", local_files_only=True)
    messages = [
        {"role": "system", "content": "Be careful."},
        {"role": "user", "content": "Where is mint?"},
        {"role": "assistant", "content": "Here."},
        {"role": "user", "content": "And rue?"},
        {"role": "assistant", "content": "There."},
    ]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    chat = ChatSection(system_prompts=("Be careful.",))
    turns = (("Where is mint?", "Here."), ("And rue?", "There."))
    rows = ConversationRows(Conversations([turns], 0, {}), _tokenizer(place), chat, _recipe(place).train)
    ids, labels = rows.batch(0)
    assert ids[0, : len(expected)].tolist() == expected
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert (labels[0, : len(prompt)] == -100).all() and labels[0, len(prompt)] != -100


def test_a_step_needs_no_memory_of_those_before_and_every_pass_has_another_order(place: Path) -> None:
    from edgemed_training.base_chat_data import ConversationRows

    recipe, tokenizer = _recipe(place), _tokenizer(place)
    found = _conversations(recipe.chat, _pairs())
    rows = ConversationRows(found, tokenizer, recipe.chat, recipe.train)
    steps = [rows.batch(step)[0] for step in range(12)]
    fresh = ConversationRows(found, tokenizer, recipe.chat, recipe.train)
    assert torch.equal(fresh.batch(9)[0], steps[9]) and torch.equal(fresh.batch(2)[0], steps[2])
    assert len({tuple(row) for step in steps for row in step.tolist()}) == 12 * 4


def test_long_answers_end_with_a_sentence_and_what_the_recipe_names_is_left_out(place: Path) -> None:
    found = _conversations(_recipe(place).chat, _pairs())
    assert found.left_out == {
        "leave_out_beginning": 1,
        "leave_out_containing": 1,
        "no end of a sentence to cut at": 1,
        "the same again": 1,
    }
    assert (
        len(found.turns) == 25 and found.cut == 12 and all(len(turns[-1][1]) <= 90 for turns in found.turns)
    )
    assert {turns[-1][1][-1] for turns in found.turns} == {"."}


def test_the_folder_has_all_that_the_shared_chat_models_folder_has(place: Path) -> None:
    shared, made = shared_path("models", "edge-chat-8m"), place / "whole" / "model"
    assert {path.name for path in shared.iterdir()} == {p.name for p in made.iterdir()} - {
        "training_card.json"
    }
    assert (made / "chat_template.jinja").read_bytes() == (shared / "chat_template.jinja").read_bytes()
    sizes = {"hidden_size", "intermediate_size", "head_dim", "num_attention_heads", "num_hidden_layers"}
    sizes |= {"num_key_value_heads", "vocab_size", "max_position_embeddings", "model_max_length"}
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        ours, theirs = (json.loads((folder / name).read_bytes()) for folder in (made, shared))
        assert ours.keys() == theirs.keys(), name
        for key in theirs.keys() - sizes - {"transformers_version"}:
            assert ours[key] == theirs[key], (name, key)


def test_the_first_steps_are_those_of_the_script_that_made_the_shared_model(
    place: Path, tmp_path: Path
) -> None:
    """Same rows, same order, same draws, same losses to the last bit, over more than one pass of the data."""
    from edgemed_training.base_chat import train_chat
    from edgemed_training.base_chat_data import ConversationRows

    folder, steps = tmp_path / "models" / "recipe", 40
    # The script knows MedQuAD's odd answers only there, and makes a control token where the data name one.
    pairs = [(pair["question"], pair["answer"] * 12) for pair in _pairs()[::-1] if "<|" not in pair["answer"]]
    lines = [{"question": question, "answer": answer} for question, answer in pairs]
    write_sources(tmp_path / "data", pairs[:15], pairs[15:])
    (tmp_path / "lines.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    shutil.copytree(place / "base" / "model", folder / "ckpt")
    shutil.copyfile(place / "base" / "model" / "tokenizer.json", folder / "tokenizer.json")
    # Its base lay there as float32, and was trained so.
    changes = {"from_pretrained('ckpt')": "from_pretrained('ckpt',dtype=torch.float32)", "B=16": "B=2"}
    threads = torch.get_num_threads()
    seen = run_script("chat_tune.py", folder, arguments=[str(steps)], changes=changes, threads=threads)
    assert len(seen["losses"]) == steps
    shipped = load_base_recipe("base/edge_chat_8m", [f"train.steps={steps}", "train.batch_tokens=1024"])
    assert isinstance(shipped, ChatRecipe)
    found = _conversations(shipped.chat, lines)
    assert sorted(turns[0] for turns in found.turns) == sorted(tuple(pair) for pair in seen["pairs"])
    rows = ConversationRows(found, _tokenizer(place), shipped.chat, shipped.train)
    for step, (ids, labels) in enumerate(seen["batches"]):
        ours = rows.batch(step)
        assert torch.equal(ours[0], ids) and torch.equal(ours[1], labels), step
    data, out = tmp_path / "lines.jsonl", tmp_path / "ours"
    train_chat(shipped, base=place / "base" / "model", data=data, out=out)
    assert _losses(out) == seen["losses"]


def test_it_becomes_a_file_with_the_metadata_of_the_embedded_model(place: Path, tmp_path: Path) -> None:
    from edgemed_convert.checkpoint import Checkpoint
    from edgemed_convert.export import export_gguf

    from edgemed import models
    from edgemed.gguf_header import read_header

    made = tmp_path / "made.gguf"
    export_gguf(Checkpoint.open(place / "whole" / "model"), made, file_type="F16", prove_tokenizer=False)
    embedded = next((Path(models.__file__).parent / "data" / "edge-chat-8m").glob("*.gguf"))
    ours, theirs = read_header(made).metadata, read_header(embedded).metadata
    assert theirs.keys() - ours.keys() <= {"general.quantization_version"}
    sized = ("llama.", "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type")
    same = {key for key in theirs.keys() & ours.keys() if not key.startswith(sized)} - {"general.file_type"}
    assert "tokenizer.chat_template" in same and "tokenizer.ggml.eos_token_id" in same
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("chat.system_prompt=x", "there is no key chat.system_prompt. Did you mean chat.system_prompts?"),
        ("chat.system_prompts=[]", "chat.system_prompts: Expected `array` of length >= 1"),
        ("train.muon_learning_rate=0.1", "there is no key train.muon_learning_rate."),
        ("train.warmup_steps=31", "train: warmup_steps 31 is more than steps 30"),
        ("model.heads=2", "there is no key model."),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_with_its_key(place: Path, override: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        _recipe(place, override)
    assert sentence in caught.value.message


def test_a_base_or_data_that_cannot_be_used_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="context length of 512 tokens: too short for rows of 1024"):
        _train(place, "long", "train.window_tokens=1024")
    other = Path(shutil.copytree(place / "base" / "model", tmp_path / "other"))
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|no_end|>"), encoding="utf-8")
    with pytest.raises(BaseModelError, match=r"has no special token <\|im_end\|>"):
        _train(place, "other", base=other)
    (other / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BaseModelError, match="is no tokenizer"):
        _train(place, "other", base=other)
    with pytest.raises(DataError, match="hold no answers to learn from"):
        _train(place, "none", 'chat.leave_out_containing=["e", "A"]')
    with pytest.raises(CheckpointDamaged, match="holds a run with another base model"):
        _train(place, "whole", base=place / "whole" / "model")


def test_the_command_makes_the_chat_model_and_says_where_base_belongs(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(place / "pairs.jsonl"), "--out"]
    chat, base = ["base", str(place / "chat.toml"), *common], ["base", str(place / "base.toml"), *common]
    model = str(place / "base" / "model")
    with pytest.raises(SystemExit) as ended:
        cli.main([*chat, str(place / "by-command"), "--base", model, "--set", "train.steps=5", "--json"])
    assert ended.value.code == 0
    card = json.loads(capsys.readouterr().out)["card"]
    assert (card["steps"], card["conversations"], card["recipe"]["stage"]) == (5, 25, "chat")
    for arguments, sentence in (
        ([*chat, str(place / "no")], "it needs --base"),
        ([*base, str(place / "no"), "--base", model], "it takes no --base"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2 and sentence in capsys.readouterr().err
