"""The worst batch: of all micro-batches that the sampler can draw, the one with the highest predicted peak.

A micro-batch of m samples is padded to its longest one, rounded up to a multiple of 8, and carries the patches of all its
images: its peak depends on (m, length, patches) alone. With m and the length fixed, more patches never need less memory (they
enter as sizes of tensors that are alive), so for every length that can be the longest only the batch with the most patches
counts, and all those are tried. Nothing is assumed of how the peak changes with the length.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autofit.data.profile import DataProfile
from autofit.data.truncation import Int
from autofit.errors import AutofitError

PAD_TO = 8
"""LLaMA-Factory pads every training batch to a multiple of it."""

Peaks = Callable[[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike], npt.NDArray[np.float64]]
"""(samples, tokens of each after padding, image patches of all) -> peak bytes, as `SymbolicTrace.peaks`."""


class WorstBatch(NamedTuple):
    """A micro-batch that the sampler can draw."""

    samples: tuple[int, ...]
    """Numbers in the profile; more than once only where there are fewer samples than the batch holds."""
    length: int
    """Tokens of each after padding."""
    patches: int
    """Image patches of all, the dummy image's of a batch without images included."""
    peak_bytes: float
    """Predicted."""


def padded(length: Int) -> Int:
    """Rounded up to a multiple of PAD_TO."""
    return -(-length // PAD_TO) * PAD_TO


def batch_shape(profile: DataProfile, samples: Int, cutoff_len: int) -> tuple[Int, Int]:
    """(length, patches) of micro-batches, `samples` [batches, micro-batch], as LLaMA-Factory's collator makes them.

    A batch without images gets a dummy one, appended to its first sample after truncation.
    """
    lengths, patches = profile.kept_tokens(cutoff_len)[samples], profile.patches[samples].sum(axis=1)
    if profile.facts.dummy_tokens:
        bare = profile.images[samples].sum(axis=1) == 0
        lengths[bare, 0] += profile.facts.dummy_tokens
        patches = np.where(bare, profile.facts.dummy_patches, patches)
    return padded(lengths.max(axis=1)), patches


def worst_batch(profile: DataProfile, cutoff_len: int, micro_batch_size: int, peaks: Peaks) -> WorstBatch:
    """The micro-batch with the highest predicted peak at a `cutoff_len`, without packing.

    Raises:
        AutofitError: the profile has no sample, or `peaks` its own.
    """
    if not len(profile):
        raise AutofitError("the dataset has no sample that is trained on")
    batches = np.asarray(candidates(profile, cutoff_len, micro_batch_size))
    length, patches = batch_shape(profile, batches, cutoff_len)
    found = np.asarray(peaks(micro_batch_size, length, patches), dtype=np.float64)
    worst = int(np.argmax(found))
    return WorstBatch(tuple(batches[worst].tolist()), int(length[worst]), int(patches[worst]), float(found[worst]))


def candidates(profile: DataProfile, cutoff_len: int, size: int) -> list[list[int]]:
    """For every length that a batch can have, one of `size` samples with the most patches; and batches of text alone."""
    kept = profile.kept_tokens(cutoff_len)
    if len(kept) < size:  # the sampler starts over to fill the batch
        kept = np.resize(kept, size)
    origin = np.resize(np.arange(len(profile)), len(kept))
    patches, bare = profile.patches[origin], profile.images[origin] == 0
    found = _most_patches(padded(kept), patches, size)
    if profile.facts.dummy_tokens and bare.sum() >= size:
        texts = np.flatnonzero(bare)
        found += [texts[batch].tolist() for batch in _with_dummy(kept[texts], size, profile.facts.dummy_tokens)]
    return [origin[batch].tolist() for batch in found]


def _with_dummy(lengths: Int, size: int, dummy: int) -> list[list[int]]:
    """A batch for every length that batches without images can have; the dummy image is added to a batch's first sample.

    A batch has the length v if v is its first sample's with the dummy and the others are no longer, or another sample's and
    the first one with the dummy is no longer. Whoever else is in it may be the shortest there are.
    """
    order = np.argsort(lengths, kind="stable")
    shortest = order[: size + 1].tolist()
    with_dummy, without = padded(lengths + dummy), padded(lengths)
    found = []
    for ends, is_first in ((with_dummy, True), (without, False)):
        for length, sample in zip(*(values.tolist() for values in np.unique(ends, return_index=True)), strict=True):
            others = [other for other in shortest if other != sample][: size - 1]
            batch = [sample, *others] if is_first else [*others, sample]
            if max(int(with_dummy[batch[0]]), *(int(without[other]) for other in batch)) == length:
                found.append(batch)
    return found


def _most_patches(lengths: Int, patches: Int, size: int) -> list[list[int]]:
    """Per distinct length the batch with the most patches among samples up to it, one of them of that very length."""
    order = np.lexsort((-patches, lengths))  # by length; the most patches of a length first
    starts = np.flatnonzero(np.diff(lengths[order], prepend=-1))
    ends = [*starts[1:].tolist(), len(order)]
    best: list[int] = []  # the samples with the most patches so far, descending
    found = []
    for start, end in zip(starts.tolist(), ends, strict=True):
        group = order[start : min(end, start + size)].tolist()
        best = sorted(best + group, key=lambda sample: -int(patches[sample]))[:size]
        if len(best) == size:
            others = [sample for sample in best if sample != group[0]]
            found.append([group[0], *others[: size - 1]])
    return found
