"""What `adapter_config.json` says of a PEFT adapter, and which of its options can be merged exactly.

Decided from the file alone, by the value of every option: a later PEFT may write options that are unknown
here, and one that is switched on is refused by its name. Facts about matching are PEFT's (0.21, Apache-2.0).
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgemed_convert.checkpoint import read_json
from edgemed_convert.errors import AdapterError

CONFIG_NAME = "adapter_config.json"
BASE_SHA256_KEY = "edgemed_base_sha256"
"""Where our training records the fingerprint of the base model."""

# Without influence on what the adapter's tensors mean once it is trained.
_WITHOUT_EFFECT = {
    "auto_mapping",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",  # seen from the weight itself, as PEFT does
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "init_lora_weights",
}
# These change the base weights at the start of training, so the adapter alone does not say what was trained.
_CHANGING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")
_HARMLESS_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_TASKS = (None, "CAUSAL_LM")

_MERGE_ELSEWHERE = (
    "Train without it, or merge with PEFT where the adapter was trained and use the merged model."
)

Positive = Annotated[int, msgspec.Meta(ge=1)]


class AdapterConfig(msgspec.Struct, frozen=True):
    """The options that decide what the adapter's tensors mean."""

    r: Positive
    lora_alpha: float
    target_modules: str | list[str]
    """A pattern for whole names, or names and ends of names."""
    base_model_name_or_path: str | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, Positive] = {}
    alpha_pattern: dict[str, float] = {}
    modules_to_save: list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    ensure_weight_tying: bool = False
    edgemed_base_sha256: str | None = None

    def rank_of(self, module: str) -> int:
        """Return the rank `r` of one module's adapter."""
        return self.rank_pattern.get(_key_of(self.rank_pattern, module), self.r)

    def scaling_of(self, module: str) -> float:
        """Return what B·A is multiplied by for one module."""
        rank = self.rank_of(module)
        alpha = self.alpha_pattern.get(_key_of(self.alpha_pattern, module), self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def adapts(self, module: str, *, is_inner_linear: bool) -> bool:
        """Whether a module gets a low-rank adapter.

        Args:
            module: its name in the model, e.g. model.layers.0.self_attn.q_proj.
            is_inner_linear: neither an embedding nor the output head: what `all-linear` means.
        """
        if self.exclude_modules and _matches(self.exclude_modules, module):
            return False
        if any(re.match(rf"(^|.*\.){saved}($|\..*)", module) for saved in self.modules_to_save or ()):
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules.lower() == "all-linear":
                return is_inner_linear
            return _matches(self.target_modules, module)
        if module in self.target_modules:
            return True
        return _matches(self.target_modules, module) and self._is_chosen_layer(module)

    def saves(self, module: str) -> bool:
        """Whether a module was trained as a whole, alone or as a part of one."""
        parts = module.split(".")
        ancestors = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return any(name.endswith(tuple(self.modules_to_save or ())) for name in ancestors)

    def _is_chosen_layer(self, module: str) -> bool:
        layers = self.layers_to_transform
        if layers is None or layers == []:
            return True
        patterns = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
        if patterns:
            matches = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
            match = next((match for match in matches if match), None)
        else:
            match = re.match(r".*?\.[^.]*\.(\d+)\.", module)
        return match is not None and int(match[1]) in (layers if isinstance(layers, list) else [layers])


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read the config of an adapter folder and refuse what cannot be merged exactly.

    Raises:
        AdapterError: missing, damaged, or an option that is not supported, by name.
    """
    path = folder / CONFIG_NAME
    fields = read_json(path, error=AdapterError)
    if fields.get("peft_type") != "LORA":
        raise AdapterError(
            f"{path} is of the type {fields.get('peft_type')!r}, not LORA.",
            hint="Use a LoRA or DoRA adapter.",
        )
    _refuse_unsupported(path, fields)
    try:
        config = msgspec.convert(
            {name: value for name, value in fields.items() if value is not None}, AdapterConfig
        )
        _try_patterns(config)
    except msgspec.ValidationError as problem:
        raise AdapterError(
            f"{path} is not valid: {problem}.", hint="Copy the adapter again, as PEFT saved it."
        ) from problem
    except re.error as problem:
        raise AdapterError(
            f"{path} has a pattern that is no regular expression: {problem}.",
            hint="Copy the adapter again, as PEFT saved it.",
        ) from problem
    return config


def _refuse_unsupported(path: Path, fields: Mapping[str, Any]) -> None:
    init = fields.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGING_INITS):
        raise AdapterError(
            f"{path} has init_lora_weights={init!r}: the base it was trained on was changed.",
            hint="Save it with PEFT's path_initial_model_for_weight_conversion: that makes a plain LoRA.",
        )
    if init not in _HARMLESS_INITS:
        raise AdapterError(f"{path} has init_lora_weights={init!r}, which is unknown.", hint=_MERGE_ELSEWHERE)
    if fields.get("task_type") not in _TASKS:
        raise AdapterError(
            f"{path} has task_type={fields['task_type']!r}, not CAUSAL_LM.",
            hint="Use an adapter that was trained to write text.",
        )
    known = {field.name for field in msgspec.structs.fields(AdapterConfig)} | _WITHOUT_EFFECT
    for name, value in fields.items():
        # A zero is not "off": it may be an index.
        off = value is None or value is False or value in ("", [], {})
        if name not in known and not off:
            raise AdapterError(
                f"{path} uses the option {name}={_short(value)}, which is not supported.",
                hint=_MERGE_ELSEWHERE,
            )


def _try_patterns(config: AdapterConfig) -> None:
    """Use every pattern and number once, so that a wrong one shows before the work begins."""
    if not all(map(math.isfinite, (config.lora_alpha, *config.alpha_pattern.values()))):
        raise msgspec.ValidationError("Expected a finite number - at `$.lora_alpha` or `$.alpha_pattern`")
    for module in ("model.layers.0.self_attn.q_proj", "lm_head"):
        config.adapts(module, is_inner_linear=True)
        config.scaling_of(module)


def _matches(targets: str | list[str], module: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return module in targets or any(module.endswith(f".{target}") for target in targets)


def _key_of(pattern: Iterable[str], module: str) -> str:
    """Return the first key that matches the module's name or its end."""
    return next((key for key in pattern if re.match(rf"(.*\.)?({key})$", module)), "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
