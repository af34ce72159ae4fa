"""The engine on real llama.cpp: the embedded model, and tiny random ones built on the spot."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from edgemed import paths
from edgemed.engine import client
from edgemed.engine.child import SPIN_COUNT
from edgemed.engine.client import ChildEngine
from edgemed.engine.messages import (
    AdapterFile,
    Answer,
    ChatMessage,
    Event,
    Finished,
    LoadRequest,
    Piece,
    Reading,
    TurnsLeftOut,
)
from edgemed.errors import EdgemedError, ModelError, ModelUnsupported, QuestionTooLong
from edgemed.manifest import MANIFEST_NAME, Sampling, read_manifest
from tests.gguf_files import write_tiny_adapter, write_tiny_llama

GREEDY = Sampling(temperature=0, repetition_penalty=1.1)
QUESTION = ChatMessage("user", "How is high blood pressure treated?")
SYSTEM = ChatMessage("system", "Answer in short sentences and name danger signs. " * 12)
SECOND_QUESTION = ChatMessage("user", "And what are its symptoms?")
LONG_QUESTION = ChatMessage("user", "My head hurts since Monday and I feel sick. " * 100)

StartEngine = Callable[..., ChildEngine]


@pytest.fixture(scope="session")
def kernels_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all: what this machine's kernels can do is proved once."""
    return tmp_path_factory.mktemp("kernels") / "kernels.json"


@pytest.fixture
def start_engine(tmp_path: Path, kernels_file: Path) -> Iterator[StartEngine]:
    with contextlib.ExitStack() as stack:

        def start(
            model_path: Path | None = None, *, sampling: Sampling = GREEDY, **changes: object
        ) -> ChildEngine:
            request = _request(tmp_path, kernels_file, model_path)
            engine = ChildEngine(msgspec.structs.replace(request, **changes), sampling)
            stack.callback(engine.close)
            return engine

        yield start


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, kernels_file: Path) -> Iterator[ChildEngine]:
    """The embedded model, shared by the tests that leave it as they found it."""
    shared = ChildEngine(_request(tmp_path_factory.mktemp("engine"), kernels_file, None), GREEDY)
    yield shared
    shared.close()


def _request(folder: Path, kernels_file: Path, model_path: Path | None) -> LoadRequest:
    if model_path is None:
        embedded = paths.embedded_models_folder() / "edge-chat-8m"
        model_path = embedded / read_manifest(embedded / MANIFEST_NAME).files[0].name
    return LoadRequest(
        model_path=str(model_path),
        model_sha256=model_path.name,
        context_length=2048 if "edge-chat" in model_path.name else 512,
        threads=2,
        chat_template=None,
        prefix_states_folder=str(folder / "states"),
        kernels_file=str(kernels_file),
        forbid_sockets=True,
    )


def _answer(
    engine: ChildEngine, *messages: ChatMessage, max_tokens: int = 24, seed: int = 1
) -> tuple[Answer, list[Event]]:
    events = list(engine.ask(messages, max_tokens=max_tokens, seed=seed))
    assert isinstance(events[-1], Finished)
    return events[-1].answer, events


def test_an_answer_comes_in_pieces_and_its_numbers_agree(engine: ChildEngine) -> None:
    answer, events = _answer(engine, QUESTION)
    assert "".join(event.text for event in events if isinstance(event, Piece)) == answer.text
    assert "blood pressure" in answer.text.lower()
    assert answer.stop_reason == "length"
    assert answer.generated_tokens == 24
    assert answer.ttft_seconds is not None
    assert 0 < answer.prefill_seconds <= answer.ttft_seconds
    readings = [event for event in events if isinstance(event, Reading)]
    assert readings[-1].read_tokens == readings[-1].prompt_tokens == answer.prompt_tokens


@pytest.mark.skipif(not psutil.LINUX, reason="psutil reads the environment at the start on Linux")
def test_how_long_threads_spin_is_set_before_the_engine_starts(engine: ChildEngine) -> None:
    """On Windows libgomp does not see what the process sets for itself later."""
    engine.wait_until_ready()
    assert psutil.Process(engine.process_id).environ()["GOMP_SPINCOUNT"] == SPIN_COUNT


def test_an_answer_ends_at_the_end_of_its_turn(engine: ChildEngine) -> None:
    answer, _ = _answer(engine, QUESTION, max_tokens=500)
    assert answer.stop_reason == "end_of_turn"
    assert "<|" not in answer.text


def test_the_same_seed_gives_the_same_words_and_another_seed_others(start_engine: StartEngine) -> None:
    engine = start_engine(sampling=Sampling(temperature=0.9))
    texts = [_answer(engine, QUESTION, seed=seed)[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_the_second_turn_reads_only_what_is_new(engine: ChildEngine) -> None:
    first, _ = _answer(engine, QUESTION)
    reply = ChatMessage("assistant", first.text.lstrip())
    second, _ = _answer(engine, QUESTION, reply, SECOND_QUESTION)
    # The last token of an answer cut by length was written but never read.
    assert second.reused_tokens == first.prompt_tokens + first.generated_tokens - 1
    assert second.prompt_tokens - second.reused_tokens < 30


def test_the_first_answer_after_a_restart_does_not_read_the_system_prompt_again(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    cold, _ = _answer(start_engine(), SYSTEM, QUESTION)
    assert cold.reused_tokens == 0
    restored, _ = _answer(start_engine(), SYSTEM, QUESTION)
    assert restored.reused_tokens > 80
    assert restored.text == cold.text

    (state,) = (tmp_path / "states").glob("*.state")
    damaged = bytearray(state.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    state.write_bytes(damaged)
    rebuilt, _ = _answer(start_engine(), SYSTEM, QUESTION)
    assert (rebuilt.reused_tokens, rebuilt.text) == (0, cold.text)
    assert state.read_bytes() != damaged

    other_model, _ = _answer(start_engine(model_sha256="another"), SYSTEM, QUESTION)
    assert other_model.reused_tokens == 0


@pytest.mark.parametrize("phase", ["reading", "writing"])
def test_stop_works_in_every_phase_and_the_next_answer_is_right(engine: ChildEngine, phase: str) -> None:
    expected, _ = _answer(engine, QUESTION)
    text = ""
    answer = None
    question = LONG_QUESTION if phase == "reading" else QUESTION
    for event in engine.ask([question], max_tokens=400, seed=1):
        if isinstance(event, Piece):
            text += event.text
        if isinstance(event, Reading if phase == "reading" else Piece):
            engine.stop()
        if isinstance(event, Finished):
            answer = event.answer
    assert answer is not None
    assert answer.stop_reason == "cancelled"
    assert answer.text == text
    assert bool(text) == (phase == "writing")
    again, _ = _answer(engine, QUESTION)
    assert again.text == expected.text


def test_an_answer_that_nobody_reads_to_its_end_does_not_spoil_the_next(engine: ChildEngine) -> None:
    expected, _ = _answer(engine, QUESTION)
    for event in engine.ask([QUESTION], max_tokens=400, seed=1):
        if isinstance(event, Piece):
            break
    assert _answer(engine, QUESTION)[0].text == expected.text


def test_an_engine_killed_in_mid_answer_keeps_the_text_and_answers_again(start_engine: StartEngine) -> None:
    engine = start_engine()
    expected, _ = _answer(engine, QUESTION)
    for _ in range(3):
        text = ""
        answer = None
        for event in engine.ask([QUESTION], max_tokens=400, seed=1):
            if isinstance(event, Piece):
                if not text:
                    _kill(engine)
                text += event.text
            if isinstance(event, Finished):
                answer = event.answer
        assert answer is not None
        assert answer.stop_reason == "engine_died"
        assert answer.text == text != ""
        assert "memory" in answer.explanation
    assert _answer(engine, QUESTION)[0].text == expected.text


def test_an_engine_killed_while_idle_answers_the_next_question(start_engine: StartEngine) -> None:
    engine = start_engine()
    expected, _ = _answer(engine, QUESTION)
    _kill(engine)
    assert _answer(engine, QUESTION)[0].text == expected.text


@pytest.mark.slow
def test_thirty_kills_at_random_moments_never_lose_the_next_answer(start_engine: StartEngine) -> None:
    engine = start_engine()
    expected, _ = _answer(engine, QUESTION)
    moments = random.Random(5)
    for _ in range(30):
        events = engine.ask([LONG_QUESTION], max_tokens=100, seed=1)
        for _event in range(moments.randrange(12)):
            next(events, None)
        time.sleep(moments.random() * 0.02)
        _kill(engine)
        list(events)
        assert _answer(engine, QUESTION)[0].text == expected.text


def test_the_oldest_turns_are_left_out_when_the_context_is_full(start_engine: StartEngine) -> None:
    engine = start_engine(context_length=256)
    turn = [ChatMessage("user", "What is it? " * 12), ChatMessage("assistant", "It is this. " * 8)]
    answer, events = _answer(engine, *turn, *turn, *turn, QUESTION)
    (left_out,) = [event for event in events if isinstance(event, TurnsLeftOut)]
    assert left_out.turns >= 1
    assert answer.prompt_tokens + answer.generated_tokens <= 256
    assert answer.text


def test_an_answer_stops_where_the_context_ends(start_engine: StartEngine, tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", endless=True)
    engine = start_engine(path, context_length=256, sampling=Sampling(temperature=1))
    answer, _ = _answer(engine, ChatMessage("user", "Hello"), max_tokens=2000)
    assert answer.stop_reason == "length"
    assert answer.prompt_tokens + answer.generated_tokens == 256


@pytest.mark.parametrize("length", [20_000, 1_000_000])
def test_a_question_that_cannot_fit_is_refused_and_never_cut(engine: ChildEngine, length: int) -> None:
    with pytest.raises(QuestionTooLong, match="question"):
        _answer(engine, ChatMessage("user", "ab c" * (length // 4)))
    assert _answer(engine, QUESTION)[0].text


def test_a_model_without_a_template_is_refused_unless_its_manifest_names_one(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    path = write_tiny_llama(tmp_path / "bare.gguf", chat_template=None)
    with pytest.raises(ModelUnsupported, match="chat template"):
        start_engine(path).wait_until_ready()
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    answer, _ = _answer(start_engine(path, chat_template=template), QUESTION)
    assert answer.prompt_tokens > 2


def test_a_template_that_never_ends_is_given_up(
    start_engine: StartEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RENDER_LIMIT_SECONDS", 1.0)
    loops = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3
    engine = start_engine(write_tiny_llama(tmp_path / "endless.gguf", chat_template=loops))
    with pytest.raises(ModelUnsupported, match="did not come to its end"):
        _answer(engine, QUESTION)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for",
        "{{ raise_exception('system role not supported') }}",
    ],
)
def test_a_hostile_or_broken_template_is_refused_in_a_sentence(
    start_engine: StartEngine, tmp_path: Path, template: str
) -> None:
    engine = start_engine(write_tiny_llama(tmp_path / "hostile.gguf", chat_template=template))
    with pytest.raises(ModelUnsupported, match="chat template"):
        _answer(engine, QUESTION)


def test_an_adapter_is_attached_and_taken_off_without_loading_the_base_again(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    engine = start_engine(write_tiny_llama(tmp_path / "base.gguf"))
    adapter = AdapterFile(str(write_tiny_adapter(tmp_path / "adapter.gguf")), "a" * 64)
    base, _ = _answer(engine, QUESTION)
    process_id = engine.process_id
    engine.use_adapter(adapter)
    adapted, _ = _answer(engine, QUESTION)
    engine.use_adapter(None)
    back, _ = _answer(engine, QUESTION)
    assert adapted.text != base.text == back.text
    assert engine.process_id == process_id

    at_start = start_engine(tmp_path / "base.gguf", adapter=adapter)
    assert _answer(at_start, QUESTION)[0].text == adapted.text


def test_an_adapter_of_another_base_is_refused_and_the_engine_goes_on(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    engine = start_engine(write_tiny_llama(tmp_path / "base.gguf"))
    base, _ = _answer(engine, QUESTION)
    foreign = write_tiny_adapter(tmp_path / "foreign.gguf", embedding_length=32)
    for path in (foreign, tmp_path / "absent.gguf", tmp_path / "base.gguf"):
        with pytest.raises(ModelError, match=path.name):
            engine.use_adapter(AdapterFile(str(path), "b" * 64))
    assert _answer(engine, QUESTION)[0].text == base.text


def _damage(path: Path, kind: str) -> Path:
    data = bytearray(path.read_bytes())
    target = path.with_name(f"{kind}.gguf")
    match kind:
        case "truncated":
            data = data[: len(data) // 2]
        case "random":
            data = bytearray(random.Random(1).randbytes(4096))
        case "magic":
            data[:4] = b"GGML"
        case "empty":
            data = bytearray()
        case "counts":
            data[8:24] = b"\xff" * 16
        case "header":
            for place in range(24, 400, 7):
                data[place] ^= 0x55
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("kind", ["truncated", "random", "magic", "empty", "counts", "header"])
def test_a_damaged_file_is_refused_in_a_sentence(
    start_engine: StartEngine, tmp_path: Path, kind: str
) -> None:
    path = _damage(write_tiny_llama(tmp_path / "whole.gguf"), kind)
    with pytest.raises(EdgemedError) as caught:
        start_engine(path).wait_until_ready()
    assert caught.value.exit_code in (3, 4)
    assert caught.value.hint


def test_an_unknown_architecture_and_a_missing_vocabulary_are_named(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    unknown = write_tiny_llama(tmp_path / "unknown.gguf", architecture="unheardof")
    with pytest.raises(ModelUnsupported, match="unheardof"):
        start_engine(unknown).wait_until_ready()
    bare = write_tiny_llama(tmp_path / "bare.gguf", vocabulary=False)
    with pytest.raises(ModelError, match="vocabulary"):
        start_engine(bare).wait_until_ready()


def test_random_bytes_of_a_random_model_never_split_a_character(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    """A model of byte tokens with random weights writes mostly broken UTF-8: the worst case."""
    path = write_tiny_llama(tmp_path / "bytes.gguf")
    engine = start_engine(path, sampling=Sampling(temperature=2, top_p=1))
    answer, events = _answer(engine, QUESTION, max_tokens=200)
    pieces = [event.text for event in events if isinstance(event, Piece)]
    assert "".join(pieces) == answer.text
    assert all(piece.encode() for piece in pieces)


def _kill(engine: ChildEngine) -> None:
    if engine.process_id is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(engine.process_id).kill()
