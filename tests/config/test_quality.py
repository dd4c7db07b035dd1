"""What the winner owes the user, which demands contradict, and the order of trainings."""

import random
from typing import Any

import pytest

from autofit.config.floor import DataFloor
from autofit.config.legality import training_changes
from autofit.config.model import ModelRef, resolve_model
from autofit.config.objective import Epoch, rate_of
from autofit.config.quality import Quality, at_least, breaches
from autofit.config.space import LegalSpace, SearchSpace, enumerate_space
from autofit.config.trial import Lora, TrialSpec
from autofit.errors import UsageError

LENGTHS = [90, 90, 100, 150, 150, 180, 250, 300, 0, 97]
"""Tokens of ten samples; the one of 0 can lose none."""


def floor_of(lengths: list[int]) -> DataFloor:
    distinct = sorted(set(lengths))
    return DataFloor(
        image_max_pixels=1, lengths=tuple(distinct), longer=tuple(sum(n >= each for n in lengths) for each in distinct)
    )


def legal(floor: DataFloor | None = None, **changes: Any) -> LegalSpace:
    space = SearchSpace.model_validate({**SearchSpace.load("tiny_qwen2_5_vl").model_dump(), **changes})
    return enumerate_space(space, resolve_model(space.model), 2, floor)


def test_the_truncated_share_is_what_counting_gives() -> None:
    floor = floor_of(LENGTHS)
    assert floor.samples == 10
    for cutoff in range(8, 320):
        assert floor.truncated_share(cutoff) == pytest.approx(sum(length > cutoff for length in LENGTHS) / 10)
    assert DataFloor(image_max_pixels=1).truncated_share(100) is None and DataFloor(image_max_pixels=1).samples is None


def test_nothing_said_means_exactly_the_references_training() -> None:
    space = legal()
    assert all(space.breaches(point) == training_changes(point, space.reference) for point in space.points)
    assert any(space.breaches(point) for point in space.points)


@pytest.mark.parametrize(
    ("quality", "may_win"),
    [
        ({"min_cutoff_len": 96}, {"cutoff_len": {96, 192}}),
        ({"min_cutoff_len": 192}, {"cutoff_len": {192}}),
        ({"max_truncated_share": 0.6}, {"cutoff_len": {96, 192}}),
        ({"max_truncated_share": 0.599}, {"cutoff_len": {192}}),
        ({"max_truncated_share": 0.6, "min_cutoff_len": 100}, {"cutoff_len": {192}}),
    ],
)
def test_a_demand_replaces_the_references_standard_in_one_respect(quality: dict[str, Any], may_win: dict[str, set]) -> None:
    shares = floor_of([90, 90, 90, 90, 100, 150, 150, 180, 190, 191])  # 96 truncates 0.6 of them
    space = legal(shares, quality=quality)
    winners = [point for point in space.points if not space.breaches(point)]
    for name, values in may_win.items():
        assert {getattr(point, name) for point in winners} == values
    for point in winners:  # in all else they are the reference
        assert not training_changes(point.model_copy(update={"cutoff_len": 192}), space.reference)


def test_freezing_and_precision_are_given_up_only_where_allowed() -> None:
    wanted = TrialSpec(model=ModelRef(preset="tiny-qwen2.5-vl"), freeze_vision_tower=False, freeze_multi_modal_projector=False)
    frozen = wanted.model_copy(update={"freeze_vision_tower": True})
    both = frozen.model_copy(update={"freeze_multi_modal_projector": True})
    allow = Quality(allow_freezing=("vision_tower",))
    assert breaches(frozen, wanted, Quality()) and not breaches(frozen, wanted, allow)
    assert breaches(both, wanted, allow) == ["multi modal projector frozen"]
    assert breaches(wanted, frozen, allow) == ["vision tower trained"]  # more than was asked for is a change, too
    half = wanted.model_copy(update={"precision": "fp16"})
    assert breaches(half, wanted, Quality()) and not breaches(half, wanted, Quality(precision=("bf16", "fp16")))
    assert breaches(wanted, wanted, Quality(precision=("fp16",))) == ["bf16 instead of fp16"]
    assert breaches(wanted.model_copy(update={"pure_bf16": True}), wanted, Quality(precision=("bf16",)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quality": {"min_cutoff_len": 400}}, "min_cutoff_len 400 is above every cutoff_len of the space, the longest is 192"),
        ({"quality": {"max_truncated_share": 0.1}}, "the longest cutoff_len of the space, 192, truncates 0.2 of the samples"),
        ({"quality": {"precision": ["bf16"]}}, "precision bf16 is asked for, but the space has only fp32"),
        ({"quality": {"allow_freezing": ["language_model"]}}, "no configuration of the space freezes it"),
        ({"objective": "epoch_seconds", "no floor": True}, "needs the number of samples"),
        ({"quality": {"max_truncated_share": 0.5}, "no floor": True}, "needs the lengths of the data"),
        (
            {
                "quality": {"min_cutoff_len": 192, "precision": ["bf16"]},
                "fixed": {"images": {"per_sample": 0}},
                "knobs": {"precision": ["bf16", "fp32"], "cutoff_len": [96, 192]},
                "conditions": [{"when": {"precision": "bf16"}, "only": {"cutoff_len": 96}}],
                "reference": {"precision": "fp32", "cutoff_len": 192},
            },
            "no configuration meets all of min_cutoff_len 192, precision bf16; the nearest has",
        ),
    ],
)
def test_contradictory_constraints_are_one_line(changes: dict[str, Any], said: str) -> None:
    floor = None if changes.pop("no floor", False) else floor_of(LENGTHS)
    with pytest.raises(UsageError) as found:
        legal(floor, **changes)
    assert said in str(found.value) and "\n" not in str(found.value)


def test_a_space_refuses_what_cannot_be_meant() -> None:
    base = SearchSpace.load("tiny_qwen2_5_vl").model_dump()
    for wrong, said in (
        ({"objective": "cost_per_epoch"}, "gpu_hour_price"),
        ({"gpu_hour_price": 0}, "greater than 0"),
        ({"quality": {"max_truncated_share": 5}}, "less than or equal to 1"),
        ({"quality": {"min_cutof_len": 5}}, "min_cutof_len"),
    ):
        with pytest.raises(ValueError, match=said):
            SearchSpace.model_validate({**base, **wrong})


def test_an_epochs_time_and_cost() -> None:
    epoch = Epoch(samples=7200, num_gpus=8, gpu_hour_price=2.5)
    assert epoch.seconds(2.0) == 3600 and epoch.cost(2.0) == 20.0
    assert epoch.seconds(None) is None and Epoch(None, 8, 2.5).cost(2.0) is None and Epoch(10, 8, None).cost(2.0) is None
    assert rate_of("cost_per_epoch") == rate_of("epoch_seconds") == "samples_per_second"
    assert rate_of("effective_tokens_per_second") == "effective_tokens_per_second"


def test_the_order_of_trainings_is_a_partial_order() -> None:
    chance = random.Random(1)
    base = TrialSpec(model=ModelRef(preset="tiny-qwen2.5-vl"))
    specs = [
        base.model_copy(
            update={
                "cutoff_len": chance.choice([96, 192]),
                "method": chance.choice(["full", "lora", "freeze"]),
                "lora": Lora(rank=chance.choice([8, 16])),
                "precision": chance.choice(["bf16", "fp16", "fp32"]),
                "freeze_vision_tower": chance.random() < 0.5,
                "freeze_multi_modal_projector": chance.random() < 0.5,
            }
        )
        for _ in range(60)
    ]
    floor = floor_of(LENGTHS)
    for one in specs:
        assert at_least(one, one, floor)
        for other in specs:
            for third in specs[:20]:
                if at_least(one, other, floor) and at_least(other, third, floor):
                    assert at_least(one, third, floor)
    full, lora = base.model_copy(update={"precision": "fp32"}), base.model_copy(update={"method": "lora"})
    assert at_least(full, lora) and not at_least(lora, full)
    short = base.model_copy(update={"cutoff_len": 400})
    assert not at_least(short, base) and at_least(short, base, floor)  # no sample is longer than 400
