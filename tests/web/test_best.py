"""The best so far is one that trains what was asked for: nothing is traded silently, not even while a search runs."""

from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from store_records import NOON, completed, study_record

from autofit.config.model import resolve_model
from autofit.config.record import TrialRecord
from autofit.config.space import SearchSpace, reference_spec
from autofit.config.trial import TrialSpec
from autofit.store import Store


@pytest.fixture
def reference(database: Path) -> TrialSpec:
    """A study `running` without trials; its reference."""
    space = SearchSpace.load("tiny_qwen2_5_vl")
    template = study_record()
    hardware = template.hardware.model_copy(update={"devices": template.hardware.devices * 2})
    with Store.open(str(database)) as store:
        store.create_study(
            study_record("running", space=space.model_dump(), model=resolve_model(space.model), hardware=hardware)
        )
    return reference_spec(space, resolve_model(space.model), 2)


def add(database: Path, number: int, spec: TrialSpec, speed: float) -> None:
    with Store.open(str(database)) as store:
        record = TrialRecord(study="running", trial_number=number, spec=spec, reason="r", run_dir=".", started_at=NOON)
        store.start_trial(record)
        store.finish_trial("running", number, NOON + timedelta(seconds=1), completed(speed))


def test_a_faster_trial_of_another_training_is_not_the_best_so_far(
    client: TestClient, database: Path, reference: TrialSpec
) -> None:
    add(database, 0, reference.model_copy(update={"method": "lora"}), 9.0)
    add(database, 1, reference.model_copy(update={"cutoff_len": 96}), 8.0)
    assert client.get("/api/studies/running").json()["best"] is None
    assert client.get("/api/studies/running/best").status_code == 404
    add(database, 2, reference, 2.0)
    add(database, 3, reference.model_copy(update={"zero_stage": 2}), 3.0)
    add(database, 4, reference.model_copy(update={"zero_stage": 0}), 2.5)
    assert client.get("/api/studies/running").json()["best"]["trial_number"] == 3
    assert client.get("/api/studies/running/best").json()["trial_number"] == 3
    listed = {study["study"]: study["best"] for study in client.get("/api/studies").json()["studies"]}
    assert listed["running"]["trial_number"] == 3
    assert client.get("/api/studies/running/compromises").json()["against_trial_number"] == 3


def test_what_the_user_allows_to_be_given_up_may_be_the_best(client: TestClient, database: Path, reference: TrialSpec) -> None:
    with Store.open(str(database)) as store:
        study = store.study("running")
        quality = study.space.quality.model_copy(update={"min_cutoff_len": 96})
        space = study.space.model_copy(update={"quality": quality})
        store.create_study(study.model_copy(update={"name": "allowed", "space": space}))
        for number, (spec, speed) in enumerate([(reference, 2.0), (reference.model_copy(update={"cutoff_len": 96}), 8.0)]):
            record = TrialRecord(study="allowed", trial_number=number, spec=spec, reason="r", run_dir=".", started_at=NOON)
            store.start_trial(record)
            store.finish_trial("allowed", number, NOON + timedelta(seconds=1), completed(speed))
    assert client.get("/api/studies/allowed").json()["best"]["trial_number"] == 1
