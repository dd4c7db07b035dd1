"""What the service's tests serve."""

from datetime import timedelta
from pathlib import Path

from store_records import NOON, completed, out_of_memory, prediction, study_record, trial_record

from autofit.store import Store


def fill(file: Path) -> None:
    """A finished study of six trials, and one that runs."""
    with Store.open(str(file)) as store:
        store.create_study(study_record())
        results = [completed(2.0, 60), completed(3.0, 50), out_of_memory(), completed(2.5, 40), completed(1.0, 30)]
        for number, result in enumerate(results):
            store.start_trial(trial_record(number, prediction=prediction() if number else None))
            store.finish_trial("first", number, NOON + timedelta(minutes=number, seconds=30), result)
        store.start_trial(trial_record(5, spec=trial_record(1).spec, purpose="confirm"))
        store.finish_trial("first", 5, NOON + timedelta(minutes=6), completed(3.1, 51))
        store.set_study_status("first", "FINISHED", 1)
        store.create_study(study_record(name="second"))
        store.start_trial(trial_record(0, study="second"))
