"""A base model that is at hand as GGUF, seen with Hugging Face's names: what an adapter is fitted to.

Called by `lora.py`. Only the header is read, and of the numbers no more than an adapter's own copy of an
embedding needs to be compared with.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgemed.errors import ModelError, ModelUnsupported, StorageError
from edgemed.gguf_header import GGUFHeader, TensorInfo, read_shards
from edgemed_convert.checkpoint import HEAD, Checkpoint
from edgemed_convert.families import base
from edgemed_convert.families.llama import NAMES as LLAMA_NAMES
from edgemed_convert.families.registry import find_family
from edgemed_convert.output import Progress, no_progress
from edgemed_convert.safetensors_file import FloatArray, Rows

# Transformers' class for each of the engine's architectures; where there are several, their files are alike.
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "phi3": "Phi3ForCausalLM",
}
_LAYER = {**LLAMA_NAMES.layer, **base.ATTENTION_NORMS}
_GEMMA3_LAYER = {
    **_LAYER,
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}
_PHI3_LAYER = {
    **_LAYER,
    "self_attn.qkv_proj.weight": "attn_qkv.weight",
    "mlp.gate_up_proj.weight": "ffn_up.weight",
}
del _PHI3_LAYER["mlp.up_proj.weight"]
_GPT2_LAYER = {
    f"{name}.{kind}": f"{place}.{kind}"
    for name, place in {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }.items()
    for kind in ("weight", "bias")
}
_GPT2_OUTSIDE = {
    "transformer.wte.weight": base.EMBEDDING,
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight",
    "transformer.ln_f.bias": "output_norm.bias",
    HEAD: base.OUTPUT,
}
_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
_COMPUTED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_READ_BYTES = 2**20


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of a GGUF file under Hugging Face's orientation of it; read as float32, dequantized."""

    path: Path
    info: TensorInfo
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first, as Hugging Face has it."""
        return self.info.shape if self.transposed else tuple(reversed(self.info.shape))

    @property
    def type_name(self) -> str:
        """The file's type, quantized ones included."""
        return self.info.type_name

    @property
    def is_exact(self) -> bool:
        """Whether the numbers are those of the model, not quantized ones."""
        return self.type_name in ("F32", "F16", "BF16")

    def read(self, rows: Rows) -> FloatArray:
        """Return rows of a matrix that is not transposed, in the order of the file.

        Raises:
            StorageError: the disk does not give them.
            ModelUnsupported: the type cannot be read.
        """
        count = self.info.shape[-1]
        start, stop, _step = rows.indices(count) if isinstance(rows, slice) else (0, count, 1)
        row_bytes = self.info.size_bytes // count
        try:
            with self.path.open("rb") as file:
                file.seek(self.info.offset + start * row_bytes)
                data = np.frombuffer(file.read((stop - start) * row_bytes), np.uint8)
            numbers = gguf.quants.dequantize(
                data.reshape(stop - start, row_bytes), gguf.GGMLQuantizationType[self.type_name]
            )
        except OSError as error:
            raise _unreadable(self.path, error) from error
        except (KeyError, NotImplementedError, ValueError) as error:
            raise ModelUnsupported(
                f"{self.info.name} of {self.path.name} is of type {self.type_name}, which cannot be read.",
                hint="Name the model's F16 or Q8_0 file.",
            ) from error
        found: FloatArray = numbers if isinstance(rows, slice) else numbers[rows]
        return found

    def read_stored(self, _rows: Rows) -> NDArray[Any] | None:
        """Return None: the numbers are computed."""
        return None


@dataclass(frozen=True)
class LoraBase:
    """The base model of a LoRA GGUF."""

    path: Path
    """The file that llama.cpp opens: the only one, or the first shard."""
    architecture: str
    """The engine's name."""
    name: str | None
    """Its general.name."""
    checkpoint: Checkpoint
    """Its tensors by Hugging Face name, with as much of a config as the adapter needs."""
    places: Mapping[str, str]
    """Hugging Face name → name in the file."""

    @classmethod
    def open(cls, path: Path) -> "LoraBase":
        """Read the header of a GGUF file or of all its shards.

        Raises:
            ModelCorrupt, ModelUnsupported: no GGUF, damaged, an adapter, or of an unknown architecture.
        """
        headers = read_shards(path)
        first = headers[0]
        if (first.text("general.type") or "model") != "model":
            raise ModelUnsupported(f"{path.name} is no model.", hint="Name the base model's GGUF file.")
        if first.architecture not in _CLASSES:
            raise ModelUnsupported(
                f"{path.name} is a {first.architecture}: adapters can be made for {', '.join(_CLASSES)}.",
                hint="Merge the adapter into the base model instead.",
            )
        layers = _integer(first, "block_count")
        hf_names = _hf_names(first.architecture, layers)
        weights, places = {}, {}
        for header in headers:
            for info in header.tensors:
                if info.name in _COMPUTED:
                    continue
                if info.name not in hf_names:
                    raise ModelUnsupported(
                        f"{path.name} holds {info.name}, which a model of this kind does not have.",
                        hint="Merge the adapter into the base model instead.",
                    )
                name = hf_names[info.name]
                transposed = first.architecture == "gpt2" and name.endswith(_CONV1D)
                weights[name] = GGUFTensor(header.path, info, transposed)
                places[name] = info.name
        config = _config(first, layers, tied=HEAD not in weights)
        checkpoint = Checkpoint(
            folder=path,
            config=config,
            generation_config={},
            architecture=_CLASSES[first.architecture],
            weights=weights,
            weight_files=tuple(header.path for header in headers),
        )
        return cls(first.path, first.architecture, first.text("general.name"), checkpoint, places)

    def sha256(self, progress: Progress = no_progress) -> str:
        """Return the SHA-256 by which an installed model is known: that of its first file."""
        digest = hashlib.sha256()
        try:
            total = self.path.stat().st_size
            with self.path.open("rb") as file:
                while data := file.read(_READ_BYTES):
                    digest.update(data)
                    progress("fingerprint", file.tell(), total)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return digest.hexdigest()

    def row_orders(self) -> dict[str, NDArray[np.intp]]:
        """Return Hugging Face name of each matrix → its outputs in the order of the file's rows.

        The family is asked where the rows of a model go in which every number is that of its row.

        Raises:
            ModelError: the file lacks a tensor.
        """
        probes = {name: _RowNumbers(tensor) for name, tensor in _tensors(self.checkpoint)}
        model = _Probe(self.checkpoint.config, self.checkpoint.architecture, probes)
        tokens = next(probes[name].shape[0] for name, place in self.places.items() if place == base.EMBEDDING)
        orders = {}
        for tensor in find_family(model).tensors(model, tokens=tokens):
            if len(tensor.hf_names) != 1 or len(tensor.shape) != 2:
                continue
            (name,) = tensor.hf_names
            if tensor.name != self.places[name]:
                raise ModelError(f"{tensor.name} of {self.path.name} stands under {self.places[name]}.")
            orders[name] = tensor.read(0, tensor.shape[0])[:, 0].astype(np.intp)
        return orders


@dataclass(frozen=True)
class _RowNumbers:
    """A tensor of another one's shape that holds everywhere the number of the output; takes no memory."""

    of: GGUFTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    @property
    def type_name(self) -> str:
        return "F32"

    def read(self, rows: Rows) -> FloatArray:
        if self.of.transposed:
            row = np.arange(self.shape[1], dtype=np.float32)
            return np.broadcast_to(row, self.shape)[rows]
        column = np.arange(self.shape[0], dtype=np.float32)[rows]
        return np.broadcast_to(
            column.reshape(-1, *(1 for _ in self.shape[1:])), (len(column), *self.shape[1:])
        )

    def read_stored(self, _rows: Rows) -> NDArray[Any] | None:
        return None


@dataclass(frozen=True)
class _Probe:
    config: dict[str, Any]
    architecture: str
    weights: Mapping[str, _RowNumbers]


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, GGUFTensor]]:
    for name, tensor in checkpoint.weights.items():
        if isinstance(tensor, GGUFTensor):
            yield name, tensor


def _hf_names(architecture: str, layers: int) -> dict[str, str]:
    """Return name in the file → Hugging Face's."""
    gpt2 = architecture == "gpt2"
    layer = {"gemma3": _GEMMA3_LAYER, "phi3": _PHI3_LAYER, "gpt2": _GPT2_LAYER}.get(architecture, _LAYER)
    prefix = "transformer.h" if gpt2 else "model.layers"
    names = {place: name for name, place in (_GPT2_OUTSIDE if gpt2 else base.OUTSIDE).items()}
    for index in range(layers):
        names |= {f"blk.{index}.{place}": f"{prefix}.{index}.{name}" for name, place in layer.items()}
    return names


def _config(header: GGUFHeader, layers: int, *, tied: bool) -> dict[str, Any]:
    """Return what the families need of a config to say where the rows go."""
    heads = _integer(header, "attention.head_count")
    fields: dict[str, Any] = {
        "num_hidden_layers": layers,
        "n_layer": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": _integer(header, "attention.head_count_kv", default=heads),
        "hidden_size": _integer(header, "embedding_length"),
        "max_position_embeddings": _integer(header, "context_length"),
        "tie_word_embeddings": tied,
    }
    if f"{header.architecture}.attention.key_length" in header.metadata:
        fields["head_dim"] = _integer(header, "attention.key_length")
    return fields


def _integer(header: GGUFHeader, key: str, *, default: int | None = None) -> int:
    value = header.metadata.get(f"{header.architecture}.{key}", default)
    if isinstance(value, list) and len(set(value)) == 1:
        # One number for each layer, all the same.
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ModelUnsupported(
            f"{header.path.name} has no usable {header.architecture}.{key}.",
            hint="Export the base model again.",
        )
    return value


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be read: {error.strerror or error}.", hint="Check the disk and who may read the file."
    )
