"""ZeRO terms: the golden table, hand-worked buckets and gathers, and what must hold for every model."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autofit.errors import AutofitError
from autofit.predict.zero import (
    Meter,
    Moment,
    Parameter,
    PartitionedRank,
    ReplicatedRank,
    ZeroSettings,
    bare_moments,
    bounds,
    ddp_terms,
    llamafactory_settings,
    predict_zero,
    replay_zero,
    resident_bytes,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("stage", "expected"),
    [(1, (27.0, 45.4, 35.7)), (2, (27.0, 31.8, 35.7)), (3, (16.4, 21.2, 22.0))],
)
def test_golden_bounds_of_qwen2_5_vl_7b_on_eight_ranks(stage, expected):
    # FACTS: b = 5e8, overlap, no activations; 8,292,166,656 parameters, the largest 152064 x 3584, a layer of 233,057,792
    found = bounds(
        ZeroSettings(stage=stage, ranks=8, overlap_comm=True),
        trainable=8_292_166_656,
        largest=152_064 * 3584,
        module=233_057_792,
    )
    phases = (found.resident, found.resident + found.backward_extra, found.resident + found.step_extra)
    assert tuple(round(size / GIB, 1) for size in phases) == expected


def one(*elements, trainable=True):
    return [Parameter(n, trainable, module) for module, n in enumerate(elements)]


def test_stage_2_backward_holds_buckets_and_the_partition_only():
    # two parameters of 1000; b = 1000: the second gradient makes the first be reduced
    terms = predict_zero(
        ZeroSettings(stage=2, ranks=2, overlap_comm=False, reduce_bucket_size=1000, gradient_clipping=False),
        one(1000, 1000),
        [],
    )
    assert terms.resident_bytes == 2 * 2000 + 12 * 1000
    # bucket 2000, gradient of the second 2000, the rank's own partition 2000
    assert terms.backward_peak_bytes - terms.resident_bytes == 2000 + 2000 + 2000
    # flat gradient 2000 and fp32 copy 4000 beside the partition 2000
    assert terms.step_peak_bytes - terms.resident_bytes == 2000 + 2000 + 4000


def test_stage_1_without_overlap_keeps_every_gradient_until_the_end():
    base = ZeroSettings(stage=1, ranks=2, overlap_comm=False, reduce_bucket_size=10)
    parameters = one(*[1000] * 20)
    every = predict_zero(base, parameters, []).backward_peak_bytes - resident_bytes(base, parameters)
    assert every >= 2 * 20_000
    partitioned = ZeroSettings(stage=2, ranks=2, overlap_comm=False, reduce_bucket_size=10)
    kept = predict_zero(partitioned, parameters, []).backward_peak_bytes - resident_bytes(partitioned, parameters)
    assert kept < every


def test_a_gradient_larger_than_the_bucket_keeps_its_own_memory():
    small = ZeroSettings(stage=2, ranks=2, overlap_comm=False, reduce_bucket_size=999)
    parameters = one(1000)
    extra = predict_zero(small, parameters, []).backward_peak_bytes - resident_bytes(small, parameters)
    # its own gradient, the bucket that is made and not used, the flat copy of its two halves
    assert extra == 2000 + 2 * 999 + 2000


def test_stage_3_gathers_copies_and_releases():
    settings_ = ZeroSettings(
        stage=3, ranks=2, prefetch_bucket_size=0, param_persistence_threshold=0, max_reuse_distance=0, reduce_bucket_size=1
    )
    one_module = [Parameter(1000, True, 0), Parameter(500, True, 0)]
    terms = predict_zero(settings_, one_module, [])
    assert terms.resident_bytes == (2 + 12 + 2) * 750 + 2
    # two parameters share a flat buffer (3000) and are copied out of it (3000)
    assert terms.forward_peak_bytes - terms.resident_bytes == 6000
    apart = [Parameter(1000, True, 0), Parameter(500, True, 1)]
    assert predict_zero(settings_, apart, []).forward_peak_bytes - terms.resident_bytes == 2000


def test_stage_3_keeps_what_is_used_again_soon():
    far = ZeroSettings(stage=3, ranks=2, prefetch_bucket_size=0, param_persistence_threshold=0, reduce_bucket_size=1)
    parameters = one(*[1000] * 6)
    near = ZeroSettings(
        stage=3, ranks=2, prefetch_bucket_size=0, param_persistence_threshold=0, reduce_bucket_size=1, max_reuse_distance=0
    )
    resident = resident_bytes(far, parameters)
    assert predict_zero(far, parameters, []).forward_peak_bytes - resident == 6 * 2000
    assert predict_zero(near, parameters, []).forward_peak_bytes - resident == 2000


def test_stage_3_keeps_what_a_prefetch_has_passed_over():
    # reuse is forbidden, but the first prefetch sees that the weights are here and counts on them for the backward
    parameters = one(*[1000] * 6)
    base = {"stage": 3, "ranks": 2, "param_persistence_threshold": 0, "reduce_bucket_size": 1, "max_reuse_distance": 0}
    near = ZeroSettings(**base, prefetch_bucket_size=0)
    far = ZeroSettings(**base, prefetch_bucket_size=100_000)
    resident = resident_bytes(near, parameters)
    assert predict_zero(near, parameters, []).forward_peak_bytes - resident == 2000
    # all six are whole; five came through one flat buffer that lives until the last of them is used
    assert predict_zero(far, parameters, []).forward_peak_bytes - resident == 6 * 2000 + 5 * 2000


def test_the_norm_of_a_gradient_is_taken_on_a_copy_in_fp64():
    clipped = ZeroSettings(stage=2, ranks=1, overlap_comm=False, reduce_bucket_size=1000)
    free = ZeroSettings(stage=2, ranks=1, overlap_comm=False, reduce_bucket_size=1000, gradient_clipping=False)
    parameters = one(1000)
    resident = resident_bytes(clipped, parameters)
    assert predict_zero(clipped, parameters, []).step_peak_bytes - resident == 2000 + 8000
    assert predict_zero(free, parameters, []).step_peak_bytes - resident == 2000 + 2000 + 4000


def test_activations_and_gradients_add_where_they_meet():
    parameters = one(1000, 1000)
    base = ZeroSettings(stage=2, ranks=2, overlap_comm=False, reduce_bucket_size=1000)
    early = [Moment("grad", 1, 9_000_000, 100), Moment("grad", 0, 2000, 0)]
    late = [Moment("grad", 1, 2000, 100), Moment("grad", 0, 9_000_000, 0)]
    resident = resident_bytes(base, parameters)
    assert predict_zero(base, parameters, early).backward_peak_bytes - resident == 9_000_000
    # by then the bucket exists
    assert predict_zero(base, parameters, late).backward_peak_bytes - resident == 9_000_000 + 2000


def test_offload_takes_optimizer_and_gradients_off_the_device():
    parameters = one(1000, 3000)
    kept = ZeroSettings(stage=2, ranks=2)
    moved = ZeroSettings(stage=2, ranks=2, offload_optimizer=True)
    assert resident_bytes(kept, parameters) - resident_bytes(moved, parameters) == 12 * 2000 - 2 * 3000
    assert predict_zero(moved, parameters, []).step_peak_bytes == resident_bytes(moved, parameters)


def test_the_parts_are_the_whole():
    parameters = [Parameter(1000, True, 0), Parameter(3001, True, 1), Parameter(500, False, 2)]
    for stage in (1, 2, 3):
        for offload in (False, True):
            terms = predict_zero(
                ZeroSettings(stage=stage, ranks=3, offload_optimizer=offload, reduce_bucket_size=7), parameters, []
            )
            assert sum(terms.resident_parts.values()) == terms.resident_bytes
            assert ("optimizer_state" in terms.resident_parts) is not offload


def test_llamafactory_settings():
    assert llamafactory_settings(2, 4, 3584).reduce_bucket_size == 500_000_000
    assert not llamafactory_settings(2, 4, 3584).overlap
    z3 = llamafactory_settings(3, 4, 3584, offload_param=True)
    assert (z3.reduce_bucket_size, z3.prefetch_bucket_size) == (3584**2, int(0.9 * 3584**2))
    assert (z3.param_persistence_threshold, z3.overlap, z3.offload_param) == (35_840, False, True)


def test_what_has_no_terms_is_refused():
    with pytest.raises(AutofitError, match="zero_stage 0"):
        predict_zero(ZeroSettings(stage=0), one(10), [])
    with pytest.raises(AutofitError, match="no parameter is trainable"):
        resident_bytes(ZeroSettings(stage=2), one(10, trainable=False))
    with pytest.raises(AutofitError, match="moment names parameter 7"):
        predict_zero(ZeroSettings(stage=2), one(10), [Moment("grad", 7, 0, 0)])


def test_ddp_buckets_are_as_large_as_the_gradients():
    parameters = [Parameter(1000, True), Parameter(500, False)]
    assert ddp_terms(parameters, gradient_bytes=4, ranks=2).buckets == 4000
    assert ddp_terms(parameters, gradient_bytes=4, ranks=1).buckets == 0
    assert ddp_terms(parameters, gradient_bytes=4, ranks=2, gradient_as_bucket_view=True).buckets == 0


models = st.lists(
    st.builds(Parameter, st.integers(1, 50_000), st.booleans(), st.integers(0, 5), decays=st.booleans(), tied=st.booleans()),
    min_size=1,
    max_size=12,
).filter(lambda found: any(p.trainable for p in found))


@given(models, st.sampled_from([1, 2, 3]), st.integers(1, 32), st.integers(1, 32), st.booleans())
@settings(max_examples=200, deadline=None)
def test_more_ranks_never_raise_resident_memory(parameters, stage, few, more, offload):
    """Up to the padding of partitions: 2 elements a rank and optimizer group in stages 1/2 (there are two groups at most), less
    than 1 element a parameter in stage 3."""
    few, more = sorted((few, more))
    found = [resident_bytes(ZeroSettings(stage=stage, ranks=n, offload_optimizer=offload), parameters) for n in (few, more)]
    padding = 16 * len(parameters) if stage == 3 else 2 * (2 * 2 + 12 * 2) * more
    assert found[1] <= found[0] + padding


@given(models, st.sampled_from([1, 2, 3]), st.integers(1, 8), st.integers(1, 3), st.integers(1, 60_000), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_phase_ends_where_it_began(parameters, stage, ranks, micro_steps, bucket, overlap):
    """Two equal steps have equal peaks: nothing leaks, nothing is freed twice, and no phase is below what is resident."""
    options = {"stage": stage, "ranks": ranks, "gradient_accumulation_steps": micro_steps, "overlap_comm": overlap}
    setup = ZeroSettings(**options, reduce_bucket_size=bucket, param_persistence_threshold=100, max_reuse_distance=1000)
    terms = predict_zero(setup, parameters, [])
    assert min(terms.forward_peak_bytes, terms.backward_peak_bytes, terms.step_peak_bytes) >= terms.resident_bytes
    rank = PartitionedRank(setup, parameters) if stage == 3 else ReplicatedRank(setup, parameters, ranks - 1)
    moments = bare_moments(parameters)
    meter = Meter(len(moments))
    rank.step(moments, meter)
    first = (list(meter.before), list(meter.after))
    assert meter.held == 0
    meter.phase = "forward"
    rank.step(moments, meter)
    assert (meter.held, (meter.before, meter.after)) == (0, first)


class Stopping(Meter):
    """Is shown every moment, also those at which nothing changes."""

    wants_every_moment = True


@given(models, st.sampled_from([1, 2, 3]), st.integers(1, 4), st.integers(1, 5), st.integers(1, 60_000), st.randoms())
@settings(max_examples=100, deadline=None)
def test_one_replay_serves_all_activations(parameters, stage, ranks, micro_steps, bucket, draw):
    """What was passed over, shared or moved to the host afterwards gives what a replay of its own gives."""
    setup = ZeroSettings(stage=stage, ranks=ranks, gradient_accumulation_steps=micro_steps, reduce_bucket_size=bucket)
    moments = [*bare_moments(parameters), Moment("end", 0, 0, 0)]
    held = replay_zero(setup, parameters, moments)
    for _ in range(2):
        shaped = [replace(m, peak_bytes=draw.randrange(10**6), live_bytes=draw.randrange(10**5)) for m in moments]
        lent = [m.peak_bytes for m in shaped], [m.live_bytes for m in shaped]
        assert held.under(*lent) == predict_zero(setup, parameters, shaped)
        if stage == 3:
            away = replace(setup, offload_param=True)
            assert held.without("weights").under(*lent) == predict_zero(away, parameters, shaped)
    if stage < 3:
        rank, every, some = ReplicatedRank(setup, parameters, 0), Stopping(len(moments)), Meter(len(moments))
        rank.step(moments, every)
        rank.step(moments, some)
        assert (every.before, every.after, every.backward) == (some.before, some.after, some.backward)
