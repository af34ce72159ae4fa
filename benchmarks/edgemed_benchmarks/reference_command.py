"""The command reference: what the engineers' model gives, for the pack that goes to the clinics."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgemed.errors import StorageError, UsageError
from edgemed.operating_system import write_atomically
from edgemed.records import Item
from edgemed.reference_logits import ReferenceLogits, add_to_pack, encode_reference
from edgemed.session import open_session
from edgemed_benchmarks import suite_fidelity
from edgemed_benchmarks.item_files import ItemSuite, shipped_sets
from edgemed_benchmarks.run_settings import ANSWERED_SUITES, free_items

_MOST_ANSWERS = 1000


class Made(NamedTuple):
    """What was written."""

    path: Path
    texts: int
    positions: int
    size_bytes: int
    model_sha256: str


def make_reference(
    model_name: str | None,
    out: Path | None,
    *,
    pack: Path | None = None,
    texts: int = suite_fidelity.DEFAULT_TEXTS,
    answers: int = suite_fidelity.DEFAULT_ANSWERS,
    threads: int | None = None,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _what: None,
) -> Made:
    """Write the reference logits of a model: its distributions over our own questions' reference answers.

    Args:
        model_name: as `session.open_session` takes it; not with a pack.
        out: the file; not with a pack.
        pack: a pack's folder, which takes the file up and names it in its manifest.
        texts: number of reference answers that are read.
        answers: number of answers of each suite that are written, to learn how long they are.

    Raises:
        UsageError: `texts` or `answers` is out of range, or it is not clear where to write.
        EdgemedError: as `session.open_session` and the engine say.
        StorageError: the file cannot be written.
    """
    items = [item for item in _shipped("quality") if item.references]
    if not 1 <= texts <= len(items):
        raise UsageError(f"--texts must be from 1 to {len(items)}, not {texts}.")
    if not 0 <= answers <= _MOST_ANSWERS:
        raise UsageError(f"--answers must be from 0 to {_MOST_ANSWERS}, not {answers}.")
    if (out is None) == (pack is None) or (pack and model_name):
        raise UsageError(
            "Say where the reference logits go.",
            hint="Either --pack FOLDER, or --model NAME with --out FILE.",
        )
    session = open_session(str(pack) if pack else model_name, threads=threads)
    try:
        session.engine.wait_until_ready()
        reference = suite_fidelity.make_reference(
            session.engine,
            session.model.manifest,
            items[:texts],
            llama_cpp_version=session.engine.llama_cpp_build.partition(" | ")[0],
            progress=lambda done, total: progress(done, total, "texts"),
        )
        if answers:
            lengths = suite_fidelity.usual_answers(
                session.engine,
                session.model.manifest,
                free_items({suite: _shipped(suite) for suite in ANSWERED_SUITES}),
                answers,
                progress=lambda done, total: progress(done, total, "answers"),
            )
            reference = msgspec.structs.replace(reference, answer_tokens=lengths)
    finally:
        session.engine.close()
    path = add_to_pack(pack, reference) if pack else _write(out, reference)
    positions = sum(len(text.token_ids) // 4 - text.first for text in reference.texts)
    return Made(path, texts, positions, path.stat().st_size, reference.model_sha256)


def _shipped(suite: ItemSuite) -> list[Item]:
    return [item for each in shipped_sets(suite) for item in each.items]


def _write(out: Path | None, reference: ReferenceLogits) -> Path:
    assert out is not None
    try:
        write_atomically(out, encode_reference(reference))
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror}.", hint="Check the folder and the disk."
        ) from error
    return out
