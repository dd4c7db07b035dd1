"""The DeepSpeed configuration of a trial, as LLaMA-Factory's examples have it (`examples/deepspeed/ds_z{2,3}*_config.json`)."""

from typing import Any

BUCKET_ELEMENTS = 500_000_000
_FP16_SCALING = {"loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2, "min_loss_scale": 1}


def deepspeed_config(trial: dict[str, Any], half: str | None, *, bucket_elements: int = BUCKET_ELEMENTS) -> dict[str, Any]:
    """The configuration for `zero_stage` 1-3. `half` is the section to enable, `bf16` or `fp16`; None for fp32.

    `auto` is filled by Trainer from its own arguments. There is no example for stage 1: stage 2's is taken.
    """
    config: dict[str, Any] = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        # With an offloaded optimizer DeepSpeed otherwise insists on its own, whose extension takes minutes to compile.
        "zero_force_ds_cpu_optimizer": False,
        "fp16": {"enabled": half == "fp16", **_FP16_SCALING},
        "bf16": {"enabled": half == "bf16"},
        "zero_optimization": _zero(trial, bucket_elements),
    }
    return config


def _zero(trial: dict[str, Any], bucket_elements: int) -> dict[str, Any]:
    stage = int(trial["zero_stage"])
    if stage == 3:
        zero: dict[str, Any] = {
            "stage": 3,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "sub_group_size": 1_000_000_000,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    else:
        zero = {
            "stage": stage,
            "allgather_partitions": True,
            "allgather_bucket_size": bucket_elements,
            "overlap_comm": False,
            "reduce_scatter": True,
            "reduce_bucket_size": bucket_elements,
            "contiguous_gradients": True,
            "round_robin_gradients": True,
        }
    for part in ("optimizer", "param"):
        if trial[f"offload_{part}"]:
            zero[f"offload_{part}"] = {"device": "cpu", "pin_memory": True}
    return zero
