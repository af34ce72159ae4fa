"""How far apart are distributions of one file under other kernels, and of other quantizations? For the limit.

    python -m tests.measurements.fidelity F16.gguf Q8_0.gguf Q4_K_M.gguf

Each file's reference is compared with: itself, itself with llama.cpp's plain kernels, with another number of
threads, and with every other file. Prints mean and largest divergence and the share of equal first choices.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgemed import models
from edgemed.engine.client import ChildEngine
from edgemed.engine.messages import LoadRequest
from edgemed.prompts import opening_messages
from edgemed.reference_logits import ReferenceText, compare_text, make_text

TEXTS = (
    ("What is anaemia?", " Anaemia means that there are too few red blood cells, or too little haemoglobin."),
    (
        "How is dehydration in a child treated?",
        " Give oral rehydration salts in small sips, and zinc for ten days.",
    ),
    (
        "What are the danger signs of malaria?",
        " Fits, deep breathing, jaundice, and a child that cannot drink.",
    ),
    (
        "How is high blood pressure treated?",
        " With less salt, more movement, and tablets that are taken each day.",
    ),
)


class Setting(NamedTuple):
    path: Path
    threads: int = 1
    plain: bool = False

    def __str__(self) -> str:
        return f"{self.path.stem} {self.threads} threads{' plain kernels' if self.plain else ''}"


def references(setting: Setting) -> list[ReferenceText]:
    """Return the reference of one setting."""
    engine, opening = _open(setting)
    try:
        return [make_text(engine, opening, *text) for text in TEXTS]
    finally:
        engine.close()


def compare(setting: Setting, texts: Sequence[ReferenceText]) -> tuple[float, float, float]:
    """Return mean and largest divergence in nats, and the share of equal first choices."""
    engine, opening = _open(setting)
    try:
        found = [compare_text(engine, opening, text, 32) for text in texts]
    finally:
        engine.close()
    positions = sum(each.positions for each in found)
    return (
        sum((each.mean_kl_nats or 0) * each.positions for each in found) / positions,
        max(each.max_kl_nats or 0 for each in found),
        sum((each.same_top_share or 0) * each.positions for each in found) / positions,
    )


def _open(setting: Setting) -> tuple[ChildEngine, list]:  # type: ignore[type-arg]
    model = models.find_model(str(setting.path))
    request = LoadRequest(
        model_path=str(model.path),
        model_sha256=model.manifest.sha256,
        context_length=512,
        threads=setting.threads,
        chat_template=model.manifest.chat_template,
        prefix_states_folder="/nonexistent",
        kernels_file="/nonexistent",
        plain_kernels=setting.plain,
    )
    engine = ChildEngine(request, msgspec.structs.replace(model.manifest.sampling, temperature=0.0))
    return engine, opening_messages(model.manifest)


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]]
    for file in files:
        reference = references(Setting(file))
        for other in [
            Setting(file),
            Setting(file, 2),
            Setting(file, 1, True),
            *(Setting(each) for each in files if each != file),
        ]:
            mean, most, same = compare(other, reference)
            sys.stdout.write(
                f"{file.stem} against {other}: mean {mean:.2e}, largest {most:.2e}, same first choice {same:.1%}\n"
            )


if __name__ == "__main__":
    main()
