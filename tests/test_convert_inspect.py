"""Inspecting: everything a file says of itself, readable in 80 columns, and never a hang or a crash."""

import json
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy
import pytest
from edgemed_convert.imatrix_file import ImportanceMatrix, write_imatrix
from edgemed_convert.inspection import as_json, inspect_file
from edgemed_convert.inspection_text import WIDTH, as_text

from edgemed.errors import ModelCorrupt, ModelError, StorageError
from edgemed.gguf_header import ArraySummary, read_header
from tests.gguf_files import CHATML, tiny_vocabulary, write_tiny_adapter, write_tiny_llama


def test_a_model_is_shown_as_it_was_written(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", quantization_type=gguf.GGMLQuantizationType.Q8_0)
    facts = inspect_file(path)
    assert (facts.kind, facts.architecture, facts.name, facts.context_length) == (
        "model",
        "llama",
        "tiny llama",
        512,
    )
    assert [(row.type, row.tensors) for row in facts.types] == [("Q8_0", 16), ("F32", 5)]
    reference = gguf.GGUFReader(path)
    assert facts.parameters == sum(int(tensor.n_elements) for tensor in reference.tensors)
    assert facts.bits_per_weight == pytest.approx(
        8 * sum(int(tensor.n_bytes) for tensor in reference.tensors) / facts.parameters
    )
    assert facts.chat_template == CHATML
    vocabulary = facts.vocabulary
    assert vocabulary is not None
    assert (vocabulary.model, vocabulary.pre, vocabulary.tokens) == ("gpt2", "gpt-2", len(tiny_vocabulary()))
    assert (vocabulary.special["eos"].id, vocabulary.special["eos"].text) == (268, "<|im_end|>")
    assert [token.text for token in vocabulary.added] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert vocabulary.add_bos is False
    assert facts.remarks == []


def test_the_table_and_the_json_say_the_same(tmp_path: Path) -> None:
    facts = inspect_file(write_tiny_llama(tmp_path / "tiny.gguf"))
    document = json.loads(as_json(facts))
    assert document["parameters"] == facts.parameters
    assert document["vocabulary"]["special"]["bos"] == {"id": 266, "text": "<|endoftext|>"}
    assert len(document["tensors"]) == 21
    text = as_text(facts)
    for word in (
        "tiny llama",
        f"{facts.parameters:,}",
        "512 tokens",
        "<|im_end|>",
        "blk.*.ffn_down.weight",
        "2 ×",
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_all_parts_of_a_split_model_are_one_model(tmp_path: Path) -> None:
    whole = inspect_file(write_tiny_llama(tmp_path / "whole.gguf"))
    write_tiny_llama(tmp_path / "split.gguf", shards=3)
    facts = inspect_file(tmp_path / "split-00002-of-00003.gguf")
    assert facts.files == [f"split-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert (facts.parameters, len(facts.tensors)) == (whole.parameters, len(whole.tensors))
    assert facts.vocabulary == whole.vocabulary
    assert "and 2 more parts" in as_text(facts)


def test_adapters_matrices_and_vocabularies_are_told_apart(tmp_path: Path) -> None:
    adapter = inspect_file(write_tiny_adapter(tmp_path / "adapter.gguf", rank=4))
    assert (adapter.kind, adapter.lora_ranks, adapter.bits_per_weight) == ("adapter", [4], None)
    assert adapter.metadata["adapter.lora.alpha"] == 8.0
    vocabulary = inspect_file(write_tiny_llama(tmp_path / "vocabulary.gguf", weights=False))
    assert vocabulary.kind == "vocabulary"
    matrix = ImportanceMatrix(
        sums={"blk.0.attn_q.weight": numpy.ones((1, 64), numpy.float32)},
        counts={"blk.0.attn_q.weight": numpy.ones(1, numpy.float32)},
        datasets=["clinic.jsonl"],
        chunk_count=20,
        chunk_size=512,
    )
    write_imatrix(matrix, tmp_path / "matrix.gguf")
    facts = inspect_file(tmp_path / "matrix.gguf")
    assert facts.imatrix is not None
    assert (facts.kind, facts.imatrix.entries, facts.imatrix.datasets) == ("imatrix", 1, ["clinic.jsonl"])
    for shown in (adapter, vocabulary, facts):
        assert shown.kind in as_text(shown)


def test_contradictions_are_remarked(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", chat_template=None, add_bos=True)
    data = path.read_bytes()
    # eos 268 → 9999, and a row of the embeddings less than tokens.
    data = data.replace(
        b"tokenizer.ggml.eos_token_id" + struct.pack("<II", 4, 268),
        b"tokenizer.ggml.eos_token_id" + struct.pack("<II", 4, 9999),
    )
    path.write_bytes(data)
    remarks = inspect_file(path).remarks
    assert remarks == [
        "The eos token has the id 9,999, but there are 269 tokens.",
        "There is no chat template: the file cannot be used for chat.",
    ]
    assert "REMARKS" in as_text(inspect_file(path))


def test_an_untrue_label_is_remarked(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_tensor("token_embd.weight", numpy.zeros((4, 32), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = inspect_file(tmp_path / "m.gguf")
    assert facts.file_type == "Q4_K_M"
    assert facts.remarks[0] == "The file says Q4_K_M, but no tensor is Q4_K."


def test_nothing_in_a_file_reaches_the_terminal_raw(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2Jn\u202eame\r\n日本語" * 20
    path = write_tiny_llama(tmp_path / "m.gguf", name=evil, chat_template="{{ '\x1b[31m' }}\n" * 100)
    text = as_text(inspect_file(path))
    assert not {character for character in text if ord(character) < 32 or character in "\x7f\u202e"} - {"\n"}
    assert "… and " in text
    json.loads(as_json(inspect_file(path)))


def test_a_long_array_is_kept_only_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(3000)])
    writer.add_array("tokenizer.ggml.token_type", [1] * 3000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(path).metadata["tokenizer.ggml.tokens"] == ArraySummary("string", 3000)
    header = read_header(path, keep=("tokenizer.ggml.tokens",))
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert (len(tokens), tokens[-1], header.length("tokenizer.ggml.tokens")) == (3000, "token 2999", 3000)
    assert isinstance(header.metadata["tokenizer.ggml.token_type"], ArraySummary)


@pytest.mark.parametrize(
    ("content", "kind"), [(b"", ModelCorrupt), (b"hello there", ModelCorrupt), (b"PK\x03\x04", ModelError)]
)
def test_another_file_is_called_what_it_is(content: bytes, kind: type[ModelError], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(StorageError, match=r"m\.gguf"):
        inspect_file(path)
    path.write_bytes(content)
    with pytest.raises(kind, match=r"m\.gguf"):
        inspect_file(path)


@pytest.mark.timeout(120)
def test_no_mutation_of_a_file_does_more_than_be_refused(tmp_path: Path) -> None:
    """The whole way: read, describe, print and encode 3,000 damaged headers; gguf 0.19 hangs on some."""
    write_tiny_llama(tmp_path / "sound.gguf", quantization_type=gguf.GGMLQuantizationType.Q4_0)
    sound = (tmp_path / "sound.gguf").read_bytes()
    header_length = read_header(tmp_path / "sound.gguf").tensors[0].offset
    choose = random.Random(5)
    path = tmp_path / "mutant.gguf"
    outcomes = {"accepted": 0, "refused": 0}
    slowest_seconds = 0.0
    for _ in range(3000):
        path.write_bytes(choose.choice(MUTATIONS)(bytearray(sound), header_length, choose))
        started = time.perf_counter()
        try:
            facts = inspect_file(path)
            text = as_text(facts)
            as_json(facts)
            outcomes["accepted"] += 1
            assert not {character for character in text if ord(character) < 32} - {"\n"}
            assert max(map(len, text.splitlines())) <= WIDTH
        except ModelError as error:
            assert error.message
            outcomes["refused"] += 1
        slowest_seconds = max(slowest_seconds, time.perf_counter() - started)
    assert slowest_seconds < 5
    assert min(outcomes.values()) > 300, outcomes


def cut(data: bytearray, header_length: int, choose: random.Random) -> bytes:
    return bytes(data[: choose.randrange(header_length)])


def flip_bytes(data: bytearray, header_length: int, choose: random.Random) -> bytes:
    for _ in range(choose.randint(1, 4)):
        data[choose.randrange(4, header_length)] = choose.randrange(256)
    return bytes(data)


def plant_number(data: bytearray, header_length: int, choose: random.Random) -> bytes:
    number = choose.choice([0, 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
    struct.pack_into("<Q", data, choose.randrange(4, header_length - 8), number)
    return bytes(data)


def swap_value_type(data: bytearray, header_length: int, choose: random.Random) -> bytes:
    key = choose.choice(
        [b"eos_token_id", b"add_bos_token", b"context_length", b"general.name", b"token_type", b"tokens"]
    )
    at = data.index(key) + len(key)
    struct.pack_into("<I", data, at, choose.randrange(13))
    return bytes(data)


MUTATIONS: list[Callable[[bytearray, int, random.Random], bytes]] = [
    cut,
    flip_bytes,
    plant_number,
    swap_value_type,
]
