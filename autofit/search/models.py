"""What trials teach about the untried: Gaussian processes over the knobs, for the logarithm of memory and of speed.

A process models the residual, log(measured / expected), so that a right expectation leaves nothing to learn and a wrong one is
mended by the first trials. Its covariance is a common factor, plus one term a knob (how wrong each value of it makes the
expectation), plus one for all of them together; and one for each part that the expectation is made of: where half of a step is
communication, it is half as wrong as the links' assumed rate (to first order). An out-of-memory is a censored observation: the
peak is only known to lie above a bound. It enters through expectation propagation (Rasmussen and Williams, "Gaussian
Processes for Machine Learning", 2006, section 3.6), whose sites are exact for the measured ones.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autofit.config.space import KNOBS
from autofit.config.trial import TrialSpec

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]
Parts = tuple[float, ...]

NUMBERS = ("micro_batch_size", "cutoff_len", "num_gpus")
"""Fields whose logarithm lies on a line."""
NAMES = tuple(name for name in KNOBS if name not in {*NUMBERS, "gradient_accumulation_steps"})
"""Fields whose values are equal or not."""
OCTAVES = 2.0
"""Doublings over which a number's effect on the residual changes; from one to the next it may jump, as caches do."""
SHARED_WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
OWN_WIDTHS = (0.5, 2.0, 6.0, 12.0)
"""Multiples of the scales of what configurations share, and of a configuration's own, between which the measured residuals
decide: how good the expectations are is itself learnt, from what was measured and, one by one, from what ran out of memory.
All are kept, by their weight: a few trials that agree prove little."""
OWN_SPREAD = 2.0
"""Doublings that a configuration's own width may well be off by, of the shared it is one: whether a predictor's errors scatter
is less well known beforehand than how large they are."""
LEAST_WEIGHT = 0.03
"""Below which a pair of them is left out."""
SWEEPS = 40
"""Of expectation propagation; few are needed."""


@dataclass(frozen=True)
class Scales:
    """Standard deviations of a log residual before anything is measured."""

    common: float
    """Of the factor that all configurations share."""
    knob: float
    """Of each knob's own factor."""
    joint: float
    """Of what is left when all knobs are taken together, alike for configurations that are."""
    own: float
    """Of what is a configuration's own."""
    noise: float
    """From one run of a configuration to the next."""
    part: float = 0.0
    """Of each part's own factor."""
    study: float = 0.05
    """Of a factor that an earlier study's trials share among themselves: its day, its data."""


@dataclass(frozen=True)
class Observation:
    """One trial's log residual; `censored`: only known to be above `value`."""

    spec: TrialSpec
    value: float
    censored: bool = False
    study: str = ""
    """The earlier study that it is from; empty: this one."""
    parts: Parts = ()
    """See `Candidate`."""


@dataclass(frozen=True)
class Candidate:
    """A configuration that something is to be said of."""

    spec: TrialSpec
    parts: Parts = ()
    """Shares of what was expected of it, by part; of equal length everywhere. Empty: nothing is known of parts."""


@dataclass(frozen=True)
class Belief:
    """Mean and standard deviation of the log residual of some specs, one entry a spec."""

    mean: Floats
    deviation: Floats


def learn(observations: Sequence[Observation], candidates: Sequence[Candidate], scales: Scales) -> Belief:
    """The belief about the log residuals of `candidates`, configurations of this study, repeatability included."""
    space = _Space([*observations, *candidates], scales)
    size = len(observations)
    values = np.array([one.value for one in observations])
    censored = np.array([one.censored for one in observations], dtype=bool)
    studies = np.array([one.study for one in observations])
    days = scales.study**2 * ((studies[:, None] == studies) & (studies != "")) if size else np.zeros((0, 0))
    data = _Data(values, censored, days)
    beliefs = [(weight, *_posterior(space, data, scales, widths)) for widths, weight in _weighed(space, data, scales)]
    mean = sum((weight * mean for weight, mean, _ in beliefs), np.zeros(len(candidates)))
    square = sum((weight * (variance + mean**2) for weight, mean, variance in beliefs), np.zeros(len(candidates)))
    return Belief(mean, np.sqrt(np.maximum(square - mean**2, scales.noise**2)))


@dataclass(frozen=True)
class _Data:
    values: Floats
    censored: Flags
    days: Floats
    """Covariance that earlier studies' trials have among themselves, (values, values)."""


def _posterior(space: "_Space", data: _Data, scales: Scales, widths: tuple[float, float]) -> tuple[Floats, Floats]:
    """Mean and variance of the specs after the first, which are those of `data`, with given widths."""
    size = len(data.values)
    seen = np.arange(size)
    knobs, own = widths
    prior = space.covariance(seen, seen, knobs) + data.days + (own * scales.own) ** 2 * np.eye(size)
    precision, shift = _sites(prior, data.values, data.censored, scales.noise)
    root = np.sqrt(precision)
    inverse = np.linalg.inv(np.eye(size) + root[:, None] * prior * root)
    weights = shift - root * (inverse @ (root * (prior @ shift)))
    asked = np.arange(size, space.size)
    across = space.covariance(asked, seen, knobs)
    scaled = across * root
    alone = space.variance(asked, knobs) + (own * scales.own) ** 2 + scales.noise**2
    return across @ weights, alone - np.einsum("ij,jk,ik->i", scaled, inverse, scaled)


class _Space:
    """Similarities of specs, knob by knob and part by part; knobs that none of them varies say nothing and are left out."""

    def __init__(self, members: Sequence[Observation | Candidate], scales: Scales) -> None:
        self.size = len(members)
        self._scales = scales
        columns = {name: np.array([getattr(one.spec, name) for one in members]) for name in (*NUMBERS, *NAMES)}
        varying = {name: column for name, column in columns.items() if len(members) and (column != column[0]).any()}
        self._numbers = [np.log2(column) for name, column in varying.items() if name in NUMBERS]
        self._names = [column for name, column in varying.items() if name in NAMES]
        parts = len(members[0].parts) if members else 0
        self._parts = np.array([one.parts for one in members], dtype=float).reshape(self.size, parts)

    def covariance(self, left: Indices, right: Indices, width: float) -> Floats:
        """Prior covariance of the residuals of two lists of members."""
        scales = self._scales
        total = np.zeros((len(left), len(right)))
        closeness = np.ones_like(total)
        for number in self._numbers:
            near = np.exp(-np.abs(number[left, None] - number[right]) / OCTAVES)
            total += near
            closeness *= near
        for name in self._names:
            equal = name[left, None] == name[right]
            total += equal
            closeness *= np.where(equal, 1.0, 0.5)
        parts = self._parts[left] @ self._parts[right].T
        shared = scales.common**2 + scales.knob**2 * total + scales.joint**2 * closeness + scales.part**2 * parts
        return np.asarray(width**2 * shared)

    def variance(self, which: Indices, width: float) -> Floats:
        """Prior variance of each of some members."""
        scales, knobs = self._scales, len(self._numbers) + len(self._names)
        parts = (self._parts[which] ** 2).sum(axis=1)
        return np.asarray(width**2 * (scales.common**2 + knobs * scales.knob**2 + scales.joint**2 + scales.part**2 * parts))


def _weighed(space: _Space, data: _Data, scales: Scales) -> list[tuple[tuple[float, float], float]]:
    """Pairs of widths with their posterior weights, after what was measured; a lognormal prior keeps them near 1."""
    measured, bounded = np.flatnonzero(~data.censored), np.flatnonzero(data.censored)
    values, bounds = data.values[measured], data.values[bounded]
    unit = np.eye(len(measured))

    def score(widths: tuple[float, float]) -> float:
        knobs, own = widths
        doubt = -0.5 * (math.log2(knobs) ** 2 + (math.log2(own) / OWN_SPREAD) ** 2)
        single = (own * scales.own) ** 2 + scales.noise**2
        covariance = space.covariance(measured, measured, knobs) + data.days[np.ix_(measured, measured)] + single * unit
        across = space.covariance(bounded, measured, knobs) + data.days[np.ix_(bounded, measured)]
        _, determinant = np.linalg.slogdet(covariance)
        weights = np.linalg.solve(covariance, np.column_stack([values, across.T]))
        likelihood = -0.5 * float(values @ weights[:, 0] + determinant)
        variance = space.variance(bounded, knobs) + single - np.einsum("ij,ji->i", across, weights[:, 1:])
        exceeded = above(bounds, across @ weights[:, 0], np.sqrt(variance))
        return doubt + likelihood + float(np.log(np.maximum(exceeded, 1e-12)).sum())

    pairs = list(itertools.product(SHARED_WIDTHS, OWN_WIDTHS))
    weights = np.array([score(pair) for pair in pairs])
    weights = np.exp(weights - weights.max())
    weights[weights < LEAST_WEIGHT * weights.sum()] = 0.0
    weights /= weights.sum()
    return [(pair, float(weight)) for pair, weight in zip(pairs, weights, strict=True) if weight]


def above(limit: Floats | float, mean: Floats, deviation: Floats) -> Floats:
    """Probability that a normal variable exceeds `limit`."""
    return _half_erfc((limit - mean) / deviation)


def expected_excess(limit: float, mean: Floats, deviation: Floats) -> Floats:
    """Expectation of max(0, x - limit) of a normal variable x: expected improvement."""
    gap = (mean - limit) / deviation
    density = np.exp(-0.5 * gap**2) / math.sqrt(2 * math.pi)
    return np.asarray((mean - limit) * _half_erfc(-gap) + deviation * density)


def _sites(prior: Floats, values: Floats, censored: Flags, noise: float) -> tuple[Floats, Floats]:
    """Precision and precision-weighted mean of each observation's (approximate) Gaussian likelihood."""
    precision = np.where(censored, 0.0, noise**-2)
    shift = np.where(censored, 0.0, values * noise**-2)
    if not censored.any():
        return precision, shift
    for _ in range(SWEEPS):
        root = np.sqrt(precision)
        inner = np.eye(len(values)) + root[:, None] * prior * root
        posterior = prior - (prior * root) @ np.linalg.solve(inner, root[:, None] * prior)
        variance, mean = np.diag(posterior)[censored], (posterior @ shift)[censored]
        cavity_precision = np.maximum(1 / variance - precision[censored], 1e-9)
        cavity_mean = (mean / variance - shift[censored]) / cavity_precision
        spread = noise**2 + 1 / cavity_precision
        depth = (cavity_mean - values[censored]) / np.sqrt(spread)
        hazard = _hazard(depth)
        tilted_mean = cavity_mean + hazard / (cavity_precision * np.sqrt(spread))
        tilted_variance = 1 / cavity_precision - hazard * (depth + hazard) / (cavity_precision**2 * spread)
        new_precision = np.maximum(1 / tilted_variance - cavity_precision, 0.0)
        new_shift = tilted_mean / tilted_variance - cavity_mean * cavity_precision
        change = np.abs(new_precision - precision[censored]).max()
        precision[censored] += 0.7 * (new_precision - precision[censored])
        shift[censored] += 0.7 * (new_shift - shift[censored])
        if change < 1e-4 * (1 + new_precision.max()):
            break
    return precision, shift


def _hazard(depth: Floats) -> Floats:
    """Density over distribution function of the standard normal; its asymptote far below 0."""
    density = np.exp(-0.5 * depth**2) / math.sqrt(2 * math.pi)
    return np.where(depth < -30, -depth, density / np.maximum(_half_erfc(-depth), 1e-300))


def _half_erfc(x: Floats | float) -> Floats:
    """1 less the distribution function of the standard normal."""
    flat = np.atleast_1d(np.asarray(x, dtype=float))
    return np.array([0.5 * math.erfc(value / math.sqrt(2)) for value in flat.ravel()]).reshape(flat.shape)
