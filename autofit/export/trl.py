"""TRL 0.24: `train.yaml` for `trl sft --config`.

TRL's script loads, adapts and trains a text model; it cannot freeze parts, nor cap an image's pixels. What it cannot say is
refused, so that what is exported runs as the trial ran.
"""

from pathlib import Path
from typing import Any

from autofit.config.certificate import Start
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.export.data_files import DataFile, data_files
from autofit.export.deepspeed import config_for
from autofit.export.evidence import heading
from autofit.export.llamafactory_arguments import LEARNING_RATE
from autofit.export.source import Source
from autofit.export.transformers_trainer import warmup
from autofit.export.yaml_text import yaml_text

FILE = "train.yaml"
_INSTEAD = "export with --launcher llamafactory"
STAND_IN = "trl-lib/Capybara"
"""TRL's own example data, where the study names none."""


def render(source: Source) -> dict[str, str]:
    """`train.yaml`.

    Raises:
        UsageError: TRL's script cannot run what the trial ran, or cannot read its data.
    """
    _refuse(source)
    sections = {
        "model": _model(source),
        "data": _data(source),
        "memory and speed: what the search chose": _chosen(source),
        "schedule: not part of the search, change it as you like": {
            "num_train_epochs": 3.0,
            "learning_rate": LEARNING_RATE[source.spec.method],
            "lr_scheduler_type": "cosine",
            **warmup(source),
            "seed": 42,
        },
        "output": {"output_dir": source.output_dir, "logging_steps": 10, "save_steps": 500, "report_to": "none"},
    }
    return {FILE: yaml_text(heading(source, start(source)), sections)}


def start(source: Source) -> Start:
    """TRL's program starts accelerate, which reads `num_processes` from the file."""
    return Start(arguments=("trl", "sft", "--config", FILE))


def _refuse(source: Source) -> None:
    spec = source.spec
    if source.model.is_vision_language:
        raise UsageError(
            "trl's sft script can neither freeze parts of a vision-language model nor cap image_max_pixels;"
            " export with --launcher llamafactory or axolotl"
        )
    if spec.method == "freeze":
        raise UsageError(f"trl's sft script cannot train the last layers only (method freeze); {_INSTEAD}")
    if spec.zero_stage and spec.num_gpus == 1:
        raise UsageError(f"trl starts one device without a process group, which DeepSpeed needs; {_INSTEAD}")


def _model(source: Source) -> dict[str, Any]:
    spec = source.spec
    section: dict[str, Any] = {"model_name_or_path": source.model_name_or_path(), "dtype": _dtype(spec)}
    if spec.attention != "auto":
        section["attn_implementation"] = spec.attention
    if spec.method == "lora":
        target = ["all-linear"] if spec.lora.target == "all" else spec.lora.target.split(",")
        section |= {
            "use_peft": True,
            "lora_r": spec.lora.rank,
            "lora_alpha": 2 * spec.lora.rank,
            "lora_dropout": 0.0,
            "lora_target_modules": target,
        }
    return section


def _dtype(spec: TrialSpec) -> str:
    """Weights as they are loaded. An adapter's base is in the trial's precision; what is trained itself keeps its own."""
    base = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[spec.precision]
    half = spec.method == "lora" or spec.pure_bf16 or spec.zero_stage > 0  # DeepSpeed keeps the fp32 masters itself
    return base if half else "float32"


def _data(source: Source) -> dict[str, Any]:
    files = data_files(source, "trl")
    if files is None:
        return {"dataset_name": STAND_IN, "max_length": source.spec.cutoff_len}
    return {"datasets": [_entry(file) for file in files], "max_length": source.spec.cutoff_len, "packing": False}


def _entry(file: DataFile) -> dict[str, Any]:
    columns = {"messages": "messages"} if file.form == "messages" else {"prompt": "prompt", "response": "completion"}
    roles = {"role_tag": "role", "content_tag": "content"}
    fits = all(file.columns.get(key) == value for key, value in columns.items())
    if not fits or (file.form == "messages" and any(file.tags[key] != value for key, value in roles.items())):
        raise UsageError(
            f"data set {file.name} ({Path(file.path).name}) has no columns that trl reads: rows need `messages` (role,"
            " content) or `prompt` and `completion`; rename them in the file and in dataset_info.json, or export with"
            " --launcher axolotl"
        )
    return {"path": file.reader, "data_files": file.path, "split": "train"}


def _chosen(source: Source) -> dict[str, Any]:
    spec = source.spec
    section: dict[str, Any] = {
        "per_device_train_batch_size": spec.micro_batch_size,
        "per_device_eval_batch_size": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "optim": spec.optimizer,
        "bf16": spec.precision == "bf16" and not spec.pure_bf16,
        "fp16": spec.precision == "fp16",
        "gradient_checkpointing": spec.gradient_checkpointing,
    }
    if spec.gradient_checkpointing:
        section["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if spec.fused_cross_entropy:
        section["use_liger_kernel"] = True
    if source.study.hardware.device == "cpu":
        section["use_cpu"] = True
    if (config := config_for(source)) is not None:
        section["deepspeed"] = config
    if spec.num_gpus > 1:
        section["num_processes"] = spec.num_gpus
    return section
