"""Plain Hugging Face Trainer: `train_args.json` (TrainingArguments) and `model.json` (what to load, adapt and freeze).

    parser = HfArgumentParser(TrainingArguments); (args,) = parser.parse_json_file("train_args.json")

The DeepSpeed config is inside the first, so that one file cannot contradict another.
"""

import json
from pathlib import Path
from typing import Any

from autofit.config.certificate import Start
from autofit.config.model import Model
from autofit.config.trial import TrialSpec
from autofit.export.deepspeed import USERS_PROGRAM, config_for
from autofit.export.evidence import evidence, warning
from autofit.export.llamafactory import needs_torchrun
from autofit.export.llamafactory_arguments import FREEZE_TRAINABLE_LAYERS, LEARNING_RATE
from autofit.export.source import Source

ARGUMENTS_FILE = "train_args.json"
MODEL_FILE = "model.json"
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def render(source: Source) -> dict[str, str]:
    """`train_args.json` and `model.json`.

    Raises:
        UsageError: the model has no weights.
    """
    return {ARGUMENTS_FILE: _json(_arguments(source)), MODEL_FILE: _json(_model(source))}


def start(source: Source) -> Start:
    """The training program is the user's own."""
    runner = ("torchrun", "--nproc-per-node", str(source.spec.num_gpus)) if needs_torchrun(source.spec) else ("python",)
    return Start(arguments=(*runner, USERS_PROGRAM, ARGUMENTS_FILE))


def _arguments(source: Source) -> dict[str, Any]:
    spec = source.spec
    arguments: dict[str, Any] = {
        "output_dir": source.output_dir,
        "per_device_train_batch_size": spec.micro_batch_size,
        "per_device_eval_batch_size": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "optim": spec.optimizer,
        "bf16": spec.precision == "bf16" and not spec.pure_bf16,
        "fp16": spec.precision == "fp16",
        "gradient_checkpointing": spec.gradient_checkpointing,
        "num_train_epochs": 3.0,
        "learning_rate": LEARNING_RATE[spec.method],
        "lr_scheduler_type": "cosine",
        **warmup(source),
        "logging_steps": 10,
        "save_steps": 500,
        "report_to": "none",
        "remove_unused_columns": False,
        "seed": 42,
    }
    if spec.gradient_checkpointing:
        # re-entrant, a layer above frozen embeddings would get no gradient: LLaMA-Factory has its own remedy, Trainer has none
        arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if spec.fused_cross_entropy:
        arguments["use_liger_kernel"] = True
    if source.study.hardware.device == "cpu" and spec.precision != "fp32":
        arguments["use_cpu"] = True
    if (config := config_for(source)) is not None:
        arguments["deepspeed"] = config
    return arguments


def warmup(source: Source) -> dict[str, float]:
    """A tenth of the steps. transformers 5 took `warmup_ratio` away and lets `warmup_steps` be a fraction."""
    major = source.result.versions.get("transformers", "5").split(".")[0]
    return {"warmup_ratio" if major.isdigit() and int(major) < 5 else "warmup_steps": 0.1}


def _model(source: Source) -> dict[str, Any]:
    spec = source.spec
    description: dict[str, Any] = {
        "model_name_or_path": source.model_name_or_path(),
        "method": spec.method,
        "dtype": _loaded_dtype(source),
        "trainable_dtype": _trainable_dtype(spec),
        "attn_implementation": None if spec.attention == "auto" else spec.attention,
        "cutoff_len": spec.cutoff_len,
    }
    if source.uses_images:
        description["image_max_pixels"] = spec.images.max_pixels
    if spec.method == "lora":
        rank = spec.lora.rank
        description["lora"] = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "target": spec.lora.target}
    if spec.method == "freeze":
        description["trainable_layers"] = FREEZE_TRAINABLE_LAYERS
    if source.model.is_vision_language:
        description["freeze"] = {
            "vision_tower": spec.freeze_vision_tower,
            "multi_modal_projector": spec.freeze_multi_modal_projector,
            "language_model": spec.freeze_language_model,
        }
    failed = warning(source.result)
    description["evidence"] = [*([failed] if failed else []), *evidence(source), *_differences(spec)]
    return description


def _differences(spec: TrialSpec) -> list[str]:
    """Where plain Trainer does something else than the trial did."""
    if not spec.gradient_checkpointing:
        return []
    return [
        "differs from the trial: that checkpointed as LLaMA-Factory does, re-entrant and only in modules with trainable "
        "parameters; Trainer checkpoints every layer, not re-entrant, so its peak can be a little different"
    ]


def _loaded_dtype(source: Source) -> str:
    """What from_pretrained is given as `dtype`: the worker's rule (`worker/precision.py`, `models.stored_dtype`).

    "auto", as LLaMA-Factory, where the trial loaded weights as they are stored; half precision where nothing said how (a
    preset, whose weights were made up). DeepSpeed casts the whole model to the trial's precision.
    """
    spec = source.spec
    if spec.precision == "fp32" or _deepspeed_casts(spec) or not _storage_is_known(source.model):
        return _DTYPES[spec.precision]
    return "auto"


def _trainable_dtype(spec: TrialSpec) -> str | None:
    """What is trained is kept in fp32; under DeepSpeed the fp32 masters are its own. None: left alone, adapters as PEFT makes

    them (fp32).
    """
    if spec.precision == "fp32":
        return "float32"
    if _deepspeed_casts(spec):
        return _DTYPES[spec.precision]
    return None if spec.pure_bf16 else "float32"


def _deepspeed_casts(spec: TrialSpec) -> bool:
    return spec.zero_stage > 0 and not spec.pure_bf16


def _storage_is_known(model: Model) -> bool:
    """Whether the trial knew how the weights are stored: by the config, or by the files of a folder."""
    if model.config is None or model.config.get("dtype") or model.config.get("torch_dtype"):
        return True
    return model.path is not None and any(Path(model.path).glob("*.safetensors"))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
