"""From pairs to token ids: one BOS, one EOS, loss on the answer alone, for the template of every preset."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgemed_training.chat_format import ChatFormat
from edgemed_training.encoding import IGNORED, Encoded, encode, encode_pairs, sentence_ends
from edgemed_training.errors import BaseModelError, DataError
from edgemed_training.recipe import Recipe, load_recipe, preset_names
from edgemed_training.records import QAPair

from tests.shared_material import shared_path
from tests.training_models import CHATML, invented_pairs, make_tokenizer

SYSTEM = "Answer in short sentences."
PAIR = QAPair(id="one", question="What is Sand eye?", answer="Sand eye is an invented illness. It is not dangerous.", system=SYSTEM)  # fmt: skip

# The frames of the presets' models, as their makers publish them; everything else of their templates left out.
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set first = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% if message.role == 'user' %}{{ bos_token + '[INST] ' + (first if loop.first else '') "
    "+ message.content.strip() + ' [/INST]' }}{% else %}{{ ' ' + message.content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message.role == 'user' %}"
    "{{ '[INST] ' + message.content + ' [/INST]' }}{% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' "
    "+ message.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_32 = LLAMA_3.replace(
    "{{ bos_token }}", "{{ bos_token }}{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n' }}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) "
    "+ '\n' + message.content | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<start_of_turn>model\n' }}{% endif %}"
)
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
    "{{ '<think>\n\n</think>\n\n' }}{% generation %}{{ message.content.split('</think>')[-1] }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
PHI = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
CHATML_MARKS = ("<|im_start|>", "<think>", "</think>")
FRAMES: dict[str, tuple[str | None, str | None, str, tuple[str, ...]]] = {
    # preset → template, BOS, EOS, other control tokens
    "paper/llama-2-7b": (LLAMA_2, "<s>", "</s>", ()),
    "paper/mistral-7b": (MISTRAL, "<s>", "</s>", ()),
    "paper/llama-3-8b": (
        LLAMA_3,
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "paper/gemma-1.1-7b": (GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "paper/distilgpt2": (None, None, "<|endoftext|>", ()),
    "edge/llama-3.2-1b": (
        LLAMA_32,
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "edge/llama-3.2-3b": (
        LLAMA_32,
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "edge/qwen3-0.6b": (THINKING, None, "<|im_end|>", CHATML_MARKS),
    "edge/qwen3-1.7b": (THINKING, None, "<|im_end|>", CHATML_MARKS),
    "edge/qwen3-4b": (THINKING, None, "<|im_end|>", CHATML_MARKS),
    "edge/gemma-3-1b": (GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "edge/gemma-3-4b": (GEMMA, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "edge/smollm3": (THINKING, None, "<|im_end|>", CHATML_MARKS),
    "edge/phi-4-mini": (PHI, None, "<|endoftext|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
}
TURN_ENDS = {"<end_of_turn>", "<|end|>"}
"""Stand behind the answer, before the end token, and are learned, too."""


def chat_format(preset: str) -> ChatFormat:
    template, bos, eos, special = FRAMES[preset]
    return ChatFormat(make_tokenizer(bos=bos, eos=eos, special=special, template=template), recipe(preset))


def recipe(preset: str | None = None) -> Recipe:
    """The preset, with the system prompt left to the pair."""
    found = load_recipe(preset) if preset else Recipe()
    return msgspec.structs.replace(found, data=msgspec.structs.replace(found.data, system_prompt=None))


def encoded(pair: QAPair, form: ChatFormat, *, max_length: int = 1000, cut: Any = "sentence") -> Encoded:
    example = encode(pair, form, max_length=max_length, cut=cut)
    assert isinstance(example, Encoded), example
    return example


def learned_text(form: ChatFormat, example: Encoded) -> str:
    return str(form.tokenizer.decode([label for label in example.labels if label != IGNORED]))


def check_example(form: ChatFormat, example: Encoded, answer: str, *, has_bos: bool) -> None:
    tokenizer, ids = form.tokenizer, example.input_ids
    if has_bos:
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    learned = [label for label in example.labels if label != IGNORED]
    assert learned.count(form.eos_id) == 1 and learned[-1] == form.eos_id == ids[-1]
    start = len(ids) - len(learned)
    assert example.labels == [IGNORED] * start + ids[start:]
    text = learned_text(form, example).removesuffix(str(tokenizer.eos_token))
    for end in TURN_ENDS:
        text = text.removesuffix(end)
    assert text.strip() == answer
    assert tokenizer.decode(ids[:start]).endswith(form.frame(PAIR).prompt[-12:])


def test_every_preset_has_its_frame_here() -> None:
    assert set(FRAMES) == {name for name in preset_names() if not name.startswith("recipes/")}


@pytest.mark.parametrize("preset", FRAMES)
def test_one_bos_one_eos_and_the_loss_on_exactly_the_answer(preset: str) -> None:
    form = chat_format(preset)
    check_example(form, encoded(PAIR, form), PAIR.answer, has_bos=FRAMES[preset][1] is not None)
    assert SYSTEM in form.frame(PAIR).prompt


@pytest.mark.parametrize("preset", ["paper/gemma-1.1-7b", "paper/mistral-7b"])
def test_a_template_without_a_system_role_gets_it_in_the_first_question(preset: str) -> None:
    form = chat_format(preset)
    assert form.system_placement == "first question"
    assert f"{SYSTEM}\n\n{PAIR.question}" in form.frame(PAIR).prompt


def test_a_template_that_drops_the_system_message_in_silence_is_found_out() -> None:
    silent = (
        "{% for m in messages %}{% if m.role != 'system' %}"
        + CHATML.split("{% for message in messages %}")[1]
    )
    silent = silent.replace("message.", "m.").replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
    form = ChatFormat(make_tokenizer(special=("<|im_start|>",), template=silent), recipe())
    assert form.system_placement == "first question"
    assert SYSTEM in form.frame(PAIR).prompt


def test_a_template_that_does_not_extend_its_prompt_is_refused() -> None:
    broken = CHATML.replace("assistant\n' }}{% endif %}", "model\n' }}{% endif %}")
    with pytest.raises(BaseModelError, match="does not go on from its own prompt"):
        ChatFormat(make_tokenizer(special=("<|im_start|>",), template=broken), recipe())


def test_a_model_without_a_template_says_what_to_do() -> None:
    with pytest.raises(BaseModelError, match="no chat template") as refused:
        ChatFormat(make_tokenizer(template=None), recipe())
    assert "question-answer" in refused.value.hint


def test_the_prompt_is_the_same_on_every_day() -> None:
    assert "26 Jul 2024" in chat_format("edge/llama-3.2-1b").frame(PAIR).prompt


@pytest.mark.parametrize("preset", ["paper/llama-2-7b", "paper/llama-3-8b", "edge/qwen3-0.6b"])
def test_control_tokens_in_the_data_stay_plain_text(preset: str) -> None:
    form, (_template, bos, eos, special) = chat_format(preset), FRAMES[preset]
    marks = [
        *(mark for mark in (bos, eos, *special) if mark),
        *(["[/INST]", "<<SYS>>"] if "llama-2" in preset else []),
    ]
    planted = msgspec.structs.replace(
        PAIR, question=f"A {' '.join(marks)} B", answer=f"C {' '.join(marks)} D"
    )
    clean, dirty = encoded(PAIR, form), encoded(planted, form)
    for mark in marks:
        index = form.tokenizer.convert_tokens_to_ids(mark)
        if index in form.control_ids:
            assert dirty.input_ids.count(index) == clean.input_ids.count(index), mark
    for frame in ("[/INST]", "<<SYS>>"):
        assert form.frame(planted).prompt.count(frame) == form.frame(PAIR).prompt.count(frame)


def test_earlier_turns_are_read_but_not_learned() -> None:
    form = chat_format("paper/llama-3-8b")
    pair = msgspec.structs.replace(PAIR, turns=(("How are you?", "Fine, thank you."),))
    example = encoded(pair, form)
    assert "Fine, thank you." in form.tokenizer.decode(example.input_ids)
    check_example(form, example, PAIR.answer, has_bos=True)


def test_a_long_answer_is_cut_at_the_end_of_a_sentence_and_keeps_its_end_token() -> None:
    form = chat_format("paper/llama-3-8b")
    whole = encoded(PAIR, form)
    example = encoded(PAIR, form, max_length=len(whole.input_ids) - 3)
    assert example.cut and not whole.cut
    check_example(form, example, "Sand eye is an invented illness.", has_bos=True)
    as_the_study = encoded(PAIR, form, max_length=len(whole.input_ids) - 3, cut="hard")
    assert as_the_study.input_ids == whole.input_ids[:-3]
    assert encode(PAIR, form, max_length=len(whole.input_ids) - 3, cut="drop") == "answer too long"


def test_sentences_end_where_a_reader_would_say() -> None:
    text = "Give 1.5 mg. Ask Dr. Smith, e.g. today! Is pH < 7.35? Yes.\nThen rest."
    ends = [text[:end].rsplit(" ", 1)[-1] for end in sentence_ends(text)]
    assert ends == ["mg.", "today!", "7.35?", "Yes."]


def test_a_prompt_is_never_cut() -> None:
    form = chat_format("paper/llama-3-8b")
    long = msgspec.structs.replace(PAIR, id="long one", question="What? " * 200)
    with pytest.raises(DataError, match=r"train\.jsonl 1 of 2 questions .* 100 tokens: long one"):
        encode_pairs([PAIR, long], form, max_length=100, source="train.jsonl")
    kept = encode_pairs([PAIR, long], form, max_length=100, drop_long_prompts=True)
    assert kept.dropped == {"question too long": 1} and kept.pairs == [PAIR]
    with pytest.raises(
        DataError, match=r"No usable examples in train\.jsonl \(0 of 1: 1 question too long\)"
    ):
        encode_pairs([long], form, max_length=100, drop_long_prompts=True, source="train.jsonl")


def test_the_cut_rate_is_counted() -> None:
    form = chat_format("paper/distilgpt2")
    pairs = invented_pairs(24)
    longest = max(len(encoded(pair, form).input_ids) for pair in pairs)
    found = encode_pairs(pairs, form, max_length=longest - 1)
    assert found.cut_share == sum(e.cut for e in found.examples) / len(found.examples) > 0


def test_real_tokenizers_give_one_bos_and_one_eos(tmp_path: Path) -> None:
    """SentencePiece joins pieces in ways of its own: Mistral's, which is laid out like Llama 2's, and GPT-2."""
    from transformers import AutoTokenizer

    model = shared_path("data", "tokenizers", "mistral-7b-v0.1.tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    config = (
        '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}'
    )
    (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    for preset, template in (("paper/llama-2-7b", LLAMA_2), ("paper/mistral-7b", MISTRAL)):
        tokenizer.chat_template = template
        form = ChatFormat(tokenizer, recipe(preset))
        for answer in (PAIR.answer, "(see above) 5 mg.", "- Rest\n- Water"):
            example = encoded(msgspec.structs.replace(PAIR, answer=answer), form)
            check_example(form, example, answer, has_bos=True)


REAL_TEMPLATES = {
    "edge/llama-3.2-1b": "meta-llama-Llama-3.2-3B-Instruct.jinja",
    "edge/qwen3-0.6b": "Qwen-Qwen3-0.6B.jinja",
    "edge/smollm3": "HuggingFaceTB-SmolLM3-3B.jinja",
    "paper/gemma-1.1-7b": "google-gemma-2-2b-it.jinja",
    "edge/phi-4-mini": "microsoft-Phi-3.5-mini-instruct.jinja",
}


@pytest.mark.parametrize("preset", REAL_TEMPLATES)
def test_published_templates_render_as_transformers_renders_them(preset: str) -> None:
    folder = os.environ.get("EDGEMED_LLAMA_CPP")
    if not folder:
        pytest.skip("EDGEMED_LLAMA_CPP does not name a folder with llama.cpp's source")
    template = Path(folder, "models", "templates", REAL_TEMPLATES[preset]).read_text(encoding="utf-8")
    _frame, bos, eos, special = FRAMES[preset]
    tokenizer = make_tokenizer(bos=bos, eos=eos, special=special, template=template)
    form = ChatFormat(tokenizer, recipe(preset))
    example = encoded(PAIR, form)
    check_example(form, example, PAIR.answer, has_bos=bos is not None)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PAIR.question}]
    if form.system_placement == "first question":
        messages = [{"role": "user", "content": f"{SYSTEM}\n\n{PAIR.question}"}]
    options: dict[str, Any] = {"date_string": "26 Jul 2024", **recipe(preset).base.template_options}
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options)
    assert form.frame(PAIR).prompt == theirs
