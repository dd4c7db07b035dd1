"""The keys of a LLaMA-Factory run: what a trial with that engine runs with, and what its export says.

Every value that LLaMA-Factory would otherwise choose differently from the trial is written out.
"""

from typing import Any

from autofit.config.launcher_keys import ATTENTION
from autofit.config.model import Model
from autofit.config.space import DatasetRef
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.export.deepspeed import BUCKET_ELEMENTS, deepspeed_config
from autofit.export.source import dataset_for, weights_of
from autofit.export.templates import template_for

FREEZE_TRAINABLE_LAYERS = 2
"""Layers that method `freeze` trains: LLaMA-Factory's default, and the worker's."""
LEARNING_RATE = {"full": 1.0e-5, "freeze": 1.0e-5, "lora": 1.0e-4}
"""LLaMA-Factory's own examples (`examples/train_full`, `examples/train_lora`)."""
MODEL, METHOD, DATA = "model", "method", "data"
CHOSEN = "memory and speed: what the search chose"
SCHEDULE = "schedule: not part of the search, change it as you like"


def arguments(spec: TrialSpec, model: Model, dataset: DatasetRef | None, device: str) -> dict[str, Any]:
    """All keys but those of the output, as one mapping: `RunSpec.arguments`.

    Raises:
        UsageError: LLaMA-Factory cannot run the spec, or the model has no weights or no certain template.
    """
    found: dict[str, Any] = {}
    for section in sections(spec, model, dataset, device).values():
        found |= section
    return found


def sections(
    spec: TrialSpec, model: Model, dataset: DatasetRef | None, device: str, bucket_elements: int = BUCKET_ELEMENTS
) -> dict[str, dict[str, Any]]:
    """Heading -> keys; none is empty, and no key occurs twice. `dataset` None is LLaMA-Factory's own demo.

    Raises:
        UsageError: as `arguments`.
    """
    _refuse_fp32(spec, model, device)
    return {
        MODEL: _model(spec, model),
        METHOD: _method(spec, model),
        DATA: _data(spec, model, dataset_for(model, dataset), device),
        CHOSEN: _chosen(spec, device, bucket_elements),
        SCHEDULE: _schedule(spec),
    }


def _refuse_fp32(spec: TrialSpec, model: Model, device: str) -> None:
    """Refuses an fp32 trial of a GPU that LLaMA-Factory would not train in fp32 throughout.

    Without bf16 and fp16 its `load_model` takes dtype "auto", `init_adapter` raises what is trained to fp32 (not under ZeRO-3),
    and `infer_optim_dtype` gives a GPU half precision, which its collator casts images to.
    """
    if spec.precision != "fp32" or device == "cpu":
        return
    config = model.config or {}
    stored = config.get("dtype") or config.get("torch_dtype")
    all_trained = spec.method == "full" and not model.is_vision_language and spec.zero_stage < 3
    if model.is_vision_language and spec.images.per_sample:
        reason = "without bf16 or fp16 it casts the images to half precision"
    elif stored != "float32" and not all_trained:
        kept = f"{stored} as its config.json says" if stored else "its config.json does not say how"
        reason = f"it loads weights as they are stored ({kept}) and raises to fp32 only what is trained without ZeRO-3"
    else:
        return
    raise UsageError(
        f"LLaMA-Factory 0.9.5 would not train model {model.label} in fp32 throughout on a GPU, as the trial did: "
        f"{reason}; export with --launcher transformers, or search with precision bf16"
    )


def _model(spec: TrialSpec, model: Model) -> dict[str, Any]:
    section: dict[str, Any] = {
        "model_name_or_path": weights_of(model),
        "flash_attn": ATTENTION[spec.attention],
        "disable_gradient_checkpointing": not spec.gradient_checkpointing,
    }
    if spec.fused_cross_entropy:
        section["enable_liger_kernel"] = True
    if model.is_vision_language and spec.images.per_sample > 0:
        section["image_max_pixels"] = spec.images.max_pixels
    return section


def _method(spec: TrialSpec, model: Model) -> dict[str, Any]:
    section: dict[str, Any] = {"stage": "sft", "do_train": True, "finetuning_type": spec.method}
    if spec.method == "lora":
        section |= {"lora_rank": spec.lora.rank, "lora_target": spec.lora.target}
    if spec.method == "freeze":
        section["freeze_trainable_layers"] = FREEZE_TRAINABLE_LAYERS
    if model.is_vision_language:
        section |= {
            "freeze_vision_tower": spec.freeze_vision_tower,
            "freeze_multi_modal_projector": spec.freeze_multi_modal_projector,
            "freeze_language_model": spec.freeze_language_model,
        }
    return section


def _data(spec: TrialSpec, model: Model, dataset: DatasetRef, device: str) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "dataset_dir": dataset.dir,
        "template": dataset.template or template_for(model),
        "cutoff_len": spec.cutoff_len,
        "preprocessing_num_workers": 1 if device == "cpu" else 16,
    }


def _chosen(spec: TrialSpec, device: str, bucket_elements: int) -> dict[str, Any]:
    section: dict[str, Any] = {
        "per_device_train_batch_size": spec.micro_batch_size,
        "per_device_eval_batch_size": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "optim": spec.optimizer,
        **_precision(spec),
    }
    if device == "cpu" and spec.precision != "fp32":
        section["use_cpu"] = True
    if (config := deepspeed_config(spec, bucket_elements=bucket_elements)) is not None:
        section["deepspeed"] = config
    return section


def _precision(spec: TrialSpec) -> dict[str, Any]:
    if spec.pure_bf16:  # `bf16` beside it would add autocast
        return {"pure_bf16": True}
    return {"bf16": spec.precision == "bf16", "fp16": spec.precision == "fp16"}


def _schedule(spec: TrialSpec) -> dict[str, Any]:
    return {
        "num_train_epochs": 3.0,
        "learning_rate": LEARNING_RATE[spec.method],
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "ddp_timeout": 180_000_000,
        "seed": 42,
    }
