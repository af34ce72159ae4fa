"""Which family a model belongs to."""

from edgemed_convert.errors import UnsupportedArchitecture
from edgemed_convert.families.base import Family, Model
from edgemed_convert.families.gemma import Gemma, Gemma3
from edgemed_convert.families.gpt2 import GPT2
from edgemed_convert.families.llama import Llama
from edgemed_convert.families.phi3 import Phi3
from edgemed_convert.families.qwen import Qwen2, Qwen3
from edgemed_convert.families.smollm3 import SmolLM3

_FAMILIES: tuple[Family, ...] = (Llama(), SmolLM3(), Qwen2(), Qwen3(), Gemma(), Gemma3(), GPT2(), Phi3())


def find_family(model: Model) -> Family:
    """Return the family of a model.

    Raises:
        UnsupportedArchitecture: none of those that can be exported.
    """
    for family in _FAMILIES:
        if model.architecture in family.architectures:
            return family
    raise UnsupportedArchitecture(
        f"{model.architecture} is none of the architectures that can be exported: "
        f"{', '.join(supported_architectures())}.",
        hint="--with-llama-cpp DIR exports it with llama.cpp's own convert_hf_to_gguf.py.",
    )


def supported_architectures() -> list[str]:
    """Return transformers' names of all classes that can be exported."""
    return [name for family in _FAMILIES for name in family.architectures]
