"""Figures that a source gives over all steps of a run, for published_accuracy.py: PEFT's MetaMathQA comparison.

Its records give, over 5000 steps, the mean and the 99th percentile of what was reserved at the end of a step, and the mean of
what was allocated then; evaluation (generation in batches of 50) is not in them, the cached blocks being given back before the
next step. They do not give the lengths of the batches, which are the same in every run (same data, order and tokeniser: all
records have the same total of tokens). So four lengths are taken from records, each from one figure, and every other figure
is predicted at these lengths; a figure that gave a length is not scored. They are inputs, not constants of the predictor: a
wrong predictor would find one length in one record and then miss the others.

What a step of length L reserves is replayed after a call of `empty_cache`, in the middle of steps of that length. Later runs
call it every ten steps only; the source sorts batches from long to short in groups of twenty, so the first step of such a
window is its longest, and the shorter ones after it are taken to fit into what it reserved. Both are approximations where
reserved is not linear in L or the allocator's cache fragments.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autofit.errors import AutofitError
from autofit.predict.allocator import UNIT, CachingAllocator, Events
from autofit.predict.epoch import carried
from autofit.predict.symbolic import SymbolicTrace

_WARM_STEPS, _STEPS = 2, 4
_RANGE = (32, 768)
"""Tokens: what a batch of the source can have (`max_seq_length` 768)."""

ANCHORS = {
    ("end_allocated_mean", 1): "peft/f650b08ab/lora--llama-3.2-3B-rank32",
    ("reserved_99th", 1): "peft/f650b08ab/lora--llama-3.2-3B-rank32",
    ("reserved_mean", 10): "peft/a99942694/lora--llama-3.2-3B-rank32",
    ("reserved_99th", 10): "peft/a99942694/lora--llama-3.2-3B-rank32",
}
"""(figure, steps between calls of `empty_cache`) -> the row whose figure gives the length."""


def anchor_of(quantity: str, every: int) -> tuple[str, int]:
    """Which anchor tells the length at which a figure is predicted: the mean over all batches has one length in every run,
    and with the cache emptied after each step it is the mean length of reserved memory too."""
    if quantity == "end_allocated_mean" or (quantity == "reserved_mean" and every == 1):
        return "end_allocated_mean", 1
    return quantity, every


@dataclass
class Steps:
    """Replays equal steps of a trace, the cache emptied after each."""

    trace: SymbolicTrace
    batch: int

    def at(self, length: int) -> tuple[float, float]:
        """(reserved, allocated) bytes at the end of a step before gradients are dropped: means over some steps."""
        allocator = CachingAllocator()
        found: list[tuple[int, int]] = []
        first, steady = self.trace.events(self.batch, length)
        ends = self._ends(length)
        for number in range(_WARM_STEPS + _STEPS):
            events, end = (first, ends[0]) if number == 0 else (steady, ends[1])
            self._run(allocator, Events(events.ids[:end], events.sizes[:end]))
            found.append((allocator.reserved * UNIT, allocator.allocated * UNIT))
            allocator.release_cached()
            self._run(allocator, Events(events.ids[end:], events.sizes[end:]))
            if number:
                allocator.rename(carried(events))
        reserved, allocated = np.mean(found[_WARM_STEPS:], axis=0)
        return float(reserved), float(allocated)

    def length_of(self, quantity: str, measured: int) -> int:
        """The shortest length at which the figure is at least `measured`.

        Raises:
            AutofitError: none has it.
        """
        low, high = _RANGE
        coarse = range(low, high, 16)
        start = next((length for length in coarse if self.value(quantity, length) >= measured), None)
        if start is None:
            raise AutofitError(f"no batch of at most {high} tokens a sample has {quantity} {measured}")
        return next(length for length in range(max(low, start - 15), start + 1) if self.value(quantity, length) >= measured)

    def value(self, quantity: str, length: int) -> float:
        """The figure at a length."""
        reserved, allocated = self.at(length)
        return allocated if quantity == "end_allocated_mean" else reserved

    def _ends(self, length: int) -> tuple[int, int]:
        """Events of the first and of a steady step up to its last phase, in which gradients are dropped."""
        regime = self.trace.regimes[self.trace.regime_of(self.batch, length)]
        dropping = self.trace.phases.index("zero_grad")
        return tuple(_last_other(regime.phase[mask], dropping) for mask in (regime.step == 0, regime.step > 0))  # type: ignore[return-value]

    @staticmethod
    def _run(allocator: CachingAllocator, events: Events) -> None:
        if allocator.run(events) is not None:
            raise AutofitError("the replay without a limit was refused memory")


def _last_other(phases: npt.NDArray[np.int8], phase: int) -> int:
    """Number of leading events up to the last one of another phase."""
    return int(np.flatnonzero(phases != phase)[-1]) + 1
