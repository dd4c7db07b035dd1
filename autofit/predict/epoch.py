"""A sequence of steps through the caching allocator: what fragments make of batches whose lengths change."""

from collections.abc import Sequence
from typing import NamedTuple

from autofit.errors import AutofitError
from autofit.predict.allocator import UNIT, CachingAllocator, Events, Replay


def carried(step: Events) -> dict[int, int]:
    """Storages that a steady step leaves alive -> those of the step before that it frees (gradients, as a rule).

    Paired by order within equal sizes, so that after renaming the next step can be the same events again.

    Raises:
        AutofitError: they do not match, so that the step is not one that could be repeated.
    """
    opened: dict[int, int] = {}
    closed: list[tuple[int, int]] = []
    for storage, size in zip(step.ids.tolist(), step.sizes.tolist(), strict=True):
        if size > 0:
            opened[storage] = size
        elif size < 0 and opened.pop(storage, None) is None:
            closed.append((storage, -size))
    waiting: dict[int, list[int]] = {}
    for storage, size in reversed(closed):
        waiting.setdefault(size, []).append(storage)
    names = {}
    for storage, size in opened.items():
        if not waiting.get(size):
            raise AutofitError(f"storage {storage} of {size} bytes stays alive after the step, and the step frees none like it")
        names[storage] = waiting[size].pop()
    if len(names) != len(closed):
        raise AutofitError(
            f"the step frees {len(closed)} storages of the step before and leaves {len(names)}: it is not steady"
        )
    return names


class Epoch(NamedTuple):
    """A sequence of steps: the figures of the whole, and of each step that ran to its end."""

    total: Replay
    reserved_bytes: list[int]
    """Held when the step ends; without a capacity it never falls, and what it grows by are fragments."""
    peak_reserved_bytes: list[int]
    """Highest within the step."""
    peak_allocated_bytes: list[int]
    retries: list[int]


def replay_epoch(
    first: Events,
    variants: Sequence[Events],
    order: Sequence[int],
    *,
    expandable: bool = False,
    capacity_bytes: int | None = None,
) -> Epoch:
    """Replays a first step and then a sequence of steady steps of different shapes, as batches of different lengths bring them.

    Fragmentation shows: a block that was cut for a short batch may not serve a long one. A step that meets a state of the
    allocator which was seen before is looked up, so the cost is that of the distinct (state, variant) pairs.

    Args:
        first: load and first step; it leaves alive what the steps free.
        variants: steady steps (frees of carried storages carry their true size); all of the same structure.
        order: indices into `variants`, one a step.

    Returns:
        Event indices of the whole sequence count over all steps; the step that is refused has no figures of its own.

    Raises:
        AutofitError: see `replay` and `carried`.
    """
    names = [carried(step) for step in variants]
    allocator = CachingAllocator(expandable=expandable, capacity_bytes=capacity_bytes)
    refused = allocator.run(first)
    if refused:
        return Epoch(allocator.result(refused), [], [], [], [])
    total = allocator.snapshot()  # peaks and retries of the whole
    steps: list[tuple[int, int, int, int]] = []
    seen: dict[tuple[int, int], tuple[CachingAllocator, int]] = {}
    numbers: dict[tuple[object, ...], int] = {allocator.state(): 0}
    number, event = 0, len(first.ids)
    for variant in order:
        known = seen.get((number, variant))
        if known is None:
            after = allocator.snapshot()
            after.peak_allocated, after.peak_reserved, after.retries = after.allocated, after.reserved, 0
            after.peak_allocated_event = after.peak_reserved_event = None
            refused = after.run(variants[variant])
            if refused is None:
                after.rename(names[variant])
                known = (after, numbers.setdefault(after.state(), len(numbers)))
                seen[number, variant] = known
        else:
            after = known[0]
        _add_step(total, after, event)
        if refused:
            return Epoch(total.result((event + refused[0], refused[1])), *_columns(steps))
        assert known is not None
        steps.append((after.reserved * UNIT, after.peak_reserved * UNIT, after.peak_allocated * UNIT, after.retries))
        allocator, number = known
        event += len(variants[variant].ids)
    return Epoch(total.result(), *_columns(steps))


def _columns(steps: Sequence[tuple[int, int, int, int]]) -> tuple[list[int], list[int], list[int], list[int]]:
    first, second, third, fourth = (list(column) for column in zip(*steps, strict=True)) if steps else ([], [], [], [])
    return first, second, third, fourth


def _add_step(total: CachingAllocator, step: CachingAllocator, event: int) -> None:
    """Takes the figures of one step, which began at `event`, into those of the whole sequence."""
    if step.peak_allocated > total.peak_allocated:
        total.peak_allocated = step.peak_allocated
        total.peak_allocated_event = event + (step.peak_allocated_event or 0)
    if step.peak_reserved > total.peak_reserved:
        total.peak_reserved = step.peak_reserved
        total.peak_reserved_event = event + (step.peak_reserved_event or 0)
    total.retries += step.retries
    total.allocated, total.reserved = step.allocated, step.reserved
