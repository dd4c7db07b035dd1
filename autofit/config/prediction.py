"""What is said of a configuration without running it. Bytes and seconds; every figure here is predicted, never measured."""

from pydantic import Field

from autofit.config.base import Frozen


class Fragmentation(Frozen):
    """What the dataset's changing lengths do to the caching allocator, replayed. Bytes."""

    steps: int = Field(gt=0)
    """Optimizer steps that were replayed."""
    reserved_early_bytes: int
    """Highest reserved in the first tenth of them, in an allocator without a limit."""
    reserved_end_bytes: int
    """Highest of all; what it exceeds the former by are fragments."""
    allocated_bytes: int
    """Highest allocated: that of the largest batch."""
    retries: int | None = None
    """Times that cached blocks are given back within the budget; None: no budget."""
    fails_at_step: int | None = None
    """Step (0 is the first) that the budget does not allow; None: all run, or no budget."""


class Prediction(Frozen):
    """One spec's memory and time, each with its interval."""

    peak_allocated_bytes: int
    """Tensors at the peak, worst rank (`max_memory_allocated`)."""
    peak_allocated_bytes_low: int
    peak_allocated_bytes_high: int
    peak_reserved_bytes: int
    """The caching allocator's segments (`max_memory_reserved`)."""
    peak_reserved_bytes_low: int
    peak_reserved_bytes_high: int
    peak_device_bytes: int
    """What the device loses: reserved + context + communication."""
    peak_device_bytes_low: int
    peak_device_bytes_high: int
    step_time_seconds: float
    step_terms: dict[str, float] = {}
    """What limits a step -> seconds of it: arithmetic, traffic (of memory), launches, communication, host; they add up to
    `step_time_seconds`. Empty: made by an older version."""
    samples_per_second: float
    tokens_per_second: float
    fits: bool | None
    """Whether it runs within the budget (or the named device's memory) with the margin of `peak_device_bytes_high`, cached
    blocks given back where that is needed; None without a budget."""
    alloc_retries: int | None = Field(default=None, ge=0)
    """Times the caching allocator must give back its cached blocks to stay within the budget: each stops the device, so more
    than 0 warns of thrashing. None: not replayed within a budget."""
    terms: dict[str, int]
    """Name -> bytes at the peak; they add up to `peak_device_bytes`."""
    uncorrected_bytes: dict[str, int] = {}
    """allocated, reserved, device: the peaks before what measured trials taught; corrections are learnt from these."""
    fragmentation: Fragmentation | None = None
    """None: not replayed; `not_modelled` says why, where there is a dataset."""
    phase: str
    """Where the peak is: forward, backward, optimizer_step, ..."""
    precision_mode: str
    device_model: str
    """The device whose rates the time rests on."""
    assumptions: list[str]
    """What was assumed and not measured, in words."""
    not_modelled: list[str]
    versions: dict[str, str]
