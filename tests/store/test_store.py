"""The store keeps what it is given, once, and gives it back as it was."""

import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from store_records import NOON, completed, out_of_memory, prediction, study_record, trial_record

from autofit.config.result import TrialResult
from autofit.errors import StoreError, UsageError
from autofit.store import Store
from autofit.units import GIB


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'autofit.db'}") as opened:
        opened.create_study(study_record())
        yield opened


def test_a_study_comes_back_as_it_was(store: Store) -> None:
    assert store.study("first") == study_record()
    store.create_study(study_record("second", space={"objective": "tokens_per_second"}))
    assert [study.name for study in store.studies()] == ["first", "second"]


def test_a_trial_comes_back_as_it_was_while_it_runs_and_when_it_is_finished(store: Store) -> None:
    record = trial_record(0)
    store.start_trial(record)
    assert store.trial("first", 0) == record
    assert store.running_trials("first") == [record]

    finished_at = NOON + timedelta(minutes=2)
    store.finish_trial("first", 0, finished_at, completed())
    assert store.running_trials("first") == []
    assert store.trials("first") == [record.model_copy(update={"finished_at": finished_at, "result": completed()})]


def test_a_prediction_is_kept_whole_and_in_columns(store: Store) -> None:
    record = trial_record(0, prediction=prediction(48.0, 51.0))
    store.start_trial(record)
    assert store.trial("first", 0) == record
    [row] = store.trial_rows("first").as_dicts()
    assert (row["predicted_peak_gib"], row["predicted_peak_high_gib"]) == (48.0, 51.0)
    assert (row["predicted_allocated_gib"], row["predicted_reserved_gib"]) == (45.0, 47.0)
    assert (row["predicted_step_time_seconds"], row["predicted_samples_per_second"]) == (5.0, 1.6)


def test_a_configuration_that_is_only_predicted_is_stored_without_a_measurement(store: Store) -> None:
    said = trial_record(0, prediction=prediction())
    store.start_trial(said)
    store.finish_trial("first", 0, NOON, TrialResult(outcome="PREDICTED"))
    result = store.trial("first", 0).result
    assert result is not None and result.outcome == "PREDICTED"
    [row] = store.trial_rows("first").as_dicts()
    assert row["peak_device_bytes"] is None and row["samples_per_second"] is None and row["objective_value"] is None
    store.start_trial(trial_record(1))
    with pytest.raises(StoreError, match="ck_trials_predicted"):
        store.finish_trial("first", 1, NOON, TrialResult(outcome="PREDICTED"))


def test_losses_that_are_no_numbers_survive(store: Store) -> None:
    store.start_trial(trial_record(0))
    store.finish_trial("first", 0, NOON, completed(losses=[2.0, math.nan, math.inf, -math.inf]))
    result = store.trial("first", 0).result
    assert result is not None
    assert [str(loss) for loss in result.losses] == ["2.0", "nan", "inf", "-inf"]
    assert store.query("SELECT json_valid(result) AS valid FROM trial_documents").rows == [(1,)]


def test_a_trial_finishes_once(store: Store) -> None:
    store.start_trial(trial_record(0))
    store.finish_trial("first", 0, NOON, out_of_memory())
    with pytest.raises(StoreError, match=r"trial 0 of study 'first' is finished already \(OOM\)"):
        store.finish_trial("first", 0, NOON, completed())
    with pytest.raises(StoreError, match="finished already"):
        store.restart_trial("first", 0, NOON)
    result = store.trial("first", 0).result
    assert result is not None and result.outcome == "OOM"


def test_no_number_and_no_configuration_is_used_twice_for_one_purpose(store: Store) -> None:
    store.start_trial(trial_record(0))
    with pytest.raises(StoreError, match="has a trial 0 already"):
        store.start_trial(trial_record(0, spec=trial_record(5).spec))
    with pytest.raises(StoreError, match="has tried this configuration already, as search trial 0"):
        store.start_trial(trial_record(1, spec=trial_record(0).spec))
    store.start_trial(trial_record(1, spec=trial_record(0).spec, purpose="confirm"))
    store.create_study(study_record("second"))
    store.start_trial(trial_record(0, "second"))
    assert len(store.trials()) == 3
    assert [trial.trial_number for trial in store.trials("first", purpose="confirm")] == [1]


def test_a_restart_counts_the_attempt(store: Store) -> None:
    store.start_trial(trial_record(0))
    later = NOON + timedelta(hours=1)
    restarted = store.restart_trial("first", 0, later)
    assert (restarted.attempt, restarted.started_at, restarted.result) == (2, later, None)
    assert store.trial("first", 0) == restarted


def test_status_and_winner(store: Store) -> None:
    store.start_trial(trial_record(0))
    with pytest.raises(StoreError, match="has no trial 4"):
        store.set_study_status("first", "FINISHED", 4)
    assert store.study("first").status == "RUNNING"
    store.set_study_status("first", "FINISHED", 0)
    store.set_study_status("first", "INTERRUPTED")
    assert (store.study("first").status, store.study("first").winner_trial_number) == ("INTERRUPTED", 0)


def test_columns_are_derived_from_spec_and_result(store: Store) -> None:
    store.start_trial(trial_record(0))
    store.finish_trial("first", 0, NOON + timedelta(seconds=90), completed(2.0, 50.0))
    [row] = store.trial_rows("first").as_dicts()
    expected = {
        "study": "first", "trial_number": 0, "outcome": "COMPLETED", "state": "FINISHED", "model": "tiny-llama",
        "method": "full", "lora_rank": None, "micro_batch_size": 1, "global_batch_size": 1,
        "images_per_sample": 1, "image_max_pixels": 589_824,
        "memory_budget_bytes": 72 * GIB, "margin_bytes": 22 * GIB, "margin_gib": 22.0, "peak_device_gib": 50.0,
        "samples_per_second": 2.0, "objective_value": 2.0, "wall_seconds": 90.0,
        "started_at": "2026-11-23T12:00:00.000000+00:00",
        "predicted_peak_bytes": None, "prediction_error": None,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


def test_the_objective_is_the_studys_own(store: Store) -> None:
    store.create_study(study_record("tokens", space={"objective": "tokens_per_second"}))
    store.start_trial(trial_record(0, "tokens"))
    store.finish_trial("tokens", 0, NOON, completed(2.0))
    assert store.query("SELECT objective_value FROM trials").rows == [(4096.0,)]


def test_a_failed_run_has_no_speed_in_its_columns_but_keeps_it_in_its_result(store: Store) -> None:
    store.start_trial(trial_record(0))
    partial = out_of_memory(phase="eval", step_time_seconds=3.0, samples_per_second=2.0, tokens_per_second=9.0)
    store.finish_trial("first", 0, NOON, partial)
    assert store.trial_rows("first").as_dicts()[0]["samples_per_second"] is None
    assert store.trial("first", 0).result == partial


def test_a_clock_that_went_back_loses_the_duration_not_the_trial(store: Store) -> None:
    store.start_trial(trial_record(0))
    store.finish_trial("first", 0, NOON - timedelta(hours=1), completed())
    assert store.trial_rows("first").as_dicts()[0]["wall_seconds"] is None


def test_unknown_names_are_told_their_nearest(store: Store) -> None:
    with pytest.raises(StoreError, match="there is no study 'frist'; did you mean 'first'"):
        store.study("frist")
    with pytest.raises(StoreError, match="there is no study 'frist'; did you mean 'first'"):
        store.trial_rows("frist")
    with pytest.raises(StoreError, match="'first' exists already; go on with --resume"):
        store.create_study(study_record())
    with pytest.raises(StoreError, match="'first' has no trial 3"):
        store.trial("first", 3)


def test_a_time_without_a_zone_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="has no time zone"):
        store.start_trial(trial_record(0, started_at=datetime(2026, 1, 1)))
    assert store.trials() == []


def test_a_read_only_store_writes_nothing(store: Store, tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "autofit.db"), read_only=True) as reading:
        assert reading.study("first") == study_record()
        with pytest.raises(StoreError, match="is read-only"):
            reading.create_study(study_record("second"))


@pytest.mark.parametrize("url", ["postgresql://host/db", "sqlite://", "sqlite:///:memory:", ":memory:", ""])
def test_what_is_no_sqlite_file_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="--db"):
        Store.open(url)


def test_a_configuration_may_be_launched_many_times(store: Store) -> None:
    """It is searched and confirmed once; each out-of-memory of a real run is an observation of its own."""
    for number in range(3):
        launched = trial_record(number).model_copy(update={"purpose": "launch", "spec": trial_record(0).spec})
        store.start_trial(launched)
        store.finish_trial("first", number, NOON, out_of_memory())
    assert [trial.trial_number for trial in store.trials("first", purpose="launch")] == [0, 1, 2]
    store.start_trial(trial_record(3).model_copy(update={"spec": trial_record(0).spec}))
    with pytest.raises(StoreError, match="has tried this configuration already, as search trial 3"):
        store.start_trial(trial_record(4).model_copy(update={"spec": trial_record(0).spec}))
