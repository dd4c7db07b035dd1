"""LLaMA-Factory 0.9.5: one `train.yaml`, the DeepSpeed config inside, and the evidence as comments.

Every value that LLaMA-Factory would otherwise choose differently from the trial is written out.
"""

from typing import Any

from autofit.config.certificate import Start
from autofit.config.launcher_keys import ATTENTION
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.export.deepspeed import config_for
from autofit.export.evidence import heading
from autofit.export.source import Source
from autofit.export.templates import template_for
from autofit.export.user_file import changed_file, evaluation_note, starts_deepspeed
from autofit.export.yaml_text import yaml_text

FILE = "train.yaml"
FREEZE_TRAINABLE_LAYERS = 2
"""Layers that method `freeze` trains: LLaMA-Factory's default, and the worker's."""
LEARNING_RATE = {"full": 1.0e-5, "freeze": 1.0e-5, "lora": 1.0e-4}
"""LLaMA-Factory's own examples (`examples/train_full`, `examples/train_lora`)."""


def render(source: Source) -> dict[str, str]:
    """`train.yaml`; for a study that started from the user's file, that file with its changed lines, and `train.diff`.

    Raises:
        UsageError: LLaMA-Factory cannot run what the trial ran, or the model has no weights or no certain template.
    """
    if source.study.source_yaml is not None:
        return changed_file(source, FILE, _heading(source))
    _refuse(source)
    return {FILE: yaml_text(_heading(source), _sections(source), _notes(source))}


def start(source: Source) -> Start:
    """How to start it. LLaMA-Factory goes distributed by itself where it sees several GPUs, so one device is named."""
    environment: dict[str, str] = {}
    if needs_torchrun(source.spec) or starts_deepspeed(source):
        environment = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(source.spec.num_gpus)}
    elif source.study.hardware.device == "cuda":
        environment = {"CUDA_VISIBLE_DEVICES": "0"}
    return Start(arguments=("llamafactory-cli", "train", FILE), environment=environment)


def needs_torchrun(spec: TrialSpec) -> bool:
    """Several ranks, or DeepSpeed, which LLaMA-Factory refuses without torchrun."""
    return spec.num_gpus > 1 or spec.zero_stage > 0


def _refuse(source: Source) -> None:
    if source.spec.precision == "fp32" and source.study.hardware.device == "cuda":
        raise UsageError(
            "LLaMA-Factory 0.9.5 does not train in fp32 on a GPU: without bf16 or fp16 it loads the weights in half precision; "
            "export with --launcher transformers, or search with precision bf16"
        )


def _sections(source: Source) -> dict[str, dict[str, Any]]:
    """Heading -> keys; none is empty, and no key occurs twice."""
    return {
        "model": _model(source),
        "method": _method(source),
        "data": _data(source),
        "memory and speed: what the search chose": _chosen(source),
        "schedule: not part of the search, change it as you like": _schedule(source),
        "output": {
            "output_dir": source.output_dir,
            "logging_steps": 10,
            "save_steps": 500,
            "report_to": "none",
        },
    }


def _model(source: Source) -> dict[str, Any]:
    spec = source.spec
    section: dict[str, Any] = {
        "model_name_or_path": source.model_name_or_path(),
        "flash_attn": ATTENTION[spec.attention],
        "disable_gradient_checkpointing": not spec.gradient_checkpointing,
    }
    if spec.fused_cross_entropy:
        section["enable_liger_kernel"] = True
    if source.uses_images:
        section["image_max_pixels"] = spec.images.max_pixels
    return section


def _method(source: Source) -> dict[str, Any]:
    spec = source.spec
    section: dict[str, Any] = {"stage": "sft", "do_train": True, "finetuning_type": spec.method}
    if spec.method == "lora":
        section |= {"lora_rank": spec.lora.rank, "lora_target": spec.lora.target}
    if spec.method == "freeze":
        section["freeze_trainable_layers"] = FREEZE_TRAINABLE_LAYERS
    if source.model.is_vision_language:
        section |= {
            "freeze_vision_tower": spec.freeze_vision_tower,
            "freeze_multi_modal_projector": spec.freeze_multi_modal_projector,
            "freeze_language_model": spec.freeze_language_model,
        }
    return section


def _data(source: Source) -> dict[str, Any]:
    dataset = source.dataset
    return {
        "dataset": dataset.name,
        "dataset_dir": dataset.dir,
        "template": dataset.template or template_for(source.model),
        "cutoff_len": source.spec.cutoff_len,
        "preprocessing_num_workers": 1 if source.study.hardware.device == "cpu" else 16,
    }


def _chosen(source: Source) -> dict[str, Any]:
    spec = source.spec
    section: dict[str, Any] = {
        "per_device_train_batch_size": spec.micro_batch_size,
        "per_device_eval_batch_size": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "optim": spec.optimizer,
        **_precision(spec),
    }
    if source.study.hardware.device == "cpu" and spec.precision != "fp32":
        section["use_cpu"] = True
    if (config := config_for(source)) is not None:
        section["deepspeed"] = config
    return section


def _precision(spec: TrialSpec) -> dict[str, Any]:
    if spec.pure_bf16:  # `bf16` beside it would add autocast
        return {"pure_bf16": True}
    return {"bf16": spec.precision == "bf16", "fp16": spec.precision == "fp16"}


def _schedule(source: Source) -> dict[str, Any]:
    return {
        "num_train_epochs": 3.0,
        "learning_rate": LEARNING_RATE[source.spec.method],
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "ddp_timeout": 180_000_000,
        "seed": 42,
    }


def _notes(source: Source) -> dict[str, str]:
    """Key -> what to know about its value."""
    spec = source.spec
    notes = {
        "cutoff_len": "tried at this length; a longer one needs more memory",
        "image_max_pixels": "tried at this size; a larger one needs more memory",
        "gradient_accumulation_steps": f"{spec.global_batch_size} samples an optimizer step on {spec.num_gpus} device(s)",
        "per_device_eval_batch_size": "LLaMA-Factory's default of 8 can run out of memory where training fits",
    }
    if source.study.space.dataset is None:
        notes["dataset"] = "LLaMA-Factory's demo data: replace it with yours"
    return notes


def _heading(source: Source) -> list[str]:
    lines = heading(source, start(source))
    if (note := evaluation_note(source)) is not None:
        lines.insert(-2, note)
    return lines
