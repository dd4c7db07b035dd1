"""An epoch of batches of different lengths through the caching allocator: fragmentation that one shape alone never shows.

Every batch is one optimizer step of its own shape; its events come from the symbolic trace, so that a shape costs a matrix
product and not a trace. What makes thousands of steps cheap is told in `allocator.py`: plain Python on integers with `bisect`
(compiled code would tie the wheel to a platform, a compiler at run time may be missing, and NumPy cannot help where every event
depends on the one before it), and a step that meets a known state of the allocator is looked up.
`benchmarks/allocator_speed.py` measures both: 0.07 s for 100,000 events, 0.12 s for 2,000 steps of 25 lengths.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autofit.errors import AutofitError
from autofit.predict.allocator import Events
from autofit.predict.epoch import Epoch, carried, replay_epoch
from autofit.predict.symbolic import SymbolicTrace

_APART = 1 << 32
"""Added to the storage ids of a regime so that they name no storage of another; ids of a trace are far below."""


class BatchShape(NamedTuple):
    """One micro-batch."""

    micro_batch_size: int
    length: int
    """Tokens of each sample, padding included."""
    patches: int = 0
    """Image patches in the whole micro-batch."""


def replay_batches(
    trace: SymbolicTrace, batches: Sequence[BatchShape], *, expandable: bool = False, capacity_bytes: int | None = None
) -> Epoch:
    """Replays one optimizer step a batch, in order; with accumulation all micro-batches of a step have its shape.

    Args:
        batches: at least one; the first also decides the step that makes the optimizer's state.
        expandable: expandable segments.
        capacity_bytes: what the device grants to segments (the budget less context and communication); None: no limit.

    Returns:
        One entry a batch in the lists of the epoch, fewer when one is refused.

    Raises:
        AutofitError: no batch, a shape whose regime was not traced, or steps of several regimes (batches of one among larger
            ones) that leave storages to each other.
    """
    if not batches:
        raise AutofitError("no batch to replay; give at least one shape")
    home = _regime(trace, batches[0])
    first, _ = trace.events(*batches[0])
    shapes = list(dict.fromkeys(batches))
    variants = [_steady(trace, shape, home) for shape in shapes]
    number_of = {shape: number for number, shape in enumerate(shapes)}
    order = [number_of[shape] for shape in batches]
    # The step that makes the optimizer's state is the first batch's: the epoch goes on with the second.
    following = replay_epoch(first, variants, order[1:], expandable=expandable, capacity_bytes=capacity_bytes)
    alone = replay_epoch(first, variants, [], expandable=expandable, capacity_bytes=capacity_bytes).total
    if not alone.fits:
        return following
    figures = (alone.end_reserved_bytes, alone.peak_reserved_bytes, alone.peak_allocated_bytes, alone.retries)
    return Epoch(following.total, *([figure, *column] for figure, column in zip(figures, following[1:], strict=True)))


def _regime(trace: SymbolicTrace, shape: BatchShape) -> str:
    return trace.regime_of(shape.micro_batch_size, shape.length)


def _steady(trace: SymbolicTrace, shape: BatchShape, home: str) -> Events:
    """The steady step of a shape. Regimes number their storages each for itself, so those of another one are set apart."""
    _, steady = trace.events(*shape)
    regime = _regime(trace, shape)
    if regime == home:
        return steady
    if carried(steady):
        raise AutofitError(
            f"a step of regime '{regime}' leaves storages to the next one, which is of regime '{home}'; replay them apart"
        )
    return Events(steady.ids + _APART * (1 + sorted(trace.regimes).index(regime)), np.asarray(steady.sizes))
