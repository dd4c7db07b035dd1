"""Sizes as polynomials of a batch's shape, found exactly from a few samples.

Every tensor of a training step has a size that is one product of its dimensions, so nearly every storage is a single monomial
of B (samples), S (tokens of each) and P (image patches of the batch); a padded or joined one is a sum of two. A candidate
counts only if it meets every sample to the byte; what meets none is fitted by least squares, and the residual is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

FEATURES = ("1", "B", "S", "BS", "SS", "BSS", "P", "Q")
"""Q is the sum over images of their patches squared: what full attention inside images costs."""

_SINGLE = ("1", "BS", "P", "B", "S", "BSS", "SS", "Q")
_PAIRS = (
    ("BS", "B"),
    ("BS", "1"),
    ("BS", "P"),
    ("P", "1"),
    ("B", "1"),
    ("S", "1"),
    ("BSS", "BS"),
    ("SS", "S"),
    ("P", "Q"),
    ("S", "P"),
)
_BATCH_OF_ONE = frozenset({"1", "BS", "BSS", "P", "Q"})
"""With B = 1 the others are the same numbers again."""


def features(batch: npt.ArrayLike, length: npt.ArrayLike, patches: npt.ArrayLike, squares: npt.ArrayLike) -> Float64:
    """[n, len(FEATURES)] values at n shapes; the arguments broadcast."""
    b, s, p, q = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (batch, length, patches, squares))
    )
    return np.stack([np.ones_like(b), b, s, b * s, s * s, b * s * s, p, q], axis=-1)


@dataclass(frozen=True)
class Fit:
    """Coefficients and how well they meet the samples."""

    coefficients: Float64
    """[n, len(FEATURES)]"""
    inexact: int
    """Columns that no candidate met exactly."""
    residual: float
    """Largest distance from a sample among those."""


def fit(samples: Float64, values: Float64, tolerance: float = 0.5) -> Fit:
    """Polynomials through columns of `values`.

    Args:
        samples: [m, len(FEATURES)] features of m shapes.
        values: [m, n] what n quantities are at them.
        tolerance: absolute distance that counts as met.
    """
    single = bool(np.all(samples[:, FEATURES.index("B")] == 1))
    allowed = [name for name in FEATURES if (not single or name in _BATCH_OF_ONE) and np.any(samples[:, FEATURES.index(name)])]
    coefficients = np.zeros((values.shape[1], len(FEATURES)))
    open_columns = np.ones(values.shape[1], dtype=bool)
    candidates: list[tuple[str, ...]] = [(name,) for name in _SINGLE]
    if len(samples) >= 3:
        candidates += list(_PAIRS)
    for candidate in candidates:
        if not open_columns.any():
            break
        if all(name in allowed for name in candidate):
            _try(candidate, samples, values, coefficients, open_columns, tolerance)
    left = int(open_columns.sum())
    residual = 0.0
    if left:
        columns = _independent(samples, [FEATURES.index(name) for name in allowed])
        scale = np.abs(samples[:, columns]).max(axis=0)
        solution = np.linalg.lstsq(samples[:, columns] / scale, values[:, open_columns], rcond=None)[0] / scale[:, None]
        coefficients[np.flatnonzero(open_columns)[:, None], columns] = solution.T
        residual = float(np.abs(samples @ coefficients[open_columns].T - values[:, open_columns]).max())
    return Fit(coefficients, left, residual)


def _try(  # noqa: PLR0917 - one step of `fit`, on its variables
    candidate: Sequence[str],
    samples: Float64,
    values: Float64,
    coefficients: Float64,
    open_columns: npt.NDArray[np.bool_],
    tolerance: float,
) -> None:
    """Gives the candidate to the open columns that it meets at every sample, with coefficients that are not negative."""
    columns = [FEATURES.index(name) for name in candidate]
    basis = samples[:, columns]
    if np.linalg.matrix_rank(basis / np.abs(basis).max(axis=0)) < len(columns):
        return
    where = np.flatnonzero(open_columns)
    scale = np.abs(basis).max(axis=0)
    found = np.linalg.lstsq(basis / scale, values[:, where], rcond=None)[0] / scale[:, None]
    error = np.abs(basis @ found - values[:, where])
    met = np.all(error <= np.maximum(tolerance, 1e-9 * np.abs(values[:, where])), axis=0)
    if len(columns) == 1:
        met &= np.all(found >= 0, axis=0)
    chosen = where[met]
    exact = np.round(found[:, met] * 64) / 64  # true ones are small fractions at most (a token is four patches)
    coefficients[chosen[:, None], columns] = np.where(np.abs(exact - found[:, met]) < 1e-6, exact, found[:, met]).T
    open_columns[chosen] = False


def _independent(samples: Float64, columns: list[int]) -> list[int]:
    """As many of the columns, in the order of likelihood, as the samples can tell apart."""
    order = sorted(columns, key=lambda column: _SINGLE.index(FEATURES[column]))
    chosen: list[int] = []
    for column in order:
        trial = samples[:, [*chosen, column]]
        if np.linalg.matrix_rank(trial / np.abs(trial).max(axis=0)) == len(chosen) + 1:
            chosen.append(column)
    return chosen
