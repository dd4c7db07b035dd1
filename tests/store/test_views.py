"""The views answer as a plain program over the same trials would."""

import random
import statistics
from pathlib import Path

import pytest
from store_records import NOON, completed, out_of_memory, prediction, study_record, trial_record

from autofit.predict.calibrate import accuracy
from autofit.store import Store
from autofit.units import GIB

BUDGET_GIB = 72


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two studies of 60 trials with speeds and peaks from few values, so that many tie; some over budget, some failed."""
    opened = Store.open(str(tmp_path_factory.mktemp("views") / "autofit.db"))
    chance = random.Random(3)
    for name, objective in (("samples", "samples_per_second"), ("tokens", "tokens_per_second")):
        opened.create_study(study_record(name, space={"objective": objective}))
        for number in range(60):
            opened.start_trial(trial_record(number, name))
            result = completed(float(chance.randint(1, 12)), float(chance.randint(40, 80)))
            if objective == "tokens_per_second":
                result = result.model_copy(update={"tokens_per_second": 100.0 / result.samples_per_second})  # type: ignore[operator]
            opened.finish_trial(name, number, NOON, out_of_memory() if chance.random() < 0.2 else result)
        # a confirm run is no candidate, however fast
        confirm = trial_record(60, name, purpose="confirm", spec=trial_record(0).spec)
        opened.start_trial(confirm)
        opened.finish_trial(name, 60, NOON, completed(1000.0, 10.0))
    return opened


def candidates(store: Store, study: str) -> list[tuple[int, float, float, int]]:
    """Number, samples a second, tokens a second, peak."""
    found = []
    for trial in store.trials(study, purpose="search"):
        result = trial.result
        assert result is not None
        if result.outcome == "COMPLETED" and result.peak_device_bytes <= BUDGET_GIB * GIB:  # type: ignore[operator]
            found.append((trial.trial_number, result.samples_per_second, result.tokens_per_second, result.peak_device_bytes))
    return found  # type: ignore[return-value]


def test_best_trials_are_the_fastest_within_the_budget(store: Store) -> None:
    found = {row["study"]: row["trial_number"] for row in store.query("SELECT * FROM best_trials").as_dicts()}
    by_samples = max(candidates(store, "samples"), key=lambda trial: (trial[1], -trial[0]))
    by_tokens = max(candidates(store, "tokens"), key=lambda trial: (trial[2], -trial[0]))
    assert found == {"samples": by_samples[0], "tokens": by_tokens[0]}


def test_a_faster_trial_of_another_training_is_not_the_best(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "autofit.db")) as store:
        store.create_study(study_record())
        allowed = study_record("allowed", space={"quality": {"min_cutoff_len": 512}})
        store.create_study(allowed)
        asked = trial_record(0).spec
        for study in ("first", "allowed"):
            specs = [asked, *(asked.model_copy(update=change) for change in ({"method": "lora"}, {"cutoff_len": 512}))]
            for number, spec in enumerate(specs):
                store.start_trial(trial_record(number, study, spec=spec))
                store.finish_trial(study, number, NOON, completed(1.0 + number))
        assert store.query("SELECT study, trial_number FROM best_trials ORDER BY study").rows == [("allowed", 2), ("first", 0)]
        listed = {row["study"]: row["best_trial_number"] for row in store.reader().studies().as_dicts()}
        assert listed == {"allowed": 2, "first": 0}
        rows = store.query("SELECT study, trial_number, as_asked FROM trial_list ORDER BY study, trial_number").rows
        assert [row[2] for row in rows] == [1, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("study", ["samples", "tokens"])
def test_the_pareto_front_is_what_nothing_dominates(store: Store, study: str) -> None:
    trials = candidates(store, study)
    front = {
        number
        for number, speed, _, peak in trials
        if not any(s >= speed and p <= peak and (s, p) != (speed, peak) for _, s, _, p in trials)
    }
    found = [row["trial_number"] for row in store.query(f"SELECT * FROM pareto_front WHERE study = '{study}'").as_dicts()]
    assert sorted(found) == sorted(front)
    assert len(front) > 2


@pytest.mark.parametrize("view", ["best_trials", "pareto_front"])
def test_views_find_candidates_by_index(store: Store, view: str) -> None:
    """Without it they would read every trial."""
    with store.reader() as reader:
        plan = " ".join(str(row) for row in reader._connection.execute(f"EXPLAIN QUERY PLAN SELECT trial_number FROM {view}"))
    assert "ix_trials_" in plan
    assert "SCAN trials USING" in plan or "SCAN trials" not in plan


def test_prediction_accuracy_counts_and_measures_errors(store: Store) -> None:
    """Against `calibrate.accuracy`, and with a study of its own for every rate."""
    assert store.query("SELECT * FROM prediction_accuracy").rows == []
    store.create_study(study_record("predicted"))
    # predicted, upper end, measured GiB; the budget is 72
    said = [
        (55.0, 58.0, 50.0),
        (40.0, 42.0, 50.0),
        (52.5, 55.0, 50.0),
        (49.0, 51.0, 50.0),
        (71.0, 74.0, 70.0),
        (74.0, 77.0, 73.0),
    ]
    for number, (peak, high, measured) in enumerate(said):
        store.start_trial(trial_record(number, "predicted", prediction=prediction(peak, high)))
        store.finish_trial("predicted", number, NOON, completed(2.0, measured))
    for number, high in ((6, 71.0), (7, 75.0)):  # both run out of memory: nobody had said so of the first
        store.start_trial(trial_record(number, "predicted", prediction=prediction(70.0, high)))
        store.finish_trial("predicted", number, NOON, out_of_memory())
    [row] = store.query("SELECT * FROM prediction_accuracy").as_dicts()
    errors = [(peak - measured) / measured for peak, _, measured in said]
    absolute = [abs(error) for error in errors]
    assert row["study"] == "predicted" and row["trials"] == 6 and row["under_predictions"] == 2
    assert row["median_absolute_error"] == pytest.approx(statistics.median(absolute))
    assert row["mean_absolute_error"] == pytest.approx(statistics.mean(absolute))
    assert row["mean_error"] == pytest.approx(statistics.mean(errors))
    assert row["worst_under_prediction"] == pytest.approx(-0.20)
    assert row["step_time_mean_absolute_error"] == pytest.approx(0.25)
    assert row["unforeseen_out_of_memory"] == 1
    expected = accuracy([tuple(round(gib * GIB) for gib in trial) for trial in said], BUDGET_GIB * GIB)
    assert row["under_prediction_rate"] == pytest.approx(expected.under_prediction_rate) == pytest.approx(2 / 6)
    assert row["exceeded_rate"] == pytest.approx(expected.exceeded_rate) == pytest.approx(1 / 6)
    assert row["false_refusal_rate"] == pytest.approx(expected.false_refusal_rate) == pytest.approx(1 / 5)
