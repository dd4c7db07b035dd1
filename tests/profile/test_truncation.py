"""Truncation by arrays against LLaMA-Factory's loop, written out; every cutoff_len is asked, not a few."""

import random

import pytest
from profile_cases import Turn, make_profile, random_samples

from autofit.config.floor import DataFloor
from autofit.data.profile import DataProfile


def infer_seqlen(source_len: int, target_len: int, cutoff_len: int) -> tuple[int, int]:
    """LLaMA-Factory 0.9.5, `data/processor/processor_utils.py`."""
    if target_len * 2 < cutoff_len:
        max_target_len = cutoff_len
    elif source_len * 2 < cutoff_len:
        max_target_len = cutoff_len - source_len
    else:
        max_target_len = int(cutoff_len * (target_len / (source_len + target_len)))
    new_target_len = min(max_target_len, target_len)
    max_source_len = max(cutoff_len - new_target_len, 0)
    return min(max_source_len, source_len), new_target_len


def encoded(turns: list[Turn], cutoff: int) -> tuple[int, int, bool]:
    """(tokens, labels, whether an image token is cut) of a sample, as `_encode_data_example` goes through its turns."""
    total = labels = 0
    lost = False
    for source, target, need_source, need_target in turns:
        if total >= cutoff:
            lost = lost or need_source > 0 or need_target > 0
            continue
        keeps_source, keeps_target = infer_seqlen(source, target, cutoff - total)
        total += keeps_source + keeps_target
        labels += keeps_target
        lost = lost or keeps_source < need_source or keeps_target < need_target
    return total, labels, lost


@pytest.fixture(scope="module")
def samples() -> list[list[Turn]]:
    return random_samples(random.Random(3), 300)


@pytest.fixture(scope="module")
def profile(samples: list[list[Turn]]) -> DataProfile:
    return make_profile(samples)


def test_tokens_and_labels_at_every_cutoff(samples: list[list[Turn]], profile: DataProfile) -> None:
    for cutoff in range(1, 190):
        wanted = [encoded(turns, cutoff)[:2] for turns in samples]
        got = list(zip(profile.kept_tokens(cutoff).tolist(), profile.label_tokens(cutoff).tolist(), strict=True))
        assert got == wanted, cutoff
    whole = [sum(target for _, target, _, _ in turns) for turns in samples]
    assert profile.label_tokens().tolist() == whole


def test_the_cuts_of_each_sample_are_exact(samples: list[list[Turn]]) -> None:
    """One profile a sample: its ranges are the cutoffs at which the loop loses an image token, no more and no less."""
    islands = 0
    for turns in samples:
        floor = make_profile([turns]).floor
        for cutoff in range(1, 190):
            assert (floor.at(cutoff) is not None) == encoded(turns, cutoff)[2], (turns, cutoff)
        islands += len(floor.cuts) > 1
    assert islands, "no sample has a safe cutoff below a cutting one: the test is too easy"


def test_the_cuts_of_all_name_a_sample_that_is_cut(samples: list[list[Turn]], profile: DataProfile) -> None:
    for cutoff in range(1, 190):
        cut = profile.floor.at(cutoff)
        assert (cut is not None) == any(encoded(turns, cutoff)[2] for turns in samples)
        if cut is not None:
            assert encoded(samples[int(cut.sample.split()[1])], cutoff)[2], (cutoff, cut)
    floor = profile.floor.cutoff_len
    assert profile.floor.at(floor) is None
    assert profile.floor.at(floor - 1) is not None


def test_a_shorter_cutoff_can_be_safe_where_a_longer_one_is_not() -> None:
    """Prompt 1000, answer 100: at 200 both are cut in proportion (182 kept), at 201 the prompt alone (101 kept)."""
    floor = make_profile([[(1000, 100, 150, 0)]]).floor
    assert floor.at(200) is None
    assert floor.at(201) is not None
    assert floor.cutoff_len == 250


def test_text_forbids_nothing() -> None:
    profile = make_profile([[(10, 10, 0, 0)]])
    assert profile.floor == DataFloor(image_max_pixels=589_824, lengths=(20,), longer=(1,))
    assert profile.floor.cutoff_len == 1


def test_shares(profile: DataProfile) -> None:
    found = make_profile([[(10, 10, 0, 0)], [(30, 10, 0, 0)]]).truncation(20)
    assert (found.samples_truncated, found.samples_truncated_share) == (1, 0.5)
    assert found.tokens_lost_share == 20 / 60
    assert found.label_tokens_lost_share == 5 / 20  # int(20 * 10 / 40) = 5 of 10 stay
    assert found.cuts_images is None


def test_the_floor_knows_the_truncated_share_of_every_cutoff(profile: DataProfile) -> None:
    floor = profile.floor
    assert floor.samples == len(profile)
    for cutoff in (8, 20, 100, *range(1, 3000, 97)):
        assert floor.truncated_share(cutoff) == profile.truncation(cutoff).samples_truncated_share
