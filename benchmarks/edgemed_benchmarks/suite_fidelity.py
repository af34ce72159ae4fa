"""The fidelity suite: is this the model that the engineers tested, and does it behave so on this machine?

Each reference text of the pack is one sample; `edgemed.reference_logits` has the measure and its limit.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence

from edgemed import __version__
from edgemed.errors import QuestionTooLong
from edgemed.manifest import ModelManifest
from edgemed.prompts import opening_messages
from edgemed.records import FidelityResult, Item, Suite, Times
from edgemed.reference_logits import TOP_TOKENS, ReferenceLogits, ReferenceText, compare_text, make_text
from edgemed.session import DEFAULT_MAX_TOKENS
from edgemed_benchmarks.asks import Ask, Work
from edgemed_benchmarks.item_messages import messages_of
from edgemed_benchmarks.outcome import BenchEngine, Outcome, answer_of, greedy

DEFAULT_TEXTS = 40
DEFAULT_ANSWERS = 24
"""Of each suite: their mean is within 10 % of that of all, where lengths differ by half of it."""
LONGEST_SECONDS = 120.0
"""Of the whole suite: what is asked is answered within two minutes."""
_READINGS = 2
"""A text is read twice, from its beginning: for its token ids, and for its distributions."""


def asks(reference: ReferenceLogits) -> list[Ask]:
    """Return one ask for each reference text."""
    return [Ask("fidelity", f"text:{index}") for index in range(len(reference.texts))]


def text_of(reference: ReferenceLogits, ask: Ask) -> ReferenceText:
    """Return the text that an ask means."""
    return reference.texts[int(ask.item_id.partition(":")[2])]


def work_of(text: ReferenceText) -> Work:
    """Return what an ask makes the engine do."""
    return Work(0, read_tokens=_READINGS * len(text.token_ids) / 4)


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


def usual_answers(
    engine: BenchEngine,
    manifest: ModelManifest,
    items: Mapping[Suite, Sequence[Item]],
    count: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Suite, list[int]]:
    """Return how many tokens the answers to some questions of each suite have.

    Args:
        items: answered in words.
        count: of each suite, at most.

    Raises:
        EdgemedError: as the engine says.
    """
    chosen = {suite: each[:: max(1, len(each) // count)][:count] for suite, each in items.items()}
    total = sum(map(len, chosen.values()))
    lengths: dict[Suite, list[int]] = {suite: [] for suite in chosen}
    for done, (suite, item) in enumerate((suite, item) for suite, each in chosen.items() for item in each):
        if progress:
            progress(done, total)
        # A question that is too long for this model is not asked in a run either.
        with contextlib.suppress(QuestionTooLong):
            events = engine.measure(
                messages_of(item, manifest),
                max_tokens=DEFAULT_MAX_TOKENS,
                reuse="saved_prefix",
                sampling=greedy(manifest),
            )
            lengths[suite].append(answer_of(events).generated_tokens)
    return {suite: found for suite, found in lengths.items() if found}


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
