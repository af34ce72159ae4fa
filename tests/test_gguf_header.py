"""The GGUF reader takes what llama.cpp takes, and meets everything else with one clear sentence."""

import os
import pickle
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import llama_cpp
import pytest

from edgemed.errors import ModelCorrupt, ModelError, ModelUnsupported
from edgemed.ggml_types import FILE_TYPES, GGML_TYPES
from edgemed.gguf_header import (
    ArraySummary,
    context_length_of,
    read_header,
    read_shards,
    shape_of,
    tensor_types,
)
from tests.gguf_files import tiny_vocabulary, write_tiny_adapter, write_tiny_llama


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def uint32_pair(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def tensor(
    name: str = "a", *, shape: tuple[int, ...] = (32,), type_number: int = 0, offset: int = 0
) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(shape))
        + b"".join(struct.pack("<Q", length) for length in shape)
        + struct.pack("<IQ", type_number, offset)
    )


def gguf_bytes(pairs: list[bytes], tensors: list[bytes] | None = None, *, version: int = 3) -> bytes:
    tensors = tensors or []
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs + tensors)
    return header + b"\0" * (-len(header) % 32) + b"\0" * 128


def test_the_table_of_types_is_that_of_the_gguf_package() -> None:
    for number, (block_elements, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        assert GGML_TYPES[int(number)] == (number.name, block_elements, block_bytes)


def test_the_names_of_quantizations_are_llama_cpp_s() -> None:
    prefixes = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")
    theirs = {
        getattr(llama_cpp, name): name.removeprefix(prefix)
        for prefix in prefixes
        for name in dir(llama_cpp)
        if name.startswith(prefix)
    }
    assert theirs == FILE_TYPES


def test_a_model_is_described_as_it_was_written(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", quantization_type=gguf.GGMLQuantizationType.Q8_0)
    header = read_header(path)
    assert header.version == 3
    assert header.architecture == "llama"
    assert header.text("general.name") == "tiny llama"
    assert header.length("tokenizer.ggml.tokens") == len(tiny_vocabulary())
    assert context_length_of(header) == 512
    assert tensor_types(header) == {"Q8_0": 16, "F32": 5}
    reference = gguf.GGUFReader(path)
    assert [(t.name, t.shape, t.type_name, t.offset, t.size_bytes) for t in header.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.data_offset, t.n_bytes)
        for t in reference.tensors
    ]
    shape = shape_of([header])
    assert shape.parameters == sum(int(t.n_elements) for t in reference.tensors)
    # 2 layers × 2 bytes × 2 heads × (16 key + 16 value numbers)
    assert shape.kv_bytes_per_token == 2 * 2 * 2 * (16 + 16)
    assert (shape.block_count, shape.embedding_length, shape.feed_forward_length) == (2, 64, 128)


def test_a_long_array_is_counted_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    strings = text("tokens") + struct.pack("<IIQ", 9, 8, 5000) + text("token") * 5000
    numbers = text("scores") + struct.pack("<IIQ", 9, 6, 5000) + bytes(4 * 5000)
    path.write_bytes(gguf_bytes([strings, numbers, uint32_pair("behind", 7)], version=2))
    metadata = read_header(path).metadata
    assert metadata == {
        "tokens": ArraySummary("string", 5000),
        "scores": ArraySummary("float32", 5000),
        "behind": 7,
    }


def test_heads_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    heads = text("x.attention.head_count_kv") + struct.pack("<IIQ3i", 9, 5, 3, 4, 0, 2)
    path = tmp_path / "layers.gguf"
    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("x"),
        uint32_pair("x.block_count", 3),
        uint32_pair("x.attention.key_length", 10),
        uint32_pair("x.attention.value_length", 6),
        heads,
    ]
    path.write_bytes(gguf_bytes(pairs))
    assert shape_of([read_header(path)]).kv_bytes_per_token == 2 * (4 + 0 + 2) * (10 + 6)
    path.write_bytes(gguf_bytes([*pairs[:1], uint32_pair("x.block_count", 9), *pairs[2:]]))
    with pytest.raises(ModelCorrupt, match="heads for 3 layers"):
        shape_of([read_header(path)])


def test_a_split_model_is_found_from_any_of_its_shards(tmp_path: Path) -> None:
    whole = read_header(write_tiny_llama(tmp_path / "whole.gguf"))
    first = write_tiny_llama(tmp_path / "tiny.gguf", shards=3)
    third = first.with_name("tiny-00003-of-00003.gguf")
    headers = read_shards(third)
    assert [header.path.name[4:] for header in headers] == [f"-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert shape_of(headers) == shape_of([whole])
    assert tensor_types(*headers) == tensor_types(whole)

    third.write_bytes(first.with_name("tiny-00002-of-00003.gguf").read_bytes())
    with pytest.raises(ModelCorrupt, match="not that of part 3 of 3"):
        read_shards(first)
    third.unlink()
    with pytest.raises(ModelCorrupt, match=r"tiny-00003-of-00003\.gguf is missing"):
        read_shards(first)
    with pytest.raises(ModelCorrupt, match="name does not say which"):
        read_shards(first.rename(tmp_path / "renamed.gguf"))


def test_an_adapter_has_a_header_too(tmp_path: Path) -> None:
    header = read_header(write_tiny_adapter(tmp_path / "adapter.gguf"))
    assert header.text("general.type") == "adapter"
    shape = shape_of([header])
    assert (shape.parameters, shape.block_count, shape.kv_bytes_per_token) == (2 * 2 * 2 * 4 * 64, 0, 0)


HUGE = 2**64 - 1
DAMAGED: dict[str, tuple[bytes, str]] = {
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), "claims 18,446,744,073,709,551,615 tensors"),
    "key count": (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE), "metadata keys"),
    "key count within limits": (b"GGUF" + struct.pack("<IQQ", 3, 0, 60_000), "ends inside its header"),
    "no header": (b"GGUF", "ends inside its header"),
    "half a magic": (b"GG", "ends inside its header"),
    "key length": (gguf_bytes([struct.pack("<Q", HUGE)]), "bytes long"),
    "key length past the end": (gguf_bytes([struct.pack("<Q", 10_000)]), "ends inside"),
    "empty key": (gguf_bytes([text("") + struct.pack("<II", 4, 1)]), "metadata key is empty"),
    "key not text": (gguf_bytes([text(b"\xff\xfe") + struct.pack("<II", 4, 1)]), "not readable text"),
    "key twice": (gguf_bytes([uint32_pair("k", 1), uint32_pair("k", 1)]), "'k' stands in it twice"),
    "unknown value type": (gguf_bytes([text("k") + struct.pack("<I", 99)]), "unknown type 99"),
    "array of arrays": (gguf_bytes([text("k") + struct.pack("<IIQ", 9, 9, 1)]), "unknown type 9"),
    "string count": (gguf_bytes([text("k") + struct.pack("<IIQ", 9, 8, HUGE)]), "claims .* strings"),
    "string count past the end": (gguf_bytes([text("k") + struct.pack("<IIQ", 9, 8, 2_000_000)]), "strings"),
    "array length": (gguf_bytes([text("k") + struct.pack("<IIQ", 9, 12, HUGE)]), "ends inside its header"),
    "alignment": (gguf_bytes([uint32_pair("general.alignment", 12)]), "no power of two"),
    "alignment 0": (gguf_bytes([uint32_pair("general.alignment", 0)]), "no power of two"),
    "tensor twice": (gguf_bytes([], [tensor(), tensor(offset=128)]), "'a' stands in it twice"),
    "tensor name": (gguf_bytes([], [tensor("a" * 64)]), "too long"),
    "dimensions": (gguf_bytes([], [tensor(shape=(1,) * 5)]), "5 dimensions"),
    "product of dimensions": (gguf_bytes([], [tensor(shape=(2**32, 2**32))]), "impossible size"),
    "negative dimension": (gguf_bytes([], [tensor(shape=(2**63,))]), "impossible size"),
    "no multiple of a block": (
        gguf_bytes([], [tensor(shape=(33,), type_number=8)]),
        "do not fit its type Q8_0",
    ),
    "offset": (gguf_bytes([], [tensor(offset=2**63)]), "not where it should be"),
    "overlapping tensors": (gguf_bytes([], [tensor(), tensor("b", offset=0)]), "not where it should be"),
    "weights past the end": (gguf_bytes([], [tensor(shape=(64,))]), "cut short: it ends at 192 bytes"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_each_kind_of_damage_is_named(damage: str, tmp_path: Path) -> None:
    content, message = DAMAGED[damage]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=message) as caught:
        read_header(path)
    assert caught.value.message.startswith("m.gguf is ")
    assert caught.value.hint


def test_sound_files_that_llama_cpp_cannot_read_are_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for version, message in ((1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")):
        path.write_bytes(gguf_bytes([], version=version))
        with pytest.raises(ModelUnsupported, match=message):
            read_header(path)
    path.write_bytes(gguf_bytes([], [tensor(type_number=31)]))
    with pytest.raises(ModelUnsupported, match="unknown type 31"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (bytes(4096), "begins with zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
        (pickle.dumps({"weights": 1}), "Python pickle; edgemed never opens one"),
        (b"PK\x03\x04archive/data.pkl", "zip archive, as PyTorch writes"),
        (struct.pack("<Q", 2) + b"{}", "safetensors"),
        (b"lmgg" + bytes(60) + b"x", "old GGML"),
        (b"\x1f\x8b\x08 rest", "packed archive"),
        (b"hello there", "not a GGUF file"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        read_header(path)
    assert caught.value.hint


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX")
def test_a_named_pipe_does_not_hang_the_reader(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(ModelCorrupt, match="not a file"):
        read_header(pipe)


def test_text_of_the_file_cannot_reach_the_terminal_raw(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([], [tensor("\x1b]0;owned\x07", type_number=31)]))
    with pytest.raises(ModelUnsupported) as caught:
        read_header(path)
    assert "\x1b" not in caught.value.message


@pytest.mark.timeout(60)
def test_no_mutation_of_a_header_does_more_than_be_refused(tmp_path: Path) -> None:
    """gguf 0.19's own reader hangs on a file of 49 bytes; llama.cpp was aborted by 10 of 1,500 mutants."""
    sound = write_tiny_llama(tmp_path / "sound.gguf").read_bytes()
    header_length = read_header(tmp_path / "sound.gguf").tensors[0].offset
    choose = random.Random(20)
    path = tmp_path / "mutant.gguf"
    slowest_seconds = 0.0
    outcomes = {"accepted": 0, "refused": 0}
    for _ in range(600):
        path.write_bytes(choose.choice(MUTATIONS)(bytearray(sound), header_length, choose))
        started = time.perf_counter()
        try:
            shape_of(read_shards(path))
            outcomes["accepted"] += 1
        except (ModelCorrupt, ModelUnsupported) as error:
            assert error.message
            assert error.hint
            outcomes["refused"] += 1
        slowest_seconds = max(slowest_seconds, time.perf_counter() - started)
    assert slowest_seconds < 5
    assert min(outcomes.values()) > 50


def cut(data: bytearray, header_length: int, choose: random.Random) -> bytes:
    return bytes(data[: choose.randrange(header_length)])


def flip_bytes(data: bytearray, header_length: int, choose: random.Random) -> bytes:
    for _ in range(choose.randint(1, 8)):
        data[choose.randrange(4, header_length)] = choose.randrange(256)
    return bytes(data)


def plant_number(data: bytearray, header_length: int, choose: random.Random) -> bytes:
    number = choose.choice([0, 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
    struct.pack_into("<Q", data, choose.randrange(4, header_length - 8), number)
    return bytes(data)


def drop_bytes(data: bytearray, header_length: int, choose: random.Random) -> bytes:
    start = choose.randrange(4, header_length)
    del data[start : start + choose.randint(1, 64)]
    return bytes(data)


MUTATIONS: list[Callable[[bytearray, int, random.Random], bytes]] = [
    cut,
    flip_bytes,
    plant_number,
    drop_bytes,
]
