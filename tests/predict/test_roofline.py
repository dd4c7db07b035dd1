"""Times that can be worked by hand, collectives per stage, and a fit that finds the constants it was not told."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autofit.errors import AutofitError
from autofit.predict.devices import DeviceModel, device_model
from autofit.predict.roofline import Constants, Job, Operations, collective_bytes, fit, step_time

DEVICE = DeviceModel("plain", 2**34, 100e12, True, 10e12, 1e12, 50e9, "made up for this test")
EXACT = Constants(flop_share=1, bandwidth_share=1, launch_seconds=1e-6, link_share=1)


def operations(*rows):
    flops, moved, count = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    return Operations(flops, moved, count)


NOTHING = operations((0, 0, 0))


def test_each_operation_takes_its_longest_part():
    # 1e12 FLOP at 1e14/s = 10 ms; 1e9 B at 1e12/s = 1 ms; a launch of 1 us
    step = operations((1e12, 1e6, 3), (0, 1e9, 2), (10, 10, 5))
    found = step_time(DEVICE, step, NOTHING, constants=EXACT)
    assert found.seconds == pytest.approx(3 * 0.01 + 2 * 0.001 + 5e-6)
    assert found.parts["arithmetic"] / found.compute_seconds == pytest.approx(0.03 / 0.032005)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert found.model_flops_utilisation == pytest.approx((3e12 + 50) / found.seconds / 100e12)


def test_accumulation_repeats_the_micro_step_only():
    step, update = operations((1e12, 0, 1)), operations((0, 1e9, 1))
    found = step_time(DEVICE, step, update, Job(micro_steps=4), EXACT)
    assert found.seconds == pytest.approx(4 * 0.01 + 0.001)


def test_fp32_runs_at_the_fp32_rate():
    found = step_time(DEVICE, operations((1e12, 0, 1)), NOTHING, Job(fp32=True), EXACT)
    assert (found.seconds, found.model_flops_utilisation) == (pytest.approx(0.1), None)


@pytest.mark.parametrize(
    ("stage", "micro_steps", "recomputes", "expected"),
    [
        (0, 3, False, 0.75 * 2 * 100),
        (1, 3, False, 0.75 * (2 * 100 + 80)),
        (2, 3, False, 0.75 * (2 * 100 * 3 + 80)),
        (3, 3, False, 0.75 * 3 * (2 * (80 + 20) + 100)),
        (3, 1, True, 0.75 * (3 * (80 + 20) + 100)),
    ],
)
def test_bytes_on_the_link(stage, micro_steps, recomputes, expected):
    job = Job(micro_steps, 4, stage, trainable_bytes=80, frozen_bytes=20, gradient_bytes=100, recomputes=recomputes)
    assert collective_bytes(job) == pytest.approx(expected)
    assert collective_bytes(Job(micro_steps, 1, stage, 80, 20, 100)) == 0


def test_ddp_reduces_behind_the_last_backward_of_a_step():
    step = operations((3e12, 0, 1))  # 30 ms, 20 of them backward
    job = Job(micro_steps=2, ranks=2, gradient_bytes=10**9)  # 1e9 bytes cross the link: 20 ms
    assert step_time(DEVICE, step, NOTHING, job, EXACT).seconds == pytest.approx(0.06)
    larger = step_time(DEVICE, step, NOTHING, Job(micro_steps=2, ranks=2, gradient_bytes=2 * 10**9), EXACT)
    assert (larger.seconds, larger.communication_seconds) == (pytest.approx(0.08), pytest.approx(0.04))


def test_zero_divides_the_update_and_adds_communication():
    update = operations((0, 8e9, 1))
    job = Job(ranks=4, zero_stage=2, trainable_bytes=10**9, gradient_bytes=10**9)
    found = step_time(DEVICE, NOTHING, update, job, EXACT)
    assert found.optimizer_seconds == pytest.approx(0.002)
    assert found.communication_seconds == pytest.approx(0.75 * 3e9 / 50e9)
    assert found.parts == pytest.approx({"arithmetic": 0, "traffic": 0.002, "launches": 0, "communication": 0.045, "host": 0})
    hidden = step_time(DEVICE, NOTHING, update, Job(**{**job.__dict__, "overlapped": 1.0}), EXACT)
    assert hidden.seconds == pytest.approx(found.seconds - found.communication_seconds)


def test_assumptions_are_named_until_something_was_measured():
    assert len(Constants().assumptions) == 4
    assert Constants(measured_steps=3).assumptions == []


def samples(truth, spread=0.0, several=False):
    draw = np.random.default_rng(3)
    rows = []
    # arithmetic, traffic and launches weigh differently in each, so that all three can be told apart
    for scale, traffic in ((0.005, 1e7), (1, 1e8), (1, 9e9), (8, 2e8), (2, 2e10)):
        step = operations((4e12 * scale, 1e9, 30), (0, traffic, 400), (0, 1e5, 6000))
        job = Job(ranks=4 if several and scale > 1 else 1, zero_stage=2, trainable_bytes=10**11, gradient_bytes=10**11)
        seconds = step_time(DEVICE, step, operations((0, 5e9, 2)), job, truth).seconds
        rows.append((step, operations((0, 5e9, 2)), job, seconds * (1 + spread * draw.standard_normal())))
    return rows


@pytest.mark.parametrize("several", [False, True])
def test_a_fit_finds_the_constants(several):
    truth = Constants(flop_share=0.45, bandwidth_share=0.65, launch_seconds=9e-6, link_share=0.5)
    found = fit(DEVICE, samples(truth, several=several), "test")
    assert found.flop_share == pytest.approx(truth.flop_share, rel=0.03)
    assert found.bandwidth_share == pytest.approx(truth.bandwidth_share, rel=0.1)
    assert found.launch_seconds == pytest.approx(truth.launch_seconds, rel=0.1)
    assert found.link_share == pytest.approx(0.5, rel=0.1) if several else found.link_share == Constants().link_share
    assert (found.measured_steps, found.versions, found.assumptions) == (5, "test", [])


def test_a_fit_on_noisy_steps_predicts_the_one_left_out():
    truth = Constants(flop_share=0.5, bandwidth_share=0.7, launch_seconds=8e-6)
    rows = samples(truth, spread=0.02)
    found = fit(DEVICE, rows[:3] + rows[4:], "test")
    step, update, job, seconds = rows[3]
    assert step_time(DEVICE, step, update, job, found).seconds == pytest.approx(seconds, rel=0.06)


def test_one_measured_step_moves_the_estimate_to_it():
    rows = samples(Constants(flop_share=0.3, bandwidth_share=0.6, launch_seconds=1e-5))[3:4]
    found = fit(DEVICE, rows, "test")
    step, update, job, seconds = rows[0]
    assert step_time(DEVICE, step, update, job, found).seconds == pytest.approx(seconds, rel=0.02)


def test_a_fit_needs_a_measurement():
    with pytest.raises(AutofitError, match="at least one measured step"):
        fit(DEVICE, [], "test")
    with pytest.raises(AutofitError, match="positive time"):
        fit(DEVICE, [(NOTHING, NOTHING, Job(), 0.0)], "test")


@given(st.floats(1e9, 1e15), st.floats(1e6, 1e12), st.integers(1, 5000), st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_more_work_never_takes_less_time(flops, moved, count, micro_steps):
    device = device_model("h100-80gb")
    less = step_time(device, operations((flops, moved, count)), NOTHING, Job(micro_steps=micro_steps)).seconds
    more = step_time(
        device, operations((flops * 1.5, moved * 1.5, count + 1)), NOTHING, Job(micro_steps=micro_steps + 1)
    ).seconds
    assert more > less
    fraction = step_time(
        device, operations((flops, moved, count)), NOTHING, Job(micro_steps=micro_steps)
    ).model_flops_utilisation
    assert fraction is not None
    assert 0 < fraction <= Constants().flop_share + 1e-9
