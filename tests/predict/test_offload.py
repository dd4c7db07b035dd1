"""Offloading is not free: bytes that can be counted by hand, and a step that only gets slower."""

from dataclasses import replace

import numpy as np
import pytest

from autofit.predict.devices import DEVICES, DeviceModel
from autofit.predict.offload import UPDATE_BYTES, Offload, host_traffic, link_bytes
from autofit.predict.roofline import Constants, Job, Operations, fit, step_time

DEVICE = DeviceModel("plain", 2**34, 100e12, True, 10e12, 1e12, 50e9, "made up for this test", 10e9)
EXACT = Constants(flop_share=1, bandwidth_share=1, launch_seconds=1e-6, link_share=1, host_link_share=1, host_bandwidth=100e9)
STATE = Offload(optimizer=True, param=False, trained_elements=1000, weight_bytes=3000, element_bytes=2, update_bytes=28)
BOTH = replace(STATE, param=True)


def operations(*rows):
    flops, moved, count = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    return Operations(flops, moved, count)


@pytest.mark.parametrize(
    ("offload", "stage", "micro_steps", "recomputes", "expected"),
    [
        (STATE, 1, 3, False, 500 * (1 + 1)),  # gradients once, at the boundary; weights back
        (STATE, 2, 1, False, 500 * (1 + 1)),
        (STATE, 2, 3, False, 500 * (5 + 1)),  # out, and twice back and out again
        (STATE, 3, 1, True, 500 * (1 + 1)),
        (BOTH, 3, 1, False, 500 + 2 * 750),  # the weights stay; they are fetched for forward and for backward
        (BOTH, 3, 2, True, 500 * 3 + 3 * 2 * 750),
    ],
)
def test_bytes_over_the_link_to_the_host(offload, stage, micro_steps, recomputes, expected):
    assert link_bytes(offload, stage=stage, ranks=4, micro_steps=micro_steps, recomputes=recomputes) == expected


def test_the_update_goes_through_the_memory_that_all_ranks_share():
    assert host_traffic(STATE) == 1000 * (28 + 16)
    assert host_traffic(replace(STATE, optimizer=False, param=True)) == 0
    big = replace(STATE, trained_elements=10**9, update_bytes=UPDATE_BYTES["adamw_torch_fused"])
    step, update = operations((1e12, 0, 1)), operations((0, 1e12, 1))
    for ranks in (1, 4):
        found = step_time(DEVICE, step, update, Job(ranks=ranks, zero_stage=2, offload=big), EXACT)
        # 44 bytes x 1e9 at 100 GB/s; gradient and weight, 2 GB each over the ranks, at 10 GB/s
        assert found.offload_seconds == pytest.approx(0.44 + 4 / ranks / 10)
        assert found.optimizer_seconds == 0  # the device has none to run
        assert found.seconds == pytest.approx(found.compute_seconds + found.offload_seconds + found.communication_seconds)


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_offloading_a_7b_model_slows_every_card_down(name):
    elements = 7_600_000_000
    step = operations((6e9 * 2048, 1e9, 300))
    update = operations((0, 28 * elements, 1))
    job = Job(ranks=2, zero_stage=3, trainable_bytes=2 * elements, gradient_bytes=2 * elements)
    state = Offload(True, False, elements, 2 * elements, 2)
    plain, offloaded, both = (
        step_time(DEVICES[name], step, update, replace(job, offload=choice)).seconds
        for choice in (None, state, replace(state, param=True))
    )
    assert plain < offloaded < both


def test_a_fit_finds_the_host_too():
    truth = replace(EXACT, flop_share=0.5, bandwidth_share=0.7, host_link_share=0.5, host_bandwidth=60e9)
    samples = []
    for scale, state in ((1, None), (4, None), (2, STATE), (1, BOTH), (8, STATE), (3, BOTH)):
        moved = state and replace(state, trained_elements=scale * 10**8, weight_bytes=3 * scale * 10**8)
        step, update = operations((scale * 1e12, 0, 4), (0, 1e9, 10 * scale)), operations((0, 1e9, scale))
        job = Job(zero_stage=3 if state else 0, offload=moved)
        samples.append((step, update, job, step_time(DEVICE, step, update, job, truth).seconds))
    found = fit(DEVICE, samples, "made up", EXACT)
    for step, update, job, seconds in samples:
        assert step_time(DEVICE, step, update, job, found).seconds == pytest.approx(seconds, rel=0.02)
    assert found.offload_assumptions == []
