"""What one question to the engine brings: what a suite knows of a sample, before the runner adds the rest.

Every suite returns an `Outcome`; the runner adds the place in the file, validity and energy, and writes a
`records.Sample`. Suites know the engine as `BenchEngine` alone, so that tests can put another in its place.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from edgemed.engine.messages import (
    Answer,
    ChatMessage,
    Distributions,
    Event,
    Finished,
    Measurement,
    Reuse,
    Scores,
)
from edgemed.errors import EngineError
from edgemed.manifest import ModelManifest, Sampling
from edgemed.records import Choice, FidelityResult, Times


class BenchEngine(Protocol):
    """What suites ask of the engine; `edgemed.engine.client.ChildEngine` is the real one."""

    def measure(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        seed: int = 0,
        reuse: Reuse = "all",
        past_end: bool = False,
        sampling: Sampling | None = None,
    ) -> Iterator[Event]:
        """Answer as the app does; the last event is `Finished`, its answer carries a `Measurement`."""

    def score(
        self,
        continuations: Sequence[str],
        *,
        messages: Sequence[ChatMessage] = (),
        text: str | None = None,
    ) -> Scores:
        """Return how probable each continuation is after a conversation, or after a plain text."""

    def distributions(
        self,
        *,
        messages: Sequence[ChatMessage] = (),
        answer: str = "",
        token_ids: Sequence[int] | None = None,
        first: int | None = None,
        top: int = 32,
        wanted: Sequence[Sequence[int]] | None = None,
    ) -> Distributions:
        """Return what may follow each token of a conversation with this answer, or of these tokens."""


class Outcome(NamedTuple):
    """The fields of a `records.Sample` that a suite knows, by the same names."""

    item_id: str
    prompt_sha256: str
    prompt_tokens: int
    times: Times
    condition: str = ""
    reused_tokens: int = 0
    generated_tokens: int = 0
    stop_reason: str = ""
    forced_length: bool = False
    text: str | None = None
    text_sha256: str | None = None
    threads: int = 0
    choice: Choice | None = None
    fidelity: FidelityResult | None = None
    peak_rss_bytes: int | None = None
    explanation: str = ""


def greedy(manifest: ModelManifest) -> Sampling:
    """Return the app's sampling of a model, but always the most probable token: the same text every time."""
    return msgspec.structs.replace(manifest.sampling, temperature=0.0)


def answer_of(events: Iterator[Event]) -> Answer:
    """Return the answer at the end of its events.

    Raises:
        EngineError: the events ended without one.
        EdgemedError: as the engine says.
    """
    answer = None
    for event in events:
        if isinstance(event, Finished):
            answer = event.answer
    if answer is None:
        raise EngineError("The engine ended an answer without its measurements.", hint="Start the run again.")
    return answer


def outcome_of_answer(
    item_id: str, answer: Answer, *, condition: str = "", forced_length: bool = False
) -> Outcome:
    """Return what is known of a written answer.

    An answer that the engine's death cut may have no measurement: its times are those that the app saw, and
    its prompt has the SHA-256 of nothing.
    """
    measured = answer.measurement
    return Outcome(
        item_id=item_id,
        condition=condition,
        prompt_sha256=measured.prompt_ids_sha256 if measured else hashlib.sha256().hexdigest(),
        prompt_tokens=answer.prompt_tokens,
        reused_tokens=answer.reused_tokens,
        generated_tokens=answer.generated_tokens,
        stop_reason=answer.stop_reason,
        forced_length=forced_length,
        text=answer.text,
        text_sha256=hashlib.sha256(answer.text.encode("utf-8", "surrogatepass")).hexdigest(),
        threads=answer.threads,
        times=_times(measured) if measured else _rough_times(answer),
        peak_rss_bytes=measured.peak_rss_bytes if measured else None,
        explanation=answer.explanation,
    )


def outcome_of_scores(item_id: str, scores: Scores, choice: Choice, *, condition: str = "") -> Outcome:
    """Return what is known of a question whose options were scored; nothing was written."""
    return Outcome(
        item_id=item_id,
        condition=condition,
        prompt_sha256=scores.prompt_ids_sha256,
        prompt_tokens=scores.prompt_tokens,
        times=Times(end_ns=round(scores.seconds * 1e9), cpu_ns=round(scores.cpu_seconds * 1e9)),
        choice=choice,
    )


def _times(measured: Measurement) -> Times:
    return Times(
        first_token_ns=measured.first_token_ns,
        first_text_ns=measured.first_text_ns,
        token_ns=measured.token_ns,
        end_ns=measured.end_ns,
        prefill_ns=measured.prefill_ns,
        cpu_ns=measured.cpu_ns,
    )


def _rough_times(answer: Answer) -> Times:
    first = None if answer.ttft_seconds is None else round(answer.ttft_seconds * 1e9)
    return Times(
        first_text_ns=first,
        end_ns=(first or 0) + round(answer.decode_seconds * 1e9),
        prefill_ns=round(answer.prefill_seconds * 1e9),
    )
