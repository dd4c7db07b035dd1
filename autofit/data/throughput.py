"""Speed on the user's data from few measured steps: steps that stand for all, and what they say with a confidence interval.

An epoch is drawn as the sampler would draw it, its steps are sorted by what they compute, cut into as many strata of equal
size as there are steps to measure, and one step is taken from each. The step time of the whole epoch then follows from a
straight line (time over padded tokens and patches), taken at the epoch's own means: a regression estimate, whose error is
the residuals' and not that of having caught long or short samples.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autofit.data.profile import DataProfile
from autofit.data.truncation import Int
from autofit.data.worst import batch_shape
from autofit.errors import AutofitError

Float = npt.NDArray[np.float64]
CONFIDENCE = 0.95
_T_DRAWS = 400_000


class Steps(NamedTuple):
    """Optimizer steps, one entry each along the first axis.

    Attributes:
        samples: [steps, micro-batches, samples] numbers in the profile; the micro-batches of all ranks, in the order in
            which ranks take turns.
        computed_tokens: padding included, all ranks.
        effective_tokens: without padding, all ranks.
        label_tokens: that the loss is taken over, all ranks.
        slowest_tokens, slowest_patches: of the slowest rank in each round of micro-batches, summed over the rounds; they
            set the time.
    """

    samples: Int
    computed_tokens: Int
    effective_tokens: Int
    label_tokens: Int
    slowest_tokens: Int
    slowest_patches: Int

    def take(self, which: Int) -> "Steps":
        """Some of them."""
        return Steps(*(column[which] for column in self))


class Estimate(NamedTuple):
    """A figure with its confidence interval; the ends are not a number where one step alone was measured."""

    value: float
    low: float
    high: float


class Throughput(NamedTuple):
    """Of the whole job on this data, at the measured configuration."""

    step_time_seconds: Estimate
    samples_per_second: Estimate
    tokens_per_second: Estimate
    effective_tokens_per_second: Estimate
    epoch_seconds: Estimate


def epoch_steps(  # noqa: PLR0917 - a configuration's own words
    profile: DataProfile,
    cutoff_len: int,
    micro_batch_size: int,
    accumulation: int = 1,
    ranks: int = 1,
    seed: int = 0,
    epochs: int = 1,
) -> Steps:
    """The optimizer steps of epochs in random orders, each without its last incomplete step.

    Raises:
        AutofitError: fewer samples than one step takes.
    """
    micro = accumulation * ranks
    count = len(profile) // (micro * micro_batch_size)
    if not count:
        raise AutofitError(f"{len(profile)} samples are fewer than the {micro * micro_batch_size} of one optimizer step")
    random = np.random.default_rng(seed)
    orders = [random.permutation(len(profile))[: count * micro * micro_batch_size] for _ in range(epochs)]
    samples = np.concatenate(orders).reshape(-1, micro_batch_size)
    length, patches = batch_shape(profile, samples, cutoff_len)
    rounds = (count * epochs, accumulation, ranks)
    tokens = (length * micro_batch_size).reshape(rounds)
    by_step = samples.reshape(count * epochs, -1)
    return Steps(
        samples=samples.reshape(count * epochs, micro, micro_batch_size),
        computed_tokens=tokens.sum(axis=(1, 2)),
        effective_tokens=profile.kept_tokens(cutoff_len)[by_step].sum(axis=1),
        label_tokens=profile.label_tokens(cutoff_len)[by_step].sum(axis=1),
        slowest_tokens=tokens.max(axis=2).sum(axis=1),
        slowest_patches=patches.reshape(rounds).max(axis=2).sum(axis=1),
    )


def stratified(steps: Steps, count: int, seed: int = 0) -> Int:
    """`count` distinct steps that stand for all: one drawn from each stratum of equal size, by tokens and then patches.

    Their order is random, so that a drift over time does not look like an effect of length. Fewer where there are fewer.
    """
    order = np.lexsort((steps.slowest_patches, steps.slowest_tokens))
    random = np.random.default_rng(seed)
    strata = np.array_split(order, min(count, len(order)))
    return random.permutation(np.array([random.choice(stratum) for stratum in strata]))


def throughput(epoch: Steps, measured: Steps, seconds: npt.ArrayLike, samples_in_epoch: int) -> Throughput:
    """What measured steps say of the epoch.

    Args:
        epoch: all steps of one or more epochs of the same configuration.
        measured, seconds: steps and their times, one entry a measurement; a step may occur more than once.
        samples_in_epoch: the size of the dataset.

    Raises:
        AutofitError: no measurement, or as many times as steps are not given.
    """
    times = np.asarray(seconds, dtype=np.float64)
    if not len(times) or times.shape != measured.slowest_tokens.shape:
        raise AutofitError(f"{len(measured.slowest_tokens)} measured steps and {times.size} times: each step needs one")
    step = _mean_time(_features(epoch).mean(axis=0), _features(measured), times)
    samples = epoch.samples[0].size
    mean = {name: float(getattr(epoch, name).mean()) for name in ("computed_tokens", "effective_tokens")}
    return Throughput(
        step_time_seconds=step,
        samples_per_second=_rate(samples, step),
        tokens_per_second=_rate(mean["computed_tokens"], step),
        effective_tokens_per_second=_rate(mean["effective_tokens"], step),
        epoch_seconds=Estimate(*(samples_in_epoch / samples * value for value in step)),
    )


def _features(steps: Steps) -> Float:
    """[steps, 3]: what time is taken to be a linear function of."""
    ones = np.ones(len(steps.slowest_tokens))
    return np.stack([ones, steps.slowest_tokens.astype(np.float64), steps.slowest_patches.astype(np.float64)], axis=1)


def _mean_time(at: Float, features: Float, times: Float) -> Estimate:
    """The line's value at the epoch's means, with Student's interval for a mean response (least squares).

    Features that do not vary, or for which there are too few measurements, are left out; with none left it is the plain mean.
    """
    scale = np.maximum(np.abs(features).max(axis=0), 1.0)
    features, at = features / scale, at / scale
    use = _usable(features)
    x, here = features[:, use], at[use]
    inverse = np.linalg.pinv(x.T @ x)
    value = float(here @ inverse @ x.T @ times)
    freedom = len(times) - len(use)
    if freedom < 1:
        return Estimate(value, float("nan"), float("nan"))
    residual = times - x @ (inverse @ x.T @ times)
    variance = float(residual @ residual) / freedom
    half = _student(freedom) * max(0.0, variance * float(here @ inverse @ here)) ** 0.5
    return Estimate(value, value - half, value + half)


def _usable(features: Float) -> list[int]:
    """Columns that are kept: the constant, and each that adds rank and leaves at least two degrees of freedom."""
    use = [0]
    for column in range(1, features.shape[1]):
        wanted = [*use, column]
        if len(features) >= len(wanted) + 2 and np.linalg.matrix_rank(features[:, wanted], tol=1e-6) == len(wanted):
            use = wanted
    return use


def _student(freedom: int) -> float:
    """Quantile of Student's t for CONFIDENCE, two-sided, from a fixed sample (numpy has no inverse); within 1 %."""
    draws = np.random.default_rng(0).standard_t(freedom, _T_DRAWS)
    return float(np.quantile(np.abs(draws), CONFIDENCE))


def _rate(amount: float, step: Estimate) -> Estimate:
    """Amount a second; the interval's ends change places. An end at or below no time is not a number."""
    low = amount / step.high if step.high > 0 else float("nan")
    high = amount / step.low if step.low > 0 else float("nan")
    return Estimate(amount / step.value, low, high)
