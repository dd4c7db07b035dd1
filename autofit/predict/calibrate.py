"""What measured trials teach the memory prediction: a correction, and a margin above it that is rarely exceeded.

The margin is split-conformal and one-sided: with n residuals that are exchangeable with the next one, the k-th smallest,
k = ceil((n + 1)(1 - miss_rate)), is exceeded by the next with probability at most `miss_rate` (Vovk, Gammerman and Shafer,
"Algorithmic Learning in a Random World", 2005; Lei et al., JASA 113, 2018). With too few residuals for that rank to exist the
prior margins stand, which are those seen against published measurements: 2 % of allocated, 5 % of reserved.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autofit.errors import AutofitError

PRIOR_MARGIN = {"allocated": 0.02, "reserved": 0.05, "device": 0.05}
"""Relative margins before anything was measured, by quantity."""
MISS_RATE = 0.05
"""Share of trials that may exceed `high`."""


@dataclass(frozen=True)
class Residual:
    """One trial: what was predicted and what was measured, in bytes."""

    predicted_bytes: int
    measured_bytes: int

    @property
    def ratio(self) -> float:
        """measured / predicted: above 1, the prediction was too low."""
        return self.measured_bytes / self.predicted_bytes


@dataclass(frozen=True)
class Calibration:
    """A correction and its margins, both relative."""

    factor: float
    """Multiplies the raw prediction (1: no correction)."""
    margin_high: float
    """`high` is the corrected prediction times 1 + this."""
    margin_low: float
    """`low` is the corrected prediction times 1 - this."""
    residuals: int
    """Number of trials behind it."""
    conformal: bool
    """Whether the margin comes from residuals alone; False: the prior margin stands, alone or as the larger of two."""

    def interval(self, predicted_bytes: int) -> tuple[int, int, int]:
        """(low, corrected, high) in bytes."""
        centre = predicted_bytes * self.factor
        return round(centre * (1 - self.margin_low)), round(centre), math.ceil(centre * (1 + self.margin_high))


@dataclass(frozen=True)
class Accuracy:
    """How predictions did against measurements. Shares are None where nothing could be counted."""

    trials: int
    median_absolute_error: float | None
    """Median of |predicted - measured| / measured."""
    p95_absolute_error: float | None
    under_prediction_rate: float | None
    """Share of trials that measured more than was predicted."""
    exceeded_rate: float | None
    """Share of trials that measured more than `high`."""
    false_refusal_rate: float | None
    """Of the trials that fitted the budget, the share that `high` would have refused."""


def calibrate(residuals: Sequence[Residual], quantity: str, *, miss_rate: float = MISS_RATE) -> Calibration:
    """Correction and margins from the trials measured so far.

    The correction is the median ratio, from three residuals on; while the conformal rank does not exist (fewer than
    ceil(1 / miss_rate) - 1 residuals), the margin is the larger of the prior and the worst residual seen.

    Args:
        residuals: trials of one kind: same model, device and versions.
        quantity: `allocated`, `reserved` or `device`.
        miss_rate: share of trials that may exceed `high`.

    Raises:
        AutofitError: an unknown quantity, a miss rate outside (0, 1), or a residual that is not positive.
    """
    if quantity not in PRIOR_MARGIN:
        raise AutofitError(f"no memory quantity '{quantity}'; known: {', '.join(PRIOR_MARGIN)}")
    if not 0 < miss_rate < 1:
        raise AutofitError(f"miss_rate {miss_rate}: must lie between 0 and 1")
    for residual in residuals:
        if residual.predicted_bytes <= 0 or residual.measured_bytes <= 0:
            raise AutofitError(f"a residual needs positive bytes, not {residual}; leave out trials without a measurement")
    prior = PRIOR_MARGIN[quantity]
    if not residuals:
        return Calibration(1.0, prior, prior, 0, conformal=False)
    ratios = np.array([residual.ratio for residual in residuals])
    factor = float(np.median(ratios)) if len(ratios) >= 3 else 1.0
    scores = np.sort(ratios / factor - 1)
    high, low = conformal_quantile(scores, miss_rate), conformal_quantile(np.sort(-scores), miss_rate)
    if high is None or low is None:
        return Calibration(
            factor, max(prior, float(scores[-1])), min(1.0, max(prior, float(-scores[0]))), len(ratios), conformal=False
        )
    return Calibration(factor, max(0.0, high), min(1.0, max(0.0, low)), len(ratios), conformal=True)


def conformal_quantile(scores: Sequence[float] | np.ndarray, miss_rate: float) -> float | None:
    """The ceil((n + 1)(1 - miss_rate))-th smallest score, or None when n is too small for it.

    Args:
        scores: ascending.
    """
    rank = math.ceil((len(scores) + 1) * (1 - miss_rate) - 1e-9)
    return float(scores[rank - 1]) if 1 <= rank <= len(scores) else None


def accuracy(
    rows: Iterable[tuple[int, int, int]],
    budget_bytes: int | None = None,
) -> Accuracy:
    """Scores predictions made before their trial ran.

    Args:
        rows: (predicted, high, measured) bytes of each trial.
        budget_bytes: what had to be fitted; None: false refusals are not counted.
    """
    table = np.array(list(rows), dtype=float).reshape(-1, 3)
    if not len(table):
        return Accuracy(0, None, None, None, None, None)
    predicted, high, measured = table.T
    errors = np.abs(predicted - measured) / measured
    refused = None
    if budget_bytes is not None and (measured <= budget_bytes).any():
        refused = float((high > budget_bytes)[measured <= budget_bytes].mean())
    return Accuracy(
        trials=len(table),
        median_absolute_error=float(np.median(errors)),
        p95_absolute_error=float(np.quantile(errors, 0.95)),
        under_prediction_rate=float((measured > predicted).mean()),
        exceeded_rate=float((measured > high).mean()),
        false_refusal_rate=refused,
    )
