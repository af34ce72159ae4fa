"""How each library builds its trainer, as its own documents say; called by `training_child`.

The arms of the others need nothing of edgemed's, so that each may run in an environment of its own.
"""

import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from tests.measurements.training_arms import ALPHA, MODULES, RANK, Arm, Job

IGNORED = -100


def device() -> str:
    """Return where this process trains."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def our_recipe(arm: Arm, job: Job) -> Any:
    """Return the recipe of one of our arms."""
    from edgemed_training.recipe import Recipe, changed_recipe

    rows, accumulation = (job.packed_rows, 1) if arm.packed else (job.padded_examples, job.accumulation)
    changes = {
        "lora.r": RANK,
        "lora.lora_alpha": ALPHA,
        "lora.lora_dropout": arm.dropout,
        "train.max_length": job.max_length,
        "train.epochs": 1,
        "train.learning_rate": job.learning_rate,
        "train.micro_batch_rows": rows,
        "train.gradient_accumulation_steps": accumulation,
        "train.packing": "on" if arm.packed else "off",
        "train.activation_checkpointing": arm.recompute,
        "train.seed": job.seed,
        "eval.generation_items": 0,
    }
    return changed_recipe(Recipe(), [f"{key}={value}" for key, value in changes.items()])


def our_trainer(arm: Arm, job: Job, train: list[Any], out: Path) -> tuple[Any, dict[str, Any]]:
    """Go the way of `edgemed_training.train`, with rows of ids in place of pairs of text."""
    from edgemed_training.libraries import prepare_libraries

    prepare_libraries()
    from edgemed_training import qlora
    from edgemed_training.base_model import BaseModel
    from edgemed_training.chat_format import ChatFormat
    from edgemed_training.run_plan import choose_attention, evaluator, has_cuda, plan_rows
    from edgemed_training.trainer import build_trainer, training_arguments
    from transformers import set_seed

    recipe, base = our_recipe(arm, job), BaseModel.read(Path(job.base))
    set_seed(job.seed)
    chat_format = ChatFormat(qlora.load_tokenizer(base), recipe)
    model = qlora.load_base(base, recipe, attention=choose_attention(recipe))
    model = qlora.attach_adapter(model, recipe, base)
    pairs, some = encoded(train), encoded(train[:1])  # its own evaluation is not measured
    plan = plan_rows(model, chat_format, recipe, pairs, some, job.max_length, _say)
    recomputes = arm.recompute == "on"
    if recomputes:
        model.enable_input_require_grads()
    arguments = training_arguments(
        recipe,
        out,
        precision=qlora.precision(recipe),
        checkpointing=recomputes,
        on_cpu=not has_cuda(),
    )
    trainer = build_trainer(
        model,
        arguments,
        recipe,
        rows=plan.rows,
        collator=plan.collator,
        evaluate=evaluator(recipe, chat_format, base, plan),
        progress=_say,
    )
    return trainer, {"attention": model.config._attn_implementation, "optimizer": recipe.train.optimizer}


def encoded(rows: list[Any]) -> Any:
    from edgemed_training.encoding import Encoded, EncodedPairs

    return EncodedPairs([Encoded(ids, _labels(ids, prompt)) for ids, prompt in rows])


def _labels(ids: list[int], prompt: int) -> list[int]:
    return [IGNORED] * prompt + ids[prompt:]


def trl_trainer(arm: Arm, job: Job, train: list[Any], out: Path) -> tuple[Any, dict[str, Any]]:
    """Follow TRL's documents: a 4-bit model and `peft_config` to SFTTrainer; FlashAttention where it is installed."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    number_type = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    has_flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    model = AutoModelForCausalLM.from_pretrained(
        job.base,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=number_type,
        ),
        dtype=number_type,
        device_map={"": device()},
        attn_implementation="flash_attention_2" if has_flash and arm.packed else "sdpa",
        local_files_only=True,
    )
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=arm.dropout,
        target_modules=MODULES,
        bias="none",
    )
    return _sft_trainer(arm, job, train, out, model, peft_config=adapter)


def unsloth_trainer(arm: Arm, job: Job, train: list[Any], out: Path) -> tuple[Any, dict[str, Any]]:
    """Follow Unsloth's notebooks. It must be imported before all others; in 4 bits it takes NF4 doubly quantized."""
    unsloth = importlib.import_module("unsloth")

    model, _tokenizer = unsloth.FastLanguageModel.from_pretrained(
        model_name=job.base,
        max_seq_length=job.max_length,
        dtype=None,
        load_in_4bit=True,
        local_files_only=True,
        use_gradient_checkpointing="unsloth",
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        target_modules=MODULES,
        lora_alpha=ALPHA,
        lora_dropout=arm.dropout,
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=job.seed,
        max_seq_length=job.max_length,
    )
    return _sft_trainer(arm, job, train, out, model, optim="adamw_8bit")


def _sft_trainer(
    arm: Arm, job: Job, train: list[Any], out: Path, model: Any, *, peft_config: Any = None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Build TRL's trainer, which is Unsloth's too. Ids with a mask: "labels" would cost Unsloth its collator."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = {
        "input_ids": [ids for ids, _prompt in train],
        "completion_mask": [[0] * prompt + [1] * (len(ids) - prompt) for ids, prompt in train],
    }
    on_cpu = device() == "cpu"
    names = {field.name for field in dataclasses.fields(SFTConfig)}
    arguments = SFTConfig(
        output_dir=str(out),
        max_length=job.max_length,
        packing=arm.packed,
        completion_only_loss=True,
        per_device_train_batch_size=job.packed_rows if arm.packed else job.padded_examples,
        gradient_accumulation_steps=1 if arm.packed else job.accumulation,
        num_train_epochs=1,
        learning_rate=job.learning_rate,
        lr_scheduler_type="cosine",
        bf16=not on_cpu,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job.seed,
        data_seed=job.seed,
        # The same share by the name of this version.
        **{"warmup_ratio" if "warmup_ratio" in names else "warmup_steps": 0.03},
        **options,
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(job.base, local_files_only=True),
        **({"peft_config": peft_config} if peft_config is not None else {}),
    )
    return trainer, {
        "attention": str(getattr(trainer.model.config, "_attn_implementation", "?")),
        "optimizer": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
        "padding_free": bool(getattr(trainer.args, "padding_free", False)),
    }


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
