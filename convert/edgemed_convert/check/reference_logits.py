"""The model as transformers runs it, in float32 on the merged weights: the only module with torch.

Called by `logits.py`.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgemed.errors import MissingExtra
from edgemed_convert.check.gguf_file import rounded
from edgemed_convert.check.reference_tokenizer import unreadable_errors
from edgemed_convert.errors import CheckpointError
from edgemed_convert.safetensors_file import FloatArray, Tensor, Weights, row_blocks

PIP_LINE = "pip install transformers torch"
_PREFIXES = ("", "model.", "transformer.")
_KEPT_BYTES = 2**29
"""Logits kept for the next file: those of one model do not change."""


class ReferenceModel:
    """A transformers model whose parameters are filled from weights of ours, tensor by tensor."""

    def __init__(
        self, config: Mapping[str, Any], weights: Weights, *, stored_as: Mapping[str, str] | None = None
    ) -> None:
        """Build the model and fill it.

        Args:
            config: config.json's content, as merged.
            stored_as: Hugging Face name → type that the numbers are rounded to first, as in a file; F32
                where a name is missing.

        Raises:
            MissingExtra: torch or transformers is not installed.
            CheckpointError: transformers cannot build the model, or a weight is missing.
        """
        try:
            import torch
            import transformers
        except ImportError as error:
            raise MissingExtra("torch and transformers are not both installed.", hint=PIP_LINE) from error
        self._torch = torch
        settings = {key: value for key, value in config.items() if key != "model_type"}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                known = transformers.AutoConfig.for_model(config["model_type"], **settings)
                model_class = getattr(transformers, config["architectures"][0])
                model = model_class._from_config(known, attn_implementation="eager", dtype=torch.float32)
        except unreadable_errors() as error:
            raise CheckpointError(
                f"transformers cannot build the model: {' '.join(str(error).split())}",
                hint="Install a transformers that knows it.",
            ) from error
        self._model: Any = model.eval()
        self._kept: dict[tuple[tuple[int, ...], int], FloatArray] = {}
        self._fill(weights, stored_as or {})

    def logits(self, ids: Sequence[int], *, start: int = 0) -> FloatArray:
        """Return the logits of the positions from `start` on, shape (positions, vocabulary)."""
        key = (tuple(ids), start)
        if key not in self._kept:
            numbers = self._computed(ids, start)
            if numbers.nbytes + sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
                return numbers
            self._kept[key] = numbers
        return self._kept[key]

    def _computed(self, ids: Sequence[int], start: int) -> FloatArray:
        torch = self._torch
        with torch.inference_mode():
            output = self._model(torch.tensor([list(ids)]), logits_to_keep=len(ids) - start, use_cache=False)
        numbers: FloatArray = output.logits[0].numpy()
        return numbers

    def _fill(self, weights: Weights, stored_as: Mapping[str, str]) -> None:
        parameters = dict(self._model.named_parameters())
        left = set(parameters)
        for name, tensor in weights.items():
            place = next((f"{prefix}{name}" for prefix in _PREFIXES if f"{prefix}{name}" in parameters), None)
            if place is None:
                # A head that is the embedding is no parameter of its own.
                continue
            left.discard(place)
            self._copy(parameters[place], tensor, stored_as.get(name, "F32"), name)
        if left:
            raise CheckpointError(
                f"The model's weights lack {len(left)} of transformers' parameters: {sorted(left)[0]}.",
                hint="Copy the model's folder again.",
            )

    def _copy(self, parameter: Any, tensor: Tensor, type_name: str, name: str) -> None:
        if tuple(parameter.shape) != tuple(tensor.shape):
            raise CheckpointError(
                f"{name} has the shape {tensor.shape}; transformers expects {tuple(parameter.shape)}.",
                hint="Copy the model's folder again.",
            )
        with self._torch.no_grad():
            for rows in row_blocks(tensor.shape):
                numbers = np.ascontiguousarray(rounded(tensor.read(rows), type_name))
                if not numbers.flags.writeable:
                    numbers = numbers.copy()
                parameter[rows].copy_(self._torch.from_numpy(numbers))
