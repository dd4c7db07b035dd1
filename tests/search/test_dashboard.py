"""A study in optuna-dashboard is the store's: the same trials, values and states, with knobs as people write them."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from store_records import NOON, completed, out_of_memory, prediction, study_record

from autofit.cli.app import main
from autofit.cli.dashboard import local_only
from autofit.config.model import Model
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import LegalSpace, SearchSpace, enumerate_space
from autofit.search.dashboard import application, rebuilt
from autofit.store import Store
from autofit.units import GIB

dashboard = pytest.importorskip("optuna_dashboard", reason="extra `dashboard`")


@pytest.fixture
def legal(tiny_space: SearchSpace, tiny_model: Model) -> LegalSpace:
    return enumerate_space(tiny_space, tiny_model, 2)


@pytest.fixture
def study(tiny_space: SearchSpace, tiny_model: Model) -> StudyRecord:
    hardware = study_record().hardware
    two = hardware.model_copy(update={"devices": hardware.devices * 2})
    return study_record("s", space=tiny_space.model_dump(), model=tiny_model, hardware=two, winner_trial_number=1)


@pytest.fixture
def trials(legal: LegalSpace) -> list[TrialRecord]:
    """One of each way to end, numbers with a gap, and two that are no finished search trials."""
    results = [completed(2.0, 60), completed(3.0, 50), out_of_memory(), TrialResult(outcome="CRASHED", message="no")]
    made = [
        TrialRecord(
            study="s", trial_number=number, spec=legal.points[17 * number], reason="sampled", run_dir=".", started_at=NOON,
            finished_at=NOON, result=result, prediction=prediction() if number == 1 else None,
        )
        for number, result in enumerate([*results, completed(9.0, 73)])
    ]  # fmt: skip
    made[4] = made[4].model_copy(update={"trial_number": 7})
    confirm = made[1].model_copy(update={"trial_number": 8, "purpose": "confirm"})
    return [*made, confirm, made[1].model_copy(update={"trial_number": 9, "finished_at": None, "result": None})]


def call(app: Any, path: str, host: str = "127.0.0.1:8081") -> tuple[str, bytes]:
    seen: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "SERVER_NAME": "x", "SERVER_PORT": "1",
        "HTTP_HOST": host, "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr, "wsgi.url_scheme": "http",
    }  # fmt: skip
    body = b"".join(app(environ, lambda status, headers, *rest: seen.append(status)))
    return seen[0], body


def test_trials_values_and_states_are_the_stores(study: StudyRecord, legal: LegalSpace, trials: list[TrialRecord]) -> None:
    found = rebuilt(study, legal, trials).trials
    assert [each.user_attrs["trial_number"] for each in found] == [0, 1, 2, 3, 7]
    ran = TrialState.COMPLETE
    assert [each.state for each in found] == [ran, ran, ran, TrialState.FAIL, ran]
    assert [each.value for each in found] == [2.0, 3.0, 2.0, None, 9.0], "out of memory: the lowest that was measured"
    for each, trial in zip(found, trials, strict=False):
        assert trial.result is not None and each.user_attrs["outcome"] == trial.result.outcome
        for name, value in each.params.items():
            assert value == getattr(trial.spec, name), name
        assert each.user_attrs.get("peak_device_bytes") == trial.result.peak_device_bytes
    assert set(found[0].params) == set(legal.knobs) - {"gradient_accumulation_steps"}
    memory = [each.constraints["0"] if each.constraints else None for each in found]
    assert memory[0] == pytest.approx(60 / 72 - 1) and memory[2] and memory[2] > 0 and memory[4] and memory[4] > 0
    assert memory[3] is None


def test_what_was_only_predicted_has_predicted_values(study: StudyRecord, legal: LegalSpace) -> None:
    nowhere = study.model_copy(update={"hardware": study.hardware.model_copy(update={"device": "none"})})
    told = prediction(40, 41, samples_per_second=5.5)
    trials = [
        TrialRecord(
            study="s", trial_number=number, spec=legal.points[number], reason="r", run_dir=".", started_at=NOON,
            finished_at=NOON, prediction=told, result=TrialResult(outcome=outcome, message="m"),
        )
        for number, outcome in enumerate(["PREDICTED", "SKIPPED"])
    ]  # fmt: skip
    made = rebuilt(nowhere, legal, trials)
    assert made.metric_names == ["predicted samples_per_second"]
    assert [(each.state, each.value) for each in made.trials] == [(TrialState.COMPLETE, 5.5), (TrialState.FAIL, None)]
    assert made.trials[0].user_attrs["predicted_peak_bytes"] == 40 * GIB


def test_the_dashboard_answers_with_the_study(study: StudyRecord, legal: LegalSpace, trials: list[TrialRecord]) -> None:
    app = local_only(application(rebuilt(study, legal, trials)))
    status, body = call(app, "/api/studies")
    assert status.startswith("200")
    (listed,) = json.loads(body)["study_summaries"]
    assert (listed["study_name"], listed["directions"]) == ("s", ["maximize"])
    status, body = call(app, f"/api/studies/{listed['study_id']}")
    detail = json.loads(body)
    assert status.startswith("200") and len(detail["trials"]) == 5
    assert detail["trials"][2]["constraints"][0] > 0
    assert call(app, "/api/studies", host="evil.example")[0].startswith("421")
    assert call(app, "/dashboard")[0].startswith("200")


def test_it_listens_on_this_machine_only_and_says_what_is_missing(
    study: StudyRecord, trials: list[TrialRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "autofit.db"
    with Store.open(str(file)):
        pass
    assert main(["--db", str(file), "dashboard"]) == 2
    assert "no study yet" in capsys.readouterr().err
    with Store.open(str(file)) as store:
        store.create_study(study.model_copy(update={"winner_trial_number": None}))
        store.add_trials("s", trials[:5])
    assert main(["--db", str(file), "dashboard", "--host", "0.0.0.0"]) == 2
    assert "127.0.0.1" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    assert main(["--db", str(file), "dashboard"]) == 2
    assert "pip install 'autofit-llm[dashboard]'" in capsys.readouterr().err
