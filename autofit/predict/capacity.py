"""What a card of a given size makes of an allocation sequence: what is reserved there, after how many retries, and if it fits.

Without a limit the caching allocator reserves what its fragments ask for; on a card it gives cached blocks back before it gives
up, so that reserved memory near the limit is what is left after that. A prediction without the card's size would exceed it.

The verdict keeps a margin: it asks the same replay whether everything `factor x (1 + margin)` larger would still fit, which is
to say whether the sequence fits a card that much smaller. `peak_device_bytes_high` is within the budget exactly then.
"""

from collections.abc import Callable
from dataclasses import dataclass

from autofit.predict.allocator import Events, replay
from autofit.predict.calibrate import Calibration

ZERO_FRAGMENTATION = 0.05
"""Reserved over allocated where no events can be replayed; 3 to 17 % are seen."""


@dataclass(frozen=True)
class Held:
    """What the allocator holds at its peak within a capacity."""

    reserved_bytes: int
    """Within the capacity if it fits there, else what a card with room would show."""
    retries: int
    """Times cached blocks had to be given back first, as far as the sequence got."""
    fits: bool


Demand = Callable[[int | None], Held]
"""Capacity in bytes (None: no limit) -> what is held."""


@dataclass(frozen=True)
class DevicePeak:
    """The device's memory at the peak, corrected and with its interval. Bytes."""

    raw_reserved: int
    """As replayed, without correction."""
    reserved: tuple[int, int, int]
    """(low, predicted, high)"""
    device: tuple[int, int, int]
    retries: int | None
    """None: no budget."""
    fits: bool | None


def replayed(events: Events, *, expandable: bool, allocated_bytes: int = 0) -> Demand:
    """The demand of a sequence of events.

    Args:
        expandable: expandable segments.
        allocated_bytes: allocated at the peak in all; what exceeds the events' own peak (DDP's buckets, the inputs of further
            micro-batches) is taken to lie beside them, in segments of its own.
    """
    free = replay(events, expandable=expandable)
    beside_bytes = max(0, allocated_bytes - free.peak_allocated_bytes)
    unlimited = free.peak_reserved_bytes + beside_bytes

    def within(capacity: int | None) -> Held:
        if capacity is None or unlimited <= capacity:
            return Held(unlimited, 0, True)
        if allocated_bytes > capacity:  # giving back what is cached cannot help
            return Held(unlimited, 1, False)
        found = replay(events, expandable=expandable, capacity_bytes=max(1, capacity - beside_bytes))
        reserved = found.peak_reserved_bytes + beside_bytes if found.fits else unlimited
        return Held(reserved, found.retries, found.fits)

    return within


def alone(allocated_bytes: int) -> Demand:
    """The demand of tensors that no capacity in question holds, however they lie: at least themselves."""
    return lambda capacity: Held(allocated_bytes, 0, capacity is None or allocated_bytes <= capacity)


def assumed(allocated_bytes: int) -> Demand:
    """The demand where only the allocated peak is known (ZeRO): a share of fragments above it, which can be given back."""
    unlimited = round(allocated_bytes * (1 + ZERO_FRAGMENTATION))

    def within(capacity: int | None) -> Held:
        if capacity is None or unlimited <= capacity:
            return Held(unlimited, 0, True)
        fits = allocated_bytes <= capacity
        return Held(capacity if fits else unlimited, 1, fits)

    return within


def device_peak(
    demand: Demand, overhead_bytes: int, budget_bytes: int | None, *, device: Calibration, reserved: Calibration
) -> DevicePeak:
    """The peak on a device that grants `budget_bytes` in all (None: no limit).

    Args:
        overhead_bytes: what the device loses outside of the allocator: context, communication.
        device, reserved: corrections of the two quantities; the margin of `device` decides.
    """
    held = _within(demand, overhead_bytes, budget_bytes, device.factor)
    low, centre, _ = device.interval(held.reserved_bytes + overhead_bytes)
    safe = _within(demand, overhead_bytes, budget_bytes, device.factor * (1 + device.margin_high))
    high = max(centre, device.interval(safe.reserved_bytes + overhead_bytes)[2])
    of_reserved = reserved.interval(held.reserved_bytes)
    if budget_bytes is None:
        return DevicePeak(held.reserved_bytes, of_reserved, (low, centre, high), None, None)
    if safe.fits:
        # Once blocks must be given back, the caches before may have filled whatever there is.
        high = budget_bytes if held.retries or safe.retries else min(high, budget_bytes)
        of_reserved = _at_most(of_reserved, budget_bytes - overhead_bytes)
    return DevicePeak(held.reserved_bytes, of_reserved, (low, centre, high), held.retries, safe.fits)


def _within(demand: Demand, overhead: int, budget: int | None, scale: float) -> Held:
    """The demand, scaled, within a budget: asked unscaled of a budget that is smaller by as much."""
    if budget is None:
        return demand(None)
    return demand(max(1, int(budget / scale) - overhead))


def _at_most(interval: tuple[int, int, int], limit: int) -> tuple[int, int, int]:
    low, centre, high = (min(value, limit) for value in interval)
    return low, centre, high
