"""Allocated memory over one optimizer step, event by event and by term: what the picture of `explain` shows.

The one-rank trace gives it as it is. Under ZeRO the replay of `zero*.py` is listened to: its resident parts, its own buffers
and the activations of the trace, moment by moment. Either way the highest point is the peak that the prediction reports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from autofit.predict.polynomials import features
from autofit.predict.regime import Regime
from autofit.predict.symbolic import SymbolicTrace
from autofit.predict.zero import Meter, Moment, Parameter, PartitionedRank, ReplicatedRank, ZeroSettings

Int64 = npt.NDArray[np.int64]

_PHASES = {"step": "optimizer_step", "optimizer": "optimizer_step"}
_OF_A_STEP = ("batch", "forward", "backward", "clip", "optimizer_step", "zero_grad")


def phase_name(name: str) -> str:
    """A phase of the trace or of the ZeRO replay in the words of results: their optimizer is `optimizer_step`."""
    return _PHASES.get(name, name)


@dataclass(frozen=True)
class Segment:
    """Neighbouring points of one phase: `start` up to, not including, `stop`."""

    phase: str
    micro_batch: int | None
    """From 1; None outside forward and backward."""
    start: int
    stop: int


@dataclass(frozen=True)
class Timeline:
    """One step, or what is known of it."""

    terms: tuple[str, ...]
    use: Int64
    """[points, terms] allocated bytes after each event; rows add up to `allocated`."""
    segments: tuple[Segment, ...]
    """In order; together they are all points."""
    first_step: bool
    """It is the first step, which makes the optimizer's state, because that one needs more than every later one."""
    micro_batches: int
    """In the whole step; `segments` may hold fewer."""
    phases: dict[str, int]
    """Phase -> highest allocated bytes in it, in any step; the highest is the predicted peak."""
    not_shown: tuple[str, ...]
    """What the points leave out, in words."""

    @property
    def allocated(self) -> Int64:
        """[points] bytes."""
        total: Int64 = self.use.sum(axis=1)
        return total

    @property
    def peak(self) -> int:
        """The point with the most bytes, the first of equals."""
        return int(np.argmax(self.allocated))

    @property
    def peak_segment(self) -> Segment:
        """The segment that holds the peak."""
        return next(segment for segment in self.segments if segment.start <= self.peak < segment.stop)

    @property
    def peak_terms(self) -> dict[str, int]:
        """Term -> bytes at the peak, without those that are zero."""
        return {name: int(value) for name, value in zip(self.terms, self.use[self.peak], strict=True) if value}

    def highest(self, segment: Segment, bins: int) -> Int64:
        """[at most `bins`, terms]: the points of a segment in equal bins, each the highest of its bin, so no peak is lost."""
        count = segment.stop - segment.start
        edges = np.unique(np.linspace(segment.start, segment.stop, min(bins, count) + 1).astype(int))
        allocated = self.allocated
        chosen = [a + int(np.argmax(allocated[a:b])) for a, b in pairwise(edges.tolist())]
        result: Int64 = self.use[chosen]
        return result


def traced_timeline(
    trace: SymbolicTrace, shape: tuple[int, int, int], accumulation: int, constant: Mapping[str, int] | None = None
) -> Timeline:
    """The steady step of a one-rank trace; the first step where that one holds the peak.

    Args:
        shape: samples in a micro-batch, tokens of each, image patches in the whole micro-batch.
        accumulation: micro-batches a step. At most two are traced; the inputs of the others are on the device all the same.
        constant: terms that the trace does not have, in bytes all along (DDP's buckets).

    Raises:
        AutofitError: a shape whose regime was not traced.
    """
    regime = trace.regimes[trace.regime_of(*shape[:2])]
    traced = int(trace.metadata["micro_steps_traced"])
    use = _use(trace, regime, shape, more=max(0, accumulation - traced) / traced)
    names = [phase_name(name) for name in trace.phases]
    phase = np.array([names[number] for number in regime.phase])
    extra = {name: value for name, value in (constant or {}).items() if value}
    use = np.hstack([use, np.tile(np.array(list(extra.values()), dtype=np.float64), (len(use), 1))])
    total = use.sum(axis=1)
    steady, first = regime.step > 0, (regime.step == 0) & (phase != "load")
    first_step = bool(total[first].max() > total[steady].max() + 0.5)
    where = first if first_step else steady
    shown = np.rint(use[where]).astype(np.int64)
    kept = [bool(column.any()) for column in shown.T]
    not_shown = () if accumulation <= traced else (_alike(traced + 1, accumulation, "the second"),)
    return Timeline(
        terms=tuple(name for name, keep in zip((*trace.categories, *extra), kept, strict=True) if keep),
        use=shown[:, kept],
        segments=_segments(phase[where].tolist()),
        first_step=first_step,
        micro_batches=accumulation,
        phases={name: round(float(total[first | steady][at].max())) for name, at in _by_phase(phase[first | steady])},
        not_shown=not_shown,
    )


def zero_timeline(settings: ZeroSettings, parameters: Sequence[Parameter], moments: Sequence[Moment]) -> Timeline:
    """A steady step of the ZeRO replay, on the rank that needs most.

    Args:
        settings, parameters, moments: as `zero.predict_zero` takes them.
    """
    ranks: list[PartitionedRank | ReplicatedRank] = (
        [PartitionedRank(settings, parameters)]
        if settings.stage == 3
        else [ReplicatedRank(settings, parameters, number) for number in range(settings.ranks)]
    )
    heard = []
    for rank in ranks:
        listener = _Listener(rank.resident, moments)
        rank.step(moments, listener)
        heard.append((rank, listener))
    rank, listener = max(heard, key=lambda item: max(item[1].peaks.values()))
    terms, use = _zero_use(rank.parts, listener)
    micro_batches = settings.gradient_accumulation_steps
    segments = _segments([phase_name(name) for name in listener.at_phase])
    replayed = max(segment.micro_batch or 0 for segment in segments)
    not_shown = _zero_not_shown(settings)
    if replayed < micro_batches:
        segments = tuple(_renumbered(segment, replayed, micro_batches) for segment in segments)
        not_shown = (f"{micro_batches - replayed} of {micro_batches} micro-batches, each like one that is shown", *not_shown)
    return Timeline(
        terms=terms,
        use=use,
        segments=segments,
        first_step=False,
        micro_batches=micro_batches,
        phases={phase_name(name): max(each.peaks[name] for _, each in heard) for name in listener.peaks},
        not_shown=not_shown,
    )


class _Listener(Meter):
    """A meter that keeps every use it sees, and the use that stays after each moment, activations included."""

    wants_every_moment = True

    def __init__(self, resident: int, moments: Sequence[Moment]) -> None:
        super().__init__(len(moments))
        self._moments = moments
        self._resident = resident
        self.at_phase: list[str] = []
        self.own: list[int] = []
        """What ZeRO holds beside the resident parts; below zero where it gives some of them back for a while."""
        self.of_model: list[int] = []
        self.peaks = {"forward": resident, "backward": resident, "step": resident}

    def see(self, extra: int = 0) -> None:
        super().see(extra)
        self._note(self.held + extra, self._moments[self._at].live_bytes)

    def reach(self, at: int) -> None:
        super().reach(at)
        self._note(self.held, self._moments[at].peak_bytes)
        self._note(self.held, self._moments[at].live_bytes)

    def _note(self, own: int, of_model: int) -> None:
        self.at_phase.append(self.phase)
        self.own.append(own)
        self.of_model.append(of_model)
        self.peaks[self.phase] = max(self.peaks[self.phase], self._resident + own + of_model)


def _renumbered(segment: Segment, replayed: int, micro_batches: int) -> Segment:
    """The last micro-batch of several that were replayed is the last of the step."""
    last = replayed > 1 and segment.micro_batch == replayed
    return replace(segment, micro_batch=micro_batches) if last else segment


def _use(trace: SymbolicTrace, regime: Regime, shape: tuple[int, int, int], more: float) -> npt.NDArray[np.float64]:
    """[events, categories] bytes in use after each event; the resident batches counted `1 + more` times."""
    size = regime.storage_sizes(features(*shape, 0)[0])
    batch = regime.storage[(regime.kind > 0) & (regime.phase == trace.phases.index("batch"))]
    size[batch] *= 1 + more
    change = np.zeros((len(regime.kind), len(trace.categories)))
    change[np.arange(len(change)), regime.category[regime.template[regime.storage]]] = size[regime.storage] * regime.kind
    use: npt.NDArray[np.float64] = np.cumsum(change, axis=0)
    return use


def _zero_use(parts: Mapping[str, int], meter: _Listener) -> tuple[tuple[str, ...], Int64]:
    own, of_model = np.array(meter.own, dtype=np.int64), np.array(meter.of_model, dtype=np.int64)
    columns = {name: np.full(len(own), value, dtype=np.int64) for name, value in parts.items()}
    if (own < 0).any():  # ZeRO-3 partitions the persisted weights before the optimizer runs
        columns["persisted_weights"] = columns["persisted_weights"] + np.minimum(own, 0)
    columns["zero_buffers"] = np.maximum(own, 0)
    columns["activations"] = of_model
    kept = {name: column for name, column in columns.items() if column.any()}
    return tuple(kept), np.stack(list(kept.values()), axis=1)


def _zero_not_shown(settings: ZeroSettings) -> tuple[str, ...]:
    said = ["activations by part, inputs, autocast copies and gradients under way: one term under ZeRO (activations)"]
    said.append("DeepSpeed's own temporaries between the moments at which it acts")
    if settings.offload_optimizer:
        said.append("the optimizer step, which runs on the host")
    return tuple(said)


def _segments(phase: Sequence[str]) -> tuple[Segment, ...]:
    """Runs of equal phases; every forward begins a micro-batch."""
    borders = [place for place in range(len(phase)) if place == 0 or phase[place] != phase[place - 1]] + [len(phase)]
    result, micro_batch = [], 0
    for start, stop in pairwise(borders):
        name = phase[start]
        micro_batch += name == "forward"
        result.append(Segment(name, micro_batch if name in {"forward", "backward"} else None, start, stop))
    return tuple(result)


def _by_phase(phase: npt.NDArray[np.str_]) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    return [(name, phase == name) for name in _OF_A_STEP if (phase == name).any()]


def _alike(first: int, last: int, model: str) -> str:
    which = f"micro-batch {first}, which is" if first == last else f"micro-batches {first} to {last}, which are"
    return f"{which} like {model}"
