"""A run in the shape of `llama-bench -o json`, for tools that read that.

Each question makes one prompt test (`n_prompt` tokens read, as `pp`) and one generation test (`n_gen` tokens
written behind `n_depth` others, as `tg`), with one sample for each time it was asked. Here the prompts are
real, tokens are counted without the first one, and choosing tokens is in the time; in llama-bench the tokens
are random and nothing is chosen. What this run does not know in llama-bench's sense is null.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from edgemed.records import Arm, Sample
from edgemed_benchmarks.answer_times import counts_for_times, has_word
from edgemed_benchmarks.journal import Run

KEYS = (
    *("build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename", "model_type"),
    *("model_size", "model_n_params", "n_batch", "n_ubatch", "n_threads", "cpu_mask", "cpu_strict", "poll"),
    *("type_k", "type_v", "n_gpu_layers", "n_cpu_moe", "split_mode", "main_gpu", "no_kv_offload"),
    *("flash_attn", "devices", "tensor_split", "tensor_buft_overrides", "load_mode", "lazy_mode"),
    *("embeddings", "no_op_offload", "no_host", "repack", "fit_target", "fit_min_ctx", "n_prompt", "n_gen"),
    *("n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts"),
)
"""Of llama-bench in llama.cpp as llama-cpp-python 0.3.36 carries it, in its order."""
_SECOND_NS = 1e9


def llama_bench_tests(run: Run) -> list[dict[str, Any]]:
    """Return the tests of all arms; of warm-up, invalid and disturbed samples nothing."""
    return [
        test
        for number, arm in enumerate(run.arms)
        for asked in _asked(run, number)
        for test in _tests(run, arm, asked)
    ]


def _asked(run: Run, arm: int) -> Iterator[list[Sample]]:
    """Yield the samples of each question and condition."""
    found: dict[tuple[str, str], list[Sample]] = {}
    for sample in run.samples:
        timed = sample.suite == "latency" and counts_for_times(sample)
        if sample.arm == arm and timed and not has_word(sample, "busy", "cold"):
            found.setdefault((sample.item_id, sample.condition), []).append(sample)
    yield from found.values()


def _tests(run: Run, arm: Arm, asked: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    by_prompt: dict[tuple[int, int], list[Sample]] = {}
    by_answer: dict[tuple[int, int], list[Sample]] = {}
    for sample in asked:
        read = sample.prompt_tokens - sample.reused_tokens
        if read > 0 and sample.times.prefill_ns > 0:
            by_prompt.setdefault((read, sample.reused_tokens), []).append(sample)
        if sample.times.token_ns:
            by_answer.setdefault((len(sample.times.token_ns), sample.prompt_tokens), []).append(sample)
    for (tokens, depth), samples in by_prompt.items():
        times = [sample.times.prefill_ns for sample in samples]
        yield _test(run, arm, samples[0], times, n_prompt=tokens, n_gen=0, n_depth=depth)
    for (tokens, depth), samples in by_answer.items():
        times = [sum(sample.times.token_ns) for sample in samples]
        yield _test(run, arm, samples[0], times, n_prompt=0, n_gen=tokens, n_depth=depth)


def _test(
    run: Run, arm: Arm, first: Sample, samples_ns: list[int], *, n_prompt: int, n_gen: int, n_depth: int
) -> dict[str, Any]:
    rates = [(n_prompt + n_gen) / nanoseconds * _SECOND_NS for nanoseconds in samples_ns]
    known = {
        "cpu_info": run.machines[0].cpu_model if run.machines else None,
        "gpu_info": "",
        "backends": "CPU",
        # A file's name is never recorded: its model's name stands for it.
        "model_filename": arm.model_name,
        "model_n_params": arm.parameters or None,
        "n_threads": first.threads or arm.threads,
        "n_gpu_layers": 0,
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": n_depth,
        "test_time": first.utc,
        "avg_ns": round(statistics.fmean(samples_ns)),
        "stddev_ns": round(_deviation(samples_ns)),
        # The mean of rates, as llama-bench has it. Σtokens ÷ Σtime, which the report shows, may differ.
        "avg_ts": statistics.fmean(rates),
        "stddev_ts": _deviation(rates),
        "samples_ns": samples_ns,
        "samples_ts": rates,
    }
    ours = {
        "edgemed_run_id": run.start.run_id,
        "edgemed_arm": arm.label,
        "edgemed_model_sha256": arm.model_sha256,
        "edgemed_file_bytes": arm.size_bytes,
        "edgemed_quantization_type": arm.quantization_type,
        "edgemed_llama_cpp_build": run.machines[0].llama_cpp_build if run.machines else None,
        "edgemed_item_id": first.item_id,
        "edgemed_condition": first.condition,
    }
    return dict.fromkeys(KEYS) | known | ours


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
