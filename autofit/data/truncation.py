"""LLaMA-Factory's truncation over many samples at once: what each keeps at a `cutoff_len`, and where it would cut an image.

Source: `infer_seqlen` and `SupervisedDatasetProcessor._encode_data_example` of LLaMA-Factory 0.9.5. Turns are taken in order;
each gets what the earlier ones left. With r tokens left, a prompt of s tokens and an answer of t:

    A  2t < r        the prompt is cut          keeps (r - t, t)
    B  else 2s < r   the answer is cut          keeps (s, r - s)
    C  else          both are                   answer int(r * (t / (s + t))), the prompt the rest

never more than there is. A turn that is cut takes all that is left, so a sample keeps min(its tokens, cutoff_len).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]


class Turns(NamedTuple):
    """One entry a turn, all samples' turns one after another.

    Attributes:
        sample: number of the sample that a turn belongs to, ascending.
        before: tokens that come before it is looked at: what truncation never touches, and the whole earlier turns.
        source, target: tokens of prompt and answer.
        source_need, target_need: of which so many, from the start, must stay so that no image token is cut.
    """

    sample: Int
    before: Int
    source: Int
    target: Int
    source_need: Int
    target_need: Int


class Ranges(NamedTuple):
    """Ranges of `cutoff_len`, both ends included, each with the sample that loses image tokens there."""

    low: Int
    high: Int
    sample: Int


def kept(source: Int, target: Int, left: Int) -> tuple[Int, Int]:
    """Tokens of prompt and answer that stay when `left` may (>= 0); the same arithmetic as `infer_seqlen`."""
    with np.errstate(invalid="ignore"):
        share = np.where(source + target > 0, target / (source + target), 0.0)
    both = (left * share).astype(np.int64)
    limit = np.where(2 * target < left, left, np.where(2 * source < left, left - source, both))
    answer = np.minimum(limit, target)
    return np.minimum(np.maximum(left - answer, 0), source), answer


def cutting_ranges(turns: Turns) -> Ranges:
    """Every `cutoff_len` at which some turn with images loses image tokens; at most three ranges a turn, which may overlap."""
    with_images = (turns.source_need > 0) | (turns.target_need > 0)
    sample, before, s, t, need_s, need_t = (column[with_images] for column in turns)
    # C holds for r <= 2s and r <= 2t, and what it keeps grows with r: the cutting ones are 1 .. `shared`
    shared = _last_shared(s, t, need_s, need_t)
    ranges = [
        (np.ones_like(before), before + shared),
        (before + 2 * s + 1, before + s + need_t - 1),  # B: r - s < need_t; its end is below 2t where it is not empty
        (before + 2 * t + 1, before + t + need_s - 1),  # A: r - t < need_s
    ]
    low, high = (np.concatenate(ends) for ends in zip(*ranges, strict=True))
    real = high >= low
    return Ranges(low[real], high[real], np.tile(sample, len(ranges))[real])


def _last_shared(s: Int, t: Int, need_s: Int, need_t: Int) -> Int:
    """The largest r of case C at which an image token is cut, or 0; by bisection, as what is kept never shrinks with r."""
    low, high = np.zeros_like(s), np.minimum(2 * s, 2 * t) + 1  # r = low cuts (or is 0), r = high does not (or is not C)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        keeps_s, keeps_t = kept(s, t, middle)
        cuts = (keeps_s < need_s) | (keeps_t < need_t)
        low, high = np.where(cuts, middle, low), np.where(cuts, high, middle)
    return low


def cover(ranges: Ranges) -> list[tuple[int, int, int]]:
    """Disjoint ascending (low, high, sample) with the same union; every sample cuts over the whole of its range."""
    found: list[tuple[int, int, int]] = []
    end = 0
    order = np.lexsort((-ranges.high, ranges.low))
    for low, high, sample in zip(*(column[order].tolist() for column in ranges), strict=True):
        if high > end:
            found.append((max(low, end + 1), high, sample))
            end = high
    return found
