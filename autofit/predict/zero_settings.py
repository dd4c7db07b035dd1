"""DeepSpeed's settings that decide memory, under its own names, and those that LLaMA-Factory ships."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ZeroSettings:
    """ZeRO settings; defaults are DeepSpeed's (`runtime/zero/config.py`). Sizes in elements unless the name says bytes."""

    stage: int
    ranks: int = 1
    gradient_accumulation_steps: int = 1
    overlap_comm: bool | None = None
    """None: DeepSpeed's default, True for stage 3 only."""
    contiguous_gradients: bool = True
    reduce_scatter: bool = True
    round_robin_gradients: bool = False
    reduce_bucket_size: int = 500_000_000
    prefetch_bucket_size: int = 50_000_000
    param_persistence_threshold: int = 100_000
    max_live_parameters: int = 1_000_000_000
    max_reuse_distance: int = 1_000_000_000
    sub_group_size: int = 1_000_000_000
    offload_optimizer: bool = False
    offload_param: bool = False
    weight_bytes: int = 2
    """Bytes per element of the weights in bf16 or fp16 (4 in an fp32 run)."""
    gradient_bytes: int = 2
    """Bytes per element in which gradients are accumulated (`data_types.grad_accum_dtype`; the weights' own by default)."""
    master_bytes: int = 4
    """Bytes per trained element of the fp32 masters."""
    state_bytes: float = 8
    """Bytes per trained element of the optimizer's moments, in fp32."""
    optimizer_temporary_bytes: int = 0
    """Bytes per element that the optimizer needs while it updates a partition: 0 fused, 4 foreach, 8 one tensor at a time."""
    gradient_clipping: bool = True
    """The norm of each gradient is taken on a copy in fp64."""

    @property
    def overlap(self) -> bool:
        """`overlap_comm`, with its default."""
        return self.stage == 3 if self.overlap_comm is None else self.overlap_comm


def llamafactory_settings(
    stage: int,
    ranks: int,
    hidden_size: int,
    *,
    gradient_accumulation_steps: int = 1,
    offload_optimizer: bool = False,
    offload_param: bool = False,
) -> ZeroSettings:
    """The settings of LLaMA-Factory's `examples/deepspeed/ds_z2_config.json` and `ds_z3_config.json`.

    Both switch `overlap_comm` off. z2: buckets of 5e8, gradients dealt out round-robin; there is no file for stage 1, which is
    given the same. z3: "auto", which transformers (`integrations/deepspeed.py`) makes the square of the hidden size for the
    reduce bucket, 0.9 of it for the prefetch bucket and ten hidden sizes for the persistence threshold.
    """
    settings = ZeroSettings(
        stage=stage,
        ranks=ranks,
        gradient_accumulation_steps=gradient_accumulation_steps,
        overlap_comm=False,
        offload_optimizer=offload_optimizer,
    )
    if stage < 3:
        return replace(settings, round_robin_gradients=True)
    return replace(
        settings,
        reduce_bucket_size=hidden_size**2,
        prefetch_bucket_size=int(0.9 * hidden_size**2),
        param_persistence_threshold=10 * hidden_size,
        offload_param=offload_param,
    )
