"""What a dataset forbids, as legality tells it."""

import pytest

from autofit.config.floor import Cut, DataFloor
from autofit.config.legality import refusal
from autofit.config.model import Model
from autofit.config.space import SearchSpace, enumerate_space
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError

FLOOR = DataFloor(
    image_max_pixels=50_176,
    cuts=(Cut(low=1, high=100, sample="row 3 of mine"), Cut(low=121, high=149, sample="row 7 of mine")),
)


def spec(space: SearchSpace, **fields: object) -> TrialSpec:
    return TrialSpec.model_validate({"model": space.model, "images": {"per_sample": 1, "max_pixels": 50_176}, **fields})


@pytest.mark.parametrize(("cutoff", "sample"), [(8, 3), (100, 3), (101, None), (120, None), (121, 7), (149, 7), (150, None)])
def test_a_cutoff_that_cuts_is_refused_and_names_the_sample(
    tiny_space: SearchSpace, tiny_model: Model, cutoff: int, sample: int | None
) -> None:
    reason = refusal(spec(tiny_space, cutoff_len=cutoff), tiny_model, FLOOR)
    if sample is None:
        assert reason is None
    else:
        assert reason == f"cutoff_len {cutoff} would cut image tokens of row {sample} of mine; 150 and more cut none"


def test_for_another_image_size_the_largest_images_count(tiny_space: SearchSpace, tiny_model: Model) -> None:
    images = {"per_sample": 1, "max_pixels": 200_704}
    assert "would cut image tokens: 1 image(s)" in str(
        refusal(spec(tiny_space, cutoff_len=160, images=images), tiny_model, FLOOR)
    )


def test_a_space_loses_the_points_below_the_floor(tiny_space: SearchSpace, tiny_model: Model) -> None:
    pixels = tiny_space.fixed["images"]["max_pixels"]
    lowest = min(tiny_space.knobs["cutoff_len"])
    floor = DataFloor(image_max_pixels=pixels, cuts=(Cut(low=1, high=int(lowest), sample="row 900 of mine"),))
    free, bound = enumerate_space(tiny_space, tiny_model, 2), enumerate_space(tiny_space, tiny_model, 2, floor)
    assert len(bound.points) < len(free.points)
    assert all(point.cutoff_len > int(lowest) for point in bound.points)
    assert any("row 900 of mine" in reason for reason in bound.refused)
    above = DataFloor(image_max_pixels=pixels, cuts=(Cut(low=1, high=10**6, sample="row 900 of mine"),))
    with pytest.raises(UsageError, match=r"the reference cannot train: .*row 900 of mine"):
        enumerate_space(tiny_space, tiny_model, 2, above)
