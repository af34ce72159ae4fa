"""The tokenizer in a GGUF: the engine makes the tokens that transformers makes, and ends where the model ends."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edgemed_convert.errors import CheckpointError
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.tokenizer.fields import TokenizerFields, TokenType
from edgemed_convert.tokenizer.pre_tokenizer import names_of, read_rule
from edgemed_convert.tokenizer.pre_tokenizer_proof import prove_pre_tokenizer
from edgemed_convert.tokenizer.reader import read_tokenizer
from edgemed_convert.tokenizer.sentencepiece_model import parse_model
from edgemed_convert.tokenizer.vocabulary_file import write_vocabulary

from tests.tiny_models import change_json
from tests.tiny_tokenizers import (
    CHATML,
    GPT4O_SPLIT,
    LLAMA3_SPLIT,
    QWEN2_SPLIT,
    TOKENIZERS,
    Tokenizer,
)

MODEL_TYPES = {
    "gemma": "gemma3_text",
    "gpt2": "gpt2",
    "mistral3": "mistral",
    "phi3": "phi3",
    "phi4mini": "phi3",
}
PRE = {
    "edge": "gpt-2", "gpt2": "gpt-2", "llama3": "llama-bpe", "smollm2": "smollm", "smollm3": "llama-bpe",
    "qwen2": "qwen2", "phi4mini": "gpt-4o",
}  # fmt: skip
MESSAGES = [
    {"role": "user", "content": "How much ORS for 8.5 kg?"},
    {"role": "assistant", "content": "75 ml/kg over 4 hours."},
    {"role": "user", "content": " Asante.  And zinc?\n"},
]

# transformers 5 puts no second space before a text that begins with one; SentencePiece and the engine do.
FIRST_SPACE = re.compile("(^|>) ")

Folder = Callable[[str], tuple[Path, Tokenizer, dict[str, Any]]]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return a function that writes each tokenizer once: folder, what is known of it, config."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("sentencepiece")
    written: dict[str, tuple[Path, Tokenizer, dict[str, Any]]] = {}

    def get(kind: str) -> tuple[Path, Tokenizer, dict[str, Any]]:
        if kind not in written:
            folder = tmp_path_factory.mktemp(kind)
            tokenizer = TOKENIZERS[kind](folder)
            written[kind] = (folder, tokenizer, _config(kind, tokenizer))
            (folder / "config.json").write_text(json.dumps(written[kind][2]), encoding="utf-8")
        return written[kind]

    return get


@pytest.fixture
def fresh(tmp_path: Path) -> Folder:
    """Return a function that writes a tokenizer to be spoiled."""

    def get(kind: str) -> tuple[Path, Tokenizer, dict[str, Any]]:
        folder = tmp_path / kind
        folder.mkdir()
        tokenizer = TOKENIZERS[kind](folder)
        return folder, tokenizer, _config(kind, tokenizer)

    return get


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaProcess]:
    with LlamaProcess(threads=1) as process:
        yield process


def _config(kind: str, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "model_type": MODEL_TYPES.get(kind, "llama"),
        "vocab_size": tokenizer.size + 3,
        "eos_token_id": tokenizer.eos,
        "bos_token_id": tokenizer.bos,
    }


def _load(fields: TokenizerFields, path: Path, llama: LlamaProcess) -> Any:
    write_vocabulary(fields, path)
    return llama.load(path, vocabulary_only=True)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_engine_makes_the_tokenizers_tokens(kind: str, folder_of: Folder, llama: LlamaProcess) -> None:
    """All ordinary probe texts and all rare ones but what a note admits (NFC)."""
    folder, _tokenizer, config = folder_of(kind)
    proof = prove_pre_tokenizer(folder, read_tokenizer(folder, config), llama)
    assert proof is not None
    if kind == "llama2":
        assert all(FIRST_SPACE.search(text) for text in proof.different)
    else:
        assert not proof.different
    allowed = {"qwen2": 1, "llama2": 30}
    assert len(proof.rare_different) <= allowed.get(kind, 0)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_conversation_becomes_the_tokens_that_transformers_makes(
    kind: str, folder_of: Folder, llama: LlamaProcess, tmp_path: Path
) -> None:
    """Rendered chats and plain texts, with exactly the bos that the tokenizer adds."""
    transformers = pytest.importorskip("transformers")
    folder, _tokenizer, config = folder_of(kind)
    fields = read_tokenizer(folder, config)
    _load(fields, tmp_path / "v.gguf", llama)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Give 5 ml twice a day.\n\nMpe maji safi! 病人 لا"
    if fields.space_prefix != "first":
        expected = reference(text)["input_ids"]
        assert llama.tokenize([text], add_special=True)[0] == expected
    if fields.chat_template is None:
        return
    rendered = reference.apply_chat_template(MESSAGES, tokenize=False)
    expected = reference(rendered, add_special_tokens=False)["input_ids"]
    assert llama.tokenize([rendered], parse_special=True)[0] == expected
    assert fields.chat_template == reference.chat_template


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_end_of_the_configs_ends_an_answer_and_no_ordinary_token_does(
    kind: str, folder_of: Folder, llama: LlamaProcess, tmp_path: Path
) -> None:
    folder, tokenizer, config = folder_of(kind)
    control = [
        number for text, number in tokenizer.ids.items() if text not in ("<unk>", "<s>", "<bos>", "<pad>")
    ]
    ends = [tokenizer.eos, *control[:2]]
    fields = read_tokenizer(
        folder, {**config, "eos_token_id": ends[0]}, generation_config={"eos_token_id": ends}
    )
    _load(fields, tmp_path / "v.gguf", llama)
    table = llama.token_attributes()
    assert set(fields.end_ids) == set(ends)
    assert all(table.is_eog[number] for number in ends)
    ordinary = [number for number, type_ in enumerate(fields.tokens.types) if type_ is not TokenType.CONTROL]
    assert not any(table.is_eog[number] for number in ordinary)


def test_ends_without_a_place_are_named(folder_of: Folder) -> None:
    """Three places, and texts that the engine knows: what fits neither must be said."""
    folder, tokenizer, config = folder_of("phi4mini")
    ends = [tokenizer.ids[text] for text in ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")]
    fields = read_tokenizer(folder, {**config, "eos_token_id": ends})
    assert any("<|assistant|>" in note and "no place" in note for note in fields.notes)


def test_an_ordinary_token_that_looks_like_an_end_is_named(
    fresh: Folder, llama: LlamaProcess, tmp_path: Path
) -> None:
    """Qwen's vocabulary has an ordinary "</s>", at which the engine ends an answer."""
    folder, _tokenizer, config = fresh("qwen2")
    _model_vocabulary(folder, {"</s>": 700})
    fields = read_tokenizer(folder, config)
    assert fields.accidental_ends == (700,)
    assert any("'</s>'" in note for note in fields.notes)
    _load(fields, tmp_path / "v.gguf", llama)
    assert llama.token_attributes().is_eog[700]


def test_the_end_of_turn_is_found_by_its_text(folder_of: Folder) -> None:
    folder, tokenizer, config = folder_of("gemma")
    assert read_tokenizer(folder, config).special_ids["eot"] == tokenizer.ids["<end_of_turn>"]


# The splitting rule.


@pytest.mark.parametrize("kind", PRE)
def test_the_rule_of_a_newly_trained_tokenizer_has_its_models_name(kind: str, folder_of: Folder) -> None:
    folder, _tokenizer, config = folder_of(kind)
    assert read_tokenizer(folder, config).pre == PRE[kind]


def _rule(*steps: dict[str, Any], ignore_merges: bool = False, normalizer: Any = None) -> Any:
    pre_tokenizer = {"type": "Sequence", "pretokenizers": list(steps)}
    model = {"type": "BPE", "ignore_merges": ignore_merges}
    return read_rule({"pre_tokenizer": pre_tokenizer, "model": model, "normalizer": normalizer})


def _split(expression: str, **changes: Any) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
        **changes,
    }


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def test_other_spellings_of_a_rule_are_known() -> None:
    spelled_out = LLAMA3_SPLIT.replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    )
    assert names_of(_rule(_split(spelled_out), BYTES, ignore_merges=True)) == ("llama-bpe",)
    assert names_of(_rule(_split(LLAMA3_SPLIT), BYTES)) == ("smaug-bpe",)
    assert names_of(_rule(_split(QWEN2_SPLIT, behavior="Removed", invert=True), BYTES)) == ("qwen2",)
    assert names_of(_rule(_split(GPT4O_SPLIT), BYTES))[0] == "gpt-4o"
    tekken = GPT4O_SPLIT.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
    assert names_of(_rule(_split(tekken), BYTES, ignore_merges=True)) == ("tekken",)


UNKNOWN_RULES: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([_split(r"\p{N}{2}"), BYTES], {}, r"\\p\{N\}\{2\}"),
    ([{"type": "Digits", "individual_digits": False}, {**BYTES, "use_regex": True}], {}, "no name"),
    ([{"type": "BertPreTokenizer"}], {}, "BertPreTokenizer"),
    ([{**BYTES, "use_regex": True, "add_prefix_space": True}], {}, "add_prefix_space"),
    ([_split(QWEN2_SPLIT, behavior="Removed")], {}, "Split"),
    ([{**BYTES, "use_regex": True}], {"normalizer": {"type": "Lowercase"}}, "Lowercase"),
    ([{**BYTES, "use_regex": True}], {"normalizer": {"type": "NFKC"}}, "NFKC"),
]


@pytest.mark.parametrize(("steps", "options", "message"), UNKNOWN_RULES, ids=lambda value: str(value)[:30])
def test_a_rule_that_the_engine_does_not_know_is_refused_and_named(
    steps: list[dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        names_of(_rule(*steps, **options))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("llama3", "gpt-2"), ("llama3", "qwen2"), ("llama3", "smollm"), ("qwen2", "gpt-2"), ("edge", "llama-bpe"),
        ("smollm2", "gpt-2"), ("phi4mini", "llama-bpe"), ("gpt2", "default"), ("smollm3", "tekken"),
    ],
)  # fmt: skip
def test_the_probe_texts_find_a_wrong_name(
    kind: str, wrong: str, folder_of: Folder, llama: LlamaProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _tokenizer, config = folder_of(kind)
    monkeypatch.setattr("edgemed_convert.tokenizer.pre_tokenizer_proof.names_of", lambda _rule: (wrong,))
    proof = prove_pre_tokenizer(folder, read_tokenizer(folder, config), llama)
    assert proof is not None
    assert proof.different


def test_of_two_names_the_one_that_does_best_is_taken(
    folder_of: Folder, llama: LlamaProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _tokenizer, config = folder_of("qwen2")
    monkeypatch.setattr(
        "edgemed_convert.tokenizer.pre_tokenizer_proof.names_of", lambda _rule: ("gpt-2", "qwen2", "smollm")
    )
    proof = prove_pre_tokenizer(folder, read_tokenizer(folder, config), llama)
    assert proof is not None
    assert proof.fields.pre == "qwen2"


# SentencePiece.


@pytest.mark.parametrize("kind", ["llama2", "gemma", "mistral3", "phi3"])
def test_pieces_are_read_as_sentencepiece_reads_them(kind: str, folder_of: Folder) -> None:
    from sentencepiece import SentencePieceProcessor

    folder, _tokenizer, _config = folder_of(kind)
    content = (folder / "tokenizer.model").read_bytes()
    processor = SentencePieceProcessor(model_proto=content)
    model = parse_model(content, folder / "tokenizer.model")
    assert len(model.pieces) == processor.vocab_size()
    for number, piece in enumerate(model.pieces):
        assert (piece.text, piece.score) == (processor.IdToPiece(number), processor.GetScore(number))
        assert (piece.type is TokenType.CONTROL) == processor.IsControl(number)
        assert (piece.type is TokenType.BYTE) == processor.IsByte(number)
    assert model.add_dummy_prefix == (kind != "gemma")


@pytest.mark.parametrize("kind", ["llama2", "gemma", "mistral3", "phi3"])
def test_merges_alone_make_the_same_tokens_as_scores(kind: str, fresh: Folder, llama: LlamaProcess) -> None:
    """transformers 5 leaves tokenizer.model out on saving."""
    folder, _tokenizer, config = fresh(kind)
    (folder / "tokenizer.model").unlink()
    fields = read_tokenizer(folder, config)
    proof = prove_pre_tokenizer(folder, fields, llama)
    assert proof is not None
    assert fields.model == "llama"
    assert all(FIRST_SPACE.search(text) for text in proof.different)
    assert kind == "llama2" or not proof.rare_different


@pytest.mark.parametrize("kind", ["llama2", "gemma"])
def test_the_sentencepiece_model_alone_is_enough(kind: str, fresh: Folder) -> None:
    folder, tokenizer, config = fresh(kind)
    with_json = read_tokenizer(folder, config)
    (folder / "tokenizer.json").unlink()
    fields = read_tokenizer(folder, config)
    assert fields.tokens.texts[tokenizer.eos] == with_json.tokens.texts[tokenizer.eos]
    assert fields.tokens.scores == with_json.tokens.scores
    assert fields.add_bos
    assert fields.space_prefix == with_json.space_prefix


def test_a_damaged_sentencepiece_model_is_refused_at_any_length(fresh: Folder) -> None:
    folder, _tokenizer, _config = fresh("gemma")
    path = folder / "tokenizer.model"
    content = path.read_bytes()
    for length in [*range(400), *range(400, len(content), 997)]:
        try:
            parse_model(content[:length], path)
        except CheckpointError:
            continue
    flipped = bytes(byte ^ 0x55 if index % 7 == 3 else byte for index, byte in enumerate(content))
    with pytest.raises(CheckpointError, match="damaged"):
        parse_model(flipped, path)


# Templates and flags.


def test_of_several_templates_the_default_one_is_the_models_own(fresh: Folder) -> None:
    folder, _tokenizer, config = fresh("qwen2")
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]
    change_json(folder / "tokenizer_config.json", chat_template=named)
    metadata = read_tokenizer(folder, config).metadata()
    assert metadata["tokenizer.chat_template"] == CHATML
    assert metadata["tokenizer.chat_template.tool_use"] == "tools"
    # A file of its own wins, as in transformers.
    (folder / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert read_tokenizer(folder, config).chat_template == "file"


@pytest.mark.parametrize("flag", [True, False])
def test_a_flag_in_the_settings_wins_over_the_rule_for_bos(flag: bool, fresh: Folder) -> None:
    folder, _tokenizer, config = fresh("llama3")
    change_json(folder / "tokenizer_config.json", add_bos_token=flag)
    fields = read_tokenizer(folder, config)
    assert (fields.add_bos, fields.add_eos) == (flag, False)


def test_added_tokens_of_older_files_are_read(fresh: Folder) -> None:
    """transformers 4 listed them in tokenizer_config.json, 3 in added_tokens.json."""
    folder, tokenizer, config = fresh("gemma")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps({"<clinic>": tokenizer.size}), encoding="utf-8")
    decoder = {str(tokenizer.ids["<end_of_turn>"]): {"content": "<end_of_turn>", "special": True}}
    change_json(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
    tokens = read_tokenizer(folder, config).tokens
    assert tokens.types[tokenizer.ids["<end_of_turn>"]] is TokenType.CONTROL
    assert (tokens.texts[tokenizer.size], tokens.types[tokenizer.size]) == (
        b"<clinic>",
        TokenType.USER_DEFINED,
    )
    assert tokens.types[tokenizer.size + 1] is TokenType.UNUSED


# Bad input.


def _no_files(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).unlink(missing_ok=True)


def _old_files(folder: Path) -> None:
    _no_files(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_text("{}", encoding="utf-8")


def _model_field(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["model"].update(changes)
        path.write_text(json.dumps(content), encoding="utf-8")

    return change


def _model_vocabulary(folder: Path, numbers: dict[str, int]) -> None:
    """Give numbers of the vocabulary to other texts."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {
        text: number for text, number in content["model"]["vocab"].items() if number not in numbers.values()
    }
    content["model"]["vocab"] = kept | numbers
    path.write_text(json.dumps(content), encoding="utf-8")


def _twice_the_same(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"].append(
        {"id": content["added_tokens"][-1]["id"] + 1, "content": "the", "special": False}
    )
    content["model"]["vocab"]["the"] = 300
    path.write_text(json.dumps(content), encoding="utf-8")


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("llama2", _no_files, "no tokenizer: neither"),
    ("edge", _no_files, "no tokenizer: neither"),
    ("edge", _old_files, "vocab.json and merges.txt"),
    ("edge", lambda folder: (folder / "tokenizer.json").write_bytes(b'{"model": '), "not valid JSON"),
    ("edge", _model_field(type="Unigram"), "not BPE"),
    ("edge", _model_field(merges=[]), "no merges"),
    ("edge", _model_field(merges=[["a", "b", "c"]]), "not two texts"),
    ("edge", _model_field(vocab={}), "no vocabulary"),
    ("edge", _model_field(vocab={"a": "0"}), "no number"),
    ("edge", _model_field(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    ("llama3", _twice_the_same, "same text"),
    ("llama2", lambda folder: (folder / "tokenizer.model").write_bytes(b"\x0a\x05hello"), "SentencePiece"),
    ("edge", lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff\xfe"), "not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_tokenizer_files_are_refused_in_one_sentence(
    kind: str, spoil: Callable[[Path], object], message: str, fresh: Folder
) -> None:
    folder, _tokenizer, config = fresh(kind)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tokenizer(folder, config)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["llama2", "edge", "llama3"])
def test_a_tokenizer_larger_than_the_model_is_refused(kind: str, folder_of: Folder) -> None:
    folder, tokenizer, config = folder_of(kind)
    with pytest.raises(CheckpointError, match=f"only {tokenizer.size - 1:,} rows"):
        read_tokenizer(folder, {**config, "vocab_size": tokenizer.size - 1})


def test_a_model_without_an_end_is_refused(fresh: Folder) -> None:
    """The engine would take token 11 for the end, whatever that is."""
    folder, tokenizer, config = fresh("llama3")
    change_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(CheckpointError, match="which token ends an answer"):
        read_tokenizer(folder, {**config, "eos_token_id": None})
    with pytest.raises(CheckpointError, match="does not have"):
        read_tokenizer(folder, {**config, "eos_token_id": tokenizer.size + 10})


def test_a_proof_needs_the_tokenizers_own_rule(fresh: Folder, llama: LlamaProcess) -> None:
    folder, _tokenizer, config = fresh("gemma")
    fields = read_tokenizer(folder, config)
    (folder / "tokenizer.json").unlink()
    assert prove_pre_tokenizer(folder, replace(fields), llama) is None
