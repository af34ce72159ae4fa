"""A base model's folder: what is read is what is stored, and every damage is one sentence with a hint."""

import errno
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.errors import CheckpointError, UnsupportedArchitecture
from edgemed_convert.output import check_free_space, new_file, new_folder
from edgemed_convert.safetensors_file import from_float32, read_tensors, read_whole, row_blocks, to_float32

from edgemed.errors import StorageError, UsageError
from tests.tiny_checkpoints import base_weights, entry, write_base, write_json, write_raw, write_safetensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FIRST_SHARD = "model-00001-of-00002.safetensors"


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_bytes()), **changes}
    write_json(path, {key: value for key, value in config.items() if value is not None})


def rewrite(folder: Path, *, without: str) -> None:
    weights = {name: numbers for name, numbers in base_weights().items() if name != without}
    write_safetensors(folder / WEIGHTS, weights)


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_bytes())
    change(index["weight_map"])
    write_json(folder / INDEX, index)


# Reading.


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_number_is_read_as_it_is_stored(tmp_path: Path, type_name: str, shards: int) -> None:
    weights = base_weights()
    checkpoint = Checkpoint.open(
        write_base(tmp_path / "base", weights=weights, type_name=type_name, shards=shards)
    )
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
    assert checkpoint.weights.keys() == weights.keys()
    for name, tensor in checkpoint.weights.items():
        assert tensor.type_name == type_name
        assert tensor.shape == weights[name].shape
        assert np.array_equal(read_whole(tensor), weights[name])


def test_rows_come_in_any_order_and_any_blocks(tmp_path: Path) -> None:
    numbers = np.arange(6000 * 4, dtype=np.float32).reshape(6000, 4)
    write_safetensors(tmp_path / "big", {"w": numbers})
    tensor = read_tensors(tmp_path / "big")["w"]
    for rows in (
        np.array([5, 3, 3, 4]),
        np.array([0, 5999, 1, 17, 18, 19]),
        np.array([], dtype=np.intp),
        np.random.default_rng(0).permutation(6000),
    ):
        assert np.array_equal(tensor.read(rows), numbers[rows])
    blocks = [tensor.read(rows) for rows in row_blocks(tensor.shape, block_bytes=1000)]
    assert max(map(len, blocks)) == 62
    assert np.array_equal(np.concatenate(blocks), numbers)
    with pytest.raises(IndexError):
        tensor.read(np.array([6000]))


def test_rounding_to_bf16_and_f16_is_torch_s() -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    # Halfway cases, subnormal numbers, and the largest ones, besides all kinds of random ones.
    edges = np.array(
        [0x3F808000, 0x3F818000, 0x00000001, 0x00008000, 0x7F7FFFFF, 0x80000000], dtype=np.uint32
    )
    numbers = np.concatenate([numbers[np.isfinite(numbers)], edges.view(np.float32)])
    for type_name, torch_type, view in (("BF16", torch.bfloat16, torch.uint16), ("F16", torch.float16, None)):
        theirs = torch.from_numpy(numbers).to(torch_type)
        ours = from_float32(numbers, type_name)
        assert np.array_equal(ours.view(np.uint16), theirs.view(view or torch.uint16).numpy())
        assert np.array_equal(to_float32(ours, type_name), theirs.float().numpy())


def test_masks_and_rotary_tables_of_older_versions_are_no_weights(tmp_path: Path) -> None:
    weights = base_weights() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    checkpoint = Checkpoint.open(write_base(tmp_path / "base", weights=weights))
    assert checkpoint.weights.keys() == base_weights().keys()


def test_the_fingerprint_names_the_weights_and_the_config(tmp_path: Path) -> None:
    first = write_base(tmp_path / "first", shards=2)
    again = write_base(tmp_path / "again", shards=2)
    shown: list[int] = []
    fingerprint = Checkpoint.open(first).fingerprint(
        lambda _stage, done, _total, unit="bytes": shown.append(done)
    )
    assert re.fullmatch("[0-9a-f]{64}", fingerprint)
    assert shown == sorted(shown) != []
    assert Checkpoint.open(again).fingerprint() == fingerprint
    write_json(again / "tokenizer.json", {"model": {}})
    assert Checkpoint.open(again).fingerprint() == fingerprint
    other = write_base(tmp_path / "other", weights=base_weights(seed=9), shards=2)
    assert Checkpoint.open(other).fingerprint() != fingerprint
    change_config(again, rope_theta=1.0)
    assert Checkpoint.open(again).fingerprint() != fingerprint


# Damage.

BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "config no JSON": (lambda folder: (folder / "config.json").write_bytes(b"{'a': 1}"), "not valid JSON"),
    "config no UTF-8": (lambda folder: (folder / "config.json").write_bytes(b'{"a": "\xff"}'), "not valid JSON"),
    "config too deep": (lambda folder: (folder / "config.json").write_bytes(b"[" * 200_000), "not valid JSON"),
    "config a list": (lambda folder: write_json(folder / "config.json", []), "not a JSON object"),
    "no architecture": (lambda folder: change_config(folder, architectures=[]), "class (architectures)"),
    "no vocab_size": (lambda folder: change_config(folder, vocab_size=None), "no vocab_size"),
    "layers": (lambda folder: change_config(folder, num_hidden_layers=3), "holds 2 layers, and its config.json says 3"),
    "a tensor of a layer": (
        lambda folder: rewrite(folder, without="model.layers.1.mlp.up_proj.weight"),
        "lacks mlp.up_proj.weight in layer 1",
    ),
    "no head": (lambda folder: rewrite(folder, without="lm_head.weight"), "lacks lm_head.weight"),
    "no embedding": (lambda folder: rewrite(folder, without="model.embed_tokens.weight"), "no token embedding"),
    "odd class": (lambda folder: change_config(folder, architectures=["a\x1b[2J"]), "class (architectures)"),
    "vocab_size text": (lambda folder: change_config(folder, vocab_size="12"), "vocab_size of '12'"),
    "no model_type": (lambda folder: change_config(folder, model_type=None), "no model_type"),
    "quantized": (
        lambda folder: change_config(folder, quantization_config={"quant_method": "bitsandbytes"}),
        "quantized weights ('bitsandbytes')",
    ),
    "generation config": (lambda folder: (folder / "generation_config.json").write_bytes(b"["), "not valid JSON"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "has no weights"),
    "pickle": (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "pickled weights"),
    "part alone": (lambda folder: (folder / WEIGHTS).rename(folder / FIRST_SHARD), "but no model.safetensors.index"),
    "two sets": (lambda folder: write_json(folder / INDEX, {"weight_map": {"a": "b"}}), "two sets of weights"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path, case: str) -> None:
    damage, sentence = BAD_FOLDERS[case]
    damage(folder := write_base(tmp_path / "base"))
    refuses(folder, sentence)


BAD_INDEXES: dict[str, tuple[Callable[[Path], object], str]] = {
    "shard missing": (lambda folder: (folder / FIRST_SHARD).unlink(), f"{FIRST_SHARD} is missing"),
    "tensor not in its shard": (
        lambda folder: change_index(folder, lambda names: names.update({"model.norm.weight": FIRST_SHARD})),
        "disagree: it has model.norm.weight in model-00001",
    ),
    "tensor not in the index": (
        lambda folder: change_index(folder, lambda names: names.pop("model.norm.weight")),
        "model.norm.weight nowhere",
    ),
    "tensor in no shard": (
        lambda folder: change_index(folder, lambda names: names.update({"model.extra": FIRST_SHARD})),
        "model.extra in model-00001-of-00002.safetensors, it is in none",
    ),
    "a path": (
        lambda folder: change_index(folder, lambda names: names.update({"model.extra": "../x.safetensors"})),
        "names no file of the folder",
    ),
    "no map": (lambda folder: write_json(folder / INDEX, {}), "lists no weights"),
    "tensor twice": (
        lambda folder: write_safetensors(folder / FIRST_SHARD, base_weights()),
        "and in",
    ),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_an_index_that_the_shards_do_not_follow_is_refused(tmp_path: Path, case: str) -> None:
    damage, sentence = BAD_INDEXES[case]
    damage(folder := write_base(tmp_path / "base", shards=2))
    refuses(folder, sentence)


ROW = 8 * 4
BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "cut short: it has 0 bytes"),
    "cut in the data": (lambda path: os.truncate(path, path.stat().st_size - 5), "5 bytes are missing"),
    "cut in the header": (lambda path: os.truncate(path, 60), "claims a header of"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"abc"), "3 bytes too many"),
    "huge header": (lambda path: path.write_bytes(struct.pack("<Q", 2**63) + bytes(50)), "claims a header of"),
    "header no JSON": (lambda path: write_raw(path, b"{not json at all"), "not JSON"),
    "header too deep": (lambda path: write_raw(path, b"[" * 100_000), "not JSON"),
    "header a list": (lambda path: write_raw(path, b"[1, 2]"), "lists no tensors"),
    "a name twice": (
        lambda path: write_raw(path, b'{"a": {}, "a": {}}'),
        "names a tensor twice",
    ),
    "overlap": (
        lambda path: write_raw(path, {"a": entry("F32", (8,), 0, 32), "b": entry("F32", (8,), 16, 48)}, bytes(48)),
        "wrong offsets: b",
    ),
    "hole": (
        lambda path: write_raw(path, {"a": entry("F32", (8,), 0, 32), "b": entry("F32", (8,), 36, 68)}, bytes(68)),
        "wrong offsets: b",
    ),
    "behind the end": (
        lambda path: write_raw(path, {"a": entry("F32", (2**40,), 0, 2**42)}, bytes(64)),
        "cut short",
    ),
    "size and shape": (
        lambda path: write_raw(path, {"a": entry("F32", (9,), 0, 32)}, bytes(32)),
        "gives a a size that its shape does not have",
    ),
    "negative shape": (
        lambda path: write_raw(path, {"a": entry("F32", (-8, -1), 0, 32)}, bytes(32)),
        "describes the tensor a wrongly",
    ),
    "no offsets": (lambda path: write_raw(path, {"a": {"dtype": "F32", "shape": [1]}}), "describes the tensor a wrongly"),
    "no numbers": (lambda path: write_raw(path, {"a": entry("F32", (0, 4), 0, 0)}), "holds no numbers for a"),
    "unprintable name": (lambda path: write_raw(path, {"\x1b[2J": entry("F32", (8,), 0, 32)}, bytes(32)), "impossible name"),
    "endless name": (lambda path: write_raw(path, {"a" * 9999: entry("F32", (8,), 0, 32)}, bytes(32)), "impossible name"),
    "no tensors": (lambda path: write_raw(path, {"__metadata__": {}}), "without a single tensor"),
    "int8": (lambda path: write_safetensors(path, base_weights(), "I8"), "as I8, not as F32, F16 or BF16"),
    "float8": (lambda path: write_safetensors(path, base_weights(), "F8_E4M3"), "as F8_E4M3, not as F32"),
    "float64": (lambda path: write_safetensors(path, base_weights(), "F64"), "as F64, not as F32"),
    "unknown type": (lambda path: write_raw(path, {"a": entry("Q4", (8,), 0, 8)}, bytes(8)), "as 'Q4', a type that"),
    "renamed pickle": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500)), "is a pickle file under another name"),
    "LFS pointer": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "is a Git LFS pointer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_weights_file_that_lies_about_itself_is_refused(tmp_path: Path, case: str) -> None:
    damage, sentence = BAD_FILES[case]
    damage(write_base(tmp_path / "base") / WEIGHTS)
    refuses(tmp_path / "base", sentence)


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path / "nowhere", "There is no model folder")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refuses(tmp_path / "model.gguf", "is a file, not a model folder")


def test_a_model_of_several_media_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = write_base(
        tmp_path / "base", architectures=["Gemma3ForConditionalGeneration"], text_config={}, vision_config={}
    )
    with pytest.raises(UnsupportedArchitecture) as caught:
        Checkpoint.open(folder)
    assert "Gemma3ForConditionalGeneration" in caught.value.message
    assert "`edgemed-convert text-model FOLDER --out DIR`" in caught.value.hint


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    tensor = Checkpoint.open(folder).weights["model.norm.weight"]
    os.truncate(folder / WEIGHTS, 100)
    with pytest.raises(CheckpointError, match="was changed while it was being read"):
        read_whole(tensor)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        read_whole(tensor)


def refuses(folder: Path, sentence: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert sentence in caught.value.message
    assert caught.value.message.endswith(".")
    assert len(caught.value.message) < 400
    assert caught.value.hint
    assert caught.value.exit_code == 3


# Output.


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model.gguf"
    with new_file(target) as written:
        written.write_bytes(b"first")
        assert not target.exists()
    assert target.read_bytes() == b"first"
    with pytest.raises(UsageError, match="exists"), new_file(target):
        pass
    with pytest.raises(ZeroDivisionError), new_file(target, replace=True) as written:
        written.write_bytes(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"first"
    with new_file(target, replace=True) as written:
        written.write_bytes(b"second")
    assert target.read_bytes() == b"second"
    assert [path.name for path in target.parent.iterdir()] == ["model.gguf"]


def test_what_a_killed_run_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old").write_bytes(b"old")
    with new_folder(tmp_path / "out") as folder:
        (folder / "config.json").write_bytes(b"{}")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "config.json"]


def test_a_folder_takes_an_empty_one_over_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_bytes(b"")
    assert (tmp_path / "out" / "a").exists()
    with pytest.raises(UsageError, match="exists"), new_folder(tmp_path / "out"):
        pass


def test_two_runs_do_not_write_the_same_file(tmp_path: Path) -> None:
    with new_file(tmp_path / "out") as written:
        written.write_bytes(b"1")
        with pytest.raises(UsageError, match="another run"), new_file(tmp_path / "out"):
            pass
    assert (tmp_path / "out").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "may not be written"),
        (errno.EIO, "could not be written"),
    ],
)
def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path, number: int, sentence: str) -> None:
    with pytest.raises(StorageError, match=sentence) as caught, new_file(tmp_path / "out") as written:
        written.write_bytes(b"x")
        raise OSError(number, os.strerror(number))
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_path_through_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError), new_file(tmp_path / "file" / "out"):
        pass


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path: Path) -> None:
    check_free_space(tmp_path / "not" / "there", 1000)
    with pytest.raises(StorageError, match="are needed") as caught:
        check_free_space(tmp_path / "not" / "there", 2**60)
    assert caught.value.exit_code == 6


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of file sizes")
def test_a_limit_of_file_sizes_leaves_nothing_behind(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from edgemed.errors import StorageError\n"
        "from edgemed_convert.output import new_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    with new_file(Path(sys.argv[1])) as written: written.write_bytes(bytes(200_000))\n"
        "except StorageError as error: sys.exit(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "larger than this disk" in done.stderr
    assert not list(tmp_path.iterdir())
