"""Throughput from few steps: strata that stand for all, and intervals that hold the truth as often as they say."""

import math
import random

import numpy as np
import pytest
from profile_cases import make_profile

from autofit.data.profile import DataProfile
from autofit.data.throughput import Steps, epoch_steps, stratified, throughput
from autofit.errors import AutofitError


@pytest.fixture(scope="module")
def profile() -> DataProfile:
    """Lengths over two orders of magnitude, as people's data has them, and images in a third of the samples."""
    draw = random.Random(5)
    samples = [[(int(draw.lognormvariate(5, 1)) + 1, draw.randint(5, 100), 0, 0)] for _ in range(2000)]
    return make_profile(samples, [4 * draw.randint(10, 500) if draw.random() < 1 / 3 else 0 for _ in range(2000)])


def time_of(steps: Steps, noise: np.random.Generator | None = None) -> np.ndarray:
    """Seconds of a made-up machine: a fixed part, and parts for tokens and patches."""
    times = 0.05 + 2e-5 * steps.slowest_tokens + 1e-5 * steps.slowest_patches
    return times if noise is None else times * noise.normal(1, 0.03, len(times))


def test_steps_count_what_the_collator_makes() -> None:
    profile = make_profile([[(10, 7, 0, 0)], [(3, 2, 0, 0)], [(30, 10, 0, 0)], [(20, 4, 0, 0)]], [0, 0, 8, 4])
    steps = epoch_steps(profile, 20, 2, accumulation=1, ranks=2)
    assert sorted(steps.samples.ravel().tolist()) == [0, 1, 2, 3]
    assert steps.effective_tokens.tolist() == [17 + 5 + 20 + 20]
    assert steps.label_tokens.tolist() == [7 + 2 + 5 + 4]  # of 30 + 10, int(20 * 10 / 40) labels stay
    assert steps.computed_tokens[0] in {2 * (24 + 24), 2 * (24 + 16), 2 * (24 + 24)}
    assert steps.slowest_tokens[0] == 2 * 24
    with pytest.raises(AutofitError, match="4 samples are fewer than the 6"):
        epoch_steps(profile, 20, 2, accumulation=3)


def test_strata_stand_for_the_epoch(profile: DataProfile) -> None:
    steps = epoch_steps(profile, 2048, 4)
    chosen = stratified(steps, 10, seed=1)
    assert len(set(chosen.tolist())) == 10
    edges = np.quantile(steps.slowest_tokens, np.linspace(0, 1, 11))
    places = np.searchsorted(edges, np.sort(steps.slowest_tokens[chosen]), side="left")
    assert np.all(np.abs(places - np.arange(1, 11)) <= 1)  # one from each tenth
    assert len(stratified(steps, 10_000)) == len(steps.slowest_tokens)


def test_without_noise_it_is_exact(profile: DataProfile) -> None:
    steps = epoch_steps(profile, 2048, 2, accumulation=2, ranks=2)
    measured = steps.take(stratified(steps, 6))
    found = throughput(steps, measured, time_of(measured), len(profile))
    mean = float(time_of(steps).mean())
    assert found.step_time_seconds.value == pytest.approx(mean)
    assert found.samples_per_second.value == pytest.approx(8 / mean)
    assert found.effective_tokens_per_second.value == pytest.approx(steps.effective_tokens.mean() / mean)
    assert found.tokens_per_second.value == pytest.approx(steps.computed_tokens.mean() / mean)
    assert found.epoch_seconds.value == pytest.approx(2000 / 8 * mean)
    assert found.tokens_per_second.value > found.effective_tokens_per_second.value


@pytest.mark.parametrize("count", [5, 12])
def test_the_interval_holds_the_truth_as_often_as_it_says(profile: DataProfile, count: int) -> None:
    steps = epoch_steps(profile, 2048, 4)
    truth, held, runs = float(time_of(steps).mean()), 0, 300
    for seed in range(runs):
        measured = steps.take(stratified(steps, count, seed))
        found = throughput(steps, measured, time_of(measured, np.random.default_rng(seed)), len(profile)).step_time_seconds
        held += found.low <= truth <= found.high
    assert 0.90 <= held / runs <= 0.99  # 0.95 is claimed


def test_random_steps_without_the_line_miss_by_far_more(profile: DataProfile) -> None:
    """What the strata and the line are for: plain means of as many random steps."""
    steps = epoch_steps(profile, 2048, 4)
    truth = float(time_of(steps).mean())
    ours, plain = [], []
    for seed in range(100):
        noise = np.random.default_rng(seed)
        measured = steps.take(stratified(steps, 8, seed))
        ours.append(throughput(steps, measured, time_of(measured, noise), len(profile)).step_time_seconds.value - truth)
        chosen = steps.take(noise.choice(len(steps.slowest_tokens), 8, replace=False))
        plain.append(time_of(chosen, noise).mean() - truth)
    assert np.std(ours) < np.std(plain) / 3


def test_one_measurement_has_no_interval_and_none_is_an_error(profile: DataProfile) -> None:
    steps = epoch_steps(profile, 2048, 4)
    one = steps.take(np.array([3]))
    found = throughput(steps, one, [0.5], len(profile))
    assert found.step_time_seconds.value == 0.5
    assert math.isnan(found.step_time_seconds.low)
    assert math.isnan(found.samples_per_second.high)
    with pytest.raises(AutofitError, match="each step needs one"):
        throughput(steps, one, [0.5, 0.6], len(profile))


def test_data_of_one_length_is_the_plain_mean() -> None:
    profile = make_profile([[(50, 50, 0, 0)]] * 64)
    steps = epoch_steps(profile, 2048, 4)
    found = throughput(steps, steps.take(np.arange(4)), [1.0, 1.2, 0.8, 1.0], 64).step_time_seconds
    assert found.value == pytest.approx(1.0)
    assert found.low < 1.0 < found.high
