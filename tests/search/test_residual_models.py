"""The models of what expectations get wrong, against figures worked out another way."""

import math

import numpy as np
import pytest

from autofit.config.model import ModelRef
from autofit.config.trial import TrialSpec
from autofit.search import models
from autofit.search.models import Candidate, Observation, Scales, above, expected_excess, learn

SCALES = Scales(common=0.2, knob=0.05, joint=0.03, own=0.02, noise=0.01)


def spec(micro: int = 1, stage: int = 0) -> TrialSpec:
    return TrialSpec.model_validate(
        {"model": ModelRef(preset="tiny-llama"), "num_gpus": 2, "micro_batch_size": micro, "zero_stage": stage}
    )


def candidates(*specs: TrialSpec) -> list[Candidate]:
    return [Candidate(one) for one in specs]


def test_nothing_is_known_before_the_first_trial() -> None:
    belief = learn([], candidates(spec(1), spec(2, 3)), SCALES)
    assert belief.mean == pytest.approx([0.0, 0.0])
    assert belief.deviation.min() > SCALES.common


def test_a_factor_that_all_share_is_learnt_from_a_few() -> None:
    seen = [Observation(spec(1), 0.26), Observation(spec(2), 0.26)]
    belief = learn(seen, candidates(spec(4), spec(1, 3)), SCALES)
    assert belief.mean == pytest.approx([0.26, 0.26], abs=0.04)
    assert belief.deviation.max() < SCALES.common


def test_a_knob_that_is_wrong_is_told_from_what_is_wrong_everywhere() -> None:
    right = [Observation(spec(micro, 0), 0.0) for micro in (1, 2, 4)]
    wrong = [Observation(spec(micro, 3), 0.3) for micro in (1, 2)]
    near, far = learn([*right, *wrong], candidates(spec(4, 3), spec(8, 0)), SCALES).mean
    assert near > 0.2 and abs(far) < 0.1


def test_what_scatters_is_believed_less() -> None:
    agreed = [Observation(spec(micro, stage), 0.1) for micro in (1, 2, 4) for stage in (0, 3)]
    scattered = [Observation(one.spec, 0.1 + (0.2 if place % 2 else -0.2)) for place, one in enumerate(agreed)]
    sure, unsure = (learn(seen, candidates(spec(8, 2)), SCALES).deviation[0] for seen in (agreed, scattered))
    assert unsure > 2 * sure


@pytest.mark.parametrize("bound", [-0.3, 0.0, 0.2, 0.4])
def test_a_censored_observation_gives_the_moments_of_the_truncated_belief(
    bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expectation propagation is exact for one observation and one width; the integral is done on a grid here."""
    monkeypatch.setattr(models, "SHARED_WIDTHS", (1.0,))
    scales = Scales(common=0.2, knob=0.0, joint=0.0, own=1e-6, noise=0.01)
    found = learn([Observation(spec(), bound, censored=True)], candidates(spec()), scales)
    grid = np.linspace(-1.5, 1.5, 200_001)
    weight = np.exp(-0.5 * (grid / scales.common) ** 2) * above(bound - grid, np.zeros(1), np.array([scales.noise]))
    weight /= weight.sum()
    mean = float(weight @ grid)
    variance = float(weight @ (grid - mean) ** 2)
    assert found.mean[0] == pytest.approx(mean, abs=1e-3)
    assert found.deviation[0] == pytest.approx(math.sqrt(variance + scales.noise**2), rel=0.02)


def test_a_tighter_bound_says_more() -> None:
    loose, tight = (
        learn([Observation(spec(), bound, censored=True)], candidates(spec(2)), SCALES).mean[0] for bound in (0.05, 0.4)
    )
    assert 0 < loose < tight


def test_out_of_memory_and_measured_peaks_agree() -> None:
    seen = [Observation(spec(1), -0.2), Observation(spec(8), 0.1, censored=True)]
    low, high = learn(seen, candidates(spec(2), spec(4)), SCALES).mean
    assert -0.2 < low < high


def test_an_out_of_memory_that_nobody_expected_shakes_the_belief() -> None:
    right = [Observation(spec(micro, stage), 0.0) for micro in (1, 2) for stage in (0, 3)]
    surprised = [*right, Observation(spec(4), 0.3, censored=True)]
    sure, unsure = (learn(seen, candidates(spec(8, 2)), SCALES).deviation[0] for seen in (right, surprised))
    assert unsure > 2 * sure


def test_an_earlier_study_counts_for_less_than_this_one() -> None:
    scales = Scales(common=0.2, knob=0.0, joint=0.0, own=0.001, noise=0.001, study=0.2)
    own = learn([Observation(spec(), 0.3)], candidates(spec(2)), scales)
    earlier = learn([Observation(spec(), 0.3, study="before")], candidates(spec(2)), scales)
    assert 0.1 < earlier.mean[0] < own.mean[0] and earlier.deviation[0] > own.deviation[0]


def test_expected_improvement_is_what_a_simulation_gives() -> None:
    draws = np.random.default_rng(0).normal(0.1, 0.2, 400_000)
    assert expected_excess(0.15, np.array([0.1]), np.array([0.2]))[0] == pytest.approx(
        np.maximum(draws - 0.15, 0).mean(), rel=0.02
    )


def test_a_wrong_rate_is_told_by_the_parts_of_the_steps_that_it_limits() -> None:
    """Half of the first step was communication, which was slow: one without it is as expected, one of little else is slower."""
    scales = Scales(common=0.02, knob=0.0, joint=0.0, own=0.02, noise=0.01, part=0.4)
    seen = [Observation(spec(1), -0.5, parts=(0.5, 0.5)), Observation(spec(2), 0.0, parts=(1.0, 0.0))]
    asked = [Candidate(spec(4), (0.1, 0.9)), Candidate(spec(8), (1.0, 0.0)), Candidate(spec(4), (0.5, 0.5))]
    mostly, without, alike = learn(seen, asked, scales).mean
    assert mostly < -0.6 and abs(without) < 0.1 and alike == pytest.approx(-0.5, abs=0.1)
