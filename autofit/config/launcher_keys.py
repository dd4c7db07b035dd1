"""LLaMA-Factory's keys and the trial spec's fields: each in terms of the other, with LLaMA-Factory 0.9.5's defaults.

The defaults are those of its `hparams/*.py` and of transformers 5 (`TrainingArguments`); a test reads them there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from autofit.config.launcher_yaml import REMOVED
from autofit.config.trial import Optimizer, TrialSpec
from autofit.errors import UsageError

DEFAULTS: dict[str, Any] = {
    "stage": "sft",
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "freeze_vision_tower": True,
    "freeze_multi_modal_projector": True,
    "freeze_language_model": False,
    "cutoff_len": 2048,
    "image_max_pixels": 768 * 768,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "optim": "adamw_torch_fused",
    "bf16": False,
    "fp16": False,
    "pure_bf16": False,
    "flash_attn": "auto",
    "disable_gradient_checkpointing": False,
    "enable_liger_kernel": False,
    "dataset_dir": "data",
    "deepspeed": None,
}

INERT: dict[str, tuple[Any, ...]] = {
    "do_train": (True,),
    "stage": ("sft",),
    **dict.fromkeys(
        (
            "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "use_mca", "use_kt", "use_hyper_parallel",
            "use_unsloth", "use_unsloth_gc", "use_dora", "pissa_init", "use_llama_pro", "shift_attn", "upcast_layernorm",
            "upcast_lmhead_output", "resize_vocab", "neat_packing", "fp8", "use_dft_loss", "use_asft_loss", "use_eaft_loss",
            "torch_compile", "auto_find_batch_size", "predict_with_generate",
        ),
        (False,),
    ),
    **dict.fromkeys(
        (
            "quantization_bit", "additional_target", "freeze_extra_modules", "mixture_of_depths", "adapter_name_or_path",
            "add_tokens", "add_special_tokens", "fsdp", "fsdp_config", "optim_target_modules",
        ),
        ("", False),
    ),
    "use_reentrant_gc": (True,),
    "lora_dropout": (0, 0.0),
    "label_smoothing_factor": (0, 0.0),
    "freeze_trainable_layers": (2,),
    "freeze_trainable_modules": ("all",),
}  # fmt: skip
"""Keys that change memory in a way that a trial spec cannot say, with the values at which they do not. None is inert too."""

ATTENTION = {"auto": "auto", "eager": "disabled", "sdpa": "sdpa", "flash_attention_2": "fa2"}
"""The spec's attention -> `flash_attn`."""
_OPTIMIZER_ALIASES = {"adamw_bnb_8bit": "adamw_8bit"}
KNOB_OF_KEY = {
    "finetuning_type": "method",
    "optim": "optimizer",
    "disable_gradient_checkpointing": "gradient_checkpointing",
    "deepspeed": "zero_stage",
    "flash_attn": "attention",
    "enable_liger_kernel": "fused_cross_entropy",
    "per_device_train_batch_size": "micro_batch_size",
}
"""LLaMA-Factory's name of a knob, where it is another."""


@dataclass(frozen=True)
class Meaning:
    """What a LLaMA-Factory file says, as far as a trial spec can say it."""

    fields: dict[str, Any]
    """Fields of the trial spec, without `model`, `num_gpus` and `images`."""
    deepspeed: dict[str, Any] | None
    """The DeepSpeed configuration, read from its file if it is one."""
    beyond: tuple[str, ...]
    """What the spec cannot say and yet changes memory, a key and its value each."""


def meaning(values: Mapping[str, Any], device: Literal["cuda", "cpu"], source: str) -> Meaning:
    """The trial spec's fields in a file's values.

    Raises:
        UsageError: a value that no LLaMA-Factory would take, or a DeepSpeed file that cannot be read.
    """
    got = {**DEFAULTS, **{key: value for key, value in values.items() if value is not None}}
    if got["finetuning_type"] not in {"full", "lora", "freeze"}:
        raise UsageError(f"{source}: finetuning_type {got['finetuning_type']} is none that autofit knows: full, lora or freeze")
    deepspeed = read_deepspeed(got["deepspeed"], source)
    zero = (deepspeed or {}).get("zero_optimization", {})
    beyond = _beyond(values)
    fields: dict[str, Any] = {
        "method": got["finetuning_type"],
        "lora": {"rank": got["lora_rank"], "target": _joined(got["lora_target"])},
        "micro_batch_size": got["per_device_train_batch_size"],
        "gradient_accumulation_steps": got["gradient_accumulation_steps"],
        "cutoff_len": got["cutoff_len"],
        "zero_stage": zero.get("stage", 0),
        "offload_optimizer": _to_host(zero, "offload_optimizer"),
        "offload_param": _to_host(zero, "offload_param"),
        "gradient_checkpointing": not got["disable_gradient_checkpointing"],
        "fused_cross_entropy": got["enable_liger_kernel"],
        **{name: got[name] for name in ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model")},
    }
    if deepspeed is not None and not fields["zero_stage"]:
        beyond.append("deepspeed with stage 0")
    optimizer = _OPTIMIZER_ALIASES.get(got["optim"], got["optim"])
    if optimizer in get_args(Optimizer):
        fields["optimizer"] = optimizer
    else:
        beyond.append(f"optim {optimizer}")
    attention = next((ours for ours, theirs in ATTENTION.items() if theirs == got["flash_attn"]), None)
    if attention is None:
        beyond.append(f"flash_attn {got['flash_attn']}")
    fields["attention"] = attention or "auto"
    fields |= _precision(got)
    if not (got["bf16"] or got["fp16"] or got["pure_bf16"]) and device == "cuda":
        beyond.append("neither bf16 nor fp16 nor pure_bf16 (LLaMA-Factory then loads half-precision weights without autocast)")
        fields["precision"] = "bf16"
    return Meaning(fields, deepspeed, tuple(beyond))


def key_changes(before: TrialSpec, after: TrialSpec, deepspeed: Mapping[str, Any] | None) -> dict[str, Any]:
    """LLaMA-Factory's keys that lead from one spec to another; `deepspeed` is the configuration of `after`."""
    wanted = _keys(after)
    changes = {key: value for key, value in wanted.items() if _keys(before)[key] != value}
    zero = ("zero_stage", "offload_optimizer", "offload_param")
    if any(getattr(before, name) != getattr(after, name) for name in zero):
        changes["deepspeed"] = REMOVED if deepspeed is None else dict(deepspeed)
    return changes


def read_deepspeed(value: Any, source: str) -> dict[str, Any] | None:
    """The DeepSpeed configuration that a `deepspeed:` value means: itself, or the JSON file that it names.

    Raises:
        UsageError: the file cannot be read or is no JSON object.
    """
    if value is None or isinstance(value, dict):
        return value
    try:
        content = json.loads(Path(str(value)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{source}: deepspeed: {value} cannot be read ({error}); start autofit in the folder where you start LLaMA-Factory"
        ) from error
    if not isinstance(content, dict):
        raise UsageError(f"{source}: deepspeed: {value} must hold a JSON object")
    return content


def _keys(spec: TrialSpec) -> dict[str, Any]:
    """Every key of a spec, DeepSpeed left out."""
    return {
        "finetuning_type": spec.method,
        "per_device_train_batch_size": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "cutoff_len": spec.cutoff_len,
        "optim": spec.optimizer,
        "bf16": spec.precision == "bf16" and not spec.pure_bf16,
        "fp16": spec.precision == "fp16",
        "pure_bf16": spec.pure_bf16,
        "flash_attn": ATTENTION[spec.attention],
        "disable_gradient_checkpointing": not spec.gradient_checkpointing,
        "enable_liger_kernel": spec.fused_cross_entropy,
        "freeze_vision_tower": spec.freeze_vision_tower,
        "freeze_multi_modal_projector": spec.freeze_multi_modal_projector,
        "freeze_language_model": spec.freeze_language_model,
    }


def _beyond(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} {values[key]}" for key, inert in INERT.items() if values.get(key) is not None and values[key] not in inert]


def _precision(got: Mapping[str, Any]) -> dict[str, Any]:
    if got["pure_bf16"]:
        return {"precision": "bf16", "pure_bf16": True}
    return {"precision": "bf16" if got["bf16"] else "fp16" if got["fp16"] else "fp32"}


def _to_host(zero: Mapping[str, Any], part: str) -> bool:
    section = zero.get(part) or {}
    return isinstance(section, dict) and section.get("device", "none") not in {None, "none"}


def _joined(target: Any) -> str:
    names = target if isinstance(target, list) else str(target).split(",")
    return ",".join(str(name).strip() for name in names)
