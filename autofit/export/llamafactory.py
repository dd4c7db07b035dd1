"""LLaMA-Factory 0.9.5: one `train.yaml`, the DeepSpeed config inside, and the evidence as comments.

Every value that LLaMA-Factory would otherwise choose differently from the trial is written out.
"""

import io
import shlex
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.export.deepspeed import config_for
from autofit.export.evidence import evidence, warning
from autofit.export.source import Source
from autofit.export.templates import template_for

FILE = "train.yaml"
ATTENTION = {"auto": "auto", "eager": "disabled", "sdpa": "sdpa", "flash_attention_2": "fa2"}
FREEZE_TRAINABLE_LAYERS = 2
"""Layers that method `freeze` trains: LLaMA-Factory's default, and the worker's."""
LEARNING_RATE = {"full": 1.0e-5, "freeze": 1.0e-5, "lora": 1.0e-4}
"""LLaMA-Factory's own examples (`examples/train_full`, `examples/train_lora`)."""


def render(source: Source) -> dict[str, str]:
    """`train.yaml`.

    Raises:
        UsageError: LLaMA-Factory cannot run what the trial ran, or the model has no weights or no certain template.
    """
    _refuse(source)
    document = CommentedMap()
    for title, section in _sections(source).items():
        first = next(iter(section))
        document.update(section)
        document.yaml_set_comment_before_after_key(first, before=f"\n{title}")
    for key, note in _notes(source).items():
        if key in document:
            document.yaml_add_eol_comment(note, key)
    document.yaml_set_start_comment("\n".join(_heading(source)))
    yaml = YAML()
    yaml.width = 4096  # never fold a path over lines
    stream = io.StringIO()
    yaml.dump(document, stream)
    return {FILE: stream.getvalue()}


def command(source: Source, out_dir: Path) -> str:
    """How to start it. LLaMA-Factory goes distributed by itself where it sees several GPUs, so one device is named."""
    file = shlex.quote(str(out_dir / FILE))
    if needs_torchrun(source.spec):
        return f"FORCE_TORCHRUN=1 NPROC_PER_NODE={source.spec.num_gpus} llamafactory-cli train {file}"
    if source.study.hardware.device != "cpu":
        return f"CUDA_VISIBLE_DEVICES=0 llamafactory-cli train {file}"
    return f"llamafactory-cli train {file}"


def needs_torchrun(spec: TrialSpec) -> bool:
    """Several ranks, or DeepSpeed, which LLaMA-Factory refuses without torchrun."""
    return spec.num_gpus > 1 or spec.zero_stage > 0


def _refuse(source: Source) -> None:
    """Refuses an fp32 trial of a GPU that LLaMA-Factory would not train in fp32 throughout.

    Without bf16 and fp16 its `load_model` takes dtype "auto", `init_adapter` raises what is trained to fp32 (not under ZeRO-3),
    and `infer_optim_dtype` gives a GPU half precision, which its collator casts images to.
    """
    spec = source.spec
    if spec.precision != "fp32" or source.study.hardware.device == "cpu":
        return
    config = source.model.config or {}
    stored = config.get("dtype") or config.get("torch_dtype")
    all_trained = spec.method == "full" and not source.model.is_vision_language and spec.zero_stage < 3
    if source.uses_images:
        reason = "without bf16 or fp16 it casts the images to half precision"
    elif stored != "float32" and not all_trained:
        kept = f"{stored} as its config.json says" if stored else "its config.json does not say how"
        reason = f"it loads weights as they are stored ({kept}) and raises to fp32 only what is trained without ZeRO-3"
    else:
        return
    raise UsageError(
        f"LLaMA-Factory 0.9.5 would not train model {source.model.label} in fp32 throughout on a GPU, as the trial did: "
        f"{reason}; export with --launcher transformers, or search with precision bf16"
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
    lines = evidence(source)
    if (failed := warning(source.result)) is not None:
        lines.insert(0, failed)
    return [*lines, "", f"run it in this folder with: {command(source, Path())}"]
