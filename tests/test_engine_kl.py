"""Our Kullback-Leibler divergence is llama-perplexity's. Optional: needs llama.cpp's own programs.

`EDGEMED_LLAMA_CPP_TOOLS` names the folder with llama-perplexity and llama-quantize (docs/benchmarks.md).
"""

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest

from edgemed import models
from edgemed.engine.client import ChildEngine
from edgemed.engine.llama import Llama
from edgemed.engine.messages import LoadRequest
from edgemed.engine.probabilities import text_ids
from edgemed.engine.threads import FixedThreads
from edgemed.manifest import Sampling
from edgemed.reference_logits import divergence
from tests.shared_material import shared_path

TOOLS = os.environ.get("EDGEMED_LLAMA_CPP_TOOLS")
CHUNK_TOKENS = 512
CHUNKS = 4


def test_the_divergence_is_that_of_llama_perplexity_within_3_percent(tmp_path: Path) -> None:
    if TOOLS is None:
        pytest.skip("EDGEMED_LLAMA_CPP_TOOLS does not name llama.cpp's own programs")
    parent = models.find_model(None).path
    text = tmp_path / "text.txt"
    text.write_text(_text(), encoding="utf-8")
    child = tmp_path / "child-Q4_K_M.gguf"
    _run("llama-quantize", "--allow-requantize", parent, child, "Q4_K_M", "1")
    options = [
        "-f",
        text,
        "-c",
        CHUNK_TOKENS,
        "--chunks",
        CHUNKS,
        "-t",
        1,
        "--kl-divergence-base",
        tmp_path / "base",
    ]
    _run("llama-perplexity", "-m", parent, *options)
    said = _run("llama-perplexity", "-m", child, *options, "--kl-divergence")
    theirs = float(re.findall(r"Mean\s+KLD:\s+([0-9.]+)", said)[0])
    their_same_top = float(re.findall(r"Same top p:\s+([0-9.]+)", said)[0]) / 100

    chunks = _chunks(parent, text.read_text(encoding="utf-8"))
    found, same = [], []
    one, other = _engine(parent, tmp_path), _engine(child, tmp_path)
    try:
        for ids in chunks:
            first = CHUNK_TOKENS // 2
            # The whole vocabulary: 32 tokens alone see 0.77 of the divergence of this small model.
            reference = one.distributions(token_ids=ids, first=first, top=10**6).positions[:-1]
            wanted = [*(position.ids for position in reference), [0]]
            for mine, its in zip(
                reference,
                other.distributions(token_ids=ids, first=first, wanted=wanted).positions,
                strict=False,
            ):
                found.append(divergence(mine.log_probabilities, its.log_probabilities))
                same.append(mine.best == its.best)
    finally:
        one.close()
        other.close()
    assert len(found) == CHUNKS * (CHUNK_TOKENS // 2 - 1)
    assert sum(found) / len(found) == pytest.approx(theirs, rel=0.03)
    assert sum(same) / len(same) == pytest.approx(their_same_top, abs=0.01)


def _text() -> str:
    import json
    import lzma

    with lzma.open(shared_path("data/medquad.jsonl.xz"), "rt", encoding="utf-8") as lines:
        return "\n\n".join(json.loads(line)["answer"] for line, _count in zip(lines, range(60), strict=False))


def _chunks(path: Path, text: str) -> list[list[int]]:
    stop = (ctypes.c_uint8 * 2)()
    llama = Llama(_request(path, path.parent), FixedThreads(1), ctypes.addressof(stop), plain_kernels=False)
    ids = text_ids(llama, text)
    return [ids[start * CHUNK_TOKENS : (start + 1) * CHUNK_TOKENS] for start in range(CHUNKS)]


def _engine(path: Path, folder: Path) -> ChildEngine:
    return ChildEngine(_request(path, folder), Sampling(temperature=0))


def _request(path: Path, folder: Path) -> LoadRequest:
    return LoadRequest(
        model_path=str(path),
        model_sha256="0" * 64,
        context_length=CHUNK_TOKENS,
        threads=1,
        chat_template="{{ messages[0].content }}",
        prefix_states_folder=str(folder / "prefixes"),
        kernels_file=str(folder / "kernels.json"),
    )


def _run(program: str, *arguments: object) -> str:
    assert TOOLS is not None
    done = subprocess.run(
        [str(Path(TOOLS) / program), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr
