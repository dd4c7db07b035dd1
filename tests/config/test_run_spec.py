"""Orders that contradict themselves are refused before anything runs."""

from typing import Any

import pytest
from pydantic import ValidationError

from autofit.config.model import ModelRef, resolve_model
from autofit.config.trial import Measure, RunSpec, TrialSpec


def order(**fields: Any) -> RunSpec:
    ref = ModelRef(preset="tiny-llama")
    trial = TrialSpec(model=ref, micro_batch_size=2)
    return RunSpec(**{"trial": trial, "model": resolve_model(ref), "device": "cpu", "measure": Measure(), **fields})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"engine": "llamafactory"}, "cannot do without"),
        ({"arguments": {"stage": "sft"}}, "arguments are for engine llamafactory"),
        ({"worst_batch": (1,)}, "worst_batch names 1"),
        ({"shapes": ()}, "at least one"),
        ({"shapes": ({"cutoff_len": 4096},)}, "more than the trial's own"),
        ({"shapes": ({"cutoff_len": 64, "image_max_pixels": 2**24},)}, "more than the trial's own"),
        (
            {"shapes": ({"cutoff_len": 64},), "engine": "llamafactory", "arguments": {"stage": "sft"}},
            "for engine transformers",
        ),
    ],
)
def test_contradictions(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        order(**fields)


def test_resuming_needs_a_checkpoint() -> None:
    with pytest.raises(ValidationError, match="resume needs save"):
        Measure(resume=True)


def test_whole_orders() -> None:
    assert order(engine="llamafactory", arguments={"stage": "sft"}, worst_batch=(1, 2)).worst_batch == (1, 2)
