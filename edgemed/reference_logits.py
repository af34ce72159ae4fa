"""Reference logits: what a model's next-token distributions were on the engineers' machine.

A hash says that the bytes are those that the engineers tested; this says that they behave so here: a wrong
chat template, a broken kernel or a bad memory module changes the distributions, not the file. Written by
`edgemed-bench reference`, carried in a pack, compared by the benchmarks' fidelity suite.

The file also says how long the model's answers are: a benchmark tells before it starts how long it will take,
and a slow machine would need minutes to find out.

Of each position the most probable tokens are kept, and one number for all others: the divergence of such a
distribution is never larger than the true one (docs/experiments.md has by how much it is smaller).
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

import msgspec

from edgemed.engine.messages import ChatMessage, Distributions
from edgemed.errors import ModelCorrupt, StorageError
from edgemed.manifest import MANIFEST_NAME, REFERENCE_LOGITS_NAME, encode_manifest, read_manifest
from edgemed.operating_system import write_atomically
from edgemed.records import Suite

TOP_TOKENS = 32
MEAN_KL_LIMIT_NATS = 2e-3
"""Four times what kernels of other processors make of the same file, a fifth of what the nearest smaller
quantization does. It does not tell F16 from Q8_0; the hash does (docs/experiments.md)."""
_STEPS_PER_NAT = 2048
"""Log-probabilities are kept in steps of 1/2048 nat, from 0 down to -32."""
_LEAST = 65535
_LARGEST_BYTES = 64 * 2**20


class ReferenceText(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question with an answer, and what the model gave for each token of the answer."""

    question: str
    answer: str
    token_ids: bytes
    """Little-endian 32-bit integers: the conversation by the app's template, then the answer."""
    first: Annotated[int, msgspec.Meta(ge=0)]
    """Index of the first token whose successor is told: the last before the answer."""
    ids: bytes
    """Little-endian 32-bit integers, `top` for each position."""
    log_probabilities: bytes
    """Little-endian 16-bit integers in steps of -1/2048 nat, `top` for each position."""


class ReferenceLogits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All reference texts of one model."""

    schema_version: Literal[1] = 1
    model_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    """Of the file that gave these distributions."""
    edgemed_version: str
    llama_cpp_version: str
    top: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    texts: Annotated[list[ReferenceText], msgspec.Meta(min_length=1)]
    answer_tokens: dict[Suite, list[Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]]] = {}
    """Lengths of the answers that the model wrote, greedily, to questions of the benchmarks' suites."""


class TextFidelity(NamedTuple):
    """How far one text's distributions are from the reference."""

    tokens_equal: bool
    """The template and the tokenizer gave the same ids; if not, nothing else can be compared."""
    positions: int
    mean_kl_nats: float | None
    max_kl_nats: float | None
    same_top_share: float | None
    """Share of positions with the same most probable token."""


class DistributionEngine(Protocol):
    """What this module needs of the engine."""

    def distributions(
        self,
        *,
        messages: Sequence[ChatMessage] = (),
        answer: str = "",
        token_ids: Sequence[int] | None = None,
        first: int | None = None,
        top: int = 32,
        wanted: Sequence[Sequence[int]] | None = None,
    ) -> Distributions:
        """See `engine.client.ChildEngine.distributions`."""


def make_text(
    engine: DistributionEngine,
    opening: Sequence[ChatMessage],
    question: str,
    answer: str,
    *,
    top: int = TOP_TOKENS,
) -> ReferenceText:
    """Return what the loaded model gives for each token of `answer` to `question`.

    Raises:
        UsageError: both together are too long for the context.
        EngineError: the engine failed.
    """
    messages = [*opening, ChatMessage("user", question)]
    told = engine.distributions(messages=messages, answer=answer, top=top)
    steps = [
        min(_LEAST, round(-value * _STEPS_PER_NAT))
        for position in told.positions
        for value in position.log_probabilities
    ]
    ids = [token for position in told.positions for token in position.ids]
    return ReferenceText(
        question=question,
        answer=answer,
        token_ids=_packed(told.token_ids),
        first=told.first,
        ids=_packed(ids),
        log_probabilities=struct.pack(f"<{len(steps)}H", *steps),
    )


def compare_text(
    engine: DistributionEngine, opening: Sequence[ChatMessage], text: ReferenceText, top: int
) -> TextFidelity:
    """Return how far the loaded model's distributions are from the reference, here and now.

    Raises:
        ModelCorrupt: the reference contradicts itself.
        UsageError: the text is too long for the context, or the model has a smaller vocabulary.
        EngineError: the engine failed.
    """
    expected = _unpacked(text.token_ids)
    ids, log_probabilities = _positions(text, top)
    messages = [*opening, ChatMessage("user", text.question)]
    told = engine.distributions(messages=messages, answer=text.answer, top=1)
    if told.token_ids != expected or told.first != text.first:
        return TextFidelity(False, 0, None, None, None)
    told = engine.distributions(token_ids=expected, first=text.first, wanted=ids)
    divergences = [
        divergence(reference, position.log_probabilities)
        for reference, position in zip(log_probabilities, told.positions, strict=True)
    ]
    same = sum(wanted[0] == position.best for wanted, position in zip(ids, told.positions, strict=True))
    return TextFidelity(
        True,
        len(divergences),
        sum(divergences) / len(divergences),
        max(divergences),
        same / len(divergences),
    )


def divergence(reference: Sequence[float], found: Sequence[float]) -> float:
    """Return the Kullback-Leibler divergence in nats of two distributions over some tokens and all others.

    Args:
        reference: log-probabilities of the tokens that are told of, in nats.
        found: those of the same tokens in the other distribution.
    """
    total = sum(math.exp(one) * (one - other) for one, other in zip(reference, found, strict=True))
    rest = max(1.0 - sum(map(math.exp, reference)), 0.0)
    if rest > 1e-9:
        total += rest * math.log(rest / max(1.0 - sum(map(math.exp, found)), 1e-12))
    return max(0.0, total)


def encode_reference(reference: ReferenceLogits) -> bytes:
    """Return the bytes of a reference file."""
    return zlib.compress(msgspec.msgpack.encode(reference), 9)


def read_reference(path: Path) -> ReferenceLogits:
    """Read a reference file.

    Raises:
        ModelCorrupt: it cannot be read or is damaged.
    """
    hint = "Copy the model from the kit again."
    try:
        decompressor = zlib.decompressobj()
        data = decompressor.decompress(path.read_bytes(), _LARGEST_BYTES)
        if not decompressor.eof:
            raise ModelCorrupt(f"The reference logits {path} are cut off or too large.", hint=hint)
        reference = msgspec.msgpack.decode(data, type=ReferenceLogits)
        for text in reference.texts:
            _positions(text, reference.top)
    except OSError as error:
        raise ModelCorrupt(
            f"The reference logits {path} cannot be read: {error.strerror}.", hint=hint
        ) from error
    except (zlib.error, msgspec.DecodeError) as error:
        raise ModelCorrupt(f"The reference logits {path} are damaged: {error}.", hint=hint) from error
    return reference


def add_to_pack(folder: Path, reference: ReferenceLogits) -> Path:
    """Write the reference into a pack and name it in the pack's manifest; return the file.

    Raises:
        ModelCorrupt: the folder is no pack, or the reference is of another model.
        StorageError: the folder cannot be written.
    """
    manifest = read_manifest(folder / MANIFEST_NAME)
    if manifest.sha256 != reference.model_sha256:
        raise ModelCorrupt(
            f"These reference logits are of another model than the pack {folder.name}.",
            hint="Make them from the pack itself.",
        )
    data = encode_reference(reference)
    path = folder / REFERENCE_LOGITS_NAME
    named = msgspec.structs.replace(manifest, reference_logits_sha256=hashlib.sha256(data).hexdigest())
    try:
        write_atomically(path, data)
        write_atomically(folder / MANIFEST_NAME, encode_manifest(named))
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", hint="Copy the pack first."
        ) from error
    return path


def _positions(text: ReferenceText, top: int) -> tuple[list[list[int]], list[list[float]]]:
    tokens = len(text.token_ids) // 4
    count = tokens - text.first
    if (
        len(text.token_ids) % 4
        or count < 1
        or len(text.ids) != 4 * top * count
        or len(text.log_probabilities) != 2 * top * count
    ):
        raise ModelCorrupt(
            "The reference logits contradict themselves: their lists differ in length.",
            hint="Copy the model from the kit again.",
        )
    ids = _unpacked(text.ids)
    steps = struct.unpack(f"<{top * count}H", text.log_probabilities)
    starts = range(0, top * count, top)
    return (
        [ids[start : start + top] for start in starts],
        [[-step / _STEPS_PER_NAT for step in steps[start : start + top]] for start in starts],
    )


def _packed(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}i", *ids)


def _unpacked(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 4}i", data))
