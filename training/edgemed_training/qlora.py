"""The base model in NF4 and its LoRA adapter: loaded, joined, saved, and joined again.

Called by `train` and `evaluate`. Everything comes from a local folder; nothing pickled is ever opened.
"""

import json
import os
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgemed.errors import MissingExtra
from edgemed_training.base_model import BaseModel
from edgemed_training.errors import BaseModelError
from edgemed_training.recipe import LoraSection, Recipe

ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
BASE_SHA256_KEY = "edgemed_base_sha256"
"""In adapter_config.json: the fingerprint of the base model, as `BaseModel.fingerprint` defines it."""
TARGET_MODULES = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}
_LLAMA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Precision = Literal["bf16", "fp16", "fp32"]


class _AdapterConfig(msgspec.Struct, frozen=True):
    """What we read of another adapter's config before PEFT sees it."""

    peft_type: Literal["LORA"]
    edgemed_base_sha256: str | None = None


def device() -> str:
    """Return where this process trains: its own GPU, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def precision(recipe: Recipe) -> Precision:
    """Return the number format of the computation on this machine.

    Raises:
        BaseModelError: the recipe wants bf16 and the GPU has none.
    """
    import torch

    wanted, has_cuda = recipe.train.precision, torch.cuda.is_available()
    has_bf16 = not has_cuda or torch.cuda.get_device_capability() >= (8, 0)
    if wanted == "bf16" and not has_bf16:
        raise BaseModelError(
            "This GPU does not compute in bf16.", hint='Set train.precision = "fp16" or "auto".'
        )
    if wanted != "auto":
        return wanted
    return ("bf16" if has_bf16 else "fp16") if has_cuda else "fp32"


def public_name(base: BaseModel, recipe: Recipe) -> str:
    """Return the base model's name as its makers publish it, else the name of its folder."""
    return recipe.base.name or base.folder.resolve().name


def target_modules(recipe: Recipe, model_type: str) -> list[str]:
    """Return the matrices that get an adapter: the recipe's, else all of attention and MLP."""
    return recipe.lora.target_modules or TARGET_MODULES.get(model_type, _LLAMA_MODULES)


def load_tokenizer(base: BaseModel) -> Any:
    """Load the tokenizer of a model folder.

    Raises:
        BaseModelError: transformers cannot read it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(base.folder), local_files_only=True, trust_remote_code=False, padding_side="right"
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise BaseModelError(
            f"The tokenizer in {base.folder} cannot be loaded: {_one_line(error)}.",
            hint="Copy the model again from where it was published.",
        ) from error


def load_base(base: BaseModel, recipe: Recipe, *, attention: str = "sdpa") -> Any:
    """Load the base model for training or evaluation: frozen, quantized as the recipe says, cache off.

    Args:
        base: with its weights.
        recipe: its quantization and precision.
        attention: as transformers names it.

    Raises:
        BaseModelError: the weights are damaged, incomplete, or the family is unknown to transformers.
    """
    import torch
    from safetensors import SafetensorError

    if recipe.base.quantization == "nf4":
        _check_quantizing_library()
    number_type = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision(recipe)]
    is_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    options: dict[str, Any] = {} if is_fsdp else {"device_map": {"": device()}}
    if recipe.base.quantization == "nf4":
        options["quantization_config"] = _nf4(number_type, for_fsdp=is_fsdp)
    try:
        model, found = _from_folder(base, attention, {"dtype": number_type, **options})
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BaseModelError(
            f"The base model in {base.folder} cannot be loaded: {_one_line(error)}.",
            hint="Copy the model again from where it was published.",
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise BaseModelError(
            f"The weights in {base.folder} lack {missing[0]} and {len(missing) - 1} others that "
            "config.json asks for.",
            hint="Copy the model again from where it was published.",
        )
    model.requires_grad_(False)
    model.config.use_cache = False
    keep_cpu_gradients_right(model)
    return model


def _check_quantizing_library() -> None:
    """Refuse a bitsandbytes that does not know this machine's GPU library: else it fails in mid-load.

    Raises:
        MissingExtra: it has no part for this CUDA version.
    """
    import torch
    from bitsandbytes import cextension

    if torch.cuda.is_available() and isinstance(cextension.lib, cextension.ErrorHandlerMockBNBNativeLibrary):
        known = ", ".join(cextension.lib.available_versions) or "none"
        raise MissingExtra(
            f"bitsandbytes {metadata.version('bitsandbytes')} has no part for CUDA "
            f"{cextension.lib.requested_version}, which torch uses here (it has parts for: {known}).",
            hint="Install another bitsandbytes or torch, or set BNB_CUDA_VERSION in the environment to one "
            'that it has; base.quantization = "none" works without it.',
        )


def _from_folder(base: BaseModel, attention: str, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    options |= {
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(base.folder), attn_implementation=attention, **options
        )
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        # Gemma 2 caps its attention, which only transformers' own code can.
        return AutoModelForCausalLM.from_pretrained(str(base.folder), attn_implementation="eager", **options)


def keep_cpu_gradients_right(model: Any) -> int:
    """Switch off a repacking of 4-bit weights that has no gradient; return how many matrices it concerned.

    On processors with AVX512-BF16, bitsandbytes (0.50) repacks every `Linear4bit` at the first forward pass
    without gradients, and never back: training then goes on with the same loss and wrong gradients.
    """
    import bitsandbytes

    matrices = [part for part in model.modules() if isinstance(part, bitsandbytes.nn.Linear4bit)]
    for matrix in matrices:
        matrix.support_avx512bf16_for_cpu = False
    return len(matrices)


def attach_adapter(model: Any, recipe: Recipe, base: BaseModel) -> Any:
    """Put a new LoRA adapter around a base model; its weights are float32.

    Raises:
        BaseModelError: the model has none of the target modules.
    """
    config = _lora_config(recipe.lora, target_modules(recipe, base.model_type), base, recipe)
    try:
        return _joined(model, config)
    except ValueError as error:
        raise BaseModelError(
            f"No adapter can be put on {base.folder}: {_one_line(error)}.",
            hint="Set lora.target_modules to the names of this model's matrices.",
        ) from error


def save_adapter(model: Any, folder: Path, *, base_sha256: str | None = None, state: Any = None) -> None:
    """Write an adapter as PEFT does, in safetensors, without the model card it invents.

    Args:
        model: with the adapter.
        folder: created where it is missing.
        base_sha256: recorded in adapter_config.json; None in a checkpoint, which PEFT itself reads again.
        state: the model's tensors where they had to be gathered from several GPUs.
    """
    model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    if base_sha256 is not None:
        path = folder / ADAPTER_CONFIG_NAME
        fields = json.loads(path.read_bytes()) | {BASE_SHA256_KEY: base_sha256}
        path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_adapter(folder: Path, *, base_sha256: str, base: BaseModel) -> None:
    """Refuse, before anything is loaded, an adapter that is missing, pickled or of another base model.

    Raises:
        BaseModelError: as `load_adapter`.
    """
    _adapter_fields(folder, base_sha256, base)


def load_adapter(model: Any, folder: Path, *, base_sha256: str, base: BaseModel) -> Any:
    """Put a trained adapter on the base model that it was trained on.

    Args:
        model: the base model.
        folder: of the adapter.
        base_sha256: fingerprint of the base model.
        base: for the messages.

    Raises:
        BaseModelError: missing, pickled, damaged, or trained on another base model.
    """
    import torch
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    fields = _adapter_fields(folder, base_sha256, base)
    known = set(LoraConfig.__dataclass_fields__)
    try:
        config = LoraConfig(**{key: value for key, value in fields.items() if key in known})
        config.inference_mode = True
        adapted = _joined(model, config)
        state = load_file(str(folder / ADAPTER_WEIGHTS_NAME))
        result = set_peft_model_state_dict(adapted, state)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BaseModelError(
            f"The adapter in {folder} does not fit {base.folder}: {_one_line(error)}.",
            hint="Name the base model that it was trained on, or copy the adapter again.",
        ) from error
    expected = {name for name, _tensor in adapted.named_parameters() if "lora_" in name}
    absent = [name for name in result.missing_keys if name in expected]
    if absent or result.unexpected_keys:
        raise BaseModelError(
            f"The adapter in {folder} was trained on another model than {base.folder}: "
            f"{len(absent)} of its matrices are missing, {len(result.unexpected_keys)} have no place.",
            hint="Name the base model that it was trained on.",
        )
    return adapted


def _joined(model: Any, config: Any) -> Any:
    from peft import get_peft_model

    # PEFT would put the model's local path into the adapter.
    model.name_or_path = model.config._name_or_path = config.base_model_name_or_path
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 by an old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        # GPT-2 counted without weights: PEFT turns its matrices by itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to", category=UserWarning)
        return get_peft_model(model, config)


def _adapter_fields(folder: Path, base_sha256: str, base: BaseModel) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG_NAME
    try:
        fields: dict[str, Any] = json.loads(path.read_bytes())
        config = msgspec.convert(fields, _AdapterConfig)
    except OSError as error:
        raise BaseModelError(
            f"There is no adapter in {folder}: {ADAPTER_CONFIG_NAME} cannot be read ({error.strerror}).",
            hint="Name the folder `adapter` that `edgemed-train run` wrote.",
        ) from error
    except (ValueError, msgspec.ValidationError) as error:
        raise BaseModelError(f"{path} is not valid: {error}.", hint="Copy the adapter again.") from error
    if not (folder / ADAPTER_WEIGHTS_NAME).is_file():
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        what = (
            "holds pickled weights: they could run any code, and are refused" if pickled else "has no weights"
        )
        raise BaseModelError(f"The adapter in {folder} {what}.", hint=f"Use one with {ADAPTER_WEIGHTS_NAME}.")
    if config.edgemed_base_sha256 not in (None, base_sha256):
        raise BaseModelError(
            f"The adapter in {folder} was trained on another base model than {base.folder}: "
            f"on {str(config.edgemed_base_sha256)[:12]}…, not {base_sha256[:12]}….",
            hint=f"Name the folder of {fields.get('base_model_name_or_path') or 'that model'}, unchanged.",
        )
    return fields


def _nf4(number_type: Any, *, for_fsdp: bool) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=number_type,
        # FSDP shards only tensors of one type.
        bnb_4bit_quant_storage=number_type if for_fsdp else torch.uint8,
    )


def _lora_config(lora: LoraSection, modules: list[str], base: BaseModel, recipe: Recipe) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=modules,
        bias="none",
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        # GPT-2's Conv1D stores its matrix the other way round; bitsandbytes turns it.
        fan_in_fan_out=base.model_type == "gpt2" and recipe.base.quantization == "none",
        base_model_name_or_path=public_name(base, recipe),
    )


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
