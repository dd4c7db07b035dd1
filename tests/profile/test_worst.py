"""The worst batch against every batch that can be drawn; and a profile of the first rows, which misses it."""

import itertools
import random

import numpy as np
import numpy.typing as npt
import pytest
from profile_cases import make_profile

from autofit.data.profile import DataProfile
from autofit.data.worst import PAD_TO, worst_batch
from autofit.errors import AutofitError


def peaks(batch: npt.ArrayLike, length: npt.ArrayLike, patches: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Like a trace: the largest of several rows, here one for the language model and one for the vision tower."""
    b, s, p = (np.asarray(value, dtype=np.float64) for value in (batch, length, patches))
    return np.maximum(1e6 + 50 * b * s + 0.2 * b * s**2 + 3 * p, 5e5 + 900 * p + b * s)


def bumpy(batch: npt.ArrayLike, length: npt.ArrayLike, patches: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A peak that does not grow with the length everywhere; nothing is assumed of that."""
    return peaks(batch, length, patches) + 1e6 * (np.asarray(length) % 24 == 8)


def random_profile(seed: int, count: int, share_of_images: float, dummy: bool) -> DataProfile:
    draw = random.Random(seed)
    samples = [[(draw.randint(1, 60), draw.randint(1, 60), 0, 0)] for _ in range(count)]
    patches = [4 * draw.randint(1, 200) if draw.random() < share_of_images else 0 for _ in range(count)]
    return make_profile(samples, patches, **({} if dummy else {"dummy_tokens": 0, "dummy_patches": 0}))


def all_batches(profile: DataProfile, cutoff: int, size: int, ask: object) -> float:
    """The highest peak over every batch in every order of its first sample, by the collator's rules written out."""
    kept, best = np.minimum(profile.tokens, cutoff), 0.0
    for batch in itertools.combinations(range(len(profile)), size):
        for first in batch:
            lengths = {sample: int(kept[sample]) for sample in batch}
            patches = int(sum(profile.patches[sample] for sample in batch))
            if profile.facts.dummy_tokens and not any(profile.images[sample] for sample in batch):
                lengths[first] += profile.facts.dummy_tokens
                patches = profile.facts.dummy_patches
            length = -(-max(lengths.values()) // PAD_TO) * PAD_TO
            best = max(best, float(ask(size, length, patches)))  # type: ignore[operator]
    return best


@pytest.mark.parametrize("ask", [peaks, bumpy])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dummy", [False, True])
def test_no_batch_is_worse(ask: object, size: int, share: float, dummy: bool) -> None:
    for seed in range(6):
        profile = random_profile(seed, 9, share, dummy)
        for cutoff in (37, 1000):
            found = worst_batch(profile, cutoff, size, ask)  # type: ignore[arg-type]
            assert found.peak_bytes == all_batches(profile, cutoff, size, ask)
            assert len(set(found.samples)) == size


def test_the_longest_and_the_most_patches_are_taken_together() -> None:
    """Text 500 and images with many patches apart: alone neither batch of two is the worst."""
    profile = make_profile([[(480, 20, 0, 0)], *[[(50, 10, 0, 0)]] * 20, [(60, 10, 0, 0)]], [0] * 21 + [4000])
    assert sorted(worst_batch(profile, 4096, 2, peaks).samples) == [0, 21]


def test_a_long_sample_far_back_is_found_and_the_first_rows_miss_it() -> None:
    draw = random.Random(0)
    samples = [[(draw.randint(20, 60), draw.randint(10, 40), 0, 0)] for _ in range(1000)]
    longest = max(sum(turn[:2]) for turns in samples for turn in turns)
    samples[900] = [(10 * longest - 100, 100, 0, 0)]
    profile, start = make_profile(samples), make_profile(samples[:100])
    found = worst_batch(profile, 20_000, 4, peaks)
    assert found.samples[0] == 900
    assert profile.name(found.samples[0]) == "row 900 of mine"
    assert worst_batch(profile, 20_000, 1, peaks).samples == (900,)
    missed = worst_batch(start, 20_000, 4, peaks)
    assert missed.length < found.length / 8
    assert missed.peak_bytes < found.peak_bytes / 1.5


def test_fewer_samples_than_the_batch() -> None:
    found = worst_batch(make_profile([[(10, 10, 0, 0)]]), 100, 4, peaks)
    assert found.samples == (0, 0, 0, 0)


def test_no_sample_at_all() -> None:
    with pytest.raises(AutofitError, match="no sample"):
        worst_batch(make_profile([]), 100, 1, peaks)
