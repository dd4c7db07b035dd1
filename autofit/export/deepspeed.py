"""The DeepSpeed configuration of a trial: LLaMA-Factory's examples (`examples/deepspeed/ds_z*_config.json`), stage by stage.

The trials run with the same values, because the worker holds the same function (a test compares them).
"""

import json
from typing import Any

from autofit.config.certificate import Start
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.export.source import Source

FILE = "ds_config.json"
USERS_PROGRAM = "YOUR_PROGRAM.py"
"""Stands for the program that only the user has."""
BUCKET_ELEMENTS = 500_000_000
_LIVE = 1_000_000_000


def deepspeed_config(spec: TrialSpec, *, bucket_elements: int = BUCKET_ELEMENTS) -> dict[str, Any] | None:
    """What the Hugging Face integration reads (it fills in each `auto`); None without DeepSpeed (`zero_stage` 0).

    Counts are whole numbers where the examples write 5e8, which YAML would read as text. With `pure_bf16` neither half section
    is on, as when LLaMA-Factory fills in the examples.
    """
    if spec.zero_stage == 0:
        return None
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        # An offloaded optimizer stays the one that was measured; DeepSpeed would put its own CPU Adam in its place.
        "zero_force_ds_cpu_optimizer": False,
        "fp16": {
            "enabled": spec.precision == "fp16",
            "loss_scale": 0,
            "loss_scale_window": 1000,
            "initial_scale_power": 16,
            "hysteresis": 2,
            "min_loss_scale": 1,
        },
        "bf16": {"enabled": spec.precision == "bf16" and not spec.pure_bf16},
        "zero_optimization": {
            "stage": spec.zero_stage,
            **_offload(spec),
            **(_stage_3() if spec.zero_stage == 3 else _stages_1_2(bucket_elements)),
        },
    }


def config_for(source: Source) -> dict[str, Any] | None:
    """`deepspeed_config` with the bucket that the trial had."""
    return deepspeed_config(source.spec, bucket_elements=bucket_for(source))


def bucket_for(source: Source) -> int:
    """Elements of the bucket that the trial had: on a CPU no more than the model's own size."""
    size = source.result.total_parameters
    on_cpu = source.study.hardware.device == "cpu"
    return min(BUCKET_ELEMENTS, size) if on_cpu and size else BUCKET_ELEMENTS


def standalone_config(source: Source) -> dict[str, Any] | None:
    """`deepspeed_config` with every `auto` replaced by its value, so that plain DeepSpeed reads it too.

    The stage 3 values follow transformers' `HfTrainerDeepSpeedConfig`; they stay `auto` where the hidden size is unknown.
    """
    spec, config = source.spec, config_for(source)
    if config is None:
        return None
    config |= {
        "train_batch_size": spec.global_batch_size,
        "train_micro_batch_size_per_gpu": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "gradient_clipping": 1.0,  # TrainingArguments.max_grad_norm
    }
    model = source.model.config or {}
    text = model.get("text_config") or model
    if spec.zero_stage == 3 and "hidden_size" in text:
        hidden = int(text["hidden_size"])
        config["zero_optimization"] |= {
            "reduce_bucket_size": hidden * hidden,
            "stage3_prefetch_bucket_size": int(0.9 * hidden * hidden),
            "stage3_param_persistence_threshold": 10 * hidden,
        }
    return config


def render(source: Source) -> dict[str, str]:
    """`ds_config.json`.

    Raises:
        UsageError: the trial ran without DeepSpeed.
    """
    config = standalone_config(source)
    if config is None:
        raise UsageError(
            f"trial {source.trial.trial_number} ran without DeepSpeed (zero_stage 0); "
            "export it with --launcher llamafactory or transformers"
        )
    return {FILE: json.dumps(config, indent=2) + "\n"}


def start(source: Source) -> Start:
    """DeepSpeed runs the user's own program."""
    return Start(arguments=("deepspeed", "--num_gpus", str(source.spec.num_gpus), USERS_PROGRAM, "--deepspeed", FILE))


def _offload(spec: TrialSpec) -> dict[str, Any]:
    to_host = {"device": "cpu", "pin_memory": True}
    wanted = {"offload_optimizer": spec.offload_optimizer, "offload_param": spec.offload_param}
    return {name: dict(to_host) for name, yes in wanted.items() if yes}


def _stages_1_2(bucket_elements: int) -> dict[str, Any]:
    return {
        "allgather_partitions": True,
        "allgather_bucket_size": bucket_elements,
        "overlap_comm": False,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket_elements,
        "contiguous_gradients": True,
        "round_robin_gradients": True,
    }


def _stage_3() -> dict[str, Any]:
    return {
        "overlap_comm": False,
        "contiguous_gradients": True,
        "sub_group_size": _LIVE,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": _LIVE,
        "stage3_max_reuse_distance": _LIVE,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
