"""Public data sets that a file may be a copy of: their names, makers and licences for the dataset card."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgemed_training.records import QAPair, SourcePair


class KnownSource(NamedTuple):
    """A public data set, named as its licence asks."""

    name: str
    source: str
    license: str


MEDQUAD = KnownSource(
    "MedQuAD", "Ben Abacha and Demner-Fushman 2019, https://github.com/abachaa/MedQuAD", "CC BY 4.0"
)
WIKIDOC = KnownSource(
    "WikiDoc patient information (Medical Meadow)",
    "WikiDoc, by way of https://github.com/kbressem/medAlpaca",
    "CC BY-SA",
)
STUDY_INSTRUCT = KnownSource(
    "medical instruct dataset short (WikiDoc and MedQuAD)",
    "https://github.com/Shekswess/LLM-Medical-Finetuning",
    "CC BY-SA (WikiDoc), CC BY 4.0 (MedQuAD)",
)
_MEDQUAD_INSTITUTIONS = {
    *("CancerGov", "GARD", "GHR", "MPlusHealthTopics", "NIDDK", "NINDS", "NIHSeniorHealth", "NHLBI", "CDC"),
    *("ADAM", "MPlusDrugs", "MPlusHerbsSupplements"),
}
_MEADOW_INSTRUCTION = "Answer this question truthfully"
_STUDY_INSTRUCTION = "Answer the question truthfully, you are a medical professional."


def recognise(path: Path, pairs: Sequence[SourcePair]) -> KnownSource | None:
    """Return the public data set that a file's first pair says it is; None for any other."""
    first = pairs[0].pair
    if first.source in _MEDQUAD_INSTITUTIONS:
        return MEDQUAD
    if first.system == _MEADOW_INSTRUCTION and "wikidoc" in path.name.lower():
        return WIKIDOC
    return STUDY_INSTRUCT if first.system == _STUDY_INSTRUCTION else None


def attributed(entry: SourcePair, known: KnownSource, default_source: str) -> SourcePair:
    """Return the pair with its data set's name and licence, where it has none of its own."""
    pair = entry.pair
    source = known.name if pair.source == default_source else f"{known.name} ({pair.source})"
    changed: QAPair = msgspec.structs.replace(pair, source=source, license=pair.license or known.license)
    return msgspec.structs.replace(entry, pair=changed)
