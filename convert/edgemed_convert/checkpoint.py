"""A base model's folder as Hugging Face saves it: config, weights, tokenizer; opened with suspicion.

Called by every stage that needs the model's numbers. Nothing of the weights is read before it is asked for.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemed.errors import ModelError
from edgemed_convert.errors import CheckpointError, UnsupportedArchitecture
from edgemed_convert.output import Progress, no_progress
from edgemed_convert.safetensors_file import (
    COPY_AGAIN,
    STORED_TYPES,
    StoredTensor,
    Weights,
    read_tensors,
    unreadable,
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_MAX_JSON_BYTES = 64 * 2**20
_READ_BYTES = 2**20
# Masks and rotary tables that older versions saved: computed anew by whoever runs the model.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
# Families whose head is the embedding unless their config says otherwise (transformers' defaults).
_TIED_BY_DEFAULT = {"gpt2", "gemma", "gemma2", "gemma3_text", "smollm3"}
HEAD = "lm_head.weight"
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.(.+)")
# Each of their layers has the same tensors as the others.
_EVEN = {
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM"),
    *("GemmaForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM", "GPT2LMHeadModel"),
}
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face model folder whose files belong together."""

    folder: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    """Empty when the folder has none."""
    architecture: str
    """As the config has it, e.g. LlamaForCausalLM."""
    weights: Weights
    """By Hugging Face name, in the files' order; without masks and other buffers."""
    weight_files: tuple[Path, ...] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read config and headers of a model folder.

        Raises:
            CheckpointError: a file is missing, damaged, pickled, or does not agree with the others.
            UnsupportedArchitecture: the model reads more than text.
        """
        config = read_config(folder)
        architecture = _architecture(folder, config)
        weights, weight_files = read_weights(folder)
        check_completeness(folder, config, architecture, weights)
        return cls(
            folder=folder,
            config=config,
            generation_config=_optional_json(folder / GENERATION_CONFIG_NAME),
            architecture=architecture,
            weights=weights,
            weight_files=weight_files,
        )

    @property
    def tokenizer_folder(self) -> Path:
        """The folder whose tokenizer and chat template belong to the model."""
        return self.folder

    def files(self) -> list[Path]:
        """Return every file that the result depends on."""
        names = (CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, *TOKENIZER_FILES)
        return [self.folder / name for name in names if (self.folder / name).is_file()] + list(
            self.weight_files
        )

    def fingerprint(self, progress: Progress = no_progress) -> str:
        """Return the SHA-256 that names this base model; reads all weights once.

        It is taken over one line for each weights file, in the order of their names, then one for
        config.json: the file's SHA-256 in hexadecimal, two spaces, its name, a line feed.
        """
        return files_fingerprint([*self.weight_files, self.folder / CONFIG_NAME], progress)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder; nothing in it is judged.

    Raises:
        CheckpointError: no such folder, or no such file that is JSON.
    """
    _refuse_other_things(folder)
    return read_json(folder / CONFIG_NAME, error=CheckpointError)


def read_weights(folder: Path) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    """Read the headers of a folder's weights: its tensors by name, without buffers, and its files.

    Raises:
        CheckpointError: a file is missing, damaged, pickled, or does not agree with the others.
    """
    weight_files = _weight_files(folder)
    return _weights(folder, weight_files), weight_files


def embedding_name(weights: Iterable[str]) -> str:
    """Return the name of the token embedding.

    Raises:
        CheckpointError: there is none.
    """
    for name in weights:
        if name.endswith(_EMBEDDINGS):
            return name
    raise CheckpointError("The model has no token embedding among its weights.", hint=COPY_AGAIN)


def is_tied(config: dict[str, Any]) -> bool:
    """Whether the config makes the embedding serve as output head, too."""
    tied = config.get("tie_word_embeddings")
    return bool(tied) if tied is not None else config.get("model_type") in _TIED_BY_DEFAULT


def read_json(path: Path, *, error: type[ModelError]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: missing, unreadable, or no JSON object (of the kind given).
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise error(f"{path} is too large for what it should be.", hint=COPY_AGAIN)
        value = json.loads(path.read_bytes())
    except OSError as problem:
        raise unreadable(path, problem, error) from problem
    except (ValueError, RecursionError) as problem:
        raise error(f"{path} is not valid JSON: {problem}.", hint=COPY_AGAIN) from problem
    if not isinstance(value, dict):
        raise error(f"{path} is not a JSON object.", hint=COPY_AGAIN)
    return value


def files_fingerprint(paths: Iterable[Path], progress: Progress = no_progress) -> str:
    """Return the SHA-256 over lines of SHA-256, two spaces and file name."""
    lines = "".join(f"{sha256}  {path.name}\n" for path, sha256 in files_sha256(paths, progress))
    return hashlib.sha256(lines.encode()).hexdigest()


def files_sha256(paths: Iterable[Path], progress: Progress = no_progress) -> list[tuple[Path, str]]:
    """Return each file with its SHA-256."""
    paths = list(paths)
    total = sum(path.stat().st_size for path in paths)
    done = 0
    found = []
    for path in paths:
        digest = hashlib.sha256()
        for data in _pieces(path):
            digest.update(data)
            done += len(data)
            progress("fingerprint", done, total)
        found.append((path, digest.hexdigest()))
    return found


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                yield data
    except OSError as problem:
        raise unreadable(path, problem, CheckpointError) from problem


def _refuse_other_things(folder: Path) -> None:
    if folder.is_dir():
        return
    if not folder.exists():
        raise CheckpointError(
            f"There is no model folder {folder}.",
            hint="Name a folder with config.json, tokenizer and safetensors weights.",
        )
    raise CheckpointError(
        f"{folder} is a file, not a model folder.",
        hint="Name the folder with config.json, tokenizer and safetensors weights (a GGUF cannot be merged).",
    )


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    path = folder / CONFIG_NAME
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not (isinstance(name, str) and name.isidentifier()):
        raise CheckpointError(
            f"{path} does not name the model's class (architectures).",
            hint="Use the folder as it was published or saved by save_pretrained.",
        )
    if "text_config" in config or "vision_config" in config:
        raise UnsupportedArchitecture(
            f"{folder} is a {name}: a model of several media around a text model.",
            hint="For Gemma 3, `edgemed-convert text-model FOLDER --out DIR` writes its text model; use it.",
        )
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise CheckpointError(
            f"{folder} holds quantized weights ({method!r}).",
            hint="Use the base model in F32, F16 or BF16; an adapter trained on its 4-bit form fits it.",
        )
    for field_name in ("model_type", "vocab_size"):
        if field_name not in config:
            raise CheckpointError(f"{path} has no {field_name}.", hint=COPY_AGAIN)
    vocabulary_size = config["vocab_size"]
    if type(vocabulary_size) is not int or vocabulary_size < 1:
        raise CheckpointError(f"{path} has a vocab_size of {vocabulary_size!r}.", hint=COPY_AGAIN)
    return name


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path, error=CheckpointError) if path.exists() else {}


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights, in the order of their names."""
    single, index = folder / WEIGHTS_NAME, folder / INDEX_NAME
    if single.exists() and index.exists():
        raise CheckpointError(
            f"{folder} holds {WEIGHTS_NAME} and {INDEX_NAME}: two sets of weights.",
            hint="Remove the one that does not belong to the model.",
        )
    if single.exists():
        return (single,)
    if index.exists():
        return tuple(folder / name for name in sorted(set(_weight_map(index).values())))
    raise _no_weights(folder)


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index, error=CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} lists no weights (weight_map).", hint=COPY_AGAIN)
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not file_name or Path(file_name).name != file_name:
            raise CheckpointError(f"{index} names no file of the folder for {name}.", hint=COPY_AGAIN)
    return weight_map


def _no_weights(folder: Path) -> CheckpointError:
    if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return CheckpointError(
            f"{folder} holds pickled weights: they could run any code, and are refused.",
            hint="Use the model's safetensors files, or load it where you trust it and save it again with "
            "save_pretrained.",
        )
    if any(folder.glob("adapter_model*")):
        return CheckpointError(
            f"{folder} is an adapter, not a base model.", hint="Name the base model first, then the adapter."
        )
    if any(folder.glob("model-*.safetensors")):
        return CheckpointError(f"{folder} has parts of the weights but no {INDEX_NAME}.", hint=COPY_AGAIN)
    return CheckpointError(
        f"{folder} has no weights: neither {WEIGHTS_NAME} nor {INDEX_NAME}.",
        hint="Name a folder with config.json, tokenizer and safetensors weights.",
    )


def _weights(folder: Path, weight_files: Iterable[Path]) -> dict[str, StoredTensor]:
    weights: dict[str, StoredTensor] = {}
    for path in weight_files:
        for name, tensor in read_tensors(path).items():
            if name in weights:
                raise CheckpointError(
                    f"{name} is in {weights[name].path.name} and in {path}.", hint=COPY_AGAIN
                )
            weights[name] = tensor
    index = folder / INDEX_NAME
    if index.exists():
        _check_index(index, weights)
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith(_BUFFERS)}
    for tensor in kept.values():
        _check_numbers(tensor)
    if not kept:
        raise CheckpointError(f"{folder} has weights files without a single tensor.", hint=COPY_AGAIN)
    return kept


def _check_index(index: Path, weights: dict[str, StoredTensor]) -> None:
    listed = _weight_map(index)
    present = {name: tensor.path.name for name, tensor in weights.items()}
    for name in sorted(listed.keys() | present.keys()):
        if listed.get(name) == present.get(name):
            continue
        where = f"in {present[name]}" if name in present else "in none of the files"
        expected = f"in {listed[name]}" if name in listed else "nowhere"
        raise CheckpointError(
            f"{index} and the weights disagree: it has {name} {expected}, it is {where}.", hint=COPY_AGAIN
        )


def _check_numbers(tensor: StoredTensor) -> None:
    if tensor.type_name not in STORED_TYPES:
        raise CheckpointError(
            f"{tensor.path} stores {tensor.name} as {tensor.type_name}, not as F32, F16 or BF16.",
            hint="Use the model's original weights; quantized ones cannot be converted.",
        )
    if 0 in tensor.shape:
        raise CheckpointError(f"{tensor.path} holds no numbers for {tensor.name}.", hint=COPY_AGAIN)


def check_completeness(
    folder: Path, config: dict[str, Any], architecture: str, weights: Iterable[str]
) -> None:
    """Refuse a model of a known family without some layers, or a tensor that its other layers have.

    Raises:
        CheckpointError: names what is missing.
    """
    if architecture not in _EVEN:
        return
    layers: dict[int, set[str]] = {}
    for name in weights:
        if match := _LAYER.search(name):
            layers.setdefault(int(match[1]), set()).add(match[2])
    count = config.get("num_hidden_layers", config.get("n_layer"))
    if isinstance(count, int) and layers.keys() != set(range(count)):
        raise CheckpointError(
            f"{folder} holds {len(layers)} layers, and its config.json says {count}.", hint=COPY_AGAIN
        )
    every = set().union(*layers.values())
    for layer, present in sorted(layers.items()):
        if missing := every - present:
            raise CheckpointError(
                f"{folder} lacks {min(missing)} in layer {layer}, which other layers have.", hint=COPY_AGAIN
            )
    embedding_name(weights)
    if HEAD not in weights and not is_tied(config):
        raise CheckpointError(
            f"{folder} lacks {HEAD}, and its config.json does not tie the head to the embedding.",
            hint=COPY_AGAIN,
        )
