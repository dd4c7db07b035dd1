"""One regime of a symbolic trace: shapes that share their events; and the moments of its steps that ZeRO asks for."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autofit.errors import AutofitError
from autofit.predict.polynomials import Float64
from autofit.predict.zero_moments import Moment


@dataclass(frozen=True)
class Regime:
    """The events of one regime and the polynomials of their sizes. Arrays as in `worker/trace_session.py`."""

    name: str
    kind: npt.NDArray[np.int8]
    storage: npt.NDArray[np.int32]
    phase: npt.NDArray[np.int8]
    step: npt.NDArray[np.int8]
    template: npt.NDArray[np.int32]
    """Of each storage, which of the traced ones it is a copy of."""
    category: npt.NDArray[np.int8]
    """Of each traced storage."""
    sizes: Float64
    """[traced storages, features] bytes."""
    rows: Float64
    """[k, features] bytes in use after those events that can be the peak somewhere."""
    row_event: npt.NDArray[np.int32]
    row_terms: Float64
    """[k, categories, features]"""
    operations: Float64
    """[u, 2 * features] FLOPs and bytes of distinct operations."""
    operation_count: Float64
    operation_phase: npt.NDArray[np.int8]
    moments: dict[str, list[Any]]
    inexact: int
    """Storages whose size no polynomial of the table meets exactly."""
    residual: float
    """Largest error in bytes of such a storage at a traced shape."""

    def storage_sizes(self, at: Float64) -> Float64:
        """Bytes of every storage at one shape's features."""
        traced: Float64 = self.sizes @ at
        return traced[self.template]


def moments_of(regime: Regime, size: Float64, categories: tuple[str, ...], phases: tuple[str, ...]) -> list[Moment]:
    """Use without weights, optimizer state and gradients that are ready, between the moments of the last micro-batch.

    Args:
        size: bytes of every storage.

    Raises:
        AutofitError: the trace has no moments.
    """
    if not regime.moments["event"]:
        raise AutofitError("this trace has no moments; trace the model with a ZeRO stage")
    outside = [categories.index(name) for name in ("weights", "master_weights", "optimizer_state")]
    counted = ~np.isin(regime.category, outside)[regime.template[regime.storage]]
    change = np.where(counted, size[regime.storage] * regime.kind, 0.0)
    at, kinds = np.asarray(regime.moments["event"]), np.asarray(regime.moments["kind"])
    _take_out_ready(regime, change, size, at[kinds == "grad"], np.asarray(regime.moments["storage"])[kinds == "grad"])
    use = np.cumsum(change)
    forwards = np.flatnonzero(regime.phase == phases.index("forward"))
    begin = int(forwards[np.r_[True, np.diff(forwards) > 1]][-1])
    last = np.flatnonzero(at >= begin)
    stops = np.minimum(at[last], len(use)) - 1
    starts = np.r_[begin, stops[:-1]]
    peaks = np.maximum(_highest(use, starts, stops), use[stops])
    result = [
        Moment(kind, index, peak, live)
        for kind, index, peak, live in zip(
            kinds[last].tolist(),
            np.asarray(regime.moments["index"])[last].tolist(),
            np.rint(peaks).astype(np.int64).tolist(),
            np.rint(use[stops]).astype(np.int64).tolist(),
            strict=True,
        )
    ]
    end = np.flatnonzero(regime.phase == phases.index("backward"))[-1]
    rest = float(use[stops[-1] if len(stops) else begin : end + 1].max())
    return [*result, Moment("end", 0, round(rest), round(float(use[end])))]


def _take_out_ready(
    regime: Regime, change: Float64, size: Float64, events: npt.NDArray[Any], storages: npt.NDArray[Any]
) -> None:
    """A gradient leaves the count when it is first ready, before the next event, and not again when it is freed."""
    known = storages >= 0
    ready, first = np.unique(storages[known], return_index=True)
    freed = (regime.kind < 0) & np.isin(regime.storage, ready)
    change[freed] = 0.0
    when = events[known][first]
    inside = when < len(change)
    np.subtract.at(change, when[inside], size[ready[inside]])


def _highest(use: Float64, starts: npt.NDArray[Any], stops: npt.NDArray[Any]) -> Float64:
    """Largest of `use[start : stop + 1]` for rising, overlapping-by-one stretches; where empty, the use at its stop."""
    if not len(stops):
        return np.empty(0)
    padded = np.append(use, -np.inf)
    pairs = np.stack([np.minimum(starts, stops), stops + 1], axis=1).ravel()
    highest: Float64 = np.maximum.reduceat(padded, pairs)[::2]
    return highest
