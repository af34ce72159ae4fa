"""What the app and the engine's child process say to each other, and what the app sees of an answer.

Frames on the pipe are msgpack, never pickle: a child that a hostile model file took over cannot make the
parent run code.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import msgspec

from edgemed.engine.kernels import Kernels
from edgemed.manifest import Sampling

Role = Literal["system", "user", "assistant"]
StopReason = Literal["end_of_turn", "length", "cancelled", "engine_died"]
Reuse = Literal["all", "saved_prefix", "nothing"]
"""What may be reused of earlier reading: all; the state of the system message saved on disk; or nothing."""


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Role
    content: str


# What a caller of the engine receives, in this order: TurnsLeftOut?, Reading*, Piece*, Finished.


class TurnsLeftOut(msgspec.Struct, frozen=True, tag=True):
    """The oldest turns did not fit into the context and were not read by the model."""

    turns: int
    """Question-answer pairs left out."""


class Reading(msgspec.Struct, frozen=True, tag=True):
    """Progress while the prompt is read."""

    read_tokens: int
    """Tokens of the prompt that are in the KV cache by now, reused ones included."""
    prompt_tokens: int


class Piece(msgspec.Struct, frozen=True, tag=True):
    """Newly written text: whole characters only."""

    text: str


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """When things happened, in nanoseconds after the question was handed over; for benchmarks."""

    first_token_ns: int | None
    """The first generated token, of a word or not."""
    first_text_ns: int | None
    """The first characters that are not white space, as the asking process received them."""
    token_ns: list[int]
    """From each generated token to the next; one fewer than the tokens."""
    end_ns: int
    """The last event, as the asking process received it."""
    prefill_ns: int
    """Reading the prompt's tokens that were not reused."""
    cpu_ns: int
    """Processor time of the engine over the whole answer, all its threads."""
    peak_rss_bytes: int | None
    """Largest resident set of the engine so far."""
    prompt_ids_sha256: str
    """Over the prompt's token ids, as little-endian 32-bit integers."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, whole or partial, with its measurements."""

    text: str
    stop_reason: StopReason
    prompt_tokens: int
    reused_tokens: int
    """Prompt tokens that were already in the KV cache or came from a saved prefix state."""
    generated_tokens: int
    ttft_seconds: float | None
    """From the question's arrival to the first non-empty text, prefill included; None if none came."""
    prefill_seconds: float
    """Reading the prompt's tokens that were not reused; template, tokenizing and saved state not included."""
    decode_seconds: float
    """From the first generated token to the last."""
    threads: int
    """Threads in use when the answer ended."""
    explanation: str = ""
    """For a person: why the answer is not whole, and what to do; empty when it is."""
    measurement: Measurement | None = None
    """Of an answer that was asked for with `ChildEngine.measure`."""


class Finished(msgspec.Struct, frozen=True, tag=True):
    """Always the last event of a question."""

    answer: Answer


Event = TurnsLeftOut | Reading | Piece | Finished


class Engine(Protocol):
    """What the app knows of the engine; `tests/fakes.py` has a second implementation."""

    @property
    def load_fraction(self) -> float:
        """How much of the model is loaded, from 0 to 1; may be asked from any thread."""

    def wait_until_ready(self) -> None:
        """Block until the model is loaded.

        Raises:
            ModelError: the model cannot be loaded; the message says why.
            EngineError: the engine cannot be started.
        """

    def ask(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        seed: int | None = None,
        answer_so_far: str = "",
    ) -> Iterator[Event]:
        """Answer the last message of `messages`, which is the user's.

        `answer_so_far` is the beginning of an answer that was cut; the events then hold only what is new.

        The death of the engine process raises nothing here: it ends the answer with the stop reason
        `engine_died`, its text so far and an explanation, and the engine starts again by itself.

        Raises:
            QuestionTooLong: the question alone does not fit into the context.
            ModelError: the model cannot be loaded, or cannot be used for chat.
            EngineError: the engine cannot be started any more.
        """

    def use_sampling(self, sampling: Sampling) -> None:
        """Choose tokens like this from the next question on."""

    def stop(self) -> None:
        """End the answer that is being read or written; may be called from any thread or a signal handler."""

    def close(self) -> None:
        """End the engine process. May be called twice."""


# What benchmarks ask of the engine beside answers.


class ContinuationScore(msgspec.Struct, frozen=True, kw_only=True):
    """How probable one continuation of a context is."""

    log_probability: float
    """Sum over its tokens, in nats."""
    tokens: int
    greedy: bool
    """Whether each of its tokens is the model's first choice."""


class Scores(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The scores of all continuations of one context, in the order asked."""

    continuations: list[ContinuationScore]
    prompt_tokens: int
    prompt_ids_sha256: str
    seconds: float
    cpu_seconds: float


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """What may follow one token."""

    ids: list[int]
    """The tokens asked for, or the most probable ones, the best first."""
    log_probabilities: list[float]
    """In nats, of the whole vocabulary's distribution."""
    best: int
    """The most probable token."""


class Distributions(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What may follow each token of a text."""

    token_ids: list[int]
    first: int
    """`positions[i]` says what may follow `token_ids[first + i]`."""
    positions: list[Distribution]


# Between the two processes.


class AdapterFile(msgspec.Struct, frozen=True):
    """A LoRA adapter in GGUF form."""

    path: str
    sha256: str
    scale: float = 1.0


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the child needs to load a model."""

    model_path: str
    """The GGUF file, or the first shard of a split one."""
    model_sha256: str
    context_length: int
    threads: int | None
    """None: follow the cores that are free."""
    chat_template: str | None
    """Used when the GGUF carries none."""
    prefix_states_folder: str
    kernels_file: str
    plain_kernels: bool = False
    """Use no kernels but llama.cpp's plainest: the full ones crashed."""
    adapter: AdapterFile | None = None
    language: str = "en"
    """Of what is said to a person."""
    forbid_sockets: bool = False
    """End the child at the first attempt to open a socket (`edgemed doctor --prove-offline`)."""


class AskRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer this conversation."""

    messages: list[ChatMessage]
    max_tokens: int
    sampling: Sampling
    seed: int
    answer_so_far: str = ""
    """What the answer begins with already; untrusted text."""
    asked_at_ns: int = 0
    """By `time.perf_counter_ns`, which the processes of a machine share; 0: measure nothing."""
    reuse: Reuse = "all"
    past_end: bool = False
    """Write on where the answer ends, up to `max_tokens`: for speed alone."""


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Score continuations of a conversation, or of a plain text."""

    messages: list[ChatMessage] = []
    text: str | None = None
    continuations: list[str]


class DistributionsRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Tell what may follow each token of a conversation with this answer, or of these tokens."""

    messages: list[ChatMessage] = []
    answer: str = ""
    token_ids: list[int] | None = None
    first: int | None = None
    """None: the last token before the answer."""
    top: int = 32
    wanted: list[list[int]] | None = None
    """Ids to tell of at each position, in place of the most probable."""


class AdapterRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Attach this adapter to the loaded base model, or none."""

    adapter: AdapterFile | None


Request = AskRequest | ScoreRequest | DistributionsRequest | AdapterRequest


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is loaded, or the adapter attached."""

    load_seconds: float
    llama_cpp_build: str
    kernels: Kernels = "full"


class Loading(msgspec.Struct, frozen=True, tag=True):
    """How much of the model is loaded."""

    fraction: float


class Rendering(msgspec.Struct, frozen=True, tag=True):
    """The chat template runs now; it is code from outside, so the parent sets it a time limit."""


class Rendered(msgspec.Struct, frozen=True, tag=True):
    """The chat template came to its end."""


class Text(msgspec.Struct, frozen=True, tag=True):
    """Decoded text; `generated_tokens` so far, for the partial answer of a child that dies."""

    text: str
    generated_tokens: int


class ChildTimes(msgspec.Struct, frozen=True, kw_only=True):
    """What the child measured of one answer; see `Measurement`."""

    first_token_ns: int | None
    token_ns: list[int]
    prefill_ns: int
    cpu_ns: int
    peak_rss_bytes: int | None
    prompt_ids_sha256: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The answer ended; the parent has its text already."""

    stop_reason: StopReason
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    prefill_seconds: float
    decode_seconds: float
    threads: int
    times: ChildTimes | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A planned error in the child; `kind` is the class in `edgemed.errors` that the parent raises."""

    kind: str
    message: str
    hint: str


class LastWords(msgspec.Struct, frozen=True, tag=True):
    """What llama.cpp said just before it aborted the process."""

    text: str


Reply = (
    Loading
    | Ready
    | Rendering
    | Rendered
    | TurnsLeftOut
    | Reading
    | Text
    | Done
    | Scores
    | Distributions
    | Failure
    | LastWords
)
