"""The small model as a network: new weights or a base's, the optimizers over them, and the final folder."""

from pathlib import Path
from typing import Any

from edgemed_training import base_tokenizer
from edgemed_training.base_recipe import BaseRecipe, StepsSection, TrainSection
from edgemed_training.muon import Muon


class Optimizers:
    """AdamW, for a base with Muon for the matrices of attention and MLP, and their state by name."""

    def __init__(self, model: Any, train: StepsSection) -> None:
        """Take the model's parameters.

        Args:
            model: a transformers model whose embeddings are tied.
            train: learning rates, momenta, weight decay; Muon only where it names a rate for it.
        """
        import torch

        self._train = train
        self._parameters = dict(model.named_parameters())
        self._muon: Muon | None = None
        self._rest = self._parameters
        if isinstance(train, TrainSection):
            matrices = {n: p for n, p in self._parameters.items() if p.ndim == 2 and "embed" not in n}
            self._rest = {n: p for n, p in self._parameters.items() if n not in matrices}
            self._muon = Muon(
                matrices,
                momentum=train.muon_momentum,
                weight_decay=train.muon_weight_decay,
                precision=torch.bfloat16 if train.precision == "bf16" else torch.float32,
            )
        self._adamw = torch.optim.AdamW(
            list(self._rest.values()),
            lr=train.adamw_learning_rate,
            betas=(train.adamw_beta1, train.adamw_beta2),
            weight_decay=train.adamw_weight_decay,
        )

    def step(self, rate_share: float) -> None:
        """Update all parameters by their gradients, with this share of the learning rates."""
        if self._muon and isinstance(self._train, TrainSection):
            self._muon.step(self._train.muon_learning_rate * rate_share)
        for group in self._adamw.param_groups:
            group["lr"] = self._train.adamw_learning_rate * rate_share
        self._adamw.step()

    def state(self) -> dict[str, Any]:
        """Return parameters, momenta and AdamW's moments: name → tensor on the CPU."""
        kept = {f"parameter.{name}": p.detach() for name, p in self._parameters.items()}
        if self._muon:
            kept |= {f"muon.{name}": buffer for name, buffer in self._muon.state.items()}
        for name, parameter in self._rest.items():
            kept |= {f"adamw.{key}.{name}": t for key, t in self._adamw.state[parameter].items()}
        return {name: tensor.cpu() for name, tensor in kept.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Put everything back as `state` gave it."""
        import torch

        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state[f"parameter.{name}"])
        if self._muon:
            self._muon.load({n.removeprefix("muon."): t for n, t in state.items() if n.startswith("muon.")})
        for name, parameter in self._rest.items():
            self._adamw.state[parameter] = {
                "step": state[f"adamw.step.{name}"].clone(),
                "exp_avg": state[f"adamw.exp_avg.{name}"].to(parameter.device),
                "exp_avg_sq": state[f"adamw.exp_avg_sq.{name}"].to(parameter.device),
            }


def build_model(recipe: BaseRecipe) -> Any:
    """Return a new transformers model in float32; the same recipe gives the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape, end = recipe.model, base_tokenizer.END_OF_TEXT_ID
    torch.manual_seed(recipe.train.seed)
    config = LlamaConfig(
        vocab_size=recipe.tokenizer.vocabulary_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.feed_forward_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.hidden_size // shape.heads,
        max_position_embeddings=shape.context_length,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config).train()


def load_model(folder: Path) -> Any:
    """Return a base model's weights in float32, ready to be trained.

    Args:
        folder: a Hugging Face folder that was looked at (`base_model`).
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )
    return model.train()


def save_model(model: Any, tokenizer: Any, folder: Path, *, for_chat: bool = False) -> None:
    """Write a Hugging Face folder: float16 weights in safetensors, tokenizer, configs. Changes the model.

    Args:
        model: of transformers.
        tokenizer: a `tokenizers.Tokenizer`.
        folder: is made.
        for_chat: a text ends with a turn, and the tokenizer gets the chat template.
    """
    import torch
    from transformers import GenerationConfig

    end = base_tokenizer.END_OF_TEXT_ID
    turn_end = tokenizer.token_to_id(base_tokenizer.END_OF_TURN)
    model.config.bos_token_id = model.config.pad_token_id = end
    model.config.eos_token_id = turn_end if for_chat else end
    model.generation_config = GenerationConfig(
        eos_token_id=[turn_end, end] if for_chat else end, pad_token_id=end, max_new_tokens=256
    )
    model.to(torch.float16).save_pretrained(folder)
    context_length = model.config.max_position_embeddings
    base_tokenizer.save_tokenizer(tokenizer, folder, context_length, for_chat=for_chat)
