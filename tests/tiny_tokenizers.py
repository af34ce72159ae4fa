"""Tokenizers for the tiny models: real ones from the shared data where they lie there, else trained on the spot.

Each function writes a family's tokenizer files into a folder: its real splitting rule, special tokens and
their places, and a chat template of our own in the family's manner. The training text is invented.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.shared_material import shared_folder

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3_SPLIT = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Tokenizer:
    """What a model's config must know of its tokenizer; `size` counts ids, `ids` holds the special tokens."""

    size: int
    bos: int | None
    eos: int
    pad: int | None
    ids: dict[str, int]


# Chat templates.

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    " {{ message['content'] }}{{ eos_token }}{% else %}[INST] {{ message['content'] }} [/INST]{% endif %}"
    "{% endfor %}"
)
_HEADERS = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>"
    "\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_TURNS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_ROLES = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_ROLES_TIGHT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


# Training text.


@cache
def invented_text() -> tuple[str, ...]:
    """Return lines about clinics in several languages and scripts, with numbers, code and odd spaces."""
    chooser = random.Random(7)
    who = "the nurse|a midwife|Dr Okafor|the mother's sister|our clinic|the patient|a newborn|Amina's son"
    does = "checks|gives|can't find|asks about|writes down|won't take|has measured|needs|didn't see|prepares"
    what = (
        "the blood pressure|paracetamol 500 mg|ORS every 15 minutes|a clean cloth|the dehydration score"
        "|amoxicillin 250mg/5ml|a temperature of 38.7|the weight (3.25 kg)|haemoglobin 11.2 g/dL|oxygen at 94%"
    )
    when = "today|at 07:30|before the injection|after 48 hours|in week 32|twice a day|until the fever falls"
    others = [
        "Mgonjwa ana homa kali na maumivu ya kichwa",
        "Mpe mtoto maji safi ya kunywa kila saa",
        "Le patient a de la fièvre depuis trois jours",
        "El niño necesita suero oral",
        "المريض يعاني من حمى شديدة",
        "يجب قياس ضغط الدم كل يوم",
        "病人发烧三天了",
        "每天测量血压两次",
        "Пациент жалуется на боль в груди",
        "रोगी को तेज बुखार है",
        "환자는 열이 납니다",
        "患者さんは熱があります",
    ]
    code = [
        'def dose(kg):\n    return {"mg": kg * 15}\n',
        "for (int i = 0; i < 10; ++i) {\n\tsum += x[i];\n}\n",
    ]
    syllables = [
        "ka",
        "mo",
        "ri",
        "ten",
        "zo",
        "lu",
        "sha",
        "pra",
        "ndi",
        "ex",
        "ol",
        "um",
        "vi",
        "gor",
        "est",
        "ing",
        "tion",
        "cal",
        "hyp",
        "er",
        "ba",
        "qui",
        "wa",
        "pen",
    ]
    invented = ["".join(chooser.choices(syllables, k=chooser.randint(2, 4))) for _ in range(700)]
    shapes = (str, str.title, str.upper, lambda word: word.title() + chooser.choice(invented).title())
    lines = []
    for number in range(1500):
        parts = [chooser.choice(options.split("|")) for options in (who, does, what, when)]
        sentence = " ".join(parts)
        lines.append(sentence[0].upper() + sentence[1:] + chooser.choice((".", "?", "!", "...", ";")))
        lines.append(" ".join(chooser.choice(shapes)(chooser.choice(invented)) for _ in range(6)))
        if number % 5 == 0:
            lines.append(chooser.choice(others) + chooser.choice((".", "。", " 🩺", "  ", "\n\n")))
        if number % 50 == 0:
            lines.append(chooser.choice(code))
    return tuple(lines)


# Byte-level BPE.


def _train_byte_level(rule: Any, *, size: int, normalizer: Any = None, first: Sequence[str] = ()) -> Any:
    """Return a trained byte-level BPE `tokenizers.Tokenizer` whose special tokens `first` have the lowest ids."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers, trainers

    engine = Engine(models.BPE())
    engine.pre_tokenizer = rule
    engine.decoder = decoders.ByteLevel()
    if normalizer is not None:
        engine.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(first),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    engine.train_from_iterator(invented_text(), trainer)
    return engine


def _split(pattern: str) -> Any:
    """Return the two-step rule of Llama 3 and later families: a regular expression, then bytes."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _write(
    folder: Path,
    engine: Any,
    *,
    special: Sequence[str] = (),
    bos: str | None = None,
    eos: str,
    pad: str | None = None,
    template: str | None = None,
    add_bos: bool = False,
    ignore_merges: bool = False,
    tokenizer_class: str = "PreTrainedTokenizerFast",
) -> Tokenizer:
    """Write tokenizer.json, tokenizer_config.json and the template; `special` tokens follow the last id."""
    from tokenizers import AddedToken, processors

    engine.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    if add_bos and bos is not None:
        engine.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, engine.token_to_id(bos))]
        )
    content = json.loads(engine.to_str())
    content["model"]["ignore_merges"] = ignore_merges
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    config = {
        "tokenizer_class": tokenizer_class,
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    _write_json(folder / "tokenizer.json", content)
    _write_json(
        folder / "tokenizer_config.json", {key: value for key, value in config.items() if value is not None}
    )
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Tokenizer(
        engine.get_vocab_size(),
        None if bos is None else added[bos],
        added[eos],
        None if pad is None else added[pad],
        added,
    )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@cache
def _trained(kind: str) -> str:
    """Return a trained tokenizer as JSON: training is the slow part, and every test asks for the same ones."""
    from tokenizers import normalizers, pre_tokenizers

    if kind == "llama3":
        engine = _train_byte_level(_split(LLAMA3_SPLIT), size=1400)
    elif kind == "qwen2":
        engine = _train_byte_level(_split(QWEN2_SPLIT), size=1200, normalizer=normalizers.NFC())
    elif kind == "gpt-4o":
        engine = _train_byte_level(_split(GPT4O_SPLIT), size=1300)
    elif kind == "smollm":
        rule = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]
        engine = _train_byte_level(rule, size=1100, first=first)
    else:
        first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if kind == "edge" else ["<|endoftext|>"]
        gpt2_rule = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        engine = _train_byte_level(gpt2_rule, size=1000, first=first)
    return str(engine.to_str())


def _engine(kind: str) -> Any:
    from tokenizers import Tokenizer as Engine

    return Engine.from_str(_trained(kind))


_LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)


def _llama3(folder: Path) -> Tokenizer:
    return _write(
        folder,
        _engine("llama3"),
        special=_LLAMA3_SPECIAL,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        template=_HEADERS,
        add_bos=True,
        ignore_merges=True,
    )


def _smollm3(folder: Path) -> Tokenizer:
    special = [*_LLAMA3_SPECIAL[:4], "<|im_start|>", "<|im_end|>"]
    return _write(
        folder,
        _engine("llama3"),
        special=special,
        eos="<|im_end|>",
        pad="<|im_end|>",
        template=CHATML,
        ignore_merges=True,
    )


def _smollm2(folder: Path) -> Tokenizer:
    return _write(
        folder,
        _engine("smollm"),
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        template=CHATML,
        tokenizer_class="GPT2Tokenizer",
    )


def _qwen2(folder: Path) -> Tokenizer:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|fim_prefix|>")
    return _write(
        folder,
        _engine("qwen2"),
        special=special,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        template=CHATML,
        tokenizer_class="Qwen2Tokenizer",
    )


def _phi4mini(folder: Path) -> Tokenizer:
    return _write(
        folder,
        _engine("gpt-4o"),
        special=("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endofprompt|>"),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        template=_ROLES_TIGHT,
        tokenizer_class="GPT2Tokenizer",
    )


def _edge(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Engine

    shared = shared_folder()
    path = None if shared is None else shared / "models" / "edge-base-8m" / "tokenizer.json"
    engine = Engine.from_file(str(path)) if path is not None and path.is_file() else _engine("edge")
    end = "<|endoftext|>"
    return _write(folder, engine, bos=end, eos=end, pad=end, template=CHATML)


def _gpt2(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers, processors

    shared = shared_folder()
    vocabulary = None if shared is None else shared / "data" / "tokenizers" / "gpt2.encoder.json"
    if vocabulary is not None and vocabulary.is_file():
        ids = json.loads(vocabulary.read_text(encoding="utf-8"))
        lines = vocabulary.with_name("gpt2.vocab.bpe").read_text(encoding="utf-8").splitlines()
        pairs = (line.split(" ") for line in lines if line and not line.startswith("#version"))
        merges = [(left, right) for left, right in pairs]
        engine = Engine(models.BPE(vocab=ids, merges=merges))
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        engine.decoder = decoders.ByteLevel()
    else:
        engine = _engine("gpt2")
    engine.post_processor = processors.ByteLevel(trim_offsets=False)
    end = "<|endoftext|>"
    return _write(folder, engine, special=[end], bos=end, eos=end, tokenizer_class="GPT2Tokenizer")


# SentencePiece.


@cache
def _sentencepiece_bytes(kind: str) -> bytes:
    """Train a SentencePiece BPE model as Llama's or Gemma's makers did: same options, far fewer pieces."""
    import io

    from sentencepiece import SentencePieceTrainer

    shared = shared_folder()
    names = {"llama": "mistral-7b-v0.1.tokenizer.model", "mistral3": "mistral-instruct-v3.tokenizer.model"}
    if shared is not None and kind in names and (shared / "data" / "tokenizers" / names[kind]).is_file():
        return (shared / "data" / "tokenizers" / names[kind]).read_bytes()
    options: dict[str, Any] = {
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.9995,
        "num_threads": 1,
        "minloglevel": 2,
    }
    if kind == "gemma":
        symbols = ["<mask>", "[@BOS@]", *(f"<unused{number}>" for number in range(5))]
        symbols += ["<start_of_turn>", "<end_of_turn>", *("▁" * count for count in range(2, 16))]
        options |= {"vocab_size": 1100, "add_dummy_prefix": False, "user_defined_symbols": symbols}
        options |= {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
        options |= {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>", "unk_piece": "<unk>"}
    else:
        options |= {"vocab_size": 1000, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
        if kind == "mistral3":
            options |= {"control_symbols": ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]"]}
    target = io.BytesIO()
    lines = [part for line in invented_text() for part in line.split("\n") if part.strip()]
    SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=target, **options)
    return target.getvalue()


def _write_sentencepiece(
    folder: Path,
    kind: str,
    *,
    prefix: str,
    names: dict[str, str],
    added: Sequence[dict[str, Any]] = (),
    swallowing: Sequence[str] = (),
    add_bos: bool = True,
    template: str,
    tokenizer_class: str,
    legacy: bool | None = None,
) -> Tokenizer:
    """Write tokenizer.model and the tokenizer.json that the model's makers ship beside it.

    Args:
        prefix: "always" as Llama 2, "first" as Mistral v0.3, "never" as Gemma.
        names: "bos", "eos", "unk", "pad" → text.
        added: further entries of tokenizer.json's list of added tokens, with ids behind the last piece.
    """
    from sentencepiece import SentencePieceProcessor

    content = _sentencepiece_bytes(kind)
    (folder / "tokenizer.model").write_bytes(content)
    processor = SentencePieceProcessor(model_proto=content)
    tokens = [_added(id_, processor.IdToPiece(id_)) for id_ in _special_ids(processor)]
    tokens += [{**_added(processor.vocab_size() + number, ""), **entry} for number, entry in enumerate(added)]
    for token in tokens:
        token["rstrip"] |= token["content"] in swallowing
    ids = {token["content"]: token["id"] for token in tokens}
    document = _bpe_document(kind, prefix, tokens, names["unk"])
    bos = names["bos"]
    single = [{"SpecialToken": {"id": bos, "type_id": 0}}] if add_bos else []
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [*single, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [*single, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}} if add_bos else {},
    }
    _write_json(folder / "tokenizer.json", document)
    config: dict[str, Any] = {f"{key}_token": text for key, text in names.items()}
    config |= {"tokenizer_class": tokenizer_class, "clean_up_tokenization_spaces": False}
    config |= {"add_bos_token": add_bos, "add_eos_token": False, "model_max_length": 4096}
    if legacy is not None:
        config["legacy"] = legacy
    _write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    pad = names.get("pad")
    size = max(processor.vocab_size(), *(id_ + 1 for id_ in ids.values()))
    return Tokenizer(size, ids[bos], ids[names["eos"]], None if pad is None else ids[pad], ids)


def _special_ids(processor: Any) -> list[int]:
    """Return the pieces that tokenizer.json lists as added tokens: all but ordinary ones and bytes."""
    return [
        id_
        for id_ in range(processor.vocab_size())
        if processor.IsControl(id_)
        or processor.IsUnknown(id_)
        or (processor.GetScore(id_) == 0.0 and not processor.IsByte(id_) and _is_symbol(processor, id_))
    ]


def _is_symbol(processor: Any, id_: int) -> bool:
    piece = processor.IdToPiece(id_)
    return piece.startswith(("<", "[@")) or (len(piece) > 1 and not piece.strip("▁"))


def _added(id_: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id_, "content": text, **flags, "special": not (text and not text.strip("▁"))}


@cache
def _vocabulary_and_merges(kind: str) -> tuple[dict[str, int], list[list[str]]]:
    """Return what tokenizer.json's model holds; a second's work for the real vocabularies."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=_sentencepiece_bytes(kind))
    vocabulary = {processor.IdToPiece(id_): id_ for id_ in range(processor.vocab_size())}
    scores = {piece: processor.GetScore(id_) for piece, id_ in vocabulary.items()}
    return vocabulary, _merges(vocabulary, scores)


def _bpe_document(kind: str, prefix: str, tokens: list[dict[str, Any]], unk: str) -> dict[str, Any]:
    vocabulary, merges = _vocabulary_and_merges(kind)
    normalizer: dict[str, Any] | None = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    pre_tokenizer: dict[str, Any] | None = None
    if prefix == "always":
        normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, normalizer]}
    elif prefix == "first":
        normalizer = None
        pre_tokenizer = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    else:
        pre_tokenizer = {"type": "Split", "pattern": {"String": " "}}
        pre_tokenizer |= {"behavior": "MergedWithPrevious", "invert": False}
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix != "never":
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
    }
    model |= {"end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {**model, "vocab": vocabulary, "merges": merges},
    }


def _merges(vocabulary: dict[str, int], scores: dict[str, float]) -> list[list[str]]:
    """Return the merges that the scores imply, best first: every way to make a piece of two others."""
    found = []
    for piece, score in scores.items():
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(-score, order, [left, right]) for order, (left, right) in enumerate(pairs)]
    found.sort(key=lambda entry: (entry[0], vocabulary["".join(entry[2])], entry[1]))
    return [pair for _, _, pair in found]


_BRACKETS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}


def _llama2(folder: Path) -> Tokenizer:
    return _write_sentencepiece(
        folder,
        "llama",
        prefix="always",
        names=_BRACKETS,
        template=_INSTRUCT,
        tokenizer_class="LlamaTokenizer",
        legacy=True,
    )


def _mistral3(folder: Path) -> Tokenizer:
    return _write_sentencepiece(
        folder,
        "mistral3",
        prefix="first",
        names=_BRACKETS,
        template=_INSTRUCT,
        tokenizer_class="LlamaTokenizer",
        legacy=False,
    )


def _phi3(folder: Path) -> Tokenizer:
    texts = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>")
    added = [{"content": text, "rstrip": text != "<|endoftext|>", "special": True} for text in texts]
    # In Phi-3 "</s>" swallows the spaces behind it, too.
    swallowing = ("</s>",)
    return _write_sentencepiece(
        folder,
        "phi3",
        prefix="always",
        names={"bos": "<s>", "eos": "<|endoftext|>", "unk": "<unk>", "pad": "<|endoftext|>"},
        added=added,
        swallowing=swallowing,
        add_bos=False,
        template=_ROLES,
        tokenizer_class="LlamaTokenizer",
        legacy=True,
    )


def _gemma(folder: Path) -> Tokenizer:
    return _write_sentencepiece(
        folder,
        "gemma",
        prefix="never",
        names={"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"},
        template=_TURNS,
        tokenizer_class="GemmaTokenizer",
    )


TOKENIZERS: dict[str, Callable[[Path], Tokenizer]] = {
    "llama2": _llama2,
    "llama3": _llama3,
    "mistral3": _mistral3,
    "smollm2": _smollm2,
    "smollm3": _smollm3,
    "qwen2": _qwen2,
    "gemma": _gemma,
    "gpt2": _gpt2,
    "phi3": _phi3,
    "phi4mini": _phi4mini,
    "edge": _edge,
}

__all__ = ["TOKENIZERS", "Tokenizer", "invented_text"]
