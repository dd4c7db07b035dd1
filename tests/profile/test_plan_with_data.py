"""A study's plan with the profile of its data: what it forbids, what is recorded of it, who chooses the samples."""

from pathlib import Path
from typing import Any

import pytest
from test_batches import with_images

from autofit.tuning import plan as plan_module
from autofit.tuning.data import StudyData
from autofit.tuning.engine import Choice
from autofit.tuning.plan import Plan, SearchRequest, plan_study
from autofit.tuning.replan import replan

SPACE = """\
name: t
model: {preset: tiny-qwen2.5-vl}
num_gpus: 1
global_batch_size: 4
fixed: {images: {per_sample: 1, max_pixels: 50176}}
knobs: {cutoff_len: [64, 128, 256], micro_batch_size: [1, 2]}
reference: {cutoff_len: 256, micro_batch_size: 1}
"""


@pytest.fixture
def planned(tmp_path: Path, stub_python: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "t.yaml").write_text(SPACE)
    monkeypatch.setattr(plan_module, "read_data", lambda *_: (StudyData(with_images()), None))

    def plan(engine: Any) -> Plan:
        monkeypatch.setattr(plan_module, "choose", lambda *_: Choice(engine, "the test says so"))
        request = SearchRequest(
            gpu_mem_bytes=2**28, space=str(tmp_path / "t.yaml"), device="cpu", python=stub_python, study="s"
        )
        return plan_study(request)

    return plan


def test_the_datas_floor_decides_what_is_legal_and_is_recorded(planned: Any) -> None:
    found = planned("llamafactory")
    assert {point.cutoff_len for point in found.legal.points} == {128, 256}
    assert any("cutoff_len 64 would cut image tokens of row 1 of mine" in note for note in found.notes)
    assert found.study.floor is not None and found.study.floor.at(64) is not None and found.study.floor.at(128) is None
    again = replan(found.study, {})
    assert again.legal.points == found.legal.points, "a search that goes on has the same configurations"


def test_only_trials_on_the_users_data_have_their_samples_chosen(planned: Any) -> None:
    assert planned("llamafactory").batches is not None
    assert planned("transformers").batches is None
