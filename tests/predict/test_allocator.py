"""The replay against hand-worked cases, against a plain model of the same rules, and its properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autofit.errors import AutofitError
from autofit.predict.allocator import CachingAllocator, Events, replay
from autofit.predict.epoch import carried, replay_epoch

KIB, MIB = 2**10, 2**20


def events(*pairs):
    ids, sizes = zip(*pairs, strict=True) if pairs else ((), ())
    return Events(np.array(ids, dtype=np.int64), np.array(sizes, dtype=np.int64))


class PlainAllocator:
    """The same rules without any index: lists of [start, size, free] per segment, searched from end to end."""

    def __init__(self, expandable):
        self.expandable = expandable
        self.segments = []  # [is_small, [blocks]]
        self.where = {}
        self.peak_allocated = self.peak_reserved = 0

    def figures(self):
        blocks = [block for _, row in self.segments for block in row]
        return sum(b["size"] for b in blocks if not b["free"]), sum(b["size"] for b in blocks)

    def malloc(self, name, size):
        size = -(-size // 512) * 512
        small = size <= MIB
        fitting = [
            (b["size"], s, k)
            for s, (is_small, row) in enumerate(self.segments)
            for k, b in enumerate(row)
            if is_small == small and b["free"] and b["size"] >= size
        ]
        if self.expandable and fitting:  # a block at the end could grow without limit: it comes last
            ends = [f for f in fitting if f[2] == len(self.segments[f[1]][1]) - 1]
            fitting = [f for f in fitting if f not in ends] or ends
        if fitting:
            _, s, k = min(fitting)
        elif self.expandable:
            s, k = self.grow(small, size)
        else:
            room = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
            self.segments.append([small, [{"size": room, "free": True}]])
            s, k = len(self.segments) - 1, 0
        row = self.segments[s][1]
        rest = row[k]["size"] - size
        if rest and (small or self.expandable or rest > MIB):
            row.insert(k + 1, {"size": rest, "free": True})
            row[k]["size"] = size
        row[k]["free"] = False
        self.where[name] = (s, row[k])
        allocated, reserved = self.figures()
        self.peak_allocated = max(self.peak_allocated, allocated)
        self.peak_reserved = max(self.peak_reserved, reserved)

    def grow(self, small, size):
        found = [s for s, (is_small, _) in enumerate(self.segments) if is_small == small]
        if not found:
            self.segments.append([small, []])
            found = [len(self.segments) - 1]
        row = self.segments[found[0]][1]
        if not row or not row[-1]["free"]:
            row.append({"size": 0, "free": True})
        granule = 2 * MIB if small else 20 * MIB
        row[-1]["size"] += -(-(size - row[-1]["size"]) // granule) * granule
        return found[0], len(row) - 1

    def free(self, name):
        s, block = self.where.pop(name)
        block["free"] = True
        row, merged = self.segments[s][1], []
        for b in row:
            if merged and merged[-1]["free"] and b["free"]:
                merged[-1]["size"] += b["size"]
            else:
                merged.append(b)
        self.segments[s][1] = merged


@st.composite
def streams(draw, closed=False):
    """A legal sequence of allocations and frees; `closed` frees everything in the end."""
    sizes = st.one_of(
        st.integers(1, 3000),
        st.integers(MIB - 1024, MIB + 1024),
        st.integers(1, 64).map(lambda k: k * 256 * KIB),
        st.integers(1, 40 * MIB),
    )
    live, out, name = [], [], 0
    for _ in range(draw(st.integers(1, 60))):
        if live and draw(st.integers(0, 9)) < 5:
            victim, size = live.pop(draw(st.integers(0, len(live) - 1)))
            out.append((victim, -size))
        else:
            size = draw(sizes)
            out.append((name, size))
            live.append((name, size))
            name += 1
    if closed:
        out += [(victim, -size) for victim, size in live]
    return events(*out)


def test_one_small_tensor_takes_a_two_mib_segment():
    result = replay(events((1, 1)))
    assert (result.peak_allocated_bytes, result.peak_reserved_bytes) == (512, 2 * MIB)
    assert (result.peak_allocated_event, result.peak_reserved_event, result.fits, result.retries) == (0, 0, True, 0)


@pytest.mark.parametrize(
    ("size", "reserved"),
    [
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (4 * 2**30 + 1, 4 * 2**30 + 2 * MIB),
    ],
)
def test_segment_sizes(size, reserved):
    assert replay(events((1, size))).peak_reserved_bytes == reserved


def test_a_remainder_of_up_to_one_mib_is_not_split_off_and_counts_as_allocated():
    assert replay(events((1, 11 * MIB))).peak_allocated_bytes == 12 * MIB
    assert replay(events((1, 11 * MIB - 512))).peak_allocated_bytes == 11 * MIB - 512
    assert replay(events((1, 11 * MIB)), expandable=True).peak_allocated_bytes == 11 * MIB


def test_best_fit_takes_the_smallest_block():
    # blocks of 40 and 30 MiB are free; 30 MiB must take the second, so that 40 MiB still fits without a new segment
    result = replay(events((1, 40 * MIB), (2, 30 * MIB), (1, -1), (2, -1), (3, 30 * MIB), (4, 40 * MIB)))
    assert result.peak_reserved_bytes == 70 * MIB


def test_neighbours_merge():
    two = [(1, 6 * MIB), (2, 6 * MIB), (1, -1), (2, -1)]
    assert replay(events(*two, (3, 18 * MIB))).peak_reserved_bytes == 20 * MIB


def test_fragments_of_different_segments_do_not_merge():
    two = [(1, 10 * MIB), (2, 10 * MIB), (1, -1), (2, -1)]
    assert replay(events(*two, (3, 20 * MIB))).peak_reserved_bytes == 40 * MIB
    assert replay(events(*two, (3, 20 * MIB)), expandable=True).peak_reserved_bytes == 20 * MIB


def test_capacity_gives_cached_segments_back_before_it_refuses():
    sequence = events((1, 30 * MIB), (1, -1), (2, 50 * MIB))
    unlimited, limited = replay(sequence), replay(sequence, capacity_bytes=60 * MIB)
    assert (unlimited.peak_reserved_bytes, unlimited.retries) == (80 * MIB, 0)
    assert (limited.peak_reserved_bytes, limited.retries, limited.fits) == (50 * MIB, 1, True)


def test_a_split_segment_is_not_given_back_unless_it_is_expandable():
    # 30 MiB are free beside 10 that live in the same segment
    sequence = events((1, 40 * MIB), (1, -1), (2, 10 * MIB), (3, 30 * MIB), (3, -1), (4, 60 * MIB))
    fixed = replay(sequence, capacity_bytes=80 * MIB)
    assert (fixed.fits, fixed.oom_event, fixed.oom_requested_bytes, fixed.retries) == (False, 5, 60 * MIB, 1)
    assert replay(sequence, capacity_bytes=100 * MIB).fits
    assert replay(sequence, capacity_bytes=80 * MIB, expandable=True).fits


def test_expandable_segments_unmap_a_hole_and_use_it_again():
    sequence = [(1, 40 * MIB), (2, 20 * MIB), (1, -1)]
    # 20 live behind a free 40: asking for 60 with 80 unmaps the 40 and maps 60 at the end
    result = replay(events(*sequence, (3, 60 * MIB)), capacity_bytes=80 * MIB, expandable=True)
    assert (result.fits, result.retries, result.peak_reserved_bytes) == (True, 1, 80 * MIB)
    # the hole is mapped again by what fits into it
    back = replay(events(*sequence, (3, 60 * MIB), (3, -1), (4, 40 * MIB)), capacity_bytes=80 * MIB, expandable=True)
    assert back.fits


def test_ill_formed_events_are_refused():
    with pytest.raises(AutofitError, match="event 1: storage 1 is allocated while it lives"):
        replay(events((1, 10), (1, 10)))
    with pytest.raises(AutofitError, match="event 0: storage 7 is freed"):
        replay(events((7, -10)))
    with pytest.raises(AutofitError, match="capacity_bytes 0"):
        CachingAllocator(capacity_bytes=0)


def test_no_events_is_nothing():
    result = replay(events())
    assert (result.peak_allocated_bytes, result.peak_reserved_bytes, result.peak_allocated_event) == (0, 0, None)


@given(streams(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_plain_model(stream, expandable):
    plain = PlainAllocator(expandable)
    for name, size in zip(stream.ids.tolist(), stream.sizes.tolist(), strict=True):
        plain.malloc(name, size) if size > 0 else plain.free(name)
    result = replay(stream, expandable=expandable)
    assert (result.peak_allocated_bytes, result.peak_reserved_bytes) == (plain.peak_allocated, plain.peak_reserved)
    assert (result.end_allocated_bytes, result.end_reserved_bytes) == plain.figures()


@given(streams(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_capacity_mode_agrees_with_the_unlimited_replay_when_there_is_room(stream, expandable):
    free = replay(stream, expandable=expandable)
    assert replay(stream, expandable=expandable, capacity_bytes=free.peak_reserved_bytes) == free


@given(streams(), st.booleans(), st.integers(1, 200))
@settings(max_examples=150, deadline=None)
def test_reserved_stays_within_the_capacity_and_above_allocated(stream, expandable, capacity):
    result = replay(stream, expandable=expandable, capacity_bytes=capacity * MIB)
    assert result.peak_allocated_bytes <= result.peak_reserved_bytes <= capacity * MIB
    assert result.end_allocated_bytes <= result.end_reserved_bytes
    if not result.fits:
        assert result.retries >= 1
        assert result.oom_requested_bytes == stream.sizes[result.oom_event]


@given(streams(closed=True), st.booleans(), st.integers(60, 400))
@settings(max_examples=100, deadline=None)
def test_freeing_everything_leaves_whole_segments_that_can_all_be_given_back(stream, expandable, capacity):
    allocator = CachingAllocator(expandable=expandable, capacity_bytes=capacity * MIB)
    if allocator.run(stream) is None:
        assert allocator.allocated == 0
        allocator.release_cached()
        assert allocator.reserved == 0
        assert allocator.state()[:3] == ((), (), frozenset())


def step(length, grads=((10, 3 * MIB), (11, 5 * MIB))):
    """A steady step: activations of `length` MiB, gradients of the step before freed, new ones left."""
    rows = [(100, length * MIB), (101, length * MIB // 2)]
    rows += [(name, -size) for name, size in grads]
    rows += [(name + 50, size) for name, size in grads]
    return events(*rows, (101, -length * MIB // 2), (100, -length * MIB))


FIRST = events((1, 50 * MIB), (10, 3 * MIB), (11, 5 * MIB))


def test_carried_pairs_new_gradients_with_those_that_were_freed():
    assert carried(step(4)) == {60: 10, 61: 11}
    with pytest.raises(AutofitError, match="stays alive"):
        carried(events((1, 5)))
    with pytest.raises(AutofitError, match="not steady"):
        carried(events((1, -5)))


@pytest.mark.parametrize("expandable", [False, True])
@pytest.mark.parametrize("capacity", [None, 220 * MIB])
def test_an_epoch_is_the_replay_of_its_steps_joined(expandable, capacity):
    lengths = [30, 7, 64, 13]
    order = [0, 1, 2, 3, 1, 0, 2, 2, 2, 3, 0, 1] * 3
    ids, sizes, base = [*FIRST.ids.tolist()], [*FIRST.sizes.tolist()], {10: 10, 11: 11}
    for number, variant in enumerate(order, start=1):
        stream = step(lengths[variant])
        names = {storage: number * 1000 + storage for storage in (60, 61, 100, 101)} | base
        ids += [names[storage] for storage in stream.ids.tolist()]
        sizes += stream.sizes.tolist()
        base = {10: names[60], 11: names[61]}
    joined = replay(Events(np.array(ids), np.array(sizes)), expandable=expandable, capacity_bytes=capacity)
    variants = [step(length) for length in lengths]
    assert replay_epoch(FIRST, variants, order, expandable=expandable, capacity_bytes=capacity).total == joined


def test_changing_lengths_fragment_what_one_length_does_not():
    variants = [step(length) for length in (40, 30, 50)]
    alone = max(replay_epoch(FIRST, variants, [k] * 3).total.peak_reserved_bytes for k in range(3))
    assert replay_epoch(FIRST, variants, [1, 0, 2, 0, 1, 2]).total.peak_reserved_bytes > alone


def test_an_epoch_reports_the_step_that_does_not_fit():
    result = replay_epoch(FIRST, [step(30), step(200)], [0, 0, 1, 0], capacity_bytes=200 * MIB).total
    assert not result.fits
    assert result.oom_event == len(FIRST.ids) + 2 * len(step(30).ids)
    assert result.oom_requested_bytes == 200 * MIB
