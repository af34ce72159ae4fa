"""A base model's folder as Hugging Face saves it: looked at with suspicion before anything of it is loaded.

Called by `check`, `run` and `eval`. Reads config.json and file names; the weights only for the fingerprint.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemed_training.errors import BaseModelError
from edgemed_training.recipe import BaseSection

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_MAX_JSON_BYTES = 64 * 2**20
_COPY_AGAIN = "Copy the model again from where it was published."


@dataclass(frozen=True)
class BaseModel:
    """A folder with config, tokenizer and safetensors weights that name one another."""

    folder: Path
    config: dict[str, Any]
    weight_files: tuple[Path, ...]
    """In the order of their names; empty where only config and tokenizer were asked for."""

    @classmethod
    def read(cls, folder: Path, *, weights: bool = True) -> "BaseModel":
        """Look at a model folder.

        Args:
            folder: where config.json, tokenizer and weights lie.
            weights: whether the weights must be there, too.

        Raises:
            BaseModelError: no folder, a file missing, pickled weights, quantized weights, an adapter, code
                that would have to be trusted, or a model of several media.
        """
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise BaseModelError(
                f"The base model folder {folder} {what}.",
                hint="Name a folder with config.json, tokenizer and safetensors weights; this program never "
                "downloads a model.",
            )
        config = _config(folder)
        if not any((folder / name).is_file() for name in TOKENIZER_NAMES):
            raise BaseModelError(
                f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_NAMES)}).", hint=_COPY_AGAIN
            )
        return cls(folder, config, _weight_files(folder) if weights else ())

    @property
    def model_type(self) -> str:
        """The family, e.g. llama."""
        return str(self.config["model_type"])

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self._number("hidden_size", "n_embd")

    @property
    def layers(self) -> int:
        """How many decoder layers."""
        return self._number("num_hidden_layers", "n_layer")

    @property
    def context_length(self) -> int | None:
        """Tokens the model has positions for; None when config.json does not say."""
        for key in ("max_position_embeddings", "n_positions", "n_ctx"):
            value = self.config.get(key)
            if type(value) is int and value > 0:
                return value
        return None

    def fingerprint(self) -> str:
        """Return the SHA-256 that names this base model; reads all weights once.

        It is taken over one line for each weights file, in the order of their names, then one for
        config.json: the file's SHA-256 in hexadecimal, two spaces, its name, a line feed. `edgemed-convert`
        computes the same, to see that an adapter meets the base model it was trained on.
        """
        lines = hashlib.sha256()
        for path in (*self.weight_files, self.folder / CONFIG_NAME):
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise BaseModelError(f"{path} cannot be read: {error.strerror}.", hint=_COPY_AGAIN) from error
            lines.update(f"{digest}  {path.name}\n".encode())
        return lines.hexdigest()

    def check_fits(self, wanted: BaseSection) -> None:
        """Refuse a folder that is not the model the recipe was made for.

        Raises:
            BaseModelError: another family or another shape.
        """
        found = {"model_type": self.model_type, "hidden_size": self.hidden_size, "layers": self.layers}
        for key, value in found.items():
            expected = getattr(wanted, key)
            if expected and expected != value:
                raise BaseModelError(
                    f"The recipe is made for {wanted.name or 'a model'} with {key} {expected}; "
                    f"{self.folder} has {value}.",
                    hint="Name the folder of that model, or use the recipe made for this one.",
                )

    def _number(self, *keys: str) -> int:
        for key in keys:
            value = self.config.get(key)
            if type(value) is int and value > 0:
                return value
        raise BaseModelError(f"{self.folder / CONFIG_NAME} has no {keys[0]}.", hint=_COPY_AGAIN)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.exists() and (folder / "adapter_config.json").exists():
        raise BaseModelError(
            f"{folder} is an adapter, not a base model.", hint="Name the folder of its base model."
        )
    config = _json(path)
    if not isinstance(config.get("model_type"), str):
        raise BaseModelError(f"{path} does not name the model's family (model_type).", hint=_COPY_AGAIN)
    if "auto_map" in config:
        raise BaseModelError(
            f"{path} asks for Python code from the model's folder (auto_map): it could do anything, and is "
            "refused.",
            hint="Use a model that transformers knows by itself, or a copy of it without auto_map.",
        )
    if "text_config" in config or "vision_config" in config:
        raise BaseModelError(
            f"{folder} is a model of several media around a text model.",
            hint="For Gemma 3, `edgemed-convert text-model FOLDER --out DIR` writes its text model; use it.",
        )
    if config.get("quantization_config"):
        raise BaseModelError(
            f"{folder} holds weights that are quantized already.",
            hint="Use the base model in F32, F16 or BF16: it is quantized while it is loaded.",
        )
    return config


def _weight_files(folder: Path) -> tuple[Path, ...]:
    single, index = folder / WEIGHTS_NAME, folder / INDEX_NAME
    if single.exists() and index.exists():
        raise BaseModelError(
            f"{folder} holds {WEIGHTS_NAME} and {INDEX_NAME}: two sets of weights.",
            hint="Remove the one that does not belong to the model.",
        )
    if single.exists():
        return (single,)
    if index.exists():
        weight_map = _json(index).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise BaseModelError(f"{index} does not list the weights (weight_map).", hint=_COPY_AGAIN)
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise BaseModelError(f"{folder} lacks the weights file {missing[0]}.", hint=_COPY_AGAIN)
        return tuple(folder / name for name in sorted(names))
    if any(any(folder.glob(pattern)) for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")):
        raise BaseModelError(
            f"{folder} holds pickled weights: they could run any code, and are refused.",
            hint="Use the model's safetensors files.",
        )
    raise BaseModelError(
        f"{folder} has no weights: neither {WEIGHTS_NAME} nor {INDEX_NAME}.", hint=_COPY_AGAIN
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise BaseModelError(f"{path} is too large for what it should be.", hint=_COPY_AGAIN)
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise BaseModelError(f"{path} cannot be read: {error.strerror}.", hint=_COPY_AGAIN) from error
    except (ValueError, RecursionError) as error:
        raise BaseModelError(f"{path} is not valid JSON: {error}.", hint=_COPY_AGAIN) from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{path} is not a JSON object.", hint=_COPY_AGAIN)
    return value
