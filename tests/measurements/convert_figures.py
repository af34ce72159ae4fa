"""What conversion of a model of real size needs: time, memory, disk; measured against PEFT and llama.cpp.

    python -m tests.measurements.convert_figures make --work DIR --llama-cpp DIR
    python -m tests.measurements.convert_figures compare --work DIR --llama-cpp DIR [--rounds 3]
    python -m tests.measurements.convert_figures limited --work DIR [--memory-mib 2304]

`make` writes a random bf16 model in the shape of Llama 3.2 1B (2.5 GB) and an adapter, in a stream. `compare`
runs the usual way (PEFT merge, save_pretrained, convert_hf_to_gguf.py) and ours alternately. `limited` does an
export and a whole run in memory cgroups smaller than the model's file; it needs root. docs/convert_results.md has the
tables. Linux only.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgemed_convert.safetensors_file import encode_header, from_float32

from tests.tiny_tokenizers import LLAMA3_SPLIT

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
RANK = 16
LINEAR = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (512, 2048),
    "self_attn.v_proj": (512, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (8192, 2048),
    "mlp.up_proj": (8192, 2048),
    "mlp.down_proj": (2048, 8192),
}
_SAMPLE_SECONDS = 0.05
_ROWS = 4096
_PEFT_MERGE = """
import sys, torch, peft, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
merged = peft.PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload()
merged.save_pretrained(sys.argv[3])
transformers.AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[3])
"""


def main() -> None:
    """Run one measurement and print it as text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["make", "compare", "limited"])
    parser.add_argument("--work", type=Path, required=True, help="a folder with 15 GB free")
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's source folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-mib", type=int, default=2304, help="of a whole run")
    parser.add_argument("--export-memory-mib", type=int, default=640)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    {"make": make, "compare": compare, "limited": limited}[arguments.what](arguments)


# The model.


def make(arguments: argparse.Namespace) -> None:
    """Write base model and adapter."""
    base, adapter = arguments.work / "base", arguments.work / "adapter"
    for folder in (base, adapter):
        folder.mkdir(exist_ok=True)
    (base / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (base / "generation_config.json").write_text('{"eos_token_id": 128001}', encoding="utf-8")
    _write_tokenizer(base, arguments.llama_cpp / "models" / "ggml-vocab-llama-bpe.gguf")
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (CONFIG["vocab_size"], CONFIG["hidden_size"])
    }
    factors: dict[str, tuple[int, ...]] = {}
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for module, (outputs, inputs) in LINEAR.items():
            shapes[f"{prefix}{module}.weight"] = (outputs, inputs)
            factors[f"base_model.model.{prefix}{module}.lora_A.weight"] = (RANK, inputs)
            factors[f"base_model.model.{prefix}{module}.lora_B.weight"] = (outputs, RANK)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (CONFIG["hidden_size"],)
    shapes["model.norm.weight"] = (CONFIG["hidden_size"],)
    _write_weights(base / "model.safetensors", shapes, "BF16", 0.02)
    _write_weights(adapter / "adapter_model.safetensors", factors, "F32", 0.01)
    options = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": [module.rpartition(".")[2] for module in LINEAR],
    }
    (adapter / "adapter_config.json").write_text(json.dumps(options), encoding="utf-8")
    say(f"base model {_size(base):,} bytes, adapter {_size(adapter):,} bytes")


def _write_weights(path: Path, shapes: dict[str, Any], type_name: str, spread: float) -> None:
    generator = np.random.default_rng(len(shapes))
    with path.open("wb") as file:
        file.write(encode_header([(name, type_name, tuple(shape)) for name, shape in shapes.items()]))
        for shape in shapes.values():
            for start in range(0, shape[0], _ROWS):
                rows = (min(_ROWS, shape[0] - start), *shape[1:])
                numbers = spread * generator.standard_normal(rows, dtype=np.float32)
                file.write(from_float32(numbers + (1 if len(shape) == 1 else 0), type_name).tobytes())


def _write_tokenizer(folder: Path, vocabulary: Path) -> None:
    """Write a tokenizer.json of the real vocabulary, from llama.cpp's vocabulary-only file."""
    import gguf
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    fields = {name: field.contents() for name, field in gguf.GGUFReader(vocabulary).fields.items()}
    texts, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    special = [text for text, kind in zip(texts, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    ids = {text: number for number, text in enumerate(texts)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids[bos])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": "<|end_of_text|>",
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


# Merge and export.


def compare(arguments: argparse.Namespace) -> None:
    """Run both ways alternately; print medians and whether the tensors are the same."""
    ours: list[Cost] = []
    theirs: list[list[Cost]] = []
    for number in range(arguments.rounds):
        for way in (theirs_first := number % 2 == 0, not theirs_first):
            say(f"round {number + 1}, load {os.getloadavg()[0]:.1f}")
            if way:
                theirs.append(_their_way(arguments))
            else:
                ours.append(_our_way(arguments))
    _print_costs("PEFT merge + save_pretrained", [costs[0] for costs in theirs])
    _print_costs("convert_hf_to_gguf.py", [costs[1] for costs in theirs])
    both = [costs[0].followed_by(costs[1]) for costs in theirs]
    _print_costs("the usual way, both", both)
    _print_costs("edgemed-convert export --adapter", ours)
    for what in ("anonymous_mib", "resident_mib", "wall_seconds", "cpu_seconds", "written_bytes"):
        ratios = [getattr(a, what) / getattr(b, what) for a, b in zip(ours, both, strict=True)]
        say(f"ratio of {what}: {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")
    compare_tensors(arguments.work / "ours.gguf", arguments.work / "theirs.gguf")


def _their_way(arguments: argparse.Namespace) -> "list[Cost]":
    work = arguments.work
    merged, target = work / "merged", work / "theirs.gguf"
    shutil.rmtree(merged, ignore_errors=True)
    target.unlink(missing_ok=True)
    python = sys.executable
    costs = [
        measure([python, "-c", _PEFT_MERGE, str(work / "base"), str(work / "adapter"), str(merged)], [merged])
    ]
    converter = str(arguments.llama_cpp / "convert_hf_to_gguf.py")
    costs.append(
        measure([python, converter, str(merged), "--outtype", "bf16", "--outfile", str(target)], [target])
    )
    shutil.rmtree(merged)
    return costs


def _our_way(arguments: argparse.Namespace) -> "Cost":
    work = arguments.work
    target = work / "ours.gguf"
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "edgemed_convert.cli", "export", str(work / "base")]
    command += ["--adapter", str(work / "adapter"), "--type", "BF16", "--out", str(target)]
    return measure(command, [target])


def compare_tensors(ours: Path, theirs: Path) -> None:
    """Print whether two GGUF files hold the same tensors, byte for byte."""
    import gguf

    one, other = (
        {tensor.name: _identity(tensor) for tensor in gguf.GGUFReader(p).tensors} for p in (ours, theirs)
    )
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    say(f"tensors: {len(one)} and {len(other)}, different: {different or 'none'}")


def _identity(tensor: Any) -> tuple[str, tuple[int, ...], bytes]:
    return tensor.tensor_type.name, tuple(tensor.shape), hashlib.sha256(tensor.data).digest()


# A run in little memory.


def limited(arguments: argparse.Namespace) -> None:
    """Export, then do a whole run, in memory cgroups smaller than the model's one weights file."""
    work = arguments.work
    say(f"base model {_size(work / 'base'):,} bytes")
    model = [str(work / "base"), "--adapter", str(work / "adapter")]
    tasks = {
        "export": (arguments.export_memory_mib, [*model, "--type", "F16"], work / "limited.gguf"),
        "run": (arguments.memory_mib, [*model, "--types", "Q8_0,Q4_K_M"], work / "run"),
    }
    for name, (memory_mib, options, out) in tasks.items():
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
        command = [sys.executable, "-m", "edgemed_convert.cli", name, *options, "--out", str(out)]
        with _memory_group(memory_mib * 2**20) as group:
            cost = measure(command, [out], group=group)
            names = ("memory.max_usage_in_bytes", "memory.peak")
            peak = max(int((group / one).read_text()) for one in names if (group / one).exists())
        say(f"limit {memory_mib} MiB; peak of the group, page cache included: {peak / 2**20:.0f} MiB")
        _print_costs(f"edgemed-convert {name}", [cost])
    for path in sorted((work / "run").iterdir()):
        say(f"  {path.name}: {_size(path):,} bytes")


@contextlib.contextmanager
def _memory_group(limit_bytes: int) -> Iterator[Path]:
    """Make a memory cgroup (version 1 or 2), and remove it when its programs have ended."""
    root = Path("/sys/fs/cgroup")
    version1 = (root / "memory").is_dir()
    group = (root / "memory" if version1 else root) / f"edgemed-figures-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if version1 else "memory.max")).write_text(str(limit_bytes))
        yield group
    finally:
        group.rmdir()


# Measuring.


@dataclass(frozen=True)
class Cost:
    """What one command, with all that it started, took."""

    wall_seconds: float
    cpu_seconds: float
    anonymous_mib: float
    """Highest sum over its processes."""
    resident_mib: float
    """The same with the pages of mapped files."""
    written_bytes: int
    """Size of what it left on the disk."""

    def followed_by(self, other: "Cost") -> "Cost":
        """Return the cost of both, one after the other."""
        return Cost(
            self.wall_seconds + other.wall_seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.anonymous_mib, other.anonymous_mib),
            max(self.resident_mib, other.resident_mib),
            self.written_bytes + other.written_bytes,
        )


def measure(command: Sequence[str], outputs: Sequence[Path], *, group: Path | None = None) -> Cost:
    """Run a command and watch its process tree.

    Args:
        group: a cgroup that it is put into.
    """

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    os.sync()
    started = time.perf_counter()
    before = os.times()
    anonymous = resident = 0.0
    with subprocess.Popen(
        command, preexec_fn=enter, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        lines: list[str] = []
        reader = _read_in_background(process, lines)
        while process.poll() is None:
            one, other = _tree_memory(process.pid)
            anonymous, resident = max(anonymous, one), max(resident, other)
            time.sleep(_SAMPLE_SECONDS)
        reader.join()
    after = os.times()
    if process.returncode:
        raise SystemExit(f"{command}: exit code {process.returncode}\n" + "".join(lines[-20:]))
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(time.perf_counter() - started, cpu, anonymous, resident, sum(map(_size, outputs)))


def _read_in_background(process: "subprocess.Popen[bytes]", lines: list[str]) -> Any:
    import threading

    def read() -> None:
        assert process.stderr is not None
        lines.extend(line.decode("utf-8", "replace") for line in process.stderr)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def _tree_memory(root: int) -> tuple[float, float]:
    """Return anonymous and whole resident memory of a process and all below it, MiB."""
    anonymous = resident = 0
    for process_id in _tree(root):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{process_id}/status").read_text(encoding="ascii").splitlines():
                if line.startswith("RssAnon:"):
                    anonymous += int(line.split()[1])
                elif line.startswith("VmRSS:"):
                    resident += int(line.split()[1])
    return anonymous / 1024, resident / 1024


def _tree(root: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (
                (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            )
            parents[int(folder.name)] = int(fields[1])
    found = [root]
    for process_id in found:
        found += [child for child, parent in parents.items() if parent == process_id]
    return found


def _print_costs(name: str, costs: Sequence[Cost]) -> None:
    def middle(what: str) -> str:
        values = [getattr(cost, what) for cost in costs]
        return f"{statistics.median(values):,.1f} ({min(values):,.1f}-{max(values):,.1f})"

    say(
        f"{name}: wall {middle('wall_seconds')} s, CPU {middle('cpu_seconds')} s, peak anonymous "
        f"{middle('anonymous_mib')} MiB, with mapped files {middle('resident_mib')} MiB, "
        f"on the disk {costs[0].written_bytes:,} bytes"
    )


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(_size(one) for one in path.iterdir())
    return path.stat().st_size


def say(text: str) -> None:
    """Print one line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
