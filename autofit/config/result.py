"""What a trial comes back with: `result.json`, written by the worker and read by the driver.

No measurement is None, never 0 or -1.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from autofit.config.base import Frozen

WorkerOutcome = Literal["COMPLETED", "OOM", "HOST_OOM", "DATA_ERROR", "CRASHED"]
Outcome = Literal[
    "COMPLETED",
    "OOM",
    "HOST_OOM",
    "GROWTH",
    "THRASH",
    "TIMEOUT",
    "HANG",
    "DATA_ERROR",
    "CRASHED",
    "SKIPPED",
    "PREDICTED",
]
Phase = Literal["start", "data", "load", "forward", "backward", "optimizer_step", "eval", "save"]

OUTCOMES_OUT_OF_MEMORY = frozenset({"OOM", "HOST_OOM"})


class RankResult(Frozen):
    """One rank's own figures. Bytes and seconds."""

    rank: int = Field(ge=0)
    outcome: WorkerOutcome
    phase: Phase | None = None
    error_type: str | None = None
    message: str | None = None
    requested_bytes: int | None = Field(default=None, gt=0)
    allocated_bytes: int | None = Field(default=None, gt=0)
    peak_allocated_bytes: int | None = Field(default=None, gt=0)
    peak_reserved_bytes: int | None = Field(default=None, gt=0)
    peak_device_bytes: int | None = Field(default=None, gt=0)
    phase_peak_bytes: dict[str, int] = {}
    """Phase -> highest peak_device_bytes seen in it."""
    phase_allocated_bytes: dict[str, int] = {}
    """Phase -> highest peak_allocated_bytes seen in it; empty on the CPU."""
    step_peak_bytes: list[int] = []
    """peak_device_bytes of each optimizer step, warm-up included."""
    step_seconds: list[float] = []
    """Seconds of each optimizer step, warm-up included; the device is synchronised at both ends."""
    step_cpu_seconds: list[float] = []
    """Processor seconds of this process in each optimizer step. Where the CPU is the device, less than `step_seconds` means
    that the machine was busy with something else."""
    step_tokens: list[int] = []
    """Tokens of each optimizer step as the model computes them, padding included."""
    step_effective_tokens: list[int] = []
    """Those of them that are not padding."""
    step_batch_tokens: list[int] = []
    """Tokens, padding included, of the largest micro-batch of each optimizer step: what its peak depends on."""
    step_batch_patches: list[int] = []
    """Likewise image patches; 0 for text."""
    step_alloc_retries: list[int] = []
    """CUDA: `num_alloc_retries` of each optimizer step; empty on the CPU."""
    baseline_bytes: int | None = None
    """Memory the process (CPU) or the device (CUDA) held before the model was built; not part of the peaks on the CPU."""
    num_alloc_retries: int | None = None
    """CUDA: times the caching allocator had to release its blocks and try again."""


class EpochEstimate(Frozen):
    """What the timed steps, which stand for the dataset's, say of an epoch of it. `low` and `high` hold the true value with
    `confidence`; both are None where the steps are too few to tell."""

    samples: int = Field(gt=0)
    """Of the dataset."""
    steps: int = Field(gt=0)
    """Optimizer steps of an epoch."""
    confidence: float
    seconds: float = Field(gt=0)
    """Of an epoch."""
    seconds_low: float | None = None
    seconds_high: float | None = None
    samples_per_second_low: float | None = None
    samples_per_second_high: float | None = None
    tokens_per_second_low: float | None = None
    tokens_per_second_high: float | None = None
    effective_tokens_per_second_low: float | None = None
    effective_tokens_per_second_high: float | None = None


class TrialResult(Frozen):
    """The job's result: the worst of all ranks for memory, the whole job for speed."""

    schema_version: Literal[1] = 1
    outcome: Outcome
    phase: Phase | None = None
    """Where it ended; for COMPLETED, the phase of the peak."""
    error_type: str | None = None
    message: str | None = None
    failed_rank: int | None = None
    requested_bytes: int | None = Field(default=None, gt=0)
    """OOM: bytes of the allocation that failed, where the message tells."""
    allocated_bytes: int | None = Field(default=None, gt=0)
    """OOM: bytes that were allocated then, where it is known."""
    peak_allocated_bytes: int | None = Field(default=None, gt=0)
    """Tensors, maximum over ranks (`max_memory_allocated`); None on the CPU."""
    peak_reserved_bytes: int | None = Field(default=None, gt=0)
    """The caching allocator's segments, maximum over ranks; None on the CPU."""
    peak_device_bytes: int | None = Field(default=None, gt=0)
    """What the device loses, maximum over ranks: this decides whether it fits. On the CPU: growth of the physical peak."""
    step_time_seconds: float | None = Field(default=None, gt=0)
    """Of the timed optimizer steps: the median where all are equally long, the mean where real batches vary in length."""
    samples_per_second: float | None = Field(default=None, gt=0)
    tokens_per_second: float | None = Field(default=None, gt=0)
    """Padded tokens, whole job."""
    effective_tokens_per_second: float | None = Field(default=None, gt=0)
    """Tokens without padding, whole job."""
    timed_steps: int | None = Field(default=None, gt=0)
    epoch: EpochEstimate | None = None
    """Speed on the dataset: the four figures above are then those of an epoch. None: of the timed steps alone."""
    losses: list[float] = []
    """Mean loss of each optimizer step, warm-up included."""
    resumed_loss: float | None = None
    """Loss of the first step after resuming: it should be that of the same step in `losses`. None: nothing was resumed."""
    resume_problem: str | None = None
    """What resuming did not bring back, in words: Trainer itself only warns of it."""
    growth_bytes_per_step: float | None = None
    """By how much the peak rises with each optimizer step, batch size accounted for. None: too few steps to tell."""
    crossing_step: int | None = Field(default=None, ge=0)
    """GROWTH: optimizer step at which the budget will be crossed at that rate."""
    crossing_step_low: int | None = Field(default=None, ge=0)
    crossing_step_high: int | None = Field(default=None, ge=0)
    trainable_parameters: int | None = Field(default=None, gt=0)
    total_parameters: int | None = Field(default=None, gt=0)
    precision_mode: str | None = None
    """In words, for example `bf16 autocast, fp32 masters`."""
    memory_limit: str | None = None
    """How the budget was enforced, for example `RLIMIT_DATA` or `allocator cap (emulated)`; None: it was not."""
    not_measured: list[str] = []
    """What this run could not measure, in words."""
    versions: dict[str, str] = {}
    hardware: dict[str, Any] = {}
    timings: dict[str, float] = {}
    """Seconds by part of the worker's life: import, data, load, train, total; resume: all of the process that resumed."""
    ranks: list[RankResult] = []

    @model_validator(mode="after")
    def _complete_means_measured(self) -> Self:
        if self.outcome in {"COMPLETED", "GROWTH", "THRASH"}:
            needed = ("peak_device_bytes", "step_time_seconds", "samples_per_second", "tokens_per_second")
            lacking = [name for name in needed if getattr(self, name) is None]
            if lacking:
                raise ValueError(f"outcome {self.outcome} without {', '.join(lacking)}")
        return self
