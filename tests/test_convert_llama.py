"""llama.cpp in its own process: exact numbers from it, and one sentence whatever happens to it."""

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from edgemed_convert.errors import AdapterError, LlamaCppError
from edgemed_convert.inspection import inspect_file
from edgemed_convert.llama import connection
from edgemed_convert.llama import process as llama_process
from edgemed_convert.llama.activations import ActivationCollector
from edgemed_convert.llama.process import LlamaProcess

from edgemed.errors import EdgemedError, ModelCorrupt, ModelError, ModelUnsupported, StorageError, UsageError
from tests.gguf_files import CHATML, tiny_vocabulary, write_tiny_adapter, write_tiny_llama

END_OF_TEXT, TURN_START, TURN_END = 266, 267, 268
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def shared_process() -> Iterator[LlamaProcess]:
    with LlamaProcess(threads=1) as process:
        yield process


@pytest.fixture
def llama(shared_process: LlamaProcess, tiny_model: Path) -> LlamaProcess:
    shared_process.load(tiny_model)
    return shared_process


def test_a_model_is_described_as_it_was_written(shared_process: LlamaProcess, tiny_model: Path) -> None:
    loaded = shared_process.load(tiny_model)
    assert loaded.n_vocab == len(tiny_vocabulary())
    assert (loaded.bos, loaded.eos, loaded.add_bos) == (END_OF_TEXT, TURN_END, False)
    assert loaded.eog_ids == [END_OF_TEXT, TURN_END]
    assert loaded.chat_template == CHATML
    assert (loaded.trained_context_length, loaded.context_length) == (512, 2048)


def test_control_tokens_are_read_only_where_they_are_wanted(llama: LlamaProcess) -> None:
    texts = ["the", "<|im_end|>", "", "é\x00🩺"]
    plain = llama.tokenize(texts)
    assert plain[0] == [tiny_vocabulary().index("t"), tiny_vocabulary().index("he")]
    assert len(plain[1]) == len("<|im_end|>")
    assert plain[2] == []
    assert llama.tokenize(texts, parse_special=True)[1] == [TURN_END]
    table = llama.token_attributes()
    assert b"".join(table.pieces[token] for token in plain[3]) == "é\x00🩺".encode()
    assert table.is_control.nonzero()[0].tolist() == [END_OF_TEXT, TURN_START, TURN_END]
    assert table.is_eog.nonzero()[0].tolist() == [END_OF_TEXT, TURN_END]


def test_logits_do_not_depend_on_what_was_read_before_or_on_where_they_begin(llama: LlamaProcess) -> None:
    ids = [number % 256 for number in range(700)]  # more than one batch
    whole = llama.logits(ids)
    assert whole.shape == (700, len(tiny_vocabulary()))
    assert numpy.isfinite(whole).all()
    llama.logits([5, 4, 3])
    numpy.testing.assert_array_equal(llama.logits(ids, start=600), whole[600:])
    parts = list(llama.logits_in_parts(ids))
    numpy.testing.assert_array_equal(numpy.concatenate(parts), whole)


def test_greedy_words_are_the_likeliest_one_by_one(llama: LlamaProcess) -> None:
    ids = llama.tokenize(["What is malaria?"])[0]
    expected: list[int] = []
    while len(expected) < 12 and (not expected or expected[-1] not in (END_OF_TEXT, TURN_END)):
        expected.append(int(llama.logits([*ids, *expected])[-1].argmax()))
    assert llama.greedy(ids, 12) == expected


def test_an_adapter_changes_the_numbers_by_its_scale(
    shared_process: LlamaProcess, tiny_model: Path, tmp_path: Path
) -> None:
    adapter = write_tiny_adapter(tmp_path / "adapter.gguf")
    ids = list(range(20))
    shared_process.load(tiny_model)
    base = shared_process.logits(ids)
    shared_process.load(tiny_model, adapter=adapter, adapter_scale=0.0)
    numpy.testing.assert_array_equal(shared_process.logits(ids), base)
    shared_process.load(tiny_model, adapter=adapter)
    assert numpy.abs(shared_process.logits(ids) - base).max() > 0.1


def test_conversations_end_where_the_answer_does(llama: LlamaProcess) -> None:
    turn = [("system", "Be brief."), ("user", "A?"), ("assistant", "B."), ("user", "C?"), ("assistant", "D.")]
    texts, faults = llama.render_chats([turn, [("user", "A?")], [("nurse", "A?")]])
    assert texts[0] is not None
    assert texts[0].endswith("C?<|im_end|>\n<|im_start|>assistant\nD.<|im_end|>")
    assert texts[1] == "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n"
    assert texts[2] is None
    assert len(faults) == 1
    prompts, _ = llama.render_chats([turn[:2]], for_answer=True)
    assert prompts[0] is not None
    assert prompts[0].endswith("<|im_start|>assistant\n")


def test_a_template_without_an_end_is_ended(
    llama: LlamaProcess, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setattr(llama_process, "TOKENIZE_LIMIT_SECONDS", 0.5)
    process_id = llama.process_id
    with pytest.raises(LlamaCppError, match=r"did not answer within 1 s .* tiny\.gguf"):
        llama.render_chats([[("user", "A?")]], template=ENDLESS)
    assert process_id is not None
    assert is_gone(process_id)
    assert llama.load(tiny_model).n_vocab


@pytest.mark.skipif(sys.platform == "win32", reason="stops the process the POSIX way")
def test_a_process_that_is_stuck_is_ended(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_process, "TOKENIZE_LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(connection, "_CLOSE_SECONDS", 0.2)
    with LlamaProcess(threads=1) as llama:
        llama.load(tiny_model)
        process_id = llama.process_id
        assert process_id is not None
        os.kill(process_id, signal.SIGSTOP)
        with pytest.raises(LlamaCppError, match="did not answer within"):
            llama.tokenize(["a"])
        assert is_gone(process_id)


BAD_FILES: dict[str, tuple[type[EdgemedError], str]] = {
    "missing": (StorageError, r"m\.gguf"),
    "cut": (ModelCorrupt, r"m\.gguf is cut short"),
    "text": (ModelCorrupt, r"m\.gguf is not a GGUF file"),
    "architecture": (ModelUnsupported, r"does not know the architecture of m\.gguf: .*'nonsense'"),
    "no weights": (ModelCorrupt, r"llama\.cpp cannot load m\.gguf: .*token_embd"),
    "no vocabulary": (ModelUnsupported, r"m\.gguf has no vocabulary"),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_bad_file_is_one_sentence_and_the_process_goes_on(
    fault: str, shared_process: LlamaProcess, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    match fault:
        case "cut":
            path.write_bytes(tiny_model.read_bytes()[:-1000])
        case "text":
            path.write_text("hello there")
        case "architecture":
            write_tiny_llama(path, architecture="nonsense")
        case "no weights":
            write_tiny_llama(path, weights=False)
        case "no vocabulary":
            write_tiny_llama(path, vocabulary=False)
    kind, message = BAD_FILES[fault]
    with pytest.raises(kind, match=message):
        shared_process.load(path)
    assert shared_process.load(tiny_model).n_vocab


def test_a_vocabulary_alone_tokenizes_and_computes_nothing(
    shared_process: LlamaProcess, tiny_model: Path, tmp_path: Path
) -> None:
    path = write_tiny_llama(tmp_path / "vocabulary.gguf", weights=False)
    assert shared_process.load(path, vocabulary_only=True).n_vocab == len(tiny_vocabulary())
    assert shared_process.tokenize(["<|im_end|>"], parse_special=True) == [[TURN_END]]
    with pytest.raises(LlamaCppError, match="vocabulary alone"):
        shared_process.logits([1, 2])


def test_an_adapter_of_another_base_is_refused_by_name(
    shared_process: LlamaProcess, tiny_model: Path, tmp_path: Path
) -> None:
    other = write_tiny_adapter(tmp_path / "other.gguf", embedding_length=32)
    for adapter in (other, tiny_model):
        with pytest.raises(AdapterError, match=rf"{adapter.name} is no adapter for tiny\.gguf: .+"):
            shared_process.load(tiny_model, adapter=adapter)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "no tokens"), ([1] * 3000, "3,000 tokens do not fit"), ([1, 999], "no token 999")],
)
def test_tokens_that_cannot_be_read_are_a_wrong_use(
    ids: list[int], message: str, llama: LlamaProcess
) -> None:
    with pytest.raises(UsageError, match=message):
        llama.logits(ids)


def test_a_killed_process_is_told_of_and_replaced(tiny_model: Path) -> None:
    with LlamaProcess(threads=1) as llama:
        llama.load(tiny_model)
        process_id = llama.process_id
        assert process_id is not None
        os.kill(process_id, getattr(signal, "SIGKILL", signal.SIGTERM))
        with pytest.raises(LlamaCppError, match=r"died while it worked on tiny\.gguf: .+"):
            llama.logits([1, 2, 3])
        assert is_gone(process_id)
        with pytest.raises(LlamaCppError, match="No model is loaded"):
            llama.logits([1, 2, 3])
        assert llama.load(tiny_model).n_vocab


def test_an_abort_inside_llama_cpp_is_told_of_in_its_own_words(tiny_model: Path, tmp_path: Path) -> None:
    """llama.cpp aborts on a vocabulary that holds a token twice."""
    path = tmp_path / "twice.gguf"
    first, second = (struct.pack("<Q", 2) + text for text in (b"he", b"in"))
    data = tiny_model.read_bytes()
    assert data.count(first) == data.count(second) == 1
    path.write_bytes(data.replace(second, first))
    with LlamaProcess(threads=1) as llama:
        with pytest.raises(LlamaCppError, match=r"worked on twice\.gguf: it crashed .*GGML_ASSERT.*failed"):
            llama.load(path)
        assert llama.load(tiny_model).n_vocab
    assert "The token 'he' stands in the vocabulary twice" in inspect_file(path).remarks[0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not let a mapped file be cut")
def test_a_crash_inside_llama_cpp_is_told_of(tmp_path: Path) -> None:
    """llama.cpp reads weights where they lie; a file cut under it ends its process with SIGBUS."""
    path = write_tiny_llama(tmp_path / "model.gguf")
    with LlamaProcess(threads=1) as llama:
        llama.load(path)
        os.truncate(path, 4096)
        with pytest.raises(LlamaCppError, match=r"worked on model\.gguf: the model file was changed"):
            llama.logits([1, 2, 3])


@pytest.mark.skipif(sys.platform == "win32", reason="looks for the process the POSIX way")
def test_the_process_ends_with_the_tool_even_in_the_middle_of_work(tiny_model: Path) -> None:
    program = (
        "import os, sys, threading, time\n"
        "from pathlib import Path\n"
        "from edgemed_convert.llama.process import LlamaProcess\n"
        "llama = LlamaProcess(threads=1)\n"
        "llama.load(Path(sys.argv[1]))\n"
        "print(llama.process_id, flush=True)\n"
        "threading.Thread(target=lambda: [llama.logits([1] * 2000) for _ in range(1000)], daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "os._exit(1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_model)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=60,
    )
    process_id = int(done.stdout)
    until = time.monotonic() + 20
    while not has_ended(process_id) and time.monotonic() < until:
        time.sleep(0.05)
    assert has_ended(process_id)


def test_a_reader_that_leaves_in_the_middle_leaves_no_process_computing(tiny_model: Path) -> None:
    with LlamaProcess(threads=1) as llama:
        llama.load(tiny_model)
        process_id = llama.process_id
        parts = llama.logits_in_parts([1] * 2000)
        next(parts)
        parts.close()  # type: ignore[attr-defined]
        assert process_id is not None
        assert is_gone(process_id)
        assert llama.load(tiny_model).n_vocab


def test_activation_sums_are_those_of_the_layers_inputs(tmp_path: Path) -> None:
    """The query matrix of the first layer is fed the normalized embeddings: computed here with numpy."""
    import gguf

    path = write_tiny_llama(tmp_path / "tiny.gguf")
    embeddings = next(t.data for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    chunks = [[number % 250 for number in range(start, start + 64)] for start in (0, 7)]
    with LlamaProcess(threads=1) as llama:
        llama.load(path)
        sums = llama.collect_imatrix(chunks)
        assert llama.tokenize(["e"])  # the model is there again afterwards
    fed = embeddings[[token for chunk in chunks for token in chunk]].astype(numpy.float64)
    fed /= numpy.sqrt((fed**2).mean(axis=1, keepdims=True) + 1e-5)
    values, rows = sums["blk.0.attn_q.weight"]
    assert rows == 128
    numpy.testing.assert_allclose(values, (fed**2).sum(axis=0), rtol=1e-4)
    assert len(sums) == 2 * 7
    assert sums["blk.1.ffn_down.weight"][0].shape == (128,)


def test_a_llama_cpp_with_another_tensor_layout_is_refused() -> None:
    class OtherGGML:
        @staticmethod
        def ggml_tensor_overhead() -> int:
            return 32 + 400

    ggml: Any = OtherGGML()
    for name in ("ggml_op_name", "ggml_get_name", "ggml_get_data", "ggml_nrows"):
        setattr(ggml, name, lambda _value: b"")
    with pytest.raises(LlamaCppError, match="lays out its tensors in another way"):
        ActivationCollector(ggml, lambda function: function)


def test_closing_twice_is_no_error(tiny_model: Path) -> None:
    llama = LlamaProcess(threads=1)
    llama.close()
    llama.load(tiny_model)
    llama.close()
    llama.close()
    assert llama.process_id is None


def test_errors_of_the_process_arrive_as_what_they_are(shared_process: LlamaProcess, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tensor type Q9"):
        shared_process.load(write_tiny_llama(tmp_path / "m.gguf"), kv_type="Q9")
    with pytest.raises(ModelError):
        shared_process.load(write_tiny_llama(tmp_path / "n.gguf", weights=False))


def is_gone(process_id: int) -> bool:
    """Whether no process has this id: a zombie that nobody waited for is there still."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    return False


def has_ended(process_id: int) -> bool:
    """Whether it computes no more; whoever adopted it may not have waited for it."""
    state = Path(f"/proc/{process_id}/stat")
    return is_gone(process_id) or (state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")
