"""The merged folder: whole, in the base's types, within a small memory, or not there at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from edgemed_convert.adapter import Adapter, apply_adapters
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.errors import CheckpointError
from edgemed_convert.merge import TypeName, write_merged
from edgemed_convert.safetensors_file import encode_header, read_whole, stored_bytes
from numpy.typing import NDArray

from edgemed.errors import StorageError, UsageError
from tests.tiny_checkpoints import (
    HIDDEN,
    RANK,
    VOCABULARY,
    adapter_weights,
    base_weights,
    random_arrays,
    write_adapter,
    write_base,
    write_json,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", type_name="BF16")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", adapter_weights(base_weights()))


@pytest.mark.parametrize("shard_bytes", [10**9, 700], ids=["one file", "shards"])
def test_the_merged_folder_is_a_base_model_of_the_same_types(
    tmp_path: Path, base: Path, adapter: Path, shard_bytes: int
) -> None:
    shown: list[tuple[int, int]] = []
    model = apply_adapters(Checkpoint.open(base), [Adapter.open(adapter)])
    report = write_merged(
        model,
        tmp_path / "new" / "merged",
        shard_bytes=shard_bytes,
        progress=lambda _stage, done, total, unit="bytes": shown.append((done, total)),
    )
    merged = Checkpoint.open(report.folder)
    assert list(merged.weights) == list(model.weights)
    for name, tensor in merged.weights.items():
        assert tensor.type_name == "BF16"
        np.testing.assert_allclose(read_whole(tensor), read_whole(model.weights[name]), rtol=2**-8)
    changed = {
        name for name, tensor in merged.weights.items() if not np.array_equal(read_whole(tensor), base_weights()[name])
    }  # fmt: skip
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)}
    assert (report.tensors, report.adapted, report.untied) == (len(merged.weights), 2, False)
    assert shown == sorted(shown)
    assert shown[-1] == (report.size_bytes, report.size_bytes)
    assert len(report.weight_files) == (1 if shard_bytes == 10**9 else 3)
    for name in report.weight_files:
        largest = max(shard_bytes, 2 * 3 * HIDDEN * HIDDEN)
        assert (report.folder / name).stat().st_size < largest + 2000
    assert sorted(path.name for path in report.folder.parent.iterdir()) == ["merged"]


def test_everything_beside_the_weights_comes_along(tmp_path: Path, base: Path, adapter: Path) -> None:
    (base / "README.md").write_text("not the model's", encoding="utf-8")
    folder = write_merged(
        apply_adapters(Checkpoint.open(base), [Adapter.open(adapter)]), tmp_path / "one"
    ).folder
    names = {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}
    assert {path.name for path in folder.iterdir()} == names | {"model.safetensors"}
    for name in names:
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    write_json(adapter / "tokenizer.json", {"of": "the adapter"})
    folder = write_merged(
        apply_adapters(Checkpoint.open(base), [Adapter.open(adapter)]), tmp_path / "two"
    ).folder
    assert (folder / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()
    assert not (folder / "chat_template.jinja").exists()


def test_the_config_says_what_an_adapter_changed(tmp_path: Path) -> None:
    weights = base_weights(tied=True)
    base = write_base(tmp_path / "base", weights=weights)
    shapes = {
        f"base_model.model.{name}.weight": (VOCABULARY + 4, HIDDEN)
        for name in ("model.embed_tokens", "lm_head")
    }
    trained = adapter_weights(weights) | random_arrays(shapes, 5)
    adapter = write_adapter(tmp_path / "adapter", trained, modules_to_save=["embed_tokens", "lm_head"])
    report = write_merged(apply_adapters(Checkpoint.open(base), [Adapter.open(adapter)]), tmp_path / "out")
    merged = Checkpoint.open(report.folder)
    assert report.untied
    assert merged.config == {**Checkpoint.open(base).config, "vocab_size": 16, "tie_word_embeddings": False}
    for name in shapes:
        assert np.array_equal(read_whole(merged.weights[name[17:]]), trained[name])


@pytest.mark.parametrize(
    ("type_name", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")]
)
def test_another_type_can_be_chosen(tmp_path: Path, base: Path, type_name: TypeName, dtype: str) -> None:
    report = write_merged(Checkpoint.open(base), tmp_path / "out", type_name=type_name)
    merged = Checkpoint.open(report.folder)
    assert merged.config["dtype"] == dtype
    for name, tensor in merged.weights.items():
        assert tensor.type_name == type_name
        assert np.array_equal(read_whole(tensor), base_weights()[name])


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_or_inf_in_the_base_is_refused_and_nothing_stays(
    tmp_path: Path, type_name: str, number: float
) -> None:
    weights = base_weights()
    weights["model.layers.1.mlp.up_proj.weight"][7, 3] = number
    base = write_base(tmp_path / "base", weights=weights, type_name=type_name)
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has NaN or Inf"
    ) as caught:
        write_merged(Checkpoint.open(base), tmp_path / "out" / "merged")
    assert str(base / "model.safetensors") in caught.value.message
    assert not list((tmp_path / "out").iterdir())


def test_what_is_too_large_for_f16_is_refused(tmp_path: Path) -> None:
    weights = base_weights()
    weights["model.norm.weight"][0] = 70_000
    base = write_base(tmp_path / "base", weights=weights)
    with pytest.raises(CheckpointError, match=r"norm\.weight has numbers that are too large for F16"):
        write_merged(Checkpoint.open(base), tmp_path / "out", type_name="F16")


def test_a_folder_that_exists_is_not_touched(tmp_path: Path, base: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"1")
    with pytest.raises(UsageError, match="exists"):
        write_merged(Checkpoint.open(base), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=5000))
    with pytest.raises(StorageError, match=r"5\.0 kB free"):
        write_merged(Checkpoint.open(base), tmp_path / "out" / "merged")
    assert not (tmp_path / "out").exists()


ROOMY = """
import shutil
from types import SimpleNamespace
shutil.disk_usage = lambda _path: SimpleNamespace(free=2**40)
"""
MERGE = """
import sys
from pathlib import Path
from edgemed.errors import EdgemedError
from edgemed_convert import merge
from edgemed_convert.adapter import Adapter, apply_adapters
from edgemed_convert.checkpoint import Checkpoint

base, adapter, target, stop_at = *map(Path, sys.argv[1:4]), int(sys.argv[4])
calls = 0


def progress(stage, done, total, unit="bytes"):
    global calls
    calls += 1
    if calls == stop_at:
        sys.stdout.write("here\\n")
        sys.stdout.flush()
        sys.stdin.read()


merge._ROOM_FOR_OTHER_FILES = 0
try:
    merge.write_merged(apply_adapters(Checkpoint.open(base), [Adapter.open(adapter)]), target, progress=progress)
except EdgemedError as error:
    sys.stderr.write(f"{type(error).__name__}: {error.message}")
    sys.exit(error.exit_code)
if sys.platform == "linux":
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    sys.stdout.write(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def merge_command(base: Path, adapter: Path, target: Path, stop_at: int = 0) -> list[str]:
    return [sys.executable, "-c", MERGE, *map(str, (base, adapter, target)), str(stop_at)]


@pytest.mark.parametrize("stop_at", [1, 6, 11])
def test_a_kill_leaves_nothing_under_the_name_and_the_next_run_finishes(
    tmp_path: Path, base: Path, adapter: Path, stop_at: int
) -> None:
    target = tmp_path / "out" / "merged"
    with subprocess.Popen(
        merge_command(base, adapter, target, stop_at), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"here\n"
        process.kill()
    assert {path.name for path in target.parent.iterdir()} == {".merged.partial", ".merged.lock"}
    subprocess.run(merge_command(base, adapter, target), check=True, capture_output=True)
    assert {path.name for path in target.parent.iterdir()} == {"merged"}
    assert Checkpoint.open(target).weights


def may_mount() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return tried.returncode == 0


@pytest.mark.skipif(not may_mount(), reason="needs user namespaces that may mount a tmpfs")
@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [("true", "The disk is full"), ('mount -o remount,ro "$0"', "may not be written")],
    ids=["full", "read-only"],
)
def test_a_disk_that_fills_up_or_takes_nothing_is_one_sentence(
    tmp_path: Path, adapter: Path, prepare: str, sentence: str
) -> None:
    base = sparse_base(tmp_path / "large", layers=1, rows=100, width=1024)
    adapter = sparse_adapter(tmp_path / "large adapter", layers=1, rows=100, width=1024)
    disk = tmp_path / "disk"
    disk.mkdir()
    # The free space is measured before the work; what another program takes meanwhile is not known then.
    script = f'mount -t tmpfs -o size=64k tmpfs "$0"; {prepare}; "$@"; code=$?; ls -A "$0"; exit $code'
    command = ["unshare", "-rm", "sh", "-c", script, str(disk), *merge_command(base, adapter, disk / "out")]
    command[command.index("-c", 4) + 1] = ROOMY + MERGE
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 6, shown.stderr
    assert shown.stderr.startswith("StorageError: ")
    assert sentence in shown.stderr
    assert shown.stdout == ""


def sparse_base(folder: Path, *, layers: int, rows: int, width: int) -> Path:
    """Write a base model of zeros that takes no room on the disk."""
    write_base(folder, vocab_size=rows, num_hidden_layers=layers, tie_word_embeddings=True)
    entries = [
        (name, "BF16", (rows, width))
        for name in (
            "model.embed_tokens.weight",
            *(f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(layers)),
        )
    ]
    path = folder / "model.safetensors"
    path.write_bytes(encode_header(entries))
    os.truncate(path, path.stat().st_size + sum(stored_bytes(kind, shape) for _, kind, shape in entries))
    return folder


def sparse_adapter(folder: Path, *, layers: int, rows: int, width: int) -> Path:
    """Write an adapter for all projections of a sparse base."""
    factors: dict[str, NDArray[np.float32]] = {}
    for layer in range(layers):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj."
        shapes: dict[str, tuple[int, ...]] = {"lora_A.weight": (RANK, width), "lora_B.weight": (rows, RANK)}
        shapes["lora_magnitude_vector"] = (rows,)
        factors |= {prefix + name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    return write_adapter(folder, factors, use_dora=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from Linux's files")
def test_peak_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks_bytes = []
    for layers in (1, 4):
        base = sparse_base(tmp_path / f"base {layers}", layers=layers, rows=16_384, width=4096)
        adapter = sparse_adapter(tmp_path / f"adapter {layers}", layers=layers, rows=16_384, width=4096)
        target = tmp_path / f"out {layers}"
        done = subprocess.run(
            merge_command(base, adapter, target), check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )  # fmt: skip
        peaks_bytes.append(int(done.stdout) * 1024)
        shutil.rmtree(target)
    model_bytes = 5 * 16_384 * 4096 * 2
    assert peaks_bytes[1] < peaks_bytes[0] + 16 * 2**20
    assert peaks_bytes[1] < model_bytes / 4
    assert peaks_bytes[1] < 200 * 2**20


@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_the_shards(tmp_path: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    report = write_merged(Checkpoint.open(tmp_path / "base"), tmp_path / "out", shard_bytes=50_000)
    assert len(report.weight_files) > 2
    loaded = transformers.AutoModelForCausalLM.from_pretrained(report.folder, dtype="auto").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded[name])
    index = json.loads((report.folder / "model.safetensors.index.json").read_bytes())
    assert index["metadata"]["total_size"] == report.size_bytes
