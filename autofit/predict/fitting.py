"""From a trace document to the polynomials of its regimes."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autofit.errors import AutofitError
from autofit.predict.polynomials import FEATURES, Float64, features, fit
from autofit.predict.regime import Regime

_BLOCK = 512
_TOGETHER = 32
"""Rows compared with all that are left at once."""


def read_document(path: Path) -> dict[str, Any]:
    """The trace document in a `.json` or `.json.gz` file.

    Raises:
        AutofitError: it cannot be read.
    """
    try:
        data = path.read_bytes()
        content = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, ValueError, EOFError) as error:
        raise AutofitError(f"{path}: is no trace ({error}); trace the model again") from error
    if not isinstance(content, dict):
        raise AutofitError(f"{path}: is no trace (a {type(content).__name__}); trace the model again")
    return content


def fit_regime(group: Mapping[str, Any], categories: int, phases: tuple[str, ...]) -> Regime:
    """The regime of one group of a trace document."""
    samples = np.concatenate([_shape_features(shape) for shape in group["shapes"]])
    memory_samples = samples.copy()
    memory_samples[:, FEATURES.index("Q")] = 0.0
    sizes = fit(memory_samples, np.asarray(group["storages"]["bytes"], dtype=np.float64))
    coefficients = _rounded(sizes.coefficients)
    events = group["events"]
    kind = np.asarray(events["kind"], dtype=np.int8)
    storage = np.asarray(events["storage"], dtype=np.int32)
    category = np.asarray(group["storages"]["category"], dtype=np.int8)
    template = np.asarray(group["storages"].get("template") or range(len(category)), dtype=np.int32)
    traced = template[storage]
    rows, row_event = _peak_rows(coefficients, kind, traced)
    operations, count, phase = _fit_operations(group["operations"], samples, phases)
    return Regime(
        name=str(group["regime"]),
        kind=kind,
        storage=storage,
        phase=np.asarray(events["phase"], dtype=np.int8),
        step=np.asarray(events["step"], dtype=np.int8),
        template=template,
        category=category,
        sizes=coefficients,
        rows=rows,
        row_event=row_event,
        row_terms=_terms(coefficients, kind, traced, category, row_event, categories),
        operations=operations,
        operation_count=count,
        operation_phase=phase,
        moments=dict(group["moments"]),
        inexact=sizes.inexact,
        residual=sizes.residual,
    )


def _shape_features(shape: Mapping[str, Any]) -> Float64:
    patches = [int(t) * int(h) * int(w) for t, h, w in shape["grids"]]
    squares = sum(int(t) * (int(h) * int(w)) ** 2 for t, h, w in shape["grids"])
    return features(shape["micro_batch_size"], shape["cutoff_len"], sum(patches), squares)


def _rounded(coefficients: Float64) -> Float64:
    """The allocator gives whole blocks of 512 bytes; sizes that depend on the shape are such multiples where they matter."""
    result = coefficients.copy()
    constant = ~np.any(coefficients[:, 1:], axis=1)
    result[constant, 0] = np.ceil(coefficients[constant, 0] / _BLOCK) * _BLOCK
    return result


def _peak_rows(
    sizes: Float64, kind: npt.NDArray[np.int8], storage: npt.NDArray[np.int32]
) -> tuple[Float64, npt.NDArray[np.int32]]:
    """Memory in use after the events that end a run of allocations, without those that another row never falls below."""
    use = np.cumsum(sizes[storage] * kind[:, None], axis=0)
    last = np.append((kind[:-1] > 0) & (kind[1:] < 0), kind[-1] > 0)
    candidates = np.flatnonzero(last)
    candidates = candidates[np.sort(_distinct(np.round(use[candidates], 2))[0])]
    typical = features(4, 4096, 16384, 0)[0]
    candidates = candidates[np.argsort(-(use[candidates] @ typical), kind="stable")]
    kept = np.empty(0, dtype=np.int64)
    while len(candidates):
        head, candidates = candidates[:_TOGETHER], candidates[_TOGETHER:]
        for candidate in head:
            if not np.any(np.all(use[kept] >= use[candidate] - 1e-6, axis=1)):
                kept = np.append(kept, candidate)
        for known in kept[-_TOGETHER:]:
            candidates = candidates[~np.all(use[known] >= use[candidates] - 1e-6, axis=1)]
    return use[kept], kept.astype(np.int32)


def _terms(  # noqa: PLR0917 - the columns of one table
    sizes: Float64,
    kind: npt.NDArray[np.int8],
    storage: npt.NDArray[np.int32],
    category: npt.NDArray[np.int8],
    events: npt.NDArray[np.int32],
    categories: int,
) -> Float64:
    terms = np.zeros((len(events), categories, sizes.shape[1]))
    of_event = category[storage]
    for number in range(categories):
        where = np.flatnonzero(of_event == number)
        if len(where) == 0:
            continue
        use = np.cumsum(sizes[storage[where]] * kind[where, None], axis=0)
        at = np.searchsorted(where, events, side="right") - 1
        terms[:, number] = np.where((at >= 0)[:, None], use[np.maximum(at, 0)], 0.0)
    return terms


def _fit_operations(
    operations: Mapping[str, Any], samples: Float64, phases: tuple[str, ...]
) -> tuple[Float64, Float64, npt.NDArray[np.int8]]:
    """Distinct operations with their counts; clipping counts with the optimizer, all others are told by nothing but phase."""
    flops = np.asarray(operations["flops"], dtype=np.float64)
    moved = np.asarray(operations["bytes_read"], dtype=np.float64) + np.asarray(operations["bytes_written"], dtype=np.float64)
    both = np.hstack([fit(samples, flops).coefficients, fit(samples, moved).coefficients])
    phase = np.asarray(operations["phase"], dtype=np.int8)
    phase = np.where(phase == phases.index("clip"), phases.index("optimizer"), phase)
    phase = np.where(phase == phases.index("optimizer"), phase, phases.index("forward"))
    keyed = np.hstack([phase[:, None], np.round(both, 3)])
    first, inverse = _distinct(keyed)
    unique = keyed[first]
    count = np.bincount(inverse, weights=operations.get("count"), minlength=len(unique))
    return unique[:, 1:], count.astype(np.float64), unique[:, 0].astype(np.int8)


def _distinct(rows: Float64) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(index of the first of each distinct row, for every row the number of its own); much faster than unique along an axis."""
    plain = np.ascontiguousarray(rows + 0.0)  # no negative zeros: bytes are compared
    whole = plain.view(np.dtype((np.void, plain.dtype.itemsize * plain.shape[1]))).ravel()
    _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)
