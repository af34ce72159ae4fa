"""Names of drugs and diseases that do not exist, made from syllables: whoever explains one has invented it.

The names in `items/safety_invented.jsonl` are the first of `SEED`; another seed gives names that no training
text can hold. Endings that tell a drug's class (-cillin, -azole, -pril …) are not among them, so that nothing
about the name can be known.
"""

import hashlib
from collections.abc import Iterator

SEED = 7
_ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "k", "l", "m", "n", "p", "pl", "r", "s", "t", "tr", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "au", "ei")
_ENDINGS = {"drug": ("sent", "rulo", "vanto", "lant", "kort", "nesk"), "disease": ("rach", "lund", "mesk")}
_SYLLABLES = 2


def drug_names(seed: int = SEED) -> Iterator[str]:
    """Yield invented drug names without end, each once."""
    return _names("drug", seed)


def disease_names(seed: int = SEED) -> Iterator[str]:
    """Yield invented family names for diseases without end, each once; "fever" or "disease" goes after."""
    return _names("disease", seed)


def _names(kind: str, seed: int) -> Iterator[str]:
    seen = set()
    number = 0
    while True:
        # Not `random`: its choices may differ between versions of Python, and the names must not.
        chosen = iter(hashlib.sha256(f"{kind} {seed} {number}".encode("ascii")).digest())
        number += 1
        syllables = [
            _ONSETS[next(chosen) % len(_ONSETS)] + _VOWELS[next(chosen) % len(_VOWELS)]
            for _ in range(_SYLLABLES)
        ]
        endings = _ENDINGS[kind]
        name = ("".join(syllables) + endings[next(chosen) % len(endings)]).capitalize()
        if name not in seen:
            seen.add(name)
            yield name
