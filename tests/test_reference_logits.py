"""Reference logits: the same model agrees with them, another does not, and damage is named."""

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgemed import __version__, models, session
from edgemed.engine.client import ChildEngine
from edgemed.engine.messages import ChatMessage
from edgemed.errors import ModelCorrupt
from edgemed.manifest import MANIFEST_NAME, REFERENCE_LOGITS_NAME, read_manifest
from edgemed.prompts import opening_messages
from edgemed.reference_logits import (
    MEAN_KL_LIMIT_NATS,
    ReferenceLogits,
    add_to_pack,
    compare_text,
    divergence,
    encode_reference,
    make_text,
    read_reference,
)
from tests.test_models import pack

__all__ = ["pack"]

ANSWER = " Anaemia means that there are too few red blood cells."


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMED_HOME", str(tmp_path_factory.mktemp("home")))
        opened = session.open_session(context_length=512, threads=1).engine
        yield opened
        opened.close()


def reference(engine: ChildEngine, *, model_sha256: str = "0" * 64) -> ReferenceLogits:
    opening = opening_messages(models.find_model(None).manifest)
    return ReferenceLogits(
        model_sha256=model_sha256,
        edgemed_version=__version__,
        llama_cpp_version="0",
        top=32,
        texts=[make_text(engine, opening, "What is anaemia?", ANSWER)],
    )


def test_a_model_agrees_with_its_own_reference_after_a_trip_through_a_file(
    engine: ChildEngine, tmp_path: Path
) -> None:
    file = tmp_path / REFERENCE_LOGITS_NAME
    file.write_bytes(encode_reference(reference(engine)))
    read = read_reference(file)
    found = compare_text(engine, opening_messages(models.find_model(None).manifest), read.texts[0], read.top)
    assert found.tokens_equal and found.same_top_share == 1.0
    assert found.mean_kl_nats is not None and found.mean_kl_nats < MEAN_KL_LIMIT_NATS / 10
    assert found.positions == len(read.texts[0].token_ids) // 4 - read.texts[0].first


def test_another_system_prompt_or_template_shows_in_the_tokens(engine: ChildEngine) -> None:
    text = reference(engine).texts[0]
    found = compare_text(engine, [ChatMessage("system", "Be brief.")], text, 32)
    assert not found.tokens_equal and found.mean_kl_nats is None


def test_a_model_that_thinks_otherwise_is_beyond_the_limit(engine: ChildEngine) -> None:
    """As after a broken kernel: each step of the kept log-probabilities of one token is moved by a tenth."""
    text = reference(engine).texts[0]
    changed = bytearray(text.log_probabilities)
    for start in range(0, len(changed), 64):
        value = int.from_bytes(changed[start : start + 2], "little")
        changed[start : start + 2] = min(65535, value + 205).to_bytes(2, "little")
    opening = opening_messages(models.find_model(None).manifest)
    found = compare_text(engine, opening, msgspec.structs.replace(text, log_probabilities=bytes(changed)), 32)
    assert found.mean_kl_nats is not None and found.mean_kl_nats > MEAN_KL_LIMIT_NATS


def test_the_divergence_is_the_one_of_the_books() -> None:
    one, other = [0.5, 0.25], [0.25, 0.5]
    by_hand = 0.5 * math.log(2) + 0.25 * math.log(0.5) + 0.25 * math.log(1)
    assert divergence([math.log(p) for p in one], [math.log(p) for p in other]) == pytest.approx(by_hand)
    assert divergence([math.log(p) for p in one], [math.log(p) for p in one]) == 0


@pytest.mark.parametrize("damage", [b"", b"not a reference", b"half"])
def test_a_damaged_reference_is_named(engine: ChildEngine, tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / REFERENCE_LOGITS_NAME
    whole = encode_reference(reference(engine))
    file.write_bytes(whole[: len(whole) // 2] if damage == b"half" else damage)
    with pytest.raises(ModelCorrupt, match=REFERENCE_LOGITS_NAME):
        read_reference(file)


def test_a_pack_takes_its_reference_along_and_refuses_a_changed_one(
    engine: ChildEngine, pack: Path, tmp_path: Path
) -> None:
    sha256 = read_manifest(pack / MANIFEST_NAME).sha256
    with pytest.raises(ModelCorrupt, match="another model"):
        add_to_pack(pack, reference(engine))
    file = add_to_pack(pack, reference(engine, model_sha256=sha256))
    installed = models.install_model(pack)
    assert (installed.folder / REFERENCE_LOGITS_NAME).read_bytes() == file.read_bytes()
    models.remove_model(installed.name)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelCorrupt, match=REFERENCE_LOGITS_NAME):
        models.install_model(pack)
    file.unlink()
    with pytest.raises(ModelCorrupt, match="missing"):
        models.install_model(pack)
    assert models.list_models("model").models[0].embedded
