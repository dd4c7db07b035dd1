"""axolotl 0.19: one `train.yaml`.

Parts are frozen by naming what is not (`unfrozen_parameters`, regular expressions over parameter names), for the models whose
names are known here. axolotl loads weights in the precision that it trains in, so that fp32 masters exist under DeepSpeed only.
"""

import math
from typing import Any

from autofit.config.certificate import Start
from autofit.errors import UsageError
from autofit.export.data_files import DataFile, data_files
from autofit.export.deepspeed import config_for
from autofit.export.evidence import heading
from autofit.export.llamafactory import needs_torchrun
from autofit.export.llamafactory_arguments import FREEZE_TRAINABLE_LAYERS, LEARNING_RATE
from autofit.export.source import Source
from autofit.export.yaml_text import yaml_text

FILE = "train.yaml"
STAND_IN = {"path": "mlabonne/FineTome-100k", "type": "chat_template", "split": "train"}
"""Public data in a form that axolotl reads, where the study names none."""
NAMED_PARTS = frozenset({"qwen2_vl", "qwen2_5_vl"})
"""Model types whose parts have the names below."""
# axolotl escapes every dot of these patterns itself (`utils/freeze.py`): one that is escaped here would match nothing
_LANGUAGE = ("^model.language_model.", "^lm_head.")
_PROJECTOR = ("^model.visual.merger.",)
_TOWER = ("^model.visual.(patch_embed|blocks).",)
_LINEAR = r"(q|k|v|o|gate|up|down)_proj"


def render(source: Source) -> dict[str, str]:
    """`train.yaml`.

    Raises:
        UsageError: axolotl cannot run what the trial ran, or cannot read its data.
    """
    _refuse(source)
    sections = {
        "model": _model(source),
        "method": _method(source),
        "data": _data(source),
        "memory and speed: what the search chose": _chosen(source),
        "schedule: not part of the search, change it as you like": {
            "num_epochs": 3.0,
            "learning_rate": LEARNING_RATE[source.spec.method],
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.1,
            "seed": 42,
        },
        "output": {"output_dir": source.output_dir, "logging_steps": 10, "save_steps": 500},
    }
    notes = {"image_size": "every image is scaled into this square: no more pixels than the trial's"}
    return {FILE: yaml_text(heading(source, start(source)), sections, notes)}


def start(source: Source) -> Start:
    """axolotl starts torchrun for several ranks; DeepSpeed needs it for one too."""
    if needs_torchrun(source.spec):
        return Start(
            arguments=("axolotl", "train", FILE, "--launcher", "torchrun", "--", f"--nproc_per_node={source.spec.num_gpus}")
        )
    return Start(arguments=("axolotl", "train", FILE, "--launcher", "python"))


def _refuse(source: Source) -> None:
    spec, instead = source.spec, "export with --launcher llamafactory"
    if source.study.hardware.device == "cpu":
        raise UsageError(f"axolotl needs a GPU, and the trial ran on a CPU; {instead}")
    if spec.method != "lora" and spec.precision != "fp32" and not spec.pure_bf16 and spec.zero_stage == 0:
        raise UsageError(
            f"axolotl trains {spec.precision} weights without fp32 masters unless DeepSpeed keeps them;"
            f" search with pure_bf16 or a zero_stage, or {instead}"
        )
    if spec.fused_cross_entropy:
        raise UsageError(f"axolotl's Liger plugin swaps other kernels than the trial's fused_cross_entropy; {instead}")
    if source.model.is_vision_language and _model_type(source) not in NAMED_PARTS:
        raise UsageError(f"axolotl freezes by parameter names, which are not known here for {_model_type(source)}; {instead}")
    if source.model.is_vision_language and spec.method == "lora" and not spec.freeze_vision_tower:
        raise UsageError(f"adapters in the vision tower have no certain names in axolotl; {instead}")


def _model(source: Source) -> dict[str, Any]:
    section: dict[str, Any] = {"base_model": source.model_name_or_path()}
    if source.spec.attention != "auto":
        section["attn_implementation"] = source.spec.attention
    if source.model.is_vision_language:
        section["processor_type"] = "AutoProcessor"
        if source.uses_images:
            section["image_size"] = math.isqrt(source.spec.images.max_pixels)
    return section


def _method(source: Source) -> dict[str, Any]:
    spec = source.spec
    if spec.method == "lora":
        rank = {"adapter": "lora", "lora_r": spec.lora.rank, "lora_alpha": 2 * spec.lora.rank, "lora_dropout": 0.0}
        return {**rank, **_targets(source)}
    if spec.method == "freeze":
        return {"unfrozen_parameters": [_last_layers(source)]}
    if not source.model.is_vision_language:
        return {"adapter": None}
    parts = [
        *(() if spec.freeze_language_model else _LANGUAGE),
        *(() if spec.freeze_multi_modal_projector else _PROJECTOR),
        *(() if spec.freeze_vision_tower else _TOWER),
    ]
    return {"unfrozen_parameters": parts}


def _targets(source: Source) -> dict[str, Any]:
    target = source.spec.lora.target
    if source.model.is_vision_language:
        names = _LINEAR if target == "all" else f"({'|'.join(target.split(','))})"
        return {"lora_target_modules": rf"model\.language_model\.layers\.\d+\.(mlp|self_attn)\.{names}"}
    return {"lora_target_linear": True} if target == "all" else {"lora_target_modules": target.split(",")}


def _last_layers(source: Source) -> str:
    """The parameters of the layers that method `freeze` trains."""
    config = source.model.config or {}
    text = config.get("text_config") or config
    if "num_hidden_layers" not in text:
        raise UsageError(
            f"the number of layers of {source.model.label} is not known here, so axolotl cannot be told its last ones;"
            " export with --launcher llamafactory"
        )
    count = int(text["num_hidden_layers"])
    layers = "|".join(str(layer) for layer in range(max(0, count - FREEZE_TRAINABLE_LAYERS), count))
    return f"^model.(language_model.)?layers.({layers})."


def _data(source: Source) -> dict[str, Any]:
    files = data_files(source, "axolotl")
    section: dict[str, Any] = {
        "datasets": [STAND_IN] if files is None else [_entry(file) for file in files],
        "chat_template": "qwen2_vl" if source.model.is_vision_language else "tokenizer_default",
        "sequence_len": source.spec.cutoff_len,
        "sample_packing": False,
    }
    if source.model.is_vision_language:
        section |= {"skip_prepare_dataset": True, "remove_unused_columns": False}
    return section


def _entry(file: DataFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": file.path, "ds_type": file.reader, "split": "train"}
    if file.form == "messages":
        properties = {"role": file.tags["role_tag"], "content": file.tags["content_tag"]}
        roles = {"user": [file.tags["user_tag"]], "assistant": [file.tags["assistant_tag"]]}
        entry |= {"type": "chat_template", "field_messages": file.columns.get("messages", "conversations")}
        return {**entry, "message_property_mappings": properties, "roles": roles}
    names = {"prompt": "instruction", "query": "input", "response": "output"}
    if any(file.columns.get(key, value) != value for key, value in names.items()):
        raise UsageError(
            f"data set {file.name} names its alpaca columns otherwise than axolotl's type alpaca (instruction, input, output);"
            " rename them, or export with --launcher llamafactory"
        )
    return {**entry, "type": "alpaca"}


def _chosen(source: Source) -> dict[str, Any]:
    spec = source.spec
    section: dict[str, Any] = {
        "micro_batch_size": spec.micro_batch_size,
        "eval_batch_size": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "optimizer": spec.optimizer,
        "bf16": spec.precision == "bf16",
        "fp16": spec.precision == "fp16",
        "gradient_checkpointing": spec.gradient_checkpointing,
    }
    if spec.gradient_checkpointing:
        section["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if (config := config_for(source)) is not None:
        section["deepspeed"] = config
    return section


def _model_type(source: Source) -> str:
    return str((source.model.config or {}).get("model_type", "unknown"))
