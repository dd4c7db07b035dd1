"""What a study's data give its trials: floor, worst batch, timed batches, and an epoch's speed out of what was timed."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from profile_cases import make_profile

from autofit.config.model import Model, ModelRef, resolve_model
from autofit.config.result import RankResult, TrialResult
from autofit.config.space import DatasetRef, SearchSpace, enumerate_space
from autofit.config.trial import Images, Measure, RunSpec, TrialSpec
from autofit.data.profile import DataProfile
from autofit.errors import AutofitError
from autofit.launch.environment import TrainingEnvironment
from autofit.predict.allocator import Events
from autofit.predict.epoch import Epoch, replay_epoch
from autofit.tuning import data as data_module
from autofit.tuning.batches import Batches
from autofit.tuning.data import StudyData, data_notes, read_data
from autofit.tuning.fragmentation import foretell, words

TINY = resolve_model(ModelRef(preset="tiny-qwen2.5-vl"))
MIB = 2**20


class Oracle:
    """A predictor that knows the peak; `fails` makes it know nothing."""

    def __init__(self, fails: bool = False) -> None:
        self.asked, self.fails = 0, fails

    def peaks(self, spec: TrialSpec, model: Model, length: Any, patches: Any) -> Any:
        self.asked += 1
        if self.fails:
            raise AutofitError("the variant cannot be traced")
        return np.asarray(length) + 100.0 * np.asarray(patches)


def spec(**fields: Any) -> TrialSpec:
    base = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "cutoff_len": 2048, "num_gpus": 2}
    return TrialSpec(model=ModelRef(preset="tiny-qwen2.5-vl"), **{**base, **fields})


def text(count: int = 1000, hidden: int | None = 900) -> DataProfile:
    draw = random.Random(0)
    samples = [[(draw.randint(20, 60), draw.randint(10, 40), 0, 0)] for _ in range(count)]
    if hidden is not None:
        samples[hidden] = [(900, 100, 0, 0)]
    return make_profile(samples)


def batches(profile: DataProfile, oracle: Oracle | None = None, **fields: Any) -> Batches:
    return Batches(StudyData(profile, **fields), TINY, oracle or Oracle(), seed=0)  # type: ignore[arg-type]


def completed(chosen: Any, wanted: TrialSpec, seconds: list[float] | None = None, **figures: Any) -> TrialResult:
    """What the worker would report of a trial of one step of warm-up: the worst batch first and last, and what was timed."""
    worst = wanted.micro_batch_size * chosen.worst.length
    timed = chosen.timed.computed_tokens.tolist()
    each = [2 * worst, *(tokens // 2 for tokens in timed), 2 * worst]
    ranks = [
        RankResult(
            rank=rank,
            outcome="COMPLETED",
            step_tokens=[
                tokens if rank == 0 else other - tokens
                for tokens, other in zip(each, [4 * worst, *timed, 4 * worst], strict=True)
            ],
            step_seconds=[9.0, *(seconds or [1.0] * len(timed)), 9.0],
            step_batch_tokens=[worst, *([100] * len(timed)), worst],
            step_batch_patches=[chosen.worst.patches] * (len(timed) + 2),
            **figures,
        )
        for rank in range(2)
    ]
    speeds = dict.fromkeys(("step_time_seconds", "samples_per_second", "tokens_per_second"), 1.0)
    return TrialResult(outcome="COMPLETED", phase="backward", peak_device_bytes=1, ranks=ranks, **speeds)


def test_the_hidden_long_sample_runs_first_and_chance_would_miss_it() -> None:
    wanted = spec()
    chosen = batches(text()).choose(wanted, 5)
    assert chosen.worst_places is not None and 900 in chosen.worst_places
    assert chosen.timed_places is not None
    order = RunSpec(
        trial=wanted, model=TINY, engine="llamafactory", arguments={}, device="cpu", measure=Measure(steps=5),
        worst_batch=chosen.worst_places, timed_batches=chosen.timed_places,
    )  # fmt: skip
    assert [len(step) for step in order.timed_batches or ()] == [8] * 5
    without = batches(text(hidden=None)).choose(wanted, 5)
    assert without.worst is not None and chosen.worst is not None
    assert chosen.worst.length > 8 * without.worst.length


def test_the_same_question_has_the_same_answer() -> None:
    one, other = batches(text()), batches(text())
    assert one.choose(spec(), 5).timed_places == other.choose(spec(), 5).timed_places
    assert one.choose(spec(), 5).timed_places != one.choose(spec(), 6).timed_places


def test_prediction_decides_between_long_texts_and_large_images() -> None:
    profile = make_profile([[(500, 20, 0, 0)], *[[(50, 10, 0, 0)]] * 20], [0, *[400] * 20])
    oracle, said = Oracle(), []
    found = batches(profile, oracle).choose(spec(micro_batch_size=1), 2, said.append)
    assert oracle.asked == 1 and found.worst is not None and found.worst.samples != (0,)
    blind = batches(profile, Oracle(fails=True))
    for cutoff in (2048, 1024):
        longest = blind.choose(spec(micro_batch_size=1, cutoff_len=cutoff), 2, said.append)
        assert longest.worst is not None and longest.worst.samples == (0,)
    assert said == [
        "the worst batch is the longest that the data can make, its peak is not predicted: the variant cannot be traced"
    ]


def test_nothing_is_traced_where_the_longest_has_the_most_patches() -> None:
    oracle = Oracle(fails=True)
    assert batches(text(), oracle).choose(spec(), 2).worst is not None
    assert oracle.asked == 0


def test_an_epochs_speed_follows_from_what_was_timed() -> None:
    profile, wanted = text(hidden=None), spec()
    sut = batches(profile)
    chosen = sut.choose(wanted, 5)
    assert chosen.timed is not None and chosen.epoch is not None
    seconds = (0.05 + 1e-4 * chosen.timed.slowest_tokens).tolist()
    result = sut.on_data(wanted, completed(chosen, wanted, seconds), 1, 5)
    mean = 0.05 + 1e-4 * float(chosen.epoch.slowest_tokens.mean())
    assert result.epoch is not None and result.not_measured == []
    assert result.step_time_seconds == pytest.approx(mean, rel=1e-6)
    assert result.samples_per_second == pytest.approx(8 / mean, rel=1e-6)
    assert result.effective_tokens_per_second < result.tokens_per_second  # type: ignore[operator]
    assert (result.epoch.samples, result.epoch.steps) == (1000, 125)
    assert result.epoch.seconds == pytest.approx(125 * mean, rel=1e-6)
    assert result.epoch.seconds_low <= result.epoch.seconds <= result.epoch.seconds_high  # type: ignore[operator]
    noisy = [value * (1.1 if place % 2 else 0.9) for place, value in enumerate(seconds)]
    wide = sut.on_data(wanted, completed(chosen, wanted, noisy), 1, 5).epoch
    assert wide is not None and wide.seconds_high - wide.seconds_low > 0.02 * wide.seconds  # type: ignore[operator]


def test_what_did_not_run_as_ordered_is_not_called_measured() -> None:
    sut, wanted = batches(text()), spec()
    chosen = sut.choose(wanted, 5)
    good = completed(chosen, wanted)
    ranks = [rank.model_copy(update={"step_batch_tokens": [8] * 7, "step_tokens": [8] * 7}) for rank in good.ranks]
    result = sut.on_data(wanted, good.model_copy(update={"ranks": ranks}), 1, 5)
    assert result.epoch is None and result.samples_per_second == 1.0
    assert [line.split(":")[0] for line in result.not_measured] == ["the worst batch", "speed on an epoch"]
    assert sut.on_data(wanted, good, 1, 5).not_measured == []


def test_where_places_are_not_known_the_worker_chooses() -> None:
    assert batches(text(), unlike="packing True makes other samples").choose(spec(), 5).worst_places is None
    fixed = batches(text(), not_shuffled="group_by_length draws them in an order of its own").choose(spec(), 5)
    assert fixed.worst_places is not None and fixed.timed_places is None
    said: list[str] = []
    few = batches(text(4, hidden=None)).choose(spec(), 5, said.append)
    assert few.worst_places is not None and few.timed_places is None and "4 samples are fewer than the 8" in said[0]


def space(**fields: Any) -> SearchSpace:
    base: dict[str, Any] = {
        "name": "t", "model": {"preset": "tiny-qwen2.5-vl"}, "dataset": DatasetRef(name="mine", template="qwen2_vl"),
        "fixed": {"images": {"per_sample": 1, "max_pixels": 50176}}, "knobs": {"cutoff_len": [64, 128, 256]},
        "reference": {"cutoff_len": 256},
    }  # fmt: skip
    return SearchSpace.model_validate({**base, **fields})


def with_images() -> DataProfile:
    samples = [[(40, 10, 20, 0)], [(120, 10, 100, 0)], [(30, 5, 0, 0)]]
    return make_profile(samples, [80, 400, 0], image_max_pixels=50176)


def test_a_cutoff_below_the_floor_is_illegal_and_names_the_sample() -> None:
    legal = enumerate_space(space(), TINY, 1, StudyData(with_images()).floor(None, TINY))
    assert [point.cutoff_len for point in legal.points] == [128, 256]
    (reason,) = legal.refused
    assert "cutoff_len 64 would cut image tokens of row 1 of mine" in reason
    assert f"1 configuration(s) refused: {reason}" in data_notes(StudyData(with_images()), None, legal, "llamafactory", "cuda")


def test_synthetic_trials_also_need_room_for_their_own_images() -> None:
    study = StudyData(with_images())
    for pixels, floor in ((50_176, 110), (200_704, 274)):
        found = study.floor(Images(per_sample=1, max_pixels=pixels), TINY)
        assert found.cutoff_len == floor
        for cutoff in (8, 79, 109, 110, 273, 274):
            assert (found.at(cutoff) is None) == (cutoff >= floor)
    assert "synthetic sample" in str(study.floor(Images(per_sample=1, max_pixels=200_704), TINY).at(200))


@pytest.fixture
def profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`read_data` with the profile given instead of made."""
    (tmp_path / "rows.json").write_text("[]")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "rows.json"}}))
    environment = TrainingEnvironment(python="p", versions={})

    def read(profile: DataProfile, source: str = "", model: Model | None = None) -> Any:
        monkeypatch.setattr(data_module, "collect", lambda *_, **__: profile)
        where = space(dataset=DatasetRef(name="mine", dir=str(tmp_path), template="qwen2_vl"))
        known = model or TINY.model_copy(update={"path": str(tmp_path)})
        return read_data(where, known, environment, ("f", source) if source else None)

    return read


@pytest.mark.parametrize(
    ("keys", "unlike", "not_shuffled"),
    [
        ("cutoff_len: 64", None, None),
        ("val_size: 0.1", "val_size 0.1", None),
        ("packing: true", "packing True", None),
        ("streaming: true", "streaming True", None),
        ("mix_strategy: interleave_under", "mix_strategy interleave_under", None),
        ("disable_shuffling: true", None, "disable_shuffling"),
        ("group_by_length: true", None, "group_by_length"),
    ],
)
def test_what_the_users_file_does_to_the_samples(
    profiled: Any, keys: str, unlike: str | None, not_shuffled: str | None
) -> None:
    found, why = profiled(with_images(), keys)
    assert why is None
    for part, said in ((found.unlike, unlike), (found.not_shuffled, not_shuffled)):
        assert (part is None) if said is None else said in part


def test_max_samples_keeps_the_first_rows_of_the_data(profiled: Any) -> None:
    found, _ = profiled(with_images(), "max_samples: 1")
    assert len(found.profile) == 1 and found.profile.tokens.tolist() == [50]
    assert found.profile.floor.cutoff_len < with_images().floor.cutoff_len
    whole, _ = profiled(with_images(), "max_samples: 1000")
    assert len(whole.profile) == 3


def test_rows_that_end_a_training_end_the_search_before_it_begins(profiled: Any) -> None:
    fault = {"dataset": "mine", "row": 7, "what": "image 07.png is cut short"}
    with pytest.raises(AutofitError, match=r"data set mine: 1 row.* row 7 of mine: image 07.png is cut short"):
        profiled(make_profile([[(4, 4, 0, 0)]], faults=(fault,), faulty_rows=1))


def test_without_a_profile_the_search_goes_on_and_says_so(profiled: Any) -> None:
    found, why = profiled(with_images(), model=TINY.model_copy(update={"id": "nobody/nothing", "path": None}))
    assert found is None and "the data are not profiled" in why and "no tokenizer on this machine" in why


class Card:
    """A predictor whose steps take one block of the batch's length, and keep a small one: what fragments."""

    def epoch(self, spec: TrialSpec, model: Model, shapes: list[tuple[int, int]], gpu_mem_bytes: int | None = None) -> Epoch:
        sizes = sorted({length for length, _ in shapes})
        step = [Events(np.array([9, 9]), np.array([size * MIB // 4, -size * MIB // 4])) for size in sizes]
        first = Events(np.array([1]), np.array([MIB]))
        return replay_epoch(first, step, [sizes.index(length) for length, _ in shapes], capacity_bytes=gpu_mem_bytes)


def test_fragmentation_is_foretold_from_the_datas_own_lengths() -> None:
    draw = random.Random(3)
    mixed = make_profile([[(draw.randint(40, 400), 8, 0, 0)] for _ in range(400)])
    alike = make_profile([[(200, 8, 0, 0)]] * 400)
    wanted = spec(micro_batch_size=1, gradient_accumulation_steps=1, num_gpus=1)
    grows, stays = (foretell(Card(), wanted, TINY, each, 0) for each in (mixed, alike))  # type: ignore[arg-type]
    assert grows.steps == stays.steps == 400
    assert grows.reserved_end_bytes > grows.allocated_bytes * 1.2
    assert stays.reserved_end_bytes == stays.reserved_early_bytes
    assert words(stays) is None
    tight = foretell(Card(), wanted, TINY, mixed, 0, 150 * MIB)  # type: ignore[arg-type]
    assert tight.retries and "the allocator starts over" in str(words(tight))
    small = foretell(Card(), wanted, TINY, mixed, 0, 80 * MIB)  # type: ignore[arg-type]
    assert small.fails_at_step is not None and "runs out of memory at step" in str(words(small))
