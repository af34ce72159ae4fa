"""PEFT adapters on a base model: opened with suspicion, fitted to the base, applied while weights are read.

Several adapters are applied in order, each to what the ones before it made, as if each had been merged before
the next one was trained. A weight other than 1 goes that part of the way from the weights without the adapter
to those with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemed.errors import UsageError
from edgemed_convert.adapter_config import CONFIG_NAME, AdapterConfig, read_adapter_config
from edgemed_convert.adapter_file import (
    WEIGHTS_NAME,
    ModuleTensors,
    read_modules,
    refuse_other_things,
    same_numbers,
)
from edgemed_convert.adapter_fit import HEAD_MODULE, ModuleNames, check_fit, check_saved_base
from edgemed_convert.checkpoint import CONFIG_NAME as BASE_CONFIG_NAME
from edgemed_convert.checkpoint import HEAD, TOKENIZER_FILES, Checkpoint, files_fingerprint, is_tied
from edgemed_convert.errors import AdapterError
from edgemed_convert.merged_weights import Blended, LoraWeight, Replaced, Resized, ShiftedBias
from edgemed_convert.output import Progress, no_progress
from edgemed_convert.safetensors_file import FloatArray, StoredTensor, Tensor, Weights, read_whole

_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))


@dataclass(frozen=True)
class Adapter:
    """One adapter folder, sound in itself; whether it fits a base shows when it is applied."""

    folder: Path
    config: AdapterConfig
    modules: dict[str, ModuleTensors] = field(repr=False)
    """Module of the model, e.g. model.layers.0.self_attn.q_proj → part, e.g. lora_A.weight → tensor."""
    weight: float = 1.0

    @classmethod
    def open(cls, folder: Path, *, weight: float = 1.0) -> "Adapter":
        """Read an adapter folder; looks at every number once.

        Args:
            folder: as PEFT saved it.
            weight: how much of the adapter is applied; 1 is what was trained.

        Raises:
            AdapterError: a file is missing, damaged or pickled, or an option is not supported.
            UsageError: the weight is no number.
        """
        if not math.isfinite(weight):
            raise UsageError(
                f"The weight of an adapter cannot be {weight}.", hint="Give a number such as 0.5."
            )
        refuse_other_things(folder)
        return cls(folder, read_adapter_config(folder), read_modules(folder), weight)

    @property
    def base_name(self) -> str | None:
        """The base model's name as it was recorded at training."""
        return self.config.base_model_name_or_path

    @property
    def base_sha256(self) -> str | None:
        """The base model's fingerprint, where our training recorded it."""
        return self.config.edgemed_base_sha256

    def files(self) -> list[Path]:
        """Return the files that the result depends on."""
        return [self.folder / CONFIG_NAME, self.folder / WEIGHTS_NAME]

    def ranks(self) -> dict[int, int]:
        """Return rank → number of modules that have it."""
        ranks = sorted(
            self.config.rank_of(module) for module, tensors in self.modules.items() if _is_lora(tensors)
        )
        return {rank: ranks.count(rank) for rank in ranks}


@dataclass(frozen=True)
class MergedCheckpoint:
    """A base model with adapters applied: all a Checkpoint has, the numbers computed while they are read."""

    base: Checkpoint
    adapters: tuple[Adapter, ...]
    config: dict[str, Any]
    weights: Weights

    @property
    def folder(self) -> Path:
        """The base model's folder."""
        return self.base.folder

    @property
    def generation_config(self) -> dict[str, Any]:
        """The base model's."""
        return self.base.generation_config

    @property
    def architecture(self) -> str:
        """The base model's."""
        return self.base.architecture

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the last adapter that was saved with a whole tokenizer, else the base model's."""
        for adapter in reversed(self.adapters):
            for names in _TOKENIZERS:
                if all((adapter.folder / name).is_file() for name in names):
                    return adapter.folder
        return self.base.folder

    def files(self) -> list[Path]:
        """Return every file that the result depends on."""
        files = self.base.files() + [path for adapter in self.adapters for path in adapter.files()]
        if self.tokenizer_folder != self.base.folder:
            files += [path for name in TOKENIZER_FILES if (path := self.tokenizer_folder / name).is_file()]
        return files

    def fingerprint(self, progress: Progress = no_progress) -> str:
        """Return the SHA-256 over the files of the base model and of all adapters, in order."""
        paths = [*self.base.weight_files, self.base.folder / BASE_CONFIG_NAME]
        return files_fingerprint(paths + [path for one in self.adapters for path in one.files()], progress)


@dataclass(frozen=True)
class LoraPair:
    """The adapter of one weight as two small matrices: the weight as (outputs, inputs) gains b·a."""

    name: str
    """Hugging Face name of the weight."""
    a: FloatArray
    """Shape (r, inputs)."""
    b: FloatArray
    """Shape (outputs, r), the scaling and the adapter's weight multiplied in."""
    is_embedding: bool
    """Its inputs are the tokens: the weight on the disk is transposed, (tokens, width)."""


def apply_adapters(
    checkpoint: Checkpoint, adapters: Sequence[Adapter], progress: Progress = no_progress
) -> MergedCheckpoint:
    """Return the base model with the adapters applied in order.

    Nothing is merged yet: `weights` computes rows when they are read, and never rounds. A tied base whose
    embedding or head was trained apart becomes untied.

    Args:
        checkpoint: the base model.
        adapters: the first is applied first.
        progress: shown while the base's fingerprint is taken, where an adapter has one recorded.

    Raises:
        AdapterError: an adapter belongs to another base, or one of its tensors is missing or unaccounted for.
    """
    model = _Model(checkpoint)
    recorded = {adapter.base_sha256 for adapter in adapters[:1]} - {None}
    if recorded and checkpoint.fingerprint(progress) not in recorded:
        raise AdapterError(
            f"{adapters[0].folder} was trained on another base model than {checkpoint.folder}: "
            "the recorded fingerprint differs.",
            hint=f"Use the base model it was trained on ({adapters[0].base_name!r}).",
        )
    for adapter in adapters:
        model.apply(adapter)
    return MergedCheckpoint(checkpoint, tuple(adapters), model.config, model.weights)


def lora_pairs(checkpoint: Checkpoint, adapter: Adapter) -> list[LoraPair]:
    """Return the low-rank matrices of an adapter that can be expressed by them alone.

    Raises:
        AdapterError: it does not fit the base, or something in it is no low-rank change of one weight.
    """
    names = ModuleNames(checkpoint.weights, checkpoint.architecture)
    check_fit(adapter.folder, adapter.config, adapter.modules, names)
    reasons = not_expressible(adapter)
    if names.is_tied and any(names.is_vocabulary(module) for module in adapter.modules):
        reasons.append("it adapts the embedding or the head of a base that uses one matrix for both")
    for module, tensors in adapter.modules.items():
        if saved_base := tensors.get("base_layer.weight"):
            before = names.tensor(module, "weight")
            check_saved_base(adapter.folder, [before], saved_base)
            if saved_base.shape != before.shape:
                reasons.append(f"it resizes {module}")
    if reasons:
        raise AdapterError(
            f"{adapter.folder} cannot be kept apart from its base model: {'; '.join(reasons)}.",
            hint="Merge it into the base model instead.",
        )
    return [_lora_pair(module, tensors, adapter, names) for module, tensors in adapter.modules.items()]


def not_expressible(adapter: Adapter) -> list[str]:
    """Return why an adapter cannot be written as low-rank matrices alone; nothing when it can."""
    reasons = []
    if adapter.config.use_dora:
        reasons.append("DoRA scales whole rows of the merged weights")
    for module, tensors in adapter.modules.items():
        whole = [role for role in ("weight", "bias", "base_layer.bias", "lora_B.bias") if role in tensors]
        reasons += [f"it replaces or shifts {module}.{role.rpartition('.')[2]}" for role in whole]
    return reasons if len(reasons) <= 4 else [*reasons[:3], f"and {len(reasons) - 3} more"]


class _Model:
    """The base model's weights and config while adapters are applied, one after another."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._architecture = checkpoint.architecture
        self._base_weights = checkpoint.weights
        self.config = dict(checkpoint.config)
        self.weights: dict[str, Tensor] = dict(checkpoint.weights)
        """A tied head has no entry."""

    def apply(self, adapter: Adapter) -> None:
        """Change the weights by one adapter."""
        names = ModuleNames(self.weights, self._architecture)
        check_fit(adapter.folder, adapter.config, adapter.modules, names)
        if any(names.is_vocabulary(module) for module in adapter.modules) and self._head_is_a_copy(names):
            del self.weights[HEAD]
            names = ModuleNames(self.weights, self._architecture)
        changed: dict[str, Tensor] = {}
        for module, tensors in adapter.modules.items():
            for leaf, change in (("weight", _weight), ("bias", _bias)):
                if names.has(module, leaf):
                    before = names.tensor(module, leaf)
                    after = change(before, module, tensors, adapter, names)
                    if after is not before:
                        changed[names.name_of(module, leaf)] = after
            if saved_base := tensors.get("base_layer.weight"):
                trained_on = [names.tensor(module, "weight"), self._as_published(module)]
                check_saved_base(adapter.folder, trained_on, saved_base)
        self._settle_vocabulary(adapter, names, changed)

    def _as_published(self, module: str) -> Tensor:
        """Return a weight without any adapter: what one was trained on that does not know the others."""
        return ModuleNames(self._base_weights, self._architecture).tensor(module, "weight")

    def _head_is_a_copy(self, names: ModuleNames) -> bool:
        """Whether the base is tied and its files hold the head all the same."""
        return (
            not names.is_tied
            and is_tied(self.config)
            and same_numbers(names.tensor(names.embedding, "weight"), self.weights[HEAD])
        )

    def _settle_vocabulary(self, adapter: Adapter, names: ModuleNames, changed: dict[str, Tensor]) -> None:
        """Take the changes over, with an own head where the adapter made embedding and head differ."""
        embedding_name = names.name_of(names.embedding, "weight")
        embedding = changed.get(embedding_name, self.weights[embedding_name])
        head = changed.get(HEAD, names.tensor(HEAD_MODULE, "weight"))
        if embedding.shape != head.shape:
            raise AdapterError(
                f"{adapter.folder} makes the embedding one of {embedding.shape[0]} tokens, "
                f"and the output head one of {head.shape[0]}.",
                hint="Save the adapter with save_embedding_layers=True, so that it holds both.",
            )
        if names.is_tied:
            changed.pop(HEAD, None)
            if embedding is not head and not _are_one(adapter, names.embedding):
                changed[HEAD] = head
                self.config["tie_word_embeddings"] = False
        if embedding.shape != self.weights[embedding_name].shape:
            self.config["vocab_size"] = embedding.shape[0]
        self.weights |= changed


def _weight(
    before: Tensor, module: str, tensors: ModuleTensors, adapter: Adapter, names: ModuleNames
) -> Tensor:
    saved_base = tensors.get("base_layer.weight")
    if saved_base and saved_base.shape != before.shape:
        before = Resized(before, saved_base)
    if "weight" in tensors:
        return _blended(before, Replaced(tensors["weight"], before.type_name), adapter)
    if not _is_lora(tensors):
        return before
    a, b = _factors(tensors)
    scaling, layout = adapter.config.scaling_of(module), names.layout_of(module)
    if magnitude := tensors.get("lora_magnitude_vector"):
        return _blended(before, LoraWeight(before, a, b, scaling, layout, magnitude), adapter)
    return LoraWeight(before, a, b, scaling * adapter.weight, layout)


def _bias(
    before: Tensor, module: str, tensors: ModuleTensors, adapter: Adapter, _names: ModuleNames
) -> Tensor:
    after = before
    if trained := tensors.get("bias") or tensors.get("base_layer.bias"):
        after = _blended(before, Replaced(trained, before.type_name), adapter)
    if shift := tensors.get("lora_B.bias"):
        after = ShiftedBias(after, shift, adapter.config.scaling_of(module) * adapter.weight)
    return after


def _blended(before: Tensor, after: Tensor, adapter: Adapter) -> Tensor:
    if adapter.weight == 1:
        return after
    if before.shape != after.shape:
        raise AdapterError(
            f"{adapter.folder} resizes the vocabulary, so its weight cannot be {adapter.weight}.",
            hint="Leave the weight at 1.",
        )
    return Blended(before, after, adapter.weight)


def _are_one(adapter: Adapter, embedding: str) -> bool:
    """Whether an adapter of a tied base changes embedding and head in the same way."""
    of_embedding, of_head = adapter.modules.get(embedding, {}), adapter.modules.get(HEAD_MODULE, {})
    if "weight" in of_embedding and "weight" in of_head:
        return same_numbers(of_embedding["weight"], of_head["weight"])
    if not (_is_lora(of_embedding) and _is_lora(of_head)) or adapter.config.use_dora:
        return False
    if adapter.config.scaling_of(embedding) != adapter.config.scaling_of(HEAD_MODULE):
        return False
    (a, b), (head_a, head_b) = _factors(of_embedding), _factors(of_head)
    return np.array_equal(read_whole(a).T, read_whole(head_b)) and np.array_equal(
        read_whole(b).T, read_whole(head_a)
    )


def _is_lora(tensors: ModuleTensors) -> bool:
    return "lora_A.weight" in tensors or "lora_embedding_A" in tensors


def _factors(tensors: ModuleTensors) -> tuple[StoredTensor, StoredTensor]:
    """Return A (r, inputs) and B (outputs, r)."""
    if "lora_embedding_A" in tensors:
        return tensors["lora_embedding_A"], tensors["lora_embedding_B"]
    return tensors["lora_A.weight"], tensors["lora_B.weight"]


def _lora_pair(module: str, tensors: ModuleTensors, adapter: Adapter, names: ModuleNames) -> LoraPair:
    a, b = (read_whole(factor) for factor in _factors(tensors))
    scaling = np.float32(adapter.config.scaling_of(module) * adapter.weight)
    return LoraPair(names.name_of(module, "weight"), a, b * scaling, names.is_embedding(module))
