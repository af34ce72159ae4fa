"""Which words a pack may hold. Everything that is not listed here is left out, or a stand-in takes its place.

A record has free texts: the name of a model file, of a questions' file, of the machine's processor. Most are
harmless, and any of them may hold a person's name or a path. So each text field has a rule; a field without
one is left out. The rules know words, not secrets: no list of forbidden things is ever complete.
"""

import hashlib
import re
from collections.abc import Callable
from functools import cache

import msgspec

from edgemed.records import Arm, Energy, ItemFile, Machine, RunEvent, RunStart, Sample, Struct, Validity
from edgemed_benchmarks.errors import ItemError
from edgemed_benchmarks.item_files import read_item_set, shipped_folder
from edgemed_benchmarks.score_format import ItemScore, Score, Scores

Rule = Callable[[str], str]

STAND_IN_DIGITS = 8
LONGEST_NAME = 64
HASH_DIGITS = 16
"""Of the SHA-256 of prompts and answers: `compare` looks at no more of a prompt's."""

_SYSTEMS = "Linux Windows Darwin macOS x86_64 AMD64 amd64 i686 aarch64 arm64 ARM64 armv7l armv8l riscv64"
_PROCESSORS = """
    Intel Core Xeon Celeron Pentium Atom Silver Gold Bronze Platinum Ultra Duo Quad Solo Processor CPU APU
    Genuine AMD Ryzen PRO Pro Athlon Phenom EPYC Opteron FX Sempron Turion Threadripper with w/ Radeon Vega
    Graphics Mobile Gfx Six-Core Quad-Core Dual-Core Eight-Core 8-Core 6-Core 4-Core 2-Core 12-Core 16-Core
    Cortex ARM Arm Neoverse Broadcom Raspberry Pi Model Rev Plus Compute Module Zero Qualcomm Snapdragon
    Elite X Plus Apple M1 M2 M3 M4 Max Rockchip Allwinner Amlogic Ampere Altra Graviton VIA Nano QEMU Virtual
    version KVM Common and II III IV B @ Zhaoxin KaiXian Hygon Kunpeng Microsoft SQ1 SQ2 SQ3 Family
"""
_PROCESSOR_NUMBER = (
    r"(?:(?:[A-Za-z]\d{1,2}-)?[A-Za-z]{0,2}\d{2,5}[A-Za-z]{0,3}\d?"
    r"|Cortex-[AXRM]\d{1,3}[A-Z]{0,2}|Neoverse-[NVE]\d"
    r"|\d\.\d{1,2}GHz|v\d|\d(?:\.\d)?|[im][3579](?:-\d{3,5}[A-Z]{0,3}\d?)?)"
)
_POWER_PLANS = """
    performance powersave schedutil ondemand conservative userspace balanced high saver power ultimate
"""
_ENERGY = """
    rapl emi battery energy percent of Wh whole computer processor processors and memory meter read by a
    person with its charger graphics psys core uncore dram package +
"""
_BUILD = r"""(?:\d{1,4}(?:\.\d{1,4}){1,2}|[:=|01]|\d{2,5}|CPU|SSE3|SSSE3|AVX\w{0,12}|F16C|FMA|BMI2
|AMX_\w{1,8}|NEON|ARM_FMA|FP16_VA|FP16|DOTPROD|MATMUL_INT8|I8MM|SVE\w{0,6}|SME\d?|RISCV_V|LLAMAFILE|OPENMP|ACCELERATE|REPACK|KLEIDIAI)"""
_FEATURES = r"(?:sse|ssse|avx|amx|sve|sme|f16|fma|bmi|neon|asimd|i8mm)[a-z0-9_]{0,12}"
_CONDITION = (
    r"(?:cold|saved_prefix|no_prefix|text|busy:\d{1,3}|forced:\d{1,5}|length:(?:short|history|passages)"
    r"|letters:\d{1,2}|written:\d{1,2})"
)
_QUANTIZATION = r"(?:F|BF|Q|IQ|TQ|MXFP)\d{1,2}(?:_[0-9A-Z]{1,3}){0,3}"
_MODEL_WORDS = """
    edge edgemed chat base instruct it med medical bio llama gemma medgemma qwen phi mini small smollm smollm2
    smollm3 mistral ministral tinyllama gpt2 distilgpt2 granite olmo biomistral openbiollm meditron apollo
    gguf hf sft dpo lora k m s l xl xs xxs nl o
"""
_MODEL_NUMBER = rf"(?:v?\d{{1,4}}|\d{{1,4}}[bmk]|qwen\d|gemma\d?|llama\d|phi\d|{_QUANTIZATION})"
_ARCHITECTURES = """
    llama llama4 gemma gemma2 gemma3 gemma3n qwen2 qwen3 qwen2moe qwen3moe phi2 phi3 smollm3 gpt2 mistral3
    granite olmo2 falcon stablelm mamba mamba2 lfm2 gpt-oss ernie4_5 exaone command-r
"""
_SETS = "medqa medmcqa mmlu pubmedqa k-qa kqa"
_LICENCES = "CC0-1.0 CC-BY-4.0 CC-BY-SA-4.0 MIT Apache-2.0"
_REASONS = """
    cpu_busy stolen throttled undervoltage swapping memory_pressure suspended clock_step slow_canary
    engine_died low_cpu_efficiency
"""
_EVENTS = """
    interrupted resumed model_changed engine_died clock_step suspended stopped_early power_source_changed
    preflight estimate skipped_suite packed
"""
_DETAILS = """
    mains battery to tokens averaged in groups of each answer telemetry lines endurance answers counters
    quality and safety samples with fewer digits left out
"""
_OBSTACLES = """
    battery_low on_battery power_saver little_memory swap_in_use busy clock_insane disk_full undervoltage
    slowed hot
"""
_STOPS = "end_of_turn length cancelled engine_died"


def as_it_is(text: str) -> str:
    """Keep a text whose form the record's schema fixes: a SHA-256, a listed word."""
    return text


def nothing(_text: str) -> str:
    """Leave a text out."""
    return ""


def stand_in(prefix: str, text: str) -> str:
    """Return a word that is the same for the same text, and does not tell it."""
    return f"{prefix}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:STAND_IN_DIGITS]}"


def only(words: str, pattern: str = r"(?!)", *, otherwise: str = "") -> Rule:
    """Return a rule that keeps the words of a text that are listed or fit the pattern, and drops the others.

    Args:
        words: separated by white space.
        pattern: of further words; the default fits none.
        otherwise: what stands where nothing was kept.
    """
    listed, fitting = frozenset(words.split()), re.compile(re.sub(r"\s", "", pattern))

    def rule(text: str) -> str:
        parts = re.sub(r"\((?:R|TM|r|tm)\)|[(),;]", " ", text).replace("+", " + ").split()
        kept = [part for part in parts if part in listed or fitting.fullmatch(part)]
        return " ".join(kept).strip("+ ") or otherwise

    return rule


def whole(words: str, pattern: str = r"(?!)", *, prefix: str = "") -> Rule:
    """Return a rule that keeps a text that is listed or fits the pattern as a whole.

    Args:
        words: separated by white space.
        pattern: of further texts.
        prefix: of the stand-in for any other text; without it, it is left out.
    """
    listed, fitting = frozenset(words.split()), re.compile(pattern)

    def rule(text: str) -> str:
        if not text or text in listed or fitting.fullmatch(text):
            return text
        return stand_in(prefix, text) if prefix else ""

    return rule


def model_name(text: str) -> str:
    """Keep a name that is made of models' usual words, sizes and quantization types; else return nothing."""
    words, number = frozenset(_MODEL_WORDS.split()), re.compile(_MODEL_NUMBER, re.IGNORECASE)
    parts = re.split(r"[-_.]", text)
    usual = parts[0].lower() in words and all(
        part.lower() in words or number.fullmatch(part) for part in parts
    )
    return text if usual and len(text) <= LONGEST_NAME else ""


def item_id(text: str) -> str:
    """Keep the id of a question that comes with edgemed; users' own ids may be anything."""
    return text if text in _shipped_ids() or re.fullmatch(r"text:\d{1,4}", text) else stand_in("q", text)


def item_group(text: str) -> str:
    """Keep which questions belong together, not the name of their group."""
    return stand_in("g", text) if text else ""


def shortened(sha256: str) -> str:
    """Return a SHA-256 with all but its first digits made zero: random digits do not compress."""
    return sha256[:HASH_DIGITS].ljust(64, "0")


def hour(utc: str) -> str:
    """Return the full hour of a time of day: minutes say more of a clinic's day than of its machine."""
    found = re.fullmatch(r"(\d{4}-\d{2}-\d{2}T\d{2}):\d{2}:\d{2}Z", utc)
    return f"{found[1]}:00:00Z" if found else ""


def _key(text: str) -> str:
    return only(_OBSTACLES)(text.partition(":")[0])


def _system(text: str) -> str:
    # "6.12.1-annas-kernel": what follows the version is anybody's.
    return only(_SYSTEMS, r"\d{1,5}(\.\d{1,5}){0,2}")(re.sub(r"(?<=\d)[-+]\S*", "", text))


@cache
def _shipped_ids() -> frozenset[str]:
    ids: set[str] = set()
    for path in sorted(shipped_folder().glob("*.jsonl")):
        try:
            ids.update(item.id for item in read_item_set(path).items)
        except ItemError:
            # A damaged file of our own: its ids become stand-ins.
            continue
    return frozenset(ids)


@cache
def _shipped_sets() -> str:
    return " ".join(path.stem for path in shipped_folder().glob("*.jsonl"))


def _set_name(text: str) -> str:
    return whole(f"{_shipped_sets()} {_SETS}", prefix="set")(text)


_VERSION = whole("", r"\d{1,4}(\.\d{1,4}){1,2}((a|b|rc|\.dev|\.post)\d{1,4})?")
_RUN_ID = whole("", r"[0-9a-f]{16}", prefix="run")
_MACHINE_ID = whole("", r"[b-z2-9]{10}", prefix="machine")
_ENERGY_SOURCE = only(_ENERGY, r"rapl:|emi:|battery:|package-\d|\d{1,4}", otherwise="other")
_METRIC = whole("", r"[a-z][a-z0-9_@-]{1,40}")
_ANY_LINE: dict[str, Rule] = {"chain": lambda _chain: "0" * 16, "utc": hour}

RULES: dict[type[msgspec.Struct], dict[str, Rule]] = {
    RunStart: {
        "schema": as_it_is,
        "run_id": _RUN_ID,
        "edgemed_version": _VERSION,
        "profile": as_it_is,
        "suites": as_it_is,
        "forced": _key,
    },
    Machine: {
        "machine_id": _MACHINE_ID,
        "system": _system,
        "cpu_model": only(_PROCESSORS, _PROCESSOR_NUMBER, otherwise="not known"),
        "cpu_features": whole("", _FEATURES),
        "governor": only(_POWER_PLANS, otherwise="other"),
        "power_source": as_it_is,
        "python_version": _VERSION,
        "llama_cpp_build": only("", _BUILD),
        "llama_cpp_files_sha256": as_it_is,
        "kernels": whole("full plain"),
        "energy_source": _ENERGY_SOURCE,
        "energy_grade": as_it_is,
    },
    Arm: {
        "model_name": model_name,
        "label": whole("", _QUANTIZATION),
        "model_sha256": as_it_is,
        "quantization_type": whole("", _QUANTIZATION),
        "tensor_types": whole("", _QUANTIZATION),
        "architecture": whole(_ARCHITECTURES),
        "adapter_sha256": as_it_is,
        "chat_template_sha256": as_it_is,
        "base_fingerprint": as_it_is,
        "dataset_sha256": as_it_is,
        "recipe_sha256": as_it_is,
    },
    ItemFile: {"name": _set_name, "sha256": as_it_is, "license": whole(_LICENCES)},
    Sample: {
        "suite": as_it_is,
        "item_id": item_id,
        "condition": only("", _CONDITION),
        "prompt_sha256": shortened,
        "stop_reason": whole(_STOPS),
        "text_sha256": shortened,
    },
    Validity: {"verdict": as_it_is, "reasons": whole(_REASONS)},
    Energy: {"source": _ENERGY_SOURCE, "grade": as_it_is},
    RunEvent: {"kind": whole(_EVENTS), "detail": only(_DETAILS, r"\d{1,3}")},
    Scores: {
        "schema": as_it_is,
        "edgemed_version": _VERSION,
        "run_id": _RUN_ID,
        "machine_id": _MACHINE_ID,
        "model_sha256": as_it_is,
    },
    Score: {
        "suite": as_it_is,
        "metric": _METRIC,
        "item_set": _set_name,
        "unit": as_it_is,
        # edgemed's own sentences.
        "definition": as_it_is,
        "note": as_it_is,
    },
    ItemScore: {
        "suite": as_it_is,
        "metric": _METRIC,
        "item_set": _set_name,
        "item_id": item_id,
        "group": item_group,
    },
}
"""Rule by struct and field; a text field that is not here is left out. Structs not here hold no texts."""


def rule_of(kind: type[msgspec.Struct], field: str) -> Rule:
    """Return the rule of a text field; a field without one is left out."""
    rules = RULES.get(kind, {})
    return rules.get(field) or (_ANY_LINE.get(field, nothing) if issubclass(kind, Struct) else nothing)
