"""What DeepSpeed ZeRO adds to the one-rank trace: per-phase memory of stages 1-3, offload and DDP on N ranks.

Two levels:

- `bounds`: closed formulas of a few sizes (parameters, bucket, ranks), for a table or when only sizes are known. They are
  estimates, not limits: on Qwen2.5-VL-7B and 8 ranks the backward of ZeRO-2 is 1.8 GiB above them (an oversized gradient is
  copied once more where partitions cut it), that of ZeRO-1 with overlap 10.8 GiB below (gradients leave as they come).
- `predict_zero`: the gradient buckets, partitions, gathers and releases replayed over the parameters of the real model and over
  the moments of its one-rank trace, so that a peak in activations and a peak in buffers only add where they meet.

Read in DeepSpeed 0.19.8: `runtime/zero/stage_1_and_2.py`, `stage3.py`, `partitioned_param_coordinator.py`,
`partition_parameters.py`, `runtime/comm/coalesced_collectives.py`; PyTorch `distributed/c10d/reducer.cpp` for DDP.
`benchmarks/zero_accuracy.py` compares it with real DeepSpeed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autofit.errors import AutofitError
from autofit.predict.zero_moments import Meter, Moment, Parameter
from autofit.predict.zero_partitioned import PartitionedRank, persisted
from autofit.predict.zero_replicated import ReplicatedRank
from autofit.predict.zero_settings import ZeroSettings, llamafactory_settings

__all__ = [
    "DdpTerms",
    "Meter",
    "Moment",
    "Parameter",
    "PartitionedRank",
    "ReplicatedRank",
    "ZeroBounds",
    "ZeroHeld",
    "ZeroSettings",
    "ZeroTerms",
    "bare_moments",
    "bounds",
    "ddp_terms",
    "llamafactory_settings",
    "persisted_elements",
    "predict_zero",
    "replay_zero",
    "resident_bytes",
]


@dataclass(frozen=True)
class ZeroTerms:
    """One rank's memory in a steady step, the worst rank. Bytes."""

    resident_bytes: int
    """Held between two steps: weights, masters, moments, buffers that stay."""
    forward_peak_bytes: int
    backward_peak_bytes: int
    step_peak_bytes: int
    resident_parts: dict[str, int]
    """What `resident_bytes` is made of: weights, master_weights, optimizer_state, gradients, communication and the like."""

    @property
    def peak_bytes(self) -> int:
        """Highest of the three phases."""
        return max(self.forward_peak_bytes, self.backward_peak_bytes, self.step_peak_bytes)

    @property
    def phase(self) -> str:
        """The phase of the peak."""
        peaks = {
            "forward": self.forward_peak_bytes,
            "backward": self.backward_peak_bytes,
            "optimizer_step": self.step_peak_bytes,
        }
        return max(peaks, key=lambda name: peaks[name])


@dataclass(frozen=True)
class ZeroHeld:
    """What ZeRO holds on the worst rank from moment to moment, activations left out. Bytes."""

    resident_bytes: int
    resident_parts: dict[str, int]
    before: npt.NDArray[np.int64]
    """[moments] when each is reached, `resident_bytes` included."""
    after: npt.NDArray[np.int64]
    """[moments + 1] highest from each on until the next; the last is the optimizer step."""
    backward: npt.NDArray[np.bool_]
    """[moments] whether it belongs to the backward; the others are the forward's."""

    def without(self, part: str) -> "ZeroHeld":
        """The same with a resident part elsewhere: in host memory."""
        size = self.resident_parts[part]
        parts = {**self.resident_parts, part: 0}
        return ZeroHeld(self.resident_bytes - size, parts, self.before - size, self.after - size, self.backward)

    def under(self, peaks: npt.ArrayLike, lives: npt.ArrayLike) -> ZeroTerms:
        """The step's memory under activations.

        Args:
            peaks: [moments] highest activations since the moment before (`Moment.peak_bytes`).
            lives: [moments] activations at the moment (`Moment.live_bytes`).
        """
        live = np.asarray(lives)
        use = np.maximum(self.before + np.asarray(peaks), self.after[:-1] + live)
        return ZeroTerms(
            resident_bytes=self.resident_bytes,
            forward_peak_bytes=int(use[~self.backward].max(initial=self.resident_bytes)),
            backward_peak_bytes=int(use[self.backward].max(initial=self.resident_bytes)),
            step_peak_bytes=max(self.resident_bytes, int(self.after[-1] + live[-1])),
            resident_parts=dict(self.resident_parts),
        )


@dataclass(frozen=True)
class ZeroBounds:
    """Closed formulas, without activations. Bytes per rank; `_extra` comes on top of `resident`."""

    resident: int
    forward_extra: int
    backward_extra: int
    step_extra: int


@dataclass(frozen=True)
class DdpTerms:
    """What DistributedDataParallel adds to one rank. Bytes."""

    buckets: int
    """Flat buckets of all gradients, beside the gradients themselves unless those are views of them."""


def resident_bytes(settings: ZeroSettings, parameters: Sequence[Parameter]) -> int:
    """Bytes that a rank holds between two steps. More ranks never raise it by more than the padding of a partition.

    Stages 1/2: `2P + 2F` weights, `(4 + states)P/N` (fp32 master and moments). Stage 3: weights and gradient buffer in
    partitions of every parameter, persisted parameters whole, and the reduce bucket that stays.
    """
    _checked(settings, parameters)
    if settings.stage == 3:
        return PartitionedRank(settings, parameters).resident
    return ReplicatedRank(settings, parameters, 0).resident


def predict_zero(settings: ZeroSettings, parameters: Sequence[Parameter], moments: Sequence[Moment]) -> ZeroTerms:
    """Replays one steady optimizer step on every kind of rank; the highest figures over ranks.

    Args:
        settings: stage, ranks, buckets.
        parameters: in the order of `model.parameters()`.
        moments: one forward and backward of the one-rank trace, in order; an empty sequence gives ZeRO's own memory alone, with
            gradients that arrive from the last parameter to the first.

    Raises:
        AutofitError: stage 0 (use `ddp_terms`), no trainable parameter, or a moment that names none.
    """
    moments = list(moments) or bare_moments(parameters)
    held = replay_zero(settings, parameters, moments)
    return held.under([moment.peak_bytes for moment in moments], [moment.live_bytes for moment in moments])


def replay_zero(settings: ZeroSettings, parameters: Sequence[Parameter], moments: Sequence[Moment]) -> ZeroHeld:
    """What ZeRO holds at each of the moments; their bytes are not read, so that one replay serves all shapes of a variant.

    Raises:
        AutofitError: as `predict_zero`.
    """
    _checked(settings, parameters)
    for moment in moments:
        if moment.kind == "grad" and not 0 <= moment.index < len(parameters):
            raise AutofitError(f"moment names parameter {moment.index}, but there are {len(parameters)}; trace the model again")
    ranks: list[PartitionedRank | ReplicatedRank] = (
        [PartitionedRank(settings, parameters)]
        if settings.stage == 3
        else [ReplicatedRank(settings, parameters, rank) for rank in range(settings.ranks)]
    )
    meters = []
    for rank in ranks:
        meters.append(meter := Meter(len(moments)))
        rank.step(moments, meter)
    resident = np.array([[rank.resident] for rank in ranks])
    return ZeroHeld(
        resident_bytes=int(resident.max()),
        resident_parts=dict(ranks[0].parts),
        before=np.max(resident + [meter.before for meter in meters], axis=0),
        after=np.max(resident + [meter.after for meter in meters], axis=0),
        backward=np.array(meters[0].backward),
    )


def bare_moments(parameters: Sequence[Parameter]) -> list[Moment]:
    """Moments of a step without activations: modules in order, then gradients from the last to the first."""
    modules = list(dict.fromkeys(p.module for p in parameters))
    of_module = {m: [k for k, p in enumerate(parameters) if p.module == m] for m in modules}
    moments = []
    for m in modules:
        moments += [Moment("forward", m, 0, 0), Moment("forward_end", m, 0, 0)]
    for m in reversed(modules):
        moments.append(Moment("backward", m, 0, 0))
        for k in reversed(of_module[m]):
            if parameters[k].trainable:
                size = parameters[k].elements * parameters[k].weight_bytes
                moments.append(Moment("grad", k, size, 0))
        moments.append(Moment("backward_end", m, 0, 0))
    return moments


def bounds(
    settings: ZeroSettings, *, trainable: int, frozen: int = 0, largest: int = 0, module: int = 0, persisted: int = 0
) -> ZeroBounds:
    """Estimates per phase from sizes alone, without activations; `predict_zero` is exact where the parameters are known.

    Args:
        trainable, frozen: elements of all parameters, P and F.
        largest: elements of the largest parameter; above the bucket it is reduced in its own memory.
        module: elements that the largest module fetches at once (stage 3).
        persisted: elements of the parameters under the persistence threshold (stage 3).

    With b the bucket, g the gradient's bytes and p = P/N. Stages 1/2: resident `2P + 2F + 12p`; backward `2b` (twice with
    overlap) + max(gradients, `2 min(b, P)`) + the largest when it exceeds b, gradients `2P` (stage 1) or `2p` (stage 2, twice
    with accumulation); step `2p + gp + 4p`, and a bucket more in stage 1 and with overlap. Stage 3: resident
    `2p + 2F/N + 2 persisted + 12p + gp + 2b`; forward `2 min(max_live, module + prefetch + reuse)` and a gather's copy;
    backward `2 min(b, P)` and the largest full gradient more; step `(g + 4) min(sub_group, p)`.
    """
    w, g, b = settings.weight_bytes, settings.gradient_bytes, settings.reduce_bucket_size
    part = -(-trainable // settings.ranks)
    on_device = 0 if settings.offload_optimizer else 1
    state = round(on_device * (settings.master_bytes + settings.state_bytes) * part)
    flat = w * min(b, trainable)
    if settings.stage == 3:
        weights = w * (part + -(-frozen // settings.ranks)) * (0 if settings.offload_param else 1)
        resident = weights + w * persisted + state + on_device * g * part + w * b
        reuse = min(settings.max_reuse_distance, trainable + frozen)
        wanted = max(module, largest) + settings.prefetch_bucket_size + reuse
        live = w * min(settings.max_live_parameters, wanted) + w * max(module, largest)
        step = on_device * (g + 4 + settings.optimizer_temporary_bytes) * min(settings.sub_group_size, part)
        return ZeroBounds(resident, live, live + flat + w * largest, step)
    gradients = w * trainable if settings.stage == 1 else w * part * (1 if settings.gradient_accumulation_steps == 1 else 2)
    buffers = w * b * (2 if settings.overlap else 1) * settings.contiguous_gradients
    oversized = w * largest if largest > b else 0
    late = w * b if settings.overlap or settings.stage == 1 else 0
    step = on_device * (w + g + 4 + settings.optimizer_temporary_bytes) * part + late
    resident = w * (trainable + frozen) + state
    return ZeroBounds(resident, 0, buffers + max(on_device * gradients, flat) + oversized, step)


def ddp_terms(
    parameters: Sequence[Parameter], *, gradient_bytes: int, ranks: int, gradient_as_bucket_view: bool = False
) -> DdpTerms:
    """DistributedDataParallel: buckets of at most 25 MiB that together are as large as all gradients (`reducer.cpp`).

    Args:
        gradient_bytes: bytes per gradient element.
        gradient_as_bucket_view: gradients are views of the buckets, which then cost nothing of their own.
    """
    if ranks == 1 or gradient_as_bucket_view:
        return DdpTerms(0)
    return DdpTerms(gradient_bytes * sum(p.elements for p in parameters if p.trainable))


def persisted_elements(settings: ZeroSettings, parameters: Sequence[Parameter]) -> int:
    """Elements of the parameters that stage 3 keeps whole."""
    return sum(parameters[k].elements for k in persisted(settings, parameters))


def _checked(settings: ZeroSettings, parameters: Sequence[Parameter]) -> None:
    if settings.stage not in {1, 2, 3}:
        raise AutofitError(f"zero_stage {settings.stage} has no ZeRO terms; 1, 2 or 3 have, and 0 on several devices is DDP")
    if not any(p.trainable for p in parameters):
        raise AutofitError("no parameter is trainable: ZeRO has nothing to partition; unfreeze a part")
