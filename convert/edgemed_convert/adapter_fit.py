"""Whether an adapter fits a base model: every module that its config adapts is there, and nothing else.

An adapter of a base with fewer layers, or one with a module lost, would merge without a word; so what is
expected is worked out from the config and the base's own modules, and compared tensor by tensor.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from edgemed_convert.adapter_config import AdapterConfig
from edgemed_convert.adapter_file import COPY_AGAIN, PREFIX, ModuleTensors
from edgemed_convert.checkpoint import HEAD, embedding_name
from edgemed_convert.errors import AdapterError
from edgemed_convert.merged_weights import Layout
from edgemed_convert.safetensors_file import Tensor, Weights

HEAD_MODULE = HEAD.removesuffix(".weight")
_EMBEDDINGS = ("embed_tokens", "wte", "wpe")
_CONV1D = ("c_attn", "c_proj", "c_fc")
# Frozen embeddings are saved as they were: 16-bit rounding differs by 0.004, another base by about 1.
_SAVED_BASE_TOLERANCE = 0.02
_COMPARED_ROWS = 1024


class ModuleNames:
    """The modules of a base model as PEFT calls them, and the names of their tensors in its files."""

    def __init__(self, weights: Weights, architecture: str) -> None:
        self._weights = weights
        self._architecture = architecture
        embedding = embedding_name(weights)
        self.is_tied = HEAD not in weights
        """Whether the embedding is the output head, too."""
        # Some published files leave out the outermost module's name, which the running model has.
        prefix = {"wte.weight": "transformer.", "embed_tokens.weight": "model."}.get(embedding, "")
        self._names: dict[str, dict[str, str]] = {HEAD_MODULE: {"weight": HEAD}}
        for name in weights:
            module, _, leaf = name.rpartition(".")
            canonical = module if module == HEAD_MODULE else prefix + module
            self._names.setdefault(canonical, {})[leaf] = name
        self.embedding = prefix + embedding.removesuffix(".weight")
        self.layer_count = len({match[1] for module in self if (match := re.search(r"\.(\d+)\.", module))})

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, module: str) -> bool:
        return module in self._names

    def name_of(self, module: str, leaf: str) -> str:
        """Return a tensor's name in the base's files; the head's own one where it is tied."""
        return self._names[module][leaf]

    def has(self, module: str, leaf: str) -> bool:
        """Whether a module has such a tensor."""
        return leaf in self._names.get(module, {})

    def tensor(self, module: str, leaf: str) -> Tensor:
        """Return a tensor of the base; of a tied head, the embedding."""
        name = self._names[module][leaf]
        return self._weights[self._names[self.embedding]["weight"] if name not in self._weights else name]

    def is_vocabulary(self, module: str) -> bool:
        """Whether it is the token embedding or the output head."""
        return module in (self.embedding, HEAD_MODULE)

    def is_embedding(self, module: str) -> bool:
        """Whether it looks rows up instead of multiplying."""
        return module.rpartition(".")[2] in _EMBEDDINGS

    def layout_of(self, module: str) -> Layout:
        """Return which way round its weight is stored."""
        is_conv1d = self._architecture == "GPT2LMHeadModel" and module.rpartition(".")[2] in _CONV1D
        return "rows_are_inputs" if is_conv1d or self.is_embedding(module) else "rows_are_outputs"

    def is_adapted(self, module: str, config: AdapterConfig) -> bool:
        """Whether the adapter's config gives the module a low-rank adapter."""
        if not self.has(module, "weight") or len(self.tensor(module, "weight").shape) != 2:
            return False
        is_inner_linear = not self.is_embedding(module) and module != HEAD_MODULE
        return config.adapts(module, is_inner_linear=is_inner_linear)


def check_fit(
    folder: Path, config: AdapterConfig, modules: Mapping[str, ModuleTensors], names: ModuleNames
) -> None:
    """Refuse an adapter that is not whole, not of this base, or holds more than its config accounts for.

    Args:
        folder: the adapter's, for the message.
        config: the adapter's options.
        modules: the adapter's tensors.
        names: the base's modules.

    Raises:
        AdapterError: with the first tensor that is missing, left over, or of another shape.
    """
    for module in modules:
        if module not in names:
            raise AdapterError(
                f"{folder} adapts {module}, which this base of {names.layer_count} layers does not have.",
                hint="Use the base model that the adapter was trained on.",
            )
    for module in names:
        present = modules.get(module, {})
        if "lora_B.bias" in present and not names.has(module, "bias"):
            raise AdapterError(
                f"{folder} uses the option lora_bias, but the base model has no bias in {module} for it.",
                hint="Train without lora_bias.",
            )
        expected, optional = _expected_roles(module, config, names, present)
        _refuse_difference(
            folder, module, expected - present.keys(), present.keys() - expected - optional, names
        )
        for role, shape in _expected_shapes(module, config, names, present).items():
            if role in present and present[role].shape != shape:
                raise AdapterError(
                    f"{folder} has {module}.{role} of shape {_text(present[role].shape)}; "
                    f"for this base model it would be {_text(shape)}.",
                    hint="Use the base model that the adapter was trained on.",
                )


def check_saved_base(folder: Path, candidates: Iterable[Tensor], saved: Tensor) -> None:
    """Refuse an adapter trained on another embedding than the base's; PEFT saves the frozen one with it.

    Args:
        folder: the adapter's, for the message.
        candidates: what it may have been trained on: the base as it was, or with earlier adapters merged.
        saved: what it was trained on.

    Raises:
        AdapterError: it differs from each by more than rounding.
    """
    if not any(_is_close(candidate, saved) for candidate in candidates):
        raise AdapterError(
            f"{folder} was trained on another base model: the embedding saved with it differs.",
            hint="Use the base model that the adapter was trained on.",
        )


def _is_close(candidate: Tensor, saved: Tensor) -> bool:
    """Compare the first and the last rows that both have."""
    common = min(candidate.shape[0], saved.shape[0])
    for start in {0, max(0, common - _COMPARED_ROWS)}:
        rows = slice(start, min(start + _COMPARED_ROWS, common))
        here, there = candidate.read(rows), saved.read(rows)
        if np.linalg.norm(here - there) > _SAVED_BASE_TOLERANCE * np.linalg.norm(here):
            return False
    return True


def _expected_roles(
    module: str, config: AdapterConfig, names: ModuleNames, present: ModuleTensors
) -> tuple[set[str], set[str]]:
    """Return the roles that the adapter must hold for one module, and those that it may."""
    has_bias = names.has(module, "bias")
    if names.is_adapted(module, config) or _is_tied_along(module, config, names, present):
        return _lora_roles(module, config, names, has_bias), {"base_layer.weight"}
    if config.saves(module):
        leaves = {leaf for leaf in ("weight", "bias") if names.has(module, leaf)}
        return leaves, set()
    expected = {"bias"} if config.bias == "all" and has_bias else set()
    # Saved with the adapter when the vocabulary was resized, or on demand.
    return expected, {"weight"} if names.is_vocabulary(module) else set()


def _lora_roles(module: str, config: AdapterConfig, names: ModuleNames, has_bias: bool) -> set[str]:
    is_embedding = names.is_embedding(module)
    roles = {"lora_embedding_A", "lora_embedding_B"} if is_embedding else {"lora_A.weight", "lora_B.weight"}
    if config.use_dora:
        roles.add("lora_magnitude_vector")
    if config.bias != "none" and has_bias:
        roles.add("base_layer.bias")
    if config.lora_bias and not is_embedding:
        roles.add("lora_B.bias")
    return roles


def _is_tied_along(module: str, config: AdapterConfig, names: ModuleNames, present: ModuleTensors) -> bool:
    """Whether it is a head that got the embedding's adapter (PEFT's ensure_weight_tying)."""
    tied = config.ensure_weight_tying and names.is_tied and module == HEAD_MODULE
    return tied and "lora_A.weight" in present


def _refuse_difference(
    folder: Path, module: str, missing: set[str], extra: set[str], names: ModuleNames
) -> None:
    if missing:
        raise AdapterError(
            f"{folder} lacks {PREFIX}{module}.{min(missing)}: it is not whole, or was trained on a base with "
            f"other layers than these {names.layer_count}.",
            hint=f"Use the base model that the adapter was trained on. {COPY_AGAIN}",
        )
    if extra:
        raise AdapterError(
            f"{folder} holds {PREFIX}{module}.{min(extra)}, which its config does not account for.",
            hint=COPY_AGAIN,
        )


def _expected_shapes(
    module: str, config: AdapterConfig, names: ModuleNames, present: ModuleTensors
) -> dict[str, tuple[int, ...]]:
    if not present:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    if names.has(module, "bias"):
        bias = names.tensor(module, "bias").shape
        shapes |= {"bias": bias, "base_layer.bias": bias, "lora_B.bias": bias}
    if not names.has(module, "weight"):
        return shapes
    shape = names.tensor(module, "weight").shape
    if names.is_vocabulary(module):
        # The vocabulary may have been resized.
        saved = present.get("base_layer.weight") or present.get("weight")
        shape = (saved.shape[0], *shape[1:]) if saved and saved.shape else shape
    shapes |= {"weight": shape, "base_layer.weight": shape}
    if len(shape) == 2:
        outputs, inputs = shape if names.layout_of(module) == "rows_are_outputs" else shape[::-1]
        rank = config.rank_of(module)
        shapes |= {
            "lora_A.weight": (rank, inputs),
            "lora_embedding_A": (rank, inputs),
            "lora_B.weight": (outputs, rank),
            "lora_embedding_B": (outputs, rank),
            "lora_magnitude_vector": (outputs,),
        }
    return shapes


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
