"""What PyTorch's CUDA caching allocator would hold: a replay of allocation events, without a GPU.

Rules, read in pytorch `c10/cuda/CUDACachingAllocator.cpp` (`get_allocation_size`, `get_free_block`, `should_split`,
`free_block`, `release_blocks`, `find_expandable_block`, `map_block`, `unmap_block`):

- sizes are rounded up to 512 B; up to 1 MiB a request is served from the small pool, else from the large one;
- a free block is taken by best fit (smallest size, then lowest address) and split when at least 512 B (small pool, expandable
  segments) or more than 1 MiB (large pool) would remain;
- otherwise a segment is reserved: 2 MiB (small), 20 MiB (requests below 10 MiB), else the request rounded up to 2 MiB;
- a freed block merges with free neighbours of its segment and stays reserved;
- when the device refuses, every cached segment that is whole is given back, and the request is tried once more: that is one
  retry (`num_alloc_retries`); a second refusal is the OOM;
- with expandable segments each pool is one address range that is mapped in granules (2 MiB small, 20 MiB large); a block that
  could grow counts with the size to which it could grow; when memory is short, whole free granules are unmapped anywhere.

Not modelled: several streams (a block freed on another stream waits for its event), CUDA graphs' private pools, and the options
`max_split_size_mb`, `roundup_power2_divisions` and `garbage_collection_threshold`. Addresses of new segments are taken to rise.

The hot loop is pure Python on integers: a pool is a sorted list of `size << 40 | address` searched with `bisect`, and
neighbours are found in two dicts by the address where a free block starts or ends, so that a block needs no object. 100,000
events of a training step take well under a second (`benchmarks/allocator_speed.py`), and an epoch costs far less than its
steps: one that meets a state seen before is looked up, not replayed. That keeps autofit a wheel without compiled parts;
NumPy cannot help, since every event depends on the one before it.
"""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autofit.errors import AutofitError

UNIT = 512
"""Bytes: the allocator's smallest block; sizes and addresses inside the replay count these."""

_SMALL = 2**20 // UNIT
_SMALL_SEGMENT = 2 * 2**20 // UNIT
_MIDDLE = 10 * 2**20 // UNIT
_MIDDLE_SEGMENT = 20 * 2**20 // UNIT
_LARGE_STEP = 2 * 2**20 // UNIT

_SHIFT = 40
_ADDRESS = (1 << _SHIFT) - 1
_RANGE = 1 << 38  # units of address space of one expandable segment: never the limit
_LARGE_BASE = 1 << 39

Int64 = npt.NDArray[np.int64]


class Events(NamedTuple):
    """Allocation events in the order in which they happen; two arrays of equal length."""

    ids: Int64
    """Storage id of each event."""
    sizes: Int64
    """Bytes: positive allocates, negative frees (its magnitude is not read), 0 is ignored."""


@dataclass(frozen=True)
class Replay:
    """What the allocator held. Bytes; event indices count from 0."""

    peak_allocated_bytes: int
    """Highest sum of the live blocks (`max_memory_allocated`)."""
    peak_allocated_event: int | None
    """First event at which it was reached; None: nothing was allocated."""
    peak_reserved_bytes: int
    """Highest sum of the segments (`max_memory_reserved`)."""
    peak_reserved_event: int | None
    end_allocated_bytes: int
    end_reserved_bytes: int
    retries: int
    """Times cached blocks had to be given back before a request was granted or refused."""
    fits: bool
    """False: an allocation was refused even after every cached block had been given back; the replay ends there."""
    oom_event: int | None = None
    oom_requested_bytes: int | None = None


class _Refused(Exception):  # noqa: N818 - control flow inside this module, never seen outside
    """The device has no room, even after the cached blocks were given back."""


class CachingAllocator:
    """One device's allocator between events.

    Args:
        expandable: `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`.
        capacity_bytes: bytes that the device grants to segments; None: no limit.
    """

    def __init__(self, *, expandable: bool = False, capacity_bytes: int | None = None) -> None:
        if capacity_bytes is not None and capacity_bytes <= 0:
            raise AutofitError(
                f"capacity_bytes {capacity_bytes}: the allocator's capacity must be positive, or None for no limit"
            )
        self.expandable = expandable
        self._capacity = None if capacity_bytes is None else capacity_bytes // UNIT
        self._live: dict[int, tuple[int, int]] = {}  # storage id -> address, size
        self._small: list[int] = []
        self._large: list[int] = []
        self._free_at: dict[int, int] = {}  # address of a free block -> size
        self._free_end: dict[int, int] = {}  # end of a free block -> address
        self._segments: dict[int, int] = {}  # address -> size; not used with expandable segments
        self._next_address = 0
        self._unmapped: dict[bool, list[tuple[int, int]]] = {  # small pool? -> holes (start, end), ascending
            True: [(0, _RANGE)],
            False: [(_LARGE_BASE, _LARGE_BASE + _RANGE)],
        }
        self.allocated = self.reserved = 0  # units
        self.peak_allocated = self.peak_reserved = 0
        self.peak_allocated_event: int | None = None
        self.peak_reserved_event: int | None = None
        self.retries = 0

    def run(self, events: Events, first_event: int = 0) -> tuple[int, int] | None:  # noqa: PLR0912, PLR0915 - see the loop
        """Replays `events`; None, or (index, bytes) of the allocation that was refused.

        Args:
            first_event: index that the first of them has in the whole sequence.

        Raises:
            AutofitError: a storage is allocated while it lives or freed while it does not.
        """
        live, free_at, free_end = self._live, self._free_at, self._free_end
        small_pool, large_pool, expandable = self._small, self._large, self.expandable
        allocated, peak, unmapped = self.allocated, self.peak_allocated, self._unmapped
        index = first_event - 1
        # One loop without calls on its common path: this is where the time goes.
        for storage, size_bytes in zip(events.ids.tolist(), events.sizes.tolist(), strict=True):
            index += 1
            if size_bytes > 0:
                if storage in live:
                    raise AutofitError(f"event {index}: storage {storage} is allocated while it lives; trace the model again")
                size = (size_bytes + 511) >> 9
                pool = small_pool if size <= _SMALL else large_pool
                at = bisect_left(pool, size << _SHIFT)
                if at < len(pool) and (not expandable or len(unmapped[size <= _SMALL]) == 1):
                    if expandable and at + 1 < len(pool):
                        # With one hole, only the block in front of it could grow (`_could_be`): the next larger one is taken.
                        end = (pool[at] & _ADDRESS) + (pool[at] >> _SHIFT)
                        at += end == unmapped[size <= _SMALL][0][0]
                    key = pool.pop(at)
                    address, room = key & _ADDRESS, key >> _SHIFT
                    del free_at[address], free_end[address + room]
                else:
                    before = self.reserved
                    try:
                        address, room = self._expand(size, at) if expandable else self._reserve(size)
                    except _Refused:
                        self.allocated, self.peak_allocated = allocated, peak
                        return index, size_bytes
                    if self.reserved != before and self.reserved > self.peak_reserved:
                        self.peak_reserved, self.peak_reserved_event = self.reserved, index
                rest = room - size
                if rest and (size <= _SMALL or expandable or rest > _SMALL):
                    left = address + size
                    free_at[left] = rest
                    free_end[left + rest] = left
                    insort(pool, rest << _SHIFT | left)
                    room = size
                live[storage] = (address, room)
                allocated += room
                if allocated > peak:
                    peak = allocated
                    self.peak_allocated_event = index
            elif size_bytes < 0:
                block = live.pop(storage, None)
                if block is None:
                    raise AutofitError(f"event {index}: storage {storage} is freed but does not live; trace the model again")
                address, room = block
                allocated -= room
                pool = small_pool if room <= _SMALL else large_pool
                before_it = free_end.pop(address, None)
                end = address + room
                if before_it is not None:
                    size = free_at[before_it]
                    del pool[bisect_left(pool, size << _SHIFT | before_it)]
                    address = before_it
                after_it = free_at.pop(end, None)
                if after_it is not None:
                    del pool[bisect_left(pool, after_it << _SHIFT | end)]
                    end += after_it
                free_at[address] = end - address
                free_end[end] = address
                insort(pool, (end - address) << _SHIFT | address)
        self.allocated, self.peak_allocated = allocated, peak
        return None

    def result(self, refused: tuple[int, int] | None = None) -> Replay:
        """The figures so far; `refused` is what `run` returned."""
        return Replay(
            peak_allocated_bytes=self.peak_allocated * UNIT,
            peak_allocated_event=self.peak_allocated_event,
            peak_reserved_bytes=self.peak_reserved * UNIT,
            peak_reserved_event=self.peak_reserved_event,
            end_allocated_bytes=self.allocated * UNIT,
            end_reserved_bytes=self.reserved * UNIT,
            retries=self.retries,
            fits=refused is None,
            oom_event=refused[0] if refused else None,
            oom_requested_bytes=refused[1] if refused else None,
        )

    def release_cached(self) -> None:
        """Gives every cached block back to the device that can be given back (`torch.cuda.empty_cache`)."""
        for small, pool in ((False, self._large), (True, self._small)):
            for key in list(pool):
                address, size = key & _ADDRESS, key >> _SHIFT
                if self.expandable:
                    self._unmap(address, size, small)
                elif self._segments.get(address) == size:
                    self._take(address, size, pool)
                    del self._segments[address]
                    self.reserved -= size

    def rename(self, names: Mapping[int, int]) -> None:
        """Gives live storages other ids, all at once."""
        blocks = {new: self._live.pop(old) for old, new in names.items()}
        self._live.update(blocks)

    def state(self) -> tuple[object, ...]:
        """Equal for two allocators that will treat every future event alike (peaks and retries aside)."""
        return (tuple(self._small), tuple(self._large), frozenset(self._live.items()), self.reserved)

    def snapshot(self) -> "CachingAllocator":
        """An independent copy."""
        other = CachingAllocator(expandable=self.expandable)
        other.__dict__.update(self.__dict__)
        for name in ("_live", "_small", "_large", "_free_at", "_free_end", "_segments"):
            other.__dict__[name] = self.__dict__[name].copy()
        other._unmapped = {small: list(holes) for small, holes in self._unmapped.items()}
        return other

    def _take(self, address: int, size: int, pool: list[int]) -> None:
        """Removes a free block from its pool."""
        del pool[bisect_left(pool, size << _SHIFT | address)]
        del self._free_at[address], self._free_end[address + size]

    def _put(self, address: int, size: int, pool: list[int]) -> None:
        self._free_at[address] = size
        self._free_end[address + size] = address
        insort(pool, size << _SHIFT | address)

    def _grant(self, units: int) -> None:
        """Asks the device for memory; releases the cached blocks and asks again when it refuses."""
        if self._capacity is not None and self.reserved + units > self._capacity:
            self.release_cached()
            self.retries += 1
            if self.reserved + units > self._capacity:
                raise _Refused
        self.reserved += units

    def _reserve(self, size: int) -> tuple[int, int]:
        """A new segment for a request of `size` units: (address, size)."""
        if size <= _SMALL:
            segment = _SMALL_SEGMENT
        elif size < _MIDDLE:
            segment = _MIDDLE_SEGMENT
        else:
            segment = -(-size // _LARGE_STEP) * _LARGE_STEP
        self._grant(segment)
        address = self._next_address
        self._next_address += segment + 1  # a gap, so that neighbours in address are neighbours in a segment
        self._segments[address] = segment
        return address, segment

    def _expand(self, size: int, at: int) -> tuple[int, int]:
        """A block of at least `size` units from the expandable segment; `at` is where the pool's best fit would be."""
        small = size <= _SMALL
        pool = self._small if small else self._large
        if at < len(pool):
            holes = dict(self._unmapped[small])
            while at + 1 < len(pool) and self._could_be(pool[at + 1], holes) < self._could_be(pool[at], holes):
                at += 1
            address, room = pool[at] & _ADDRESS, pool[at] >> _SHIFT
            self._take(address, room, pool)
            return address, room
        retried = False
        while True:
            start, pieces = self._place(size, small)
            units = sum(end - begin for begin, end in pieces)
            if self._capacity is None or self.reserved + units <= self._capacity:
                break
            if retried:
                raise _Refused
            self.release_cached()
            self.retries += 1
            retried = True  # what was unmapped may have been the block that was to grow: look for a place again
        self.reserved += units
        end = self._map(pieces, small)
        address = start
        while address < end:  # the free blocks between the pieces become part of the new one
            room = self._free_at.get(address, 0)
            if room:
                self._take(address, room, pool)
                address += room
            else:
                address = next(stop for begin, stop in pieces if begin == address)
        behind = self._free_at.get(address, 0)
        if behind:
            self._take(address, behind, pool)
        return start, address + behind - start

    @staticmethod
    def _could_be(key: int, holes: Mapping[int, int]) -> int:
        """Units to which a free block could grow into the unmapped hole behind it."""
        end = (key & _ADDRESS) + (key >> _SHIFT)
        return (key >> _SHIFT) + holes.get(end, end) - end

    def _place(self, size: int, small: bool) -> tuple[int, list[tuple[int, int]]]:
        """First address, in order of the holes, from which `size` units are free or unmapped; and what must be mapped."""
        granule = _SMALL_SEGMENT if small else _MIDDLE_SEGMENT
        holes = dict(self._unmapped[small])
        for hole in holes:
            start = self._free_end.get(hole, hole)
            address, pieces = start, []
            while address - start < size:
                if address in holes:
                    lacking = start + size - address
                    end = min(holes[address], address + -(-lacking // granule) * granule)
                    pieces.append((address, end))
                    address = end
                elif address in self._free_at:
                    address += self._free_at[address]
                else:
                    break
            if address - start >= size:
                return start, pieces
        raise AutofitError(f"an allocation of {size * UNIT} bytes exceeds the address space of the replay")

    def _map(self, pieces: Sequence[tuple[int, int]], small: bool) -> int:
        """Maps whole granules at the front of holes; returns the end of the last."""
        holes = dict(self._unmapped[small])
        for begin, end in pieces:
            stop = holes.pop(begin)
            if end < stop:
                holes[end] = stop
        self._unmapped[small] = sorted(holes.items())
        return pieces[-1][1]

    def _unmap(self, address: int, size: int, small: bool) -> None:
        """Unmaps the whole granules inside a free block; what is left on either side stays free."""
        granule, base = (_SMALL_SEGMENT, 0) if small else (_MIDDLE_SEGMENT, _LARGE_BASE)
        pool = self._small if small else self._large
        begin = base + -(-(address - base) // granule) * granule
        end = base + (address + size - base) // granule * granule
        if end <= begin:
            return
        self._take(address, size, pool)
        if begin > address:
            self._put(address, begin - address, pool)
        if address + size > end:
            self._put(end, address + size - end, pool)
        self.reserved -= end - begin
        merged: list[tuple[int, int]] = []
        for hole in sorted([*self._unmapped[small], (begin, end)]):
            if merged and merged[-1][1] == hole[0]:
                merged[-1] = (merged[-1][0], hole[1])
            else:
                merged.append(hole)
        self._unmapped[small] = merged


def replay(events: Events, *, expandable: bool = False, capacity_bytes: int | None = None) -> Replay:
    """Replays events from an empty device.

    Args:
        events: what is allocated and freed, in order.
        expandable: expandable segments (LLaMA-Factory sets them when it starts through torchrun).
        capacity_bytes: what the device grants to segments: the budget less context, workspaces and NCCL; None: no limit.

    Raises:
        AutofitError: a storage is allocated twice or freed without living.
    """
    allocator = CachingAllocator(expandable=expandable, capacity_bytes=capacity_bytes)
    return allocator.result(allocator.run(events))
