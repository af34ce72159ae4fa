"""The benchmark record: what one run of `edgemed-bench` measured, one JSON object a line.

Written by `edgemed-bench run` as it goes, read by all its other commands and by engineers far away. Times are
integer nanoseconds of the monotonic clock, counted from the start of the run or of the sample; sizes are
bytes; energy is joules. `None` means not known on this machine and is never the same as 0. It speaks English:
it is read by engineers and programs.
"""

import hashlib
from typing import Annotated, Literal

import msgspec

SCHEMA = "edgemed.bench/1"
"""Readers refuse another major version; within one, fields are only added."""

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Chain = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Verdict = Literal["ok", "suspect", "invalid"]
Suite = Literal["latency", "quality", "safety", "fidelity", "energy", "endurance"]
EnergyGrade = Literal["A", "B", "C", "D"]
"""A: a hardware counter; B: a battery's energy; C: a battery's percent; D: read off a meter by a person."""

FIRST_CHAIN = "0" * 16


class Struct(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Immutable; fields that a later minor version added are passed over."""


class Line(Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every line begins with."""

    seq: Count
    """0, 1, 2, …: a missing line shows."""
    chain: Chain
    """First 16 digits of the SHA-256 over the line before (without its newline): a changed line shows. Not a
    signature: whoever wants to can count it anew."""
    at_ns: int
    """Since the run's start, by the clock that goes on while the machine sleeps where the system has one."""
    utc: str
    """`2026-11-25T02:30:00Z` by the machine's clock, which may be wrong."""


class ItemFile(Struct, frozen=True, kw_only=True):
    """A set of questions that the run used."""

    name: str
    sha256: Sha256
    items: Count
    source: str = ""
    license: str = ""


class Arm(Struct, frozen=True, kw_only=True):
    """One thing that is measured against others: a model with its settings."""

    label: str
    """Short and unique within the run, such as `Q4_K_M`."""
    model_name: str
    model_sha256: Sha256
    size_bytes: Count
    quantization_type: str | None = None
    tensor_types: dict[str, int] = {}
    parameters: Count = 0
    architecture: str = ""
    context_length: Count = 0
    """Tokens the engine was opened with."""
    threads: Count | None = None
    """None: the app's own rule, which follows the free cores."""
    adapter_sha256: Sha256 | None = None
    chat_template_sha256: Sha256 | None = None
    base_fingerprint: Sha256 | None = None
    dataset_sha256: Sha256 | None = None
    recipe_sha256: Sha256 | None = None
    unchecked: bool = False
    temperature: float = 0.0
    repetition_penalty: float = 1.0


class RunStart(Line, frozen=True, kw_only=True, tag="run_start"):
    """The first line: what was planned, before anything was measured."""

    schema: Literal["edgemed.bench/1"]
    run_id: str
    """Random; says nothing about the machine."""
    edgemed_version: str
    profile: Literal["quick", "standard", "full"]
    suites: list[Suite]
    arms: list[Arm]
    item_files: list[ItemFile] = []
    seed: Count = 0
    order: list[int] = []
    """Index into `arms` for each block of samples, ABBA."""
    estimated_seconds: float = 0.0
    texts_kept: bool = True
    """Whether answers are in this file or only their SHA-256."""
    first_words_limit_seconds: float = 8.0
    full_answer_limit_seconds: float = 60.0
    options: dict[str, str] = {}
    """What else the tester chose, by option name."""
    forced: list[str] = []
    """Warnings before the start that the tester overrode."""


class Machine(Line, frozen=True, kw_only=True, tag="machine"):
    """The machine as it was at the start (and again after each resume). No name, user, path or serial."""

    machine_id: str
    """A random word of this installation: tells two of a fleet apart, names neither."""
    system: str
    """`Linux 6.12.1 x86_64`, `Windows 11 AMD64`."""
    cpu_model: str
    physical_cores: Count
    logical_cores: Count
    cpu_features: list[str] = []
    """Those that llama.cpp has kernels for."""
    total_memory_bytes: Count
    available_memory_bytes: Count
    total_swap_bytes: Count | None = None
    used_swap_bytes: Count | None = None
    memory_bandwidth_bytes_per_second: float | None = None
    """Reading, all cores, measured now."""
    governor: str | None = None
    """Linux's CPU frequency governor or Windows' power plan."""
    power_source: Literal["mains", "battery"] | None = None
    battery_percent: float | None = None
    virtual_machine: bool | None = None
    python_version: str = ""
    llama_cpp_build: str = ""
    llama_cpp_files_sha256: Sha256 | None = None
    """Over the engine's library files: their real identity."""
    kernels: str = ""
    """`full`, or `plain` where the full ones crashed."""
    energy_source: str | None = None
    energy_grade: EnergyGrade | None = None
    canary_ns: Count | None = None
    """The fixed work's time on this machine while nothing else ran."""


class Load(Line, frozen=True, kw_only=True, tag="load"):
    """A model was loaded."""

    arm: Count
    load_ns: Count
    cold: bool | None = None
    """Whether the file came from the disk; None: not known."""
    peak_rss_bytes: Count | None = None


class Times(Struct, frozen=True, kw_only=True):
    """When things happened, in nanoseconds after the question was handed over."""

    first_token_ns: Count | None = None
    """TTFT: the first generated token; template, tokenizing and prefill included."""
    first_text_ns: Count | None = None
    """What a person sees first: the first characters that are not white space."""
    token_ns: list[int] = []
    """From each token to the next (inter-token times), in order; one fewer than the tokens."""
    end_ns: Count
    """The whole answer."""
    prefill_ns: Count = 0
    """Reading the prompt's tokens that were not reused."""
    cpu_ns: Count | None = None
    """Processor time of the engine over the whole answer, all threads."""


class Counters(Struct, frozen=True, kw_only=True):
    """How the machine's own counters changed during one sample; None: this system has none."""

    other_cpu_share: Share | None = None
    """Of all cores: kept busy by other programs."""
    steal_share: Share | None = None
    """Of all cores: taken by the hypervisor."""
    pressure_cpu_share: Share | None = None
    """Linux PSI: share of the time in which somebody waited for a core."""
    pressure_memory_share: Share | None = None
    major_faults: Count | None = None
    swapped_in_bytes: Count | None = None
    swapped_out_bytes: Count | None = None
    throttle_events: Count | None = None
    undervoltage: bool | None = None
    suspended_ns: Count = 0
    """The machine slept or the process was stopped."""
    clock_step_ns: int = 0
    """How far the wall clock moved apart from the monotonic one."""
    canary_ratio: float | None = None
    """The fixed work's time now ÷ its fastest so far: > 1 is slower."""
    temperature_celsius: float | None = None
    frequency_hertz: float | None = None
    available_memory_bytes: Count | None = None
    cpu_efficiency: float | None = None
    """Engine's processor time ÷ (wall time × threads): about 1 on a free machine."""


class Validity(Struct, frozen=True, kw_only=True):
    """Whether a sample's times may be trusted."""

    verdict: Verdict
    reasons: list[str] = []
    """`cpu_busy`, `stolen`, `throttled`, `undervoltage`, `swapping`, `memory_pressure`, `suspended`,
    `clock_step`, `slow_canary`, `engine_died`, `low_cpu_efficiency`."""
    counters: Counters = Counters()


class Energy(Struct, frozen=True, kw_only=True):
    """Energy over one sample or one window."""

    joules: float
    idle_joules: float | None = None
    """What the idle machine would have used in the same time."""
    source: str
    grade: EnergyGrade
    window_ns: Count


class OptionScore(Struct, frozen=True, kw_only=True):
    """How probable the model finds one answer option."""

    log_probability: float
    """Nats: of both its beginnings together, with and without a space, each the sum over its tokens."""
    tokens: Count
    characters: Count
    greedy: bool
    """Whether each token was the model's first choice."""


class Choice(Struct, frozen=True, kw_only=True):
    """A multiple-choice question, scored by log-likelihood; options in the order in which they were shown."""

    options: list[OptionScore]
    correct: Count | None = None
    """Index among `options` as shown."""
    permutation: list[int] = []
    """`permutation[i]` is the original index of the option shown at place i."""
    by_text: bool = False
    """The option's words were scored, not its letter."""


class FidelityResult(Struct, frozen=True, kw_only=True):
    """One reference text: how far this installation's distributions are from the engineers'."""

    tokens_equal: bool
    """Template and tokenizer give the engineers' token ids."""
    positions: Count
    mean_kl_nats: float | None = None
    max_kl_nats: float | None = None
    same_top_share: Share | None = None


class Sample(Line, frozen=True, kw_only=True, tag="sample"):
    """One question asked once."""

    suite: Suite
    item_id: str
    arm: Count
    block: Count = 0
    """Which block of the run's order."""
    repetition: Count = 0
    warm_up: bool = False
    """Discarded by every statistic."""
    condition: str = ""
    """What is special about it: `cold`, `saved_prefix`, `no_prefix`, `busy:1`, `length:short`."""
    prompt_sha256: Sha256
    prompt_tokens: Count
    reused_tokens: Count = 0
    generated_tokens: Count = 0
    stop_reason: str = ""
    forced_length: bool = False
    """Generated past the end of the answer, for speed alone."""
    text: str | None = None
    text_sha256: Sha256 | None = None
    threads: Count = 0
    times: Times
    choice: Choice | None = None
    fidelity: FidelityResult | None = None
    energy: Energy | None = None
    validity: Validity
    peak_rss_bytes: Count | None = None
    explanation: str = ""


class Telemetry(Line, frozen=True, kw_only=True, tag="telemetry"):
    """The machine about once a second while a sample runs (thinned to one line in some seconds)."""

    temperature_celsius: float | None = None
    frequency_hertz: float | None = None
    battery_percent: float | None = None
    battery_watts: float | None = None
    available_memory_bytes: Count | None = None
    engine_rss_bytes: Count | None = None
    other_cpu_share: Share | None = None
    joules: float | None = None
    """Of the energy counter since the run's start."""


class RunEvent(Line, frozen=True, kw_only=True, tag="event"):
    """Something that the reader must know.

    Kinds: `interrupted`, `resumed`, `model_changed`, `engine_died`, `clock_step`, `suspended`,
    `stopped_early`, `power_source_changed`, `preflight`, `estimate`, `skipped_suite`, `skipped_item`,
    `no_energy`.
    """

    kind: str
    detail: str = ""


class RunEnd(Line, frozen=True, kw_only=True, tag="run_end"):
    """The last line of a run that came to its end."""

    finished: bool
    """False: ended on purpose before its plan was done."""
    actual_seconds: float
    ok: Count = 0
    suspect: Count = 0
    invalid: Count = 0


Record = RunStart | Machine | Load | Sample | Telemetry | RunEvent | RunEnd


def chain_of(line: bytes) -> str:
    """Return what the line after this one carries as `chain`; `line` is without its newline."""
    return hashlib.sha256(line).hexdigest()[:16]


class Item(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question of a suite's item file."""

    id: str
    kind: Literal["generation", "choice", "speed", "safety", "reference"]
    question: str
    references: list[str] = []
    """Right answers in words; the first is the one that is scored against."""
    options: list[str] = []
    correct: Count | None = None
    """Index into `options`."""
    passages: list[str] = []
    """Reference passages that stand before the question."""
    history: list[str] = []
    """Earlier questions and answers, in turn."""
    language: str = "en"
    group: str = ""
    """Items of one group are not independent (one document, one twin pair)."""
    tags: list[str] = []
    """`must_refuse`, `benign_twin`, `none_of_the_above`, `invented`, `red_flag`, `length:short` …"""
    source: str = ""
    license: str = ""
