"""What benchmarks ask of the engine: times, log-likelihoods, distributions. On the embedded model."""

import math
from collections.abc import Iterator

import pytest

from edgemed import session
from edgemed.engine.client import ChildEngine
from edgemed.engine.messages import Answer, ChatMessage, Finished
from edgemed.errors import QuestionTooLong, UsageError
from edgemed.manifest import Sampling

QUESTION = [ChatMessage("user", "What is anaemia?")]
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMED_HOME", str(tmp_path_factory.mktemp("home")))
        opened = session.open_session(context_length=512, threads=1).engine
        yield opened
        opened.close()


def measured(engine: ChildEngine, **options: object) -> Answer:
    events = list(engine.measure(QUESTION, **{"max_tokens": 24, "sampling": GREEDY, **options}))  # type: ignore[arg-type]
    assert isinstance(events[-1], Finished)
    return events[-1].answer


def test_the_times_of_an_answer_add_up(engine: ChildEngine) -> None:
    answer = measured(engine, reuse="nothing")
    times = answer.measurement
    assert times is not None and times.first_token_ns is not None and times.first_text_ns is not None
    assert len(times.token_ns) == answer.generated_tokens - 1
    assert 0 < times.prefill_ns < times.first_token_ns <= times.first_text_ns
    assert times.first_token_ns + sum(times.token_ns) <= times.end_ns
    assert abs(sum(times.token_ns) / 1e9 - answer.decode_seconds) < 0.005
    # One thread computes nearly all the time until the end.
    assert 0.3 * times.end_ns < times.cpu_ns < 1.3 * times.end_ns + 20_000_000
    assert times.peak_rss_bytes is None or times.peak_rss_bytes > 9_000_000


def test_a_cold_measurement_reads_the_whole_prompt_and_a_warm_one_does_not(engine: ChildEngine) -> None:
    assert measured(engine, reuse="nothing").reused_tokens == 0
    assert measured(engine, reuse="all").reused_tokens > 0
    again = measured(engine, reuse="nothing")
    assert again.reused_tokens == 0
    assert again.measurement is not None
    assert len(again.measurement.prompt_ids_sha256) == 64


def test_a_forced_length_is_reached_whatever_the_model_says(engine: ChildEngine) -> None:
    natural = measured(engine, max_tokens=300)
    forced = measured(engine, max_tokens=300, past_end=True)
    assert natural.stop_reason == "end_of_turn" and natural.generated_tokens < 300
    assert forced.generated_tokens == 300 and forced.stop_reason == "length"


def test_a_score_is_the_sum_of_the_distributions_along_its_tokens(engine: ChildEngine) -> None:
    """Two ways through the engine: options from a kept context, and one text read as a whole."""
    options = [" a lack of red blood cells", " a kind of fish", " B"]
    scores = engine.score(options, messages=QUESTION)
    for option, score in zip(options, scores.continuations, strict=True):
        plain = engine.distributions(messages=QUESTION, answer=option, top=1)
        ids = plain.token_ids[plain.first + 1 :]
        told = engine.distributions(
            messages=QUESTION, answer=option, wanted=[*([i] for i in ids), [0]]
        ).positions
        assert score.tokens == len(ids)
        total = sum(position.log_probabilities[0] for position in told[:-1])
        # The batches differ, and so do the last digits of an 8-bit model.
        assert abs(total - score.log_probability) < 0.02 * len(ids)
    assert scores.continuations[0].log_probability > scores.continuations[1].log_probability


def test_the_greedy_answer_is_what_scores_as_greedy(engine: ChildEngine) -> None:
    # One token: a model may write a word in other tokens than its tokenizer would.
    answer = measured(engine, max_tokens=1)
    best, other = engine.score([answer.text, " Zebra"], messages=QUESTION).continuations
    assert best.greedy and not other.greedy


def test_the_same_score_comes_back_whatever_was_asked_between(engine: ChildEngine) -> None:
    first = engine.score([" A", " B"], text="Question: Which?\nAnswer:")
    measured(engine)
    engine.score([" C"], messages=[ChatMessage("user", "Another question?")])
    assert engine.score([" A", " B"], text="Question: Which?\nAnswer:").continuations == first.continuations


def test_distributions_are_distributions(engine: ChildEngine) -> None:
    told = engine.distributions(messages=QUESTION, answer=" It is a disease.", top=32)
    assert len(told.positions) == len(told.token_ids) - told.first
    for position in told.positions:
        assert position.best == position.ids[0]
        assert position.log_probabilities == sorted(position.log_probabilities, reverse=True)
        assert 0.2 < sum(math.exp(each) for each in position.log_probabilities) <= 1 + 1e-9


def test_what_cannot_be_scored_is_refused_and_the_engine_goes_on(engine: ChildEngine) -> None:
    with pytest.raises(UsageError, match="empty"):
        engine.score([""], text="Question")
    with pytest.raises(UsageError, match="do not fit"):
        engine.distributions(token_ids=[5, 6], first=2)
    with pytest.raises(UsageError, match="vocabulary"):
        engine.distributions(token_ids=[5, 10**6])
    with pytest.raises(QuestionTooLong):
        engine.score([" A"], text="word " * 600)
    assert math.isfinite(engine.score([" A"], text="Question:").continuations[0].log_probability)
