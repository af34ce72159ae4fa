"""The fidelity suite: is this the model that the engineers tested, and does it behave so on this machine?

Each reference text of the pack is one sample; `edgemed.reference_logits` has the measure and its limit.
"""

import hashlib
import time
from collections.abc import Callable, Sequence

from edgemed import __version__
from edgemed.manifest import ModelManifest
from edgemed.prompts import opening_messages
from edgemed.records import FidelityResult, Item, Times
from edgemed.reference_logits import TOP_TOKENS, ReferenceLogits, ReferenceText, compare_text, make_text
from edgemed_benchmarks.asks import Ask, Work
from edgemed_benchmarks.outcome import BenchEngine, Outcome

DEFAULT_TEXTS = 40
LONGEST_SECONDS = 120.0
"""Of the whole suite: what is asked is answered within two minutes."""
_READINGS = 2
"""A text is read twice: for its token ids, and for its distributions."""


def asks(reference: ReferenceLogits) -> list[Ask]:
    """Return one ask for each reference text."""
    return [Ask("fidelity", f"text:{index}") for index in range(len(reference.texts))]


def text_of(reference: ReferenceLogits, ask: Ask) -> ReferenceText:
    """Return the text that an ask means."""
    return reference.texts[int(ask.item_id.partition(":")[2])]


def work_of(text: ReferenceText) -> Work:
    """Return what an ask makes the engine do."""
    return Work(_READINGS * (len(text.question) + len(text.answer) + 16))


def sample(engine: BenchEngine, reference: ReferenceLogits, ask: Ask, manifest: ModelManifest) -> Outcome:
    """Compare one text with the reference.

    Raises:
        ModelCorrupt: the reference contradicts itself.
        EdgemedError: as the engine says.
    """
    text = text_of(reference, ask)
    started = time.perf_counter_ns()
    found = compare_text(engine, opening_messages(manifest), text, reference.top)
    return Outcome(
        item_id=ask.item_id,
        prompt_sha256=hashlib.sha256(text.token_ids).hexdigest(),
        prompt_tokens=len(text.token_ids) // 4,
        times=Times(end_ns=time.perf_counter_ns() - started),
        fidelity=FidelityResult(**found._asdict()),
    )


def make_reference(
    engine: BenchEngine,
    manifest: ModelManifest,
    items: Sequence[Item],
    *,
    llama_cpp_version: str,
    progress: Callable[[int, int], None] | None = None,
) -> ReferenceLogits:
    """Return what the loaded model gives for the reference answers of these items.

    Raises:
        EdgemedError: as the engine says.
    """
    texts = []
    for done, item in enumerate(items):
        if progress:
            progress(done, len(items))
        texts.append(make_text(engine, opening_messages(manifest), item.question, item.references[0]))
    return ReferenceLogits(
        model_sha256=manifest.sha256,
        edgemed_version=__version__,
        llama_cpp_version=llama_cpp_version,
        top=TOP_TOKENS,
        texts=texts,
    )
