"""Quantizing: what is promised is in the file, what cannot be done is refused before a byte is written."""

import json
import lzma
import math
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy
import pytest
from edgemed_convert.check.divergence import DivergenceMeter, compare_logits
from edgemed_convert.errors import CheckFailed, LlamaCppError
from edgemed_convert.imatrix import MINIMUM_CHUNKS, collect_imatrix, read_examples
from edgemed_convert.imatrix_file import ImportanceMatrix, check_belongs, read_imatrix, write_imatrix
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.quantization_plan import QuantizeOptions, plan_quantization, target_path
from edgemed_convert.quantization_types import QUANTIZATION_TYPES, file_type_name, parse_types
from edgemed_convert.quantize import QuantizedFile, quantize

import edgemed
from edgemed.errors import EdgemedError, ModelCorrupt, ModelUnsupported, StorageError, UsageError
from edgemed.gguf_header import read_header
from tests.gguf_files import write_tiny_adapter, write_tiny_llama
from tests.shared_material import shared_path

EMBEDDED = Path(edgemed.__file__).parent / "data" / "edge-chat-8m" / "edge-chat-8m-Q8_0.gguf"
CLINICAL = "The patient has had fever and a cough for three days. Give oral fluids and watch the breathing. "


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaProcess]:
    with LlamaProcess(threads=2) as process:
        yield process


@pytest.fixture(scope="module")
def trained(llama: LlamaProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as F16: rows of 256 and 768, so that its K-quants are real."""
    path = tmp_path_factory.mktemp("trained") / "edge-chat-F16.gguf"
    llama.quantize(EMBEDDED, path, "F16", allow_requantize=True)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64 and 128: no K-quant fits."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny-F32.gguf")


def quantized(
    source: Path, types: str, folder: Path, llama: LlamaProcess, options: QuantizeOptions | None = None
) -> list[QuantizedFile]:
    plan = plan_quantization(source, parse_types(types), folder, options=options, process=llama)
    return quantize(plan, process=llama)


# Types.


def test_every_type_of_llama_cpp_is_offered_by_its_own_name_and_number(
    llama: LlamaProcess, trained: Path, tmp_path: Path
) -> None:
    """NVFP4 has a number, but llama.cpp's quantizer does not make it."""
    import llama_cpp.llama_cpp as lib

    prefix = "LLAMA_FTYPE_MOSTLY_"
    numbers = {name.removeprefix(prefix): getattr(lib, name) for name in dir(lib) if name.startswith(prefix)}
    assert set(QUANTIZATION_TYPES) == set(numbers) - {"NVFP4"} | {"F32"}
    assert all(file_type_name(number) == name for name, number in numbers.items())
    with pytest.raises(LlamaCppError, match="invalid output file type"):
        llama.quantize(trained, tmp_path / "out.gguf", "NVFP4", dry_run=True)


def test_an_unknown_type_is_answered_with_the_nearest_ones() -> None:
    assert parse_types("q8_0, Q4_K,q4_k_m") == ["Q8_0", "Q4_K_M"]
    for wrong, near in (("Q4_M", "Q4_K_M"), ("Q8", "Q8_0"), ("zzz", "Types: F32, F16")):
        with pytest.raises(UsageError, match=f"no quantization type '{wrong}'") as caught:
            parse_types(["F16", wrong])
        assert near in caught.value.hint


def test_the_name_of_a_file_tells_its_type_once() -> None:
    folder = Path("out")
    assert target_path(Path("m-F16.gguf"), folder, "Q8_0").name == "m-Q8_0.gguf"
    assert target_path(Path("m.f16.gguf"), folder, "Q8_0").name == "m-Q8_0.gguf"
    assert target_path(Path("m.gguf"), folder, "Q4_K_M").name == "m-Q4_K_M.gguf"
    assert target_path(Path("m-F16-00001-of-00003.gguf"), folder, "Q8_0").name == "m-Q8_0.gguf"


# What is written.


def test_several_types_in_one_go_hold_what_they_say(
    llama: LlamaProcess, trained: Path, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    plan = plan_quantization(trained, ["Q8_0", "Q4_K_M"], tmp_path, process=llama)
    assert not plan.warnings
    files = quantize(
        plan, process=llama, progress=lambda stage, done, total, _unit="": seen.append((stage, done, total))
    )
    assert [file.path.name for file in files] == ["edge-chat-Q8_0.gguf", "edge-chat-Q4_K_M.gguf"]
    assert files[0].tensor_types == {"Q8_0": 57, "F32": 17}
    assert files[1].tensor_types == {"Q4_K": 48, "F32": 17, "Q6_K": 9}
    assert seen[-1] == ("Q4_K_M", 74, 74)
    for file, planned in zip(files, plan.files, strict=True):
        header = read_header(file.path)
        assert file.size_bytes == header.file_size <= planned.size_bytes <= header.file_size + 70_000
        data_bytes = sum(tensor.size_bytes for tensor in header.tensors)
        assert file.bits_per_weight == pytest.approx(8 * data_bytes / 8_392_960)
        assert file.holds_its_type
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".gguf") == [
        "edge-chat-Q4_K_M.gguf",
        "edge-chat-Q8_0.gguf",
    ]


def test_a_label_that_the_shape_makes_untrue_is_said_and_can_be_refused(
    llama: LlamaProcess, tiny: Path, tmp_path: Path
) -> None:
    """A "Q4_K_M" of rows of 64 numbers holds no Q4_K tensor."""
    (file,) = quantized(tiny, "Q4_K_M", tmp_path / "out", llama)
    assert not file.holds_its_type
    assert "Q4_K" not in file.tensor_types
    assert {(fallback.wanted, fallback.given) for fallback in file.fallbacks} >= {("Q4_K", "Q5_0")}
    assert "15 of 16 matrices become" in file.warnings[0]
    assert file.warnings[1] == "tiny-Q4_K_M.gguf: no tensor is Q4_K, so the name Q4_K_M is not true."
    with pytest.raises(CheckFailed, match="the name Q4_K_M is not true"):
        quantized(tiny, "Q8_0,Q4_K_M", tmp_path / "strict", llama, QuantizeOptions(strict=True))
    assert not (tmp_path / "strict").exists()


def test_single_tensors_get_the_types_that_are_asked_for(
    llama: LlamaProcess, trained: Path, tmp_path: Path
) -> None:
    (file,) = quantized(
        trained,
        "Q4_K_M",
        tmp_path,
        llama,
        QuantizeOptions(embedding_type="Q8_0", tensor_types=(("ffn_down", "Q5_K"),)),
    )
    types = {tensor.name: tensor.type_name for tensor in read_header(file.path).tensors}
    assert types["token_embd.weight"] == "Q8_0"
    assert {types[f"blk.{block}.ffn_down.weight"] for block in range(8)} == {"Q5_K"}
    (pure,) = quantized(trained, "Q5_K_M", tmp_path, llama, QuantizeOptions(pure=True))
    assert set(pure.tensor_types) == {"Q5_K", "F32"}


def test_a_split_source_becomes_one_file(llama: LlamaProcess, tmp_path: Path) -> None:
    first = write_tiny_llama(tmp_path / "split.gguf", shards=3)
    (file,) = quantized(first.with_name("split-00002-of-00003.gguf"), "Q8_0", tmp_path / "out", llama)
    assert file.path.name == "split-Q8_0.gguf"
    assert "split.count" not in read_header(file.path).metadata
    assert llama.load(file.path).n_vocab


# What is refused.


def poison(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    tensor = next(t for t in read_header(path).tensors if t.name == "blk.1.ffn_up.weight")
    data[tensor.offset : tensor.offset + 4] = struct.pack("<f", math.nan)
    path.write_bytes(data)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-4096])
    return path


BAD_SOURCES: dict[str, tuple[Callable[[Path], Path], type[EdgemedError], str]] = {
    "missing": (lambda path: path, StorageError, r"m\.gguf"),
    "truncated": (lambda path: cut(write_tiny_llama(path)), ModelCorrupt, r"m\.gguf is cut short"),
    "an adapter": (write_tiny_adapter, ModelUnsupported, "of type adapter: there is nothing to quantize"),
    "a vocabulary": (lambda path: write_tiny_llama(path, weights=False), ModelUnsupported, "without weights"),
    "quantized": (
        lambda path: write_tiny_llama(path, quantization_type=gguf.GGMLQuantizationType.Q8_0),
        UsageError,
        r"m\.gguf is quantized already \(Q8_0\)",
    ),
    "NaN": (
        lambda path: poison(write_tiny_llama(path)),
        ModelCorrupt,
        r"m\.gguf cannot be quantized to Q8_0: .*blk\.1\.ffn_up\.weight.* \(NaN or infinite numbers\)",
    ),
    "no known architecture": (
        lambda path: write_tiny_llama(path, architecture="nonsense"),
        LlamaCppError,
        r"cannot make Q8_0 of m\.gguf: unknown model architecture: 'nonsense'",
    ),
}


@pytest.mark.parametrize("fault", BAD_SOURCES)
def test_a_bad_source_is_one_sentence_and_leaves_no_file(
    fault: str, llama: LlamaProcess, tmp_path: Path
) -> None:
    make, kind, message = BAD_SOURCES[fault]
    source = make(tmp_path / "m.gguf")
    with pytest.raises(kind, match=message) as caught:
        quantized(source, "Q8_0", tmp_path / "out", llama)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


BAD_OPTIONS: dict[str, tuple[str, QuantizeOptions, str]] = {
    "needs a matrix": ("IQ2_XXS", QuantizeOptions(), "IQ2_XXS needs an importance matrix"),
    "tensor type": ("Q8_0", QuantizeOptions(output_type="Q9"), "no tensor type 'Q9'"),
    "pattern": ("Q8_0", QuantizeOptions(tensor_types=(("[", "Q8_0"),)), "no regular expression"),
}


@pytest.mark.parametrize("fault", BAD_OPTIONS)
def test_a_wrong_option_is_refused_before_anything_is_written(
    fault: str, llama: LlamaProcess, trained: Path, tmp_path: Path
) -> None:
    types, options, message = BAD_OPTIONS[fault]
    with pytest.raises(UsageError, match=message):
        quantized(trained, f"Q8_0,{types}", tmp_path / "out", llama, options)
    assert not (tmp_path / "out").exists()


def test_a_file_is_never_written_over_its_source_nor_over_another(
    llama: LlamaProcess, tmp_path: Path
) -> None:
    """llama.cpp would cut the file that it has mapped, and die of SIGBUS."""
    source = write_tiny_llama(tmp_path / "m-F32.gguf")
    before = source.read_bytes()
    with pytest.raises(UsageError, match="over the file that it is made of"):
        quantized(source, "F32", tmp_path, llama, QuantizeOptions(overwrite=True))
    with pytest.raises(UsageError, match="onto itself"):
        llama.quantize(source, source, "Q8_0")
    other = tmp_path / "m-Q8_0.gguf"
    other.write_text("mine")
    with pytest.raises(UsageError, match=r"m-Q8_0\.gguf exists"):
        quantized(source, "Q8_0", tmp_path, llama)
    assert (source.read_bytes(), other.read_text()) == (before, "mine")
    (file,) = quantized(source, "Q8_0", tmp_path, llama, QuantizeOptions(overwrite=True))
    assert file.tensor_types["Q8_0"] == 16


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on file sizes is POSIX")
def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_no_file(trained: Path, tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with (
            LlamaProcess(threads=1) as process,
            pytest.raises(StorageError, match=r"Q4_K_M\.gguf could not be"),
        ):
            quantized(trained, "Q4_K_M", tmp_path / "out", process)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").iterdir())


def test_too_little_space_is_said_before_the_work(
    llama: LlamaProcess, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 10_000_000})())
    plan_quantization(trained, ["Q4_K_M"], tmp_path, process=llama)
    with pytest.raises(StorageError, match=r"10\.0 MB free, but 15\.1 MB are needed"):
        plan_quantization(trained, ["Q4_K_M", "Q8_0"], tmp_path, process=llama)


def test_a_process_that_dies_in_the_middle_leaves_no_file(trained: Path, tmp_path: Path) -> None:
    with LlamaProcess(threads=1) as process:
        plan = plan_quantization(trained, ["Q2_K"], tmp_path / "out", process=process)

        def kill(stage: str, done: int, total: int, unit: str = "") -> None:
            if process.process_id is not None:
                os.kill(process.process_id, getattr(signal, "SIGKILL", signal.SIGTERM))

        with pytest.raises(LlamaCppError, match=r"died while it worked on edge-chat-F16\.gguf to Q2_K"):
            quantize(plan, process=process, progress=kill)
        assert not list((tmp_path / "out").iterdir())
        assert quantize(plan, process=process)[0].holds_its_type


# Importance matrices.


def matrix_of(path: Path, *, seed: int = 0) -> ImportanceMatrix:
    random = numpy.random.default_rng(seed)
    shapes = {
        t.name: t.shape for t in read_header(path).tensors if t.name.startswith("blk.") and len(t.shape) == 2
    }
    return ImportanceMatrix(
        sums={
            name: random.gamma(1, 1, (1, shape[0])).astype(numpy.float32) for name, shape in shapes.items()
        },
        counts={name: numpy.array([512], numpy.float32) for name in shapes},
        datasets=["clinic.jsonl"],
        chunk_count=40,
        chunk_size=512,
    )


def test_a_matrix_is_read_back_as_it_was_written_in_both_forms(trained: Path, tmp_path: Path) -> None:
    matrix = matrix_of(trained)
    write_imatrix(matrix, tmp_path / "m.gguf")
    entries = b"".join(
        struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 40, sums.size)
        + (sums / 512 * 40).astype("<f4").tobytes()
        for name, sums in matrix.sums.items()
    )  # fmt: skip
    legacy = struct.pack("<i", len(matrix.sums)) + entries + struct.pack("<ii", 40, 12) + b"clinic.jsonl"
    (tmp_path / "m.dat").write_bytes(legacy)
    for name in ("m.gguf", "m.dat"):
        again = read_imatrix(tmp_path / name)
        assert (again.datasets, again.chunk_count) == (["clinic.jsonl"], 40)
        for tensor, weights in matrix.weights().items():
            numpy.testing.assert_allclose(again.weights()[tensor], weights, rtol=1e-6)


def test_a_matrix_changes_the_file_and_is_named_in_it(
    llama: LlamaProcess, trained: Path, tmp_path: Path
) -> None:
    write_imatrix(matrix_of(trained), tmp_path / "clinic.gguf")
    (plain,) = quantized(trained, "Q4_K_M", tmp_path / "plain", llama)
    weighted, very_small = quantized(
        trained,
        "Q4_K_M,Q2_K_S",
        tmp_path / "weighted",
        llama,
        QuantizeOptions(imatrix=tmp_path / "clinic.gguf"),
    )
    assert weighted.imatrix == "clinic.gguf"
    assert very_small.tensor_types["Q2_K"] > 20
    metadata = read_header(weighted.path).metadata
    assert metadata["quantize.imatrix.file"] == "clinic.gguf"
    assert metadata["quantize.imatrix.dataset"] == "clinic.jsonl"
    assert metadata["quantize.imatrix.entries_count"] == 56
    assert metadata["quantize.imatrix.chunks_count"] == 40
    plain_data, weighted_data = plain.path.read_bytes(), weighted.path.read_bytes()
    assert plain_data[-3_000_000:] != weighted_data[-3_000_000:]


FOREIGN: dict[str, tuple[Callable[[ImportanceMatrix], object], str]] = {
    "a tensor more": (
        lambda m: m.sums.update({"blk.99.attn_q.weight": m.sums["blk.0.attn_q.weight"]}),
        "blk.99",
    ),
    "a layer less": (lambda m: m.sums.pop("blk.7.ffn_up.weight"), r"nothing for blk\.7\.ffn_up\.weight"),
    "another width": (
        lambda m: m.sums.update({"blk.0.attn_q.weight": numpy.ones((1, 128), numpy.float32)}),
        "128 numbers for blk.0.attn_q.weight, which needs 256",
    ),
}


@pytest.mark.parametrize("fault", FOREIGN)
def test_a_matrix_of_another_model_is_refused(fault: str, trained: Path) -> None:
    change, message = FOREIGN[fault]
    matrix = matrix_of(trained)
    check_belongs(matrix, Path("m.gguf"), [read_header(trained)])
    change(matrix)
    with pytest.raises(
        ModelUnsupported, match=rf"m\.gguf was made for another model than {trained.name}.*{message}"
    ):
        check_belongs(matrix, Path("m.gguf"), [read_header(trained)])


def test_a_damaged_matrix_is_refused(trained: Path, tmp_path: Path) -> None:
    matrix = matrix_of(trained)
    path = tmp_path / "m.gguf"
    write_imatrix(matrix, path)
    with pytest.raises(UsageError, match="exists"):
        write_imatrix(matrix, path)
    whole = path.read_bytes()
    for damage, kind in (
        (whole[:-5000], ModelCorrupt),
        (b"\x05\0\0\0garbage", ModelCorrupt),
        (b"", EdgemedError),
    ):
        path.write_bytes(damage)
        with pytest.raises(kind, match=r"m\.gguf"):
            read_imatrix(path)
    matrix.sums["blk.0.attn_q.weight"][0, 3] = math.nan
    write_imatrix(matrix, path, replace=True)
    with pytest.raises(ModelCorrupt, match=r"blk\.0\.attn_q\.weight has numbers that are no sums"):
        read_imatrix(path)
    with pytest.raises(ModelUnsupported, match="no importance matrix"):
        read_imatrix(trained)


# Collecting.


def write_lines(path: Path, lines: list[object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_matrix_is_collected_on_chats_of_every_shape(
    llama: LlamaProcess, tiny: Path, tmp_path: Path
) -> None:
    answer = CLINICAL * 4
    shapes: list[object] = [
        {"question": "What now?", "answer": answer, "source": "ignored"},
        {"instruction": "Answer truthfully", "input": "What now?", "output": answer},
        {"prompt": "What now?", "completion": answer},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What now?"},
                      {"role": "assistant", "content": answer}]},
        {"text": answer},
    ]  # fmt: skip
    data = write_lines(tmp_path / "clinic.jsonl", shapes * 8)
    report = collect_imatrix(tiny, data, tmp_path / "tiny.imatrix.gguf", process=llama, chunks=24)
    assert (report.examples, report.chunks, report.matrices) == (40, 24, 14)
    assert report.chat_formatted
    matrix = read_imatrix(report.path)
    assert {float(counts[0]) for counts in matrix.counts.values()} == {24 * 512.0}
    assert (matrix.datasets, matrix.chunk_count, matrix.model) == (["clinic.jsonl"], 24, "tiny-F32.gguf")
    (file,) = quantized(tiny, "IQ4_NL", tmp_path, llama, QuantizeOptions(imatrix=report.path))
    assert file.holds_its_type


BAD_LINES = {
    "not json": ("{", "it is not JSON"),
    "no object": ("[1]", "no JSON object"),
    "other fields": ('{"frage": "?"}', "its fields are 'frage'"),
    "empty answer": ('{"question": "?", "answer": " "}', "'answer' is empty"),
    "a number": ('{"prompt": "?", "completion": 3}', "'completion' is no text"),
    "no messages": ('{"messages": []}', "no list of messages"),
    "a role": ('{"messages": [{"role": "nurse", "content": "x"}]}', "a message needs a role"),
    "not UTF-8": ('{"text": "\udcff"}', "not UTF-8"),
}


@pytest.mark.parametrize("fault", BAD_LINES)
def test_a_bad_line_is_named_by_file_and_number(fault: str, tmp_path: Path) -> None:
    line, message = BAD_LINES[fault]
    data = tmp_path / "clinic.jsonl"
    data.write_bytes(f'\ufeff{{"text": "good"}}\n\n{line}\n'.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=rf"clinic\.jsonl, line 3: .*{message}"):
        list(read_examples(data))


def test_a_template_that_refuses_a_chat_names_the_line(llama: LlamaProcess, tmp_path: Path) -> None:
    strict = "{% if messages[-1].content == 'y' %}{{ raise_exception('no y') }}{% endif %}{{ messages[0].content }}"
    model = write_tiny_llama(tmp_path / "strict.gguf", chat_template=strict)
    chats: list[object] = [{"question": "A?", "answer": "B."}] * 2
    chats.append({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]})
    data = write_lines(tmp_path / "clinic.jsonl", chats)
    with pytest.raises(
        UsageError, match=r"clinic\.jsonl, line 3: the model's chat template refuses it: .*no y"
    ):
        collect_imatrix(model, data, tmp_path / "m.gguf", process=llama)


def test_too_little_text_is_refused_with_what_is_enough(
    llama: LlamaProcess, tiny: Path, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "clinic.jsonl", [{"question": "A?", "answer": CLINICAL * 3}] * 10)
    with pytest.raises(UsageError, match=r"clinic\.jsonl is too little text: .* of the 10,240") as caught:
        collect_imatrix(tiny, data, tmp_path / "m.gguf", process=llama)
    assert f"{MINIMUM_CHUNKS} chunks of 512 tokens" in caught.value.hint
    assert not (tmp_path / "m.gguf").exists()


# Divergence.


def test_a_divergence_is_what_its_formula_says() -> None:
    """Two tokens, three fourths against one half: KL = 0.75 ln 1.5 + 0.25 ln 0.5."""
    parent = numpy.log(numpy.array([[0.75, 0.25], [0.5, 0.5]], numpy.float32)) + 3
    other = numpy.log(numpy.array([[0.5, 0.5], [0.25, 0.75]], numpy.float32)) - 7
    compared = compare_logits(parent, other, [1, 0])
    assert compared.kl == pytest.approx(
        [0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.5 * math.log(4 / 3)], rel=1e-5
    )
    assert numpy.exp(-compared.nll) == pytest.approx([0.5, 0.25])
    assert numpy.exp(-compared.parent_nll) == pytest.approx([0.25, 0.5])
    assert compared.same_choice.tolist() == [True, False]


def test_a_smaller_file_is_farther_from_its_parent(
    llama: LlamaProcess, trained: Path, tmp_path: Path
) -> None:
    text = (
        "".join(f"Question: What is {name}?\nAnswer: {CLINICAL}\n" for name in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        * 2
    )
    files = quantized(trained, "Q8_0,Q4_K_M,Q2_K", tmp_path, llama)
    with DivergenceMeter(trained, text, windows=2, threads=2) as meter:
        itself = meter.measure(trained)
        measured = [meter.measure(file.path) for file in files]
    assert (itself.mean_kl, itself.max_kl, itself.top1_agreement) == (0, 0, 1)
    assert itself.perplexity == itself.parent_perplexity
    assert itself.positions == 2 * 255
    assert 0 < measured[0].mean_kl < 0.005 < measured[1].mean_kl < measured[2].mean_kl
    assert measured[0].top1_agreement > measured[2].top1_agreement
    worst = measured[2].worst
    assert worst.kl == measured[2].max_kl > measured[2].kl_99 > measured[2].median_kl
    assert worst.before + worst.text in text


def test_files_that_cannot_be_compared_are_refused(trained: Path, tiny: Path) -> None:
    with (
        DivergenceMeter(tiny, CLINICAL * 20, threads=1) as meter,
        pytest.raises(ModelUnsupported, match="vocabulary"),
    ):
        meter.measure(trained)
    with pytest.raises(UsageError, match="at least 1,024 are needed"):
        DivergenceMeter(tiny, CLINICAL, threads=1)


# llama.cpp's own programs as the reference.


def run_tool(name: str, *arguments: object) -> str:
    """Run one of llama.cpp's programs of the same version; return what it printed, or skip the test."""
    folder = os.environ.get("EDGEMED_LLAMA_CPP_TOOLS")
    if folder is None:
        pytest.skip("needs llama.cpp's own programs: name their folder in EDGEMED_LLAMA_CPP_TOOLS")
    command = [str(Path(folder) / name), *map(str, arguments)]
    # Threads that spin for each other take many times as long next to other work.
    environment = {**os.environ, "GOMP_SPINCOUNT": "100"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280, env=environment)
    return done.stdout + done.stderr


def medical_text(rows: int) -> str:
    lines = lzma.decompress(shared_path("data", "medquad.jsonl.xz").read_bytes()).decode().splitlines()
    pairs = [json.loads(line) for line in lines[:: len(lines) // rows]]
    # llama.cpp's programs read a backslash as the beginning of an escape.
    return "\n\n".join(f"{pair['question']}\n{pair['answer']}" for pair in pairs).replace("\\", "/").strip()


def tensor_bytes(path: Path) -> dict[str, tuple[str, bytes]]:
    data = path.read_bytes()
    return {
        tensor.name: (tensor.type_name, data[tensor.offset : tensor.offset + tensor.size_bytes])
        for tensor in read_header(path).tensors
    }


@pytest.mark.slow
@pytest.mark.parametrize("with_matrix", [False, True])
def test_files_are_byte_for_byte_those_of_llama_quantize(
    with_matrix: bool, llama: LlamaProcess, trained: Path, tmp_path: Path
) -> None:
    matrix = tmp_path / "clinic.gguf"
    write_imatrix(matrix_of(trained), matrix)
    options = QuantizeOptions(imatrix=matrix if with_matrix else None)
    types = "Q8_0,Q4_K_M,IQ4_XS,IQ2_XS" if with_matrix else "F32,BF16,Q8_0,Q6_K,Q4_K_M,Q4_0,IQ4_XS,TQ1_0"
    for file in quantized(trained, types, tmp_path / "out", llama, options):
        reference = tmp_path / "reference.gguf"
        run_tool(
            "llama-quantize",
            *(("--imatrix", matrix) if with_matrix else ()),
            trained,
            reference,
            file.type_name,
            2,
        )
        assert tensor_bytes(file.path) == tensor_bytes(reference)
        if not with_matrix:
            assert file.path.read_bytes() == reference.read_bytes()


@pytest.mark.slow
def test_a_matrix_is_that_of_llama_imatrix(llama: LlamaProcess, trained: Path, tmp_path: Path) -> None:
    """It keeps the KV cache as F16 and sums in float32: equal to about a thousandth."""
    text = medical_text(120)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    data = write_lines(tmp_path / "text.jsonl", [{"text": text}])
    report = collect_imatrix(trained, data, tmp_path / "ours.gguf", process=llama, chunks=10_000)
    reference = tmp_path / "reference.gguf"
    run_tool(
        "llama-imatrix",
        "-m",
        trained,
        "-f",
        tmp_path / "text.txt",
        "-o",
        reference,
        "-c",
        512,
        "--no-ppl",
        "-t",
        2,
    )
    ours, theirs = read_imatrix(report.path), read_imatrix(reference)
    assert (ours.chunk_count, ours.chunk_size) == (theirs.chunk_count, theirs.chunk_size)
    assert ours.counts == theirs.counts
    assert ours.weights().keys() == theirs.weights().keys()
    for name, weights in theirs.weights().items():
        numpy.testing.assert_allclose(ours.weights()[name], weights, rtol=2e-3)


@pytest.mark.slow
def test_divergences_are_those_of_llama_perplexity_within_3_percent(
    llama: LlamaProcess, trained: Path, tmp_path: Path
) -> None:
    """It keeps the parent's logits in 16 bits and the KV cache as F16."""
    text = medical_text(60)[:30_000].strip()
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    base = tmp_path / "base.kld"
    common = ("-c", 512, "-t", 2, "--kl-divergence-base", base)
    run_tool("llama-perplexity", "-m", trained, "-f", tmp_path / "text.txt", *common)
    files = quantized(trained, "Q8_0,Q4_K_M", tmp_path, llama)
    with DivergenceMeter(trained, text, threads=2) as meter:
        for file in files:
            printed = run_tool("llama-perplexity", "-m", file.path, *common, "--kl-divergence")
            measured = meter.measure(file.path)
            assert measured.mean_kl == pytest.approx(printed_number("Mean    KLD", printed), rel=0.03)
            assert measured.perplexity == pytest.approx(printed_number(r"Mean PPL\(Q\)", printed), rel=0.01)
            assert 100 * measured.top1_agreement == pytest.approx(
                printed_number("Same top p", printed), abs=0.5
            )


def printed_number(label: str, printed: str) -> float:
    found = re.search(label + r" *: *(-?[\d.]+)", printed)
    assert found is not None, printed
    return float(found[1])
