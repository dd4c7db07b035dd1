"""How long one optimizer step takes: each operation at the roofline of the device, and the collectives of N ranks.

An operation takes the longest of its arithmetic, its traffic and its launch; operations follow one another (Williams, Waterman
and Patterson, "Roofline", CACM 52(4), 2009). A collective of n bytes moves `(N - 1)/N n` through each rank's link for an
all-gather or a reduce-scatter, twice that for an all-reduce (ring; Thakur et al., IJHPCA 19(1), 2005).

The three constants (share of the FLOP peak, share of the memory bandwidth, cost of a launch) and the share of the link are
assumptions until measured steps refit them: `fit`. A time without a fit is an estimate to rank configurations by, and says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from autofit.errors import AutofitError
from autofit.predict.devices import DeviceModel
from autofit.predict.offload import Offload, host_traffic, link_bytes

Float64 = npt.NDArray[np.float64]
RATES = ("arithmetic", "traffic", "launches", "communication", "host")
"""What limits a step: the FLOP rate, the memory's bandwidth, launches, the links between ranks, the host it is offloaded to."""
BACKWARD_SHARE = 2 / 3
"""Of a forward and backward's time: a product has one gradient for its input and one for its weight."""
_Fitted = Literal["flop_share", "bandwidth_share", "launch_seconds", "link_share", "host_link_share", "host_bandwidth"]


@dataclass(frozen=True)
class Operations:
    """The operations of one forward and backward, and those of the optimizer; three arrays of equal length.

    Equal operations may be one row with a count: that is what makes thousands of estimates a second possible.
    """

    flops: Float64
    """Floating-point operations (2 per multiply-add), causal attention counted at half of the square."""
    bytes: Float64
    """Bytes read and written."""
    count: Float64
    """Times the operation runs."""
    matrix: npt.NDArray[np.bool_] | None = None
    """Whether it runs on the tensor cores; None: every row does that has FLOPs."""

    @property
    def total_flops(self) -> float:
        """FLOPs of all of them."""
        return float(self.flops @ self.count)

    @property
    def total_bytes(self) -> float:
        """Bytes of all of them."""
        return float(self.bytes @ self.count)

    @property
    def launches(self) -> float:
        """Kernels."""
        return float(self.count.sum())


@dataclass(frozen=True)
class Constants:
    """What a device reaches of its published rates."""

    flop_share: float = 0.6
    """Share of the tensor peak that matrix products reach."""
    bandwidth_share: float = 0.8
    """Share of the memory bandwidth that other kernels reach."""
    launch_seconds: float = 6e-6
    """From one kernel to the next when the device waits for the host; at least this much an operation."""
    link_share: float = 0.7
    """Share of the link bandwidth that collectives reach."""
    host_link_share: float = 0.7
    """Share of the bandwidth to the host that copies reach (pinned memory)."""
    host_bandwidth: float = 100e9
    """Bytes a second that the processors of a node reach in their memory, all ranks together; 8 channels of DDR4-3200, 205 GB/s
    published, at about half."""
    measured_steps: int = 0
    """Trials they were fitted on; 0: the assumptions above."""
    versions: str = ""
    """What they hold for, for example `torch 2.13, NVIDIA H100 80GB HBM3`."""

    @property
    def assumptions(self) -> list[str]:
        """In words what was not measured; empty after a fit."""
        if self.measured_steps:
            return []
        return [
            f"matrix products at {self.flop_share:.0%} of the peak",
            f"memory at {self.bandwidth_share:.0%} of its bandwidth",
            f"{self.launch_seconds * 1e6:.0f} us a kernel launch",
            f"links at {self.link_share:.0%} of their bandwidth",
        ]

    @property
    def offload_assumptions(self) -> list[str]:
        """The same for what is offloaded."""
        if self.measured_steps:
            return []
        return [
            f"copies to and from the host at {self.host_link_share:.0%} of the link, none behind the computation",
            f"host memory at {self.host_bandwidth / 1e9:.0f} GB/s for all ranks together",
        ]


@dataclass(frozen=True)
class Job:
    """What runs on how many ranks."""

    micro_steps: int = 1
    """Forwards and backwards per optimizer step (`gradient_accumulation_steps`)."""
    ranks: int = 1
    zero_stage: int = 0
    trainable_bytes: int = 0
    """Bytes of the trained weights in the dtype that travels."""
    frozen_bytes: int = 0
    gradient_bytes: int = 0
    """Bytes of all gradients in the dtype that travels."""
    recomputes: bool = False
    """Gradient checkpointing: ZeRO-3 gathers the weights once more."""
    overlapped: float = 0.0
    """Share of the communication that hides behind the computation (0: none, which is the safe assumption). DDP's hides behind
    the last backward of a step whatever this is: its buckets are reduced as they fill (Li et al., VLDB 13(12), 2020)."""
    fp32: bool = False
    """The arithmetic runs in fp32 outside the tensor cores."""
    offload: Offload | None = None
    """What lives in host memory; None: nothing."""


class Timing(NamedTuple):
    """What an optimizer step is made of."""

    micro_step: Operations
    """One forward and backward of one rank."""
    optimizer: Operations
    """Clipping and update of all trained parameters."""
    job: Job


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and what they are made of."""

    seconds: float
    compute_seconds: float
    communication_seconds: float
    """Of all collectives, what hides behind the computation included."""
    optimizer_seconds: float
    """Of the device; the update of an offloaded optimizer is in `offload_seconds`."""
    offload_seconds: float
    """Copies to and from the host, and the update there."""
    parts: dict[str, float]
    """Seconds by the rate that limits them (`RATES`); they add up to `seconds`."""
    model_flops_utilisation: float | None
    """FLOPs a second over the device's dense half-precision peak; None in fp32."""


def collective_bytes(job: Job) -> float:
    """Bytes that cross each rank's link in one optimizer step.

    Stage 0 (DDP): an all-reduce of the gradients at the accumulation boundary. Stage 1: the same, and an all-gather of the new
    weights. Stage 2: as stage 1, but the gradients travel in every micro-step. Stage 3: the weights, frozen ones too, are
    gathered for forward and for backward (and for the recomputation, which backward shares with it unless they were released
    between: counted once), and the gradients are reduce-scattered, in every micro-step.
    """
    if job.ranks == 1:
        return 0.0
    once = (job.ranks - 1) / job.ranks
    if job.zero_stage == 0:
        return once * 2 * job.gradient_bytes
    if job.zero_stage == 1:
        return once * (2 * job.gradient_bytes + job.trainable_bytes)
    if job.zero_stage == 2:
        return once * (2 * job.gradient_bytes * job.micro_steps + job.trainable_bytes)
    gathers = 3 if job.recomputes else 2
    weights = gathers * (job.trainable_bytes + job.frozen_bytes)
    return once * job.micro_steps * (weights + job.gradient_bytes)


def step_time(
    device: DeviceModel,
    micro_step: Operations,
    optimizer: Operations,
    job: Job | None = None,
    constants: Constants | None = None,
) -> StepTime:
    """Seconds of one optimizer step.

    Args:
        device: its published rates.
        micro_step: one forward and backward of one rank.
        optimizer: clipping and update of all trained parameters; ZeRO 1-3 divides it by the ranks.
        job: accumulation, ranks, ZeRO stage; None: one rank, one micro-step.
        constants: what the device reaches; None: the stated assumptions.
    """
    job, constants = job or Job(), constants or Constants()
    each, limits = _durations(device, micro_step, constants, fp32=job.fp32)
    computing = job.micro_steps * _by_rate(each, limits, micro_step)
    compute = float(computing.sum())
    update = optimizer
    if job.zero_stage:
        update = replace(optimizer, flops=optimizer.flops / job.ranks, bytes=optimizer.bytes / job.ranks)
    on_host = job.offload is not None and job.offload.optimizer
    updating = np.zeros(3) if on_host else _by_rate(*_durations(device, update, constants, fp32=True), update)
    optimizer_seconds = float(updating.sum())
    link = device.link_bandwidth * constants.link_share
    communication = collective_bytes(job) / link
    exposed = communication * (1 - job.overlapped)
    if job.zero_stage == 0:
        exposed = max(0.0, exposed - BACKWARD_SHARE * compute / job.micro_steps)
    offload_seconds = _offload_seconds(device, job, constants)
    parts = [*(computing + updating).tolist(), exposed, offload_seconds]
    seconds = sum(parts)
    flops = job.micro_steps * micro_step.total_flops + update.total_flops
    return StepTime(
        seconds=seconds,
        compute_seconds=compute,
        communication_seconds=communication,
        optimizer_seconds=optimizer_seconds,
        offload_seconds=offload_seconds,
        parts=dict(zip(RATES, parts, strict=True)),
        model_flops_utilisation=None if job.fp32 or not seconds else flops / seconds / device.half_flops,
    )


def fit(
    device: DeviceModel,
    samples: Sequence[tuple[Operations, Operations, Job, float]],
    versions: str,
    start: Constants | None = None,
) -> Constants:
    """Constants refitted by least squares on the logarithm of measured step times (so that a ratio counts, not a difference).

    Each constant is a free multiplier of its assumption. With fewer measurements than constants the rest is decided by a pull
    towards the assumption of one residual of a factor e per 10 %: constants move only as far as the measurements say.
    Gauss-Newton on the three multipliers (and that of the link with several ranks, those of the host with offloading), with
    step halving.

    Args:
        samples: (micro_step, optimizer, job, measured seconds of one optimizer step), at least one.
        versions: what the result holds for.
        start: where to start; None: the assumptions.

    Raises:
        AutofitError: no sample, or a time that is not positive.
    """
    if not samples or any(seconds <= 0 for *_, seconds in samples):
        raise AutofitError("the time constants need at least one measured step with a positive time; run a trial first")
    base = start or Constants()
    several = any(job.ranks > 1 for _, _, job, _ in samples)
    offloaded = any(job.offload is not None for _, _, job, _ in samples)
    names: tuple[_Fitted, ...] = ("flop_share", "bandwidth_share", "launch_seconds")
    if several:
        names += ("link_share",)
    if offloaded:
        names += ("host_link_share", "host_bandwidth")

    def at(logs: Float64) -> Constants:
        values = {name: getattr(base, name) * float(np.exp(log)) for name, log in zip(names, logs, strict=True)}
        return replace(base, **values)

    def residuals(logs: Float64) -> Float64:
        found = at(logs)
        misfit = [np.log(step_time(device, step, update, job, found).seconds / s) for step, update, job, s in samples]
        return np.concatenate([np.array(misfit) / 0.02, logs / 0.5])

    logs = np.zeros(len(names))
    current = residuals(logs)
    for _ in range(40):
        jacobian = np.stack([(residuals(logs + h) - current) / 1e-4 for h in np.eye(len(names)) * 1e-4], axis=1)
        move = np.linalg.lstsq(jacobian, -current, rcond=None)[0]
        scale = 1.0
        while scale > 1e-4:
            trial = residuals(np.clip(logs + scale * move, -3, 3))
            if trial @ trial < current @ current:
                break
            scale /= 2
        else:
            break
        logs, current = np.clip(logs + scale * move, -3, 3), trial
    return replace(at(logs), measured_steps=len(samples), versions=versions)


def _offload_seconds(device: DeviceModel, job: Job, constants: Constants) -> float:
    if job.offload is None:
        return 0.0
    moved = link_bytes(
        job.offload, stage=job.zero_stage, ranks=job.ranks, micro_steps=job.micro_steps, recomputes=job.recomputes
    )
    over_link = moved / (device.host_bandwidth * constants.host_link_share)
    return over_link + host_traffic(job.offload) / constants.host_bandwidth


def _by_rate(each: Float64, limits: npt.NDArray[np.intp], operations: Operations) -> Float64:
    """Seconds of all runs by what limits them, the first three of `RATES`."""
    return np.asarray(np.bincount(limits, weights=each * operations.count, minlength=3), dtype=np.float64)


def _durations(
    device: DeviceModel, operations: Operations, constants: Constants, *, fp32: bool
) -> tuple[Float64, npt.NDArray[np.intp]]:
    """Seconds of one run of each operation, and which of `RATES` decides them."""
    peak = np.full(len(operations.flops), device.fp32_flops if fp32 else device.half_flops)
    if operations.matrix is not None:
        peak = np.where(operations.matrix, peak, device.fp32_flops)
    arithmetic = operations.flops / (peak * constants.flop_share)
    traffic = operations.bytes / (device.memory_bandwidth * constants.bandwidth_share)
    either = np.stack([arithmetic, traffic, np.full_like(traffic, constants.launch_seconds)])
    return either.max(axis=0), either.argmax(axis=0)
