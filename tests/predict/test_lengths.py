"""An epoch of changing lengths: fragments grow without expandable segments and not with them, step by step."""

import numpy as np
import pytest

from autofit.errors import AutofitError
from autofit.predict.allocator import Events, replay
from autofit.predict.lengths import BatchShape, replay_batches

MIB = 2**20


class MadeUp:
    """Stands in for a trace: weights of 100 MiB; a step has two activations, of `length` and `length / 2` MiB."""

    regimes = {"many": None, "one": None}

    def __init__(self, *, leaves=False):
        self.leaves = leaves

    def regime_of(self, batch, length):
        return "one" if batch == 1 else "many"

    def events(self, batch, length, patches=0):
        def step(kept):
            long = 0 if batch == 1 else 7  # the other regime's weights have this number
            ids = [long, 8, long, 8] + ([9] if kept else [])
            sizes = np.array([length, length // 2, -length, -(length // 2)] + ([1] if kept else [])) * MIB
            return ids, sizes

        ids, sizes = step(False)
        first = Events(np.array([0, *ids]), np.array([100 * MIB, *sizes]))
        ids, sizes = step(self.leaves)
        if self.leaves:
            ids, sizes = [19, *ids[:-1], 9], np.array([-MIB, *sizes])
            first = Events(np.append(first.ids, 19), np.append(first.sizes, MIB))
        return first, Events(np.array(ids), sizes)


RISING = [BatchShape(2, length) for length in range(20, 60, 4)]


def test_rising_lengths_fragment_segments_that_cannot_grow():
    plain, growing = (replay_batches(MadeUp(), RISING, expandable=choice) for choice in (False, True))
    assert len(plain.reserved_bytes) == len(RISING)
    # every longer batch needs a segment of its own, and the shorter ones stay cached
    assert plain.reserved_bytes == sorted(plain.reserved_bytes)
    assert plain.reserved_bytes[-1] > plain.reserved_bytes[0] + 200 * MIB
    # a range that grows holds what its longest batch needs, in granules of 20 MiB
    assert all(held <= 20 * MIB + used for held, used in zip(growing.reserved_bytes, growing.peak_allocated_bytes, strict=True))
    assert growing.total.peak_reserved_bytes <= (100 + 56 + 28 + 20) * MIB
    assert plain.peak_allocated_bytes == growing.peak_allocated_bytes


def test_one_length_does_not_grow_however_often():
    alone = replay_batches(MadeUp(), [BatchShape(2, 40)] * 50)
    assert len(set(alone.reserved_bytes)) == 1
    assert alone.total.peak_reserved_bytes == replay(MadeUp().events(2, 40)[0]).peak_reserved_bytes


def test_a_card_gives_the_fragments_back_and_counts_it():
    need = replay_batches(MadeUp(), [RISING[-1]]).total.peak_reserved_bytes
    found = replay_batches(MadeUp(), RISING, capacity_bytes=need)
    assert found.total.fits and found.total.peak_reserved_bytes <= need
    assert sum(found.retries) == found.total.retries >= 2
    assert max(found.reserved_bytes) <= need


def test_the_batch_that_does_not_fit_ends_the_list():
    found = replay_batches(MadeUp(), [BatchShape(2, 20), BatchShape(2, 20), BatchShape(2, 90)], capacity_bytes=150 * MIB)
    assert not found.total.fits
    assert (len(found.reserved_bytes), found.total.oom_requested_bytes) == (2, 90 * MIB)
    assert replay_batches(MadeUp(), RISING, capacity_bytes=90 * MIB).reserved_bytes == []


def test_a_batch_of_one_among_larger_ones_shares_the_weights():
    mixed = replay_batches(MadeUp(), [BatchShape(2, 40), BatchShape(1, 20), BatchShape(2, 40)])
    assert mixed.peak_allocated_bytes == [160 * MIB, 130 * MIB, 160 * MIB]
    with pytest.raises(AutofitError, match="regime 'one' leaves storages to the next one, which is of regime 'many'"):
        replay_batches(MadeUp(leaves=True), [BatchShape(2, 40), BatchShape(1, 20)])
    with pytest.raises(AutofitError, match="no batch to replay"):
        replay_batches(MadeUp(), [])
