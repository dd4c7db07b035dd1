"""The margin: finite-sample rank, prior while there is too little, and coverage on data it has not seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autofit.errors import AutofitError
from autofit.predict.calibrate import Residual, accuracy, calibrate, conformal_quantile


def residuals(*ratios, base=10**9):
    return [Residual(base, round(base * ratio)) for ratio in ratios]


def test_nothing_measured_gives_the_stated_prior():
    found = calibrate([], "allocated")
    assert (found.factor, found.margin_high, found.conformal) == (1.0, 0.02, False)
    assert calibrate([], "reserved").margin_high == 0.05
    assert found.interval(100_000) == (98_000, 100_000, 102_000)


def test_few_residuals_correct_but_keep_the_prior_margin_or_the_worst_seen():
    found = calibrate(residuals(1.03, 1.03, 1.03, 1.04), "allocated")
    assert found.factor == pytest.approx(1.03)
    assert (found.margin_high, found.conformal) == (0.02, False)
    assert calibrate(residuals(1.0, 1.0, 1.2), "allocated").margin_high == pytest.approx(0.2)
    assert calibrate(residuals(1.2), "allocated").factor == 1.0


def test_the_rank_is_the_finite_sample_one():
    scores = list(range(1, 20))  # 19 residuals: (19 + 1) * 0.95 = 19, the largest
    assert conformal_quantile(scores, 0.05) == 19
    assert conformal_quantile(scores[:18], 0.05) is None
    assert conformal_quantile(list(range(1, 40)), 0.05) == 38
    assert conformal_quantile([1, 2, 3], 0.5) == 2


def test_enough_residuals_give_a_margin_of_their_own():
    found = calibrate(residuals(*[1 + k / 1000 for k in range(41)]), "reserved")
    assert found.conformal
    assert found.factor == pytest.approx(1.02)
    assert found.margin_high == pytest.approx(1.039 / 1.02 - 1)
    assert found.residuals == 41


def test_coverage_holds_on_the_next_trial():
    """Exchangeable residuals: the next exceeds `high` in about 5 % of repetitions, however skewed they are."""
    draw = np.random.default_rng(7)
    exceeded = []
    for _ in range(2000):
        ratios = 1 + draw.lognormal(-4, 1, 40)
        found = calibrate(residuals(*ratios[:-1]), "allocated")
        exceeded.append(10**9 * ratios[-1] > found.interval(10**9)[2])
    assert 0.02 < np.mean(exceeded) < 0.08


@given(st.lists(st.floats(0.5, 2.0), max_size=60), st.integers(1, 2**40), st.sampled_from(["allocated", "reserved", "device"]))
@settings(max_examples=150, deadline=None)
def test_an_interval_is_ordered(ratios, predicted, quantity):
    low, centre, high = calibrate(residuals(*ratios), quantity).interval(predicted)
    assert 0 <= low <= centre <= high


def test_bad_input_is_named():
    with pytest.raises(AutofitError, match="no memory quantity 'vram'"):
        calibrate([], "vram")
    with pytest.raises(AutofitError, match="miss_rate 0"):
        calibrate([], "allocated", miss_rate=0)
    with pytest.raises(AutofitError, match="positive bytes"):
        calibrate([Residual(10, 0)], "allocated")


def test_accuracy_counts_misses_and_refusals():
    rows = [(100, 110, 105), (100, 110, 90), (100, 110, 120), (60, 66, 60)]
    found = accuracy(rows, budget_bytes=108)
    assert (found.trials, found.under_prediction_rate, found.exceeded_rate) == (4, 0.5, 0.25)
    assert found.false_refusal_rate == pytest.approx(2 / 3)
    assert accuracy([]).median_absolute_error is None
    assert accuracy(rows).false_refusal_rate is None
    assert accuracy(rows, budget_bytes=10).false_refusal_rate is None
