"""Predictions of trials that run: stored before, held against what was measured, corrected by it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_survey import MadeUp

from autofit.config.model import Model
from autofit.config.trial import TrialSpec
from autofit.errors import Interrupted
from autofit.predict.calibrate import Calibration
from autofit.predict.devices import device_model
from autofit.predict.many import Answers
from autofit.predict.roofline import Constants, Job, Operations, Timing
from autofit.store.store import Store
from autofit.tuning.driver import StopRule, run_search
from autofit.tuning.foresight import Foresight
from autofit.tuning.plan import SearchRequest, plan_study

MIB = 1024**2
CARD = device_model("a100-80gb")


class Corrected(MadeUp):
    """A made-up predictor that takes corrections as the real one does."""

    def __init__(self, versions: dict[str, str] | None = None, **given: Any) -> None:
        super().__init__(**given)
        self.versions = versions or {}  # the stub worker's
        self.calibrations: dict[str, Calibration] = {}
        self.constants = Constants()
        self.timed: list[TrialSpec] = []
        self.surveyed: list[tuple[object, object]] = []

    def all_of(self, specs: Sequence[TrialSpec], model: Model, gpu_mem_bytes: int | None) -> Answers:
        self.surveyed.append((dict(self.calibrations), self.constants))
        return super().all_of(specs, model, gpu_mem_bytes)

    def timing(self, spec: TrialSpec, model: Model) -> Timing:
        if spec not in self.timed:
            self.timed.append(spec)
        work = Operations(np.array([1e12]), np.array([1e9]), np.ones(1))
        return Timing(work, Operations(np.zeros(1), np.array([1e8]), np.ones(1)), Job())


@pytest.fixture
def searched(tmp_path: Path, stub_python: str) -> Callable[..., tuple[Store, Corrected, list[str]]]:
    def search(predictor: Corrected, trials: int = 5) -> tuple[Store, Corrected, list[str]]:
        store = Store.open(f"sqlite:///{tmp_path}/autofit.db")
        request = SearchRequest(
            gpu_mem_bytes=206 * MIB, space="tiny_qwen2_5_vl", device="cpu", python=stub_python, study="s", engine="transformers"
        )
        plan = plan_study(request)
        store.create_study(plan.study)
        said: list[str] = []

        class Silent:
            def started(self, trial: Any) -> None: ...
            def ticked(self, trial: Any, beat: Any) -> None: ...
            def finished(self, trial: Any) -> None: ...
            def said(self, message: str) -> None:
                said.append(message)

        foresight = Foresight(plan.study, predictor, CARD, said.append, forecaster=predictor)  # type: ignore[arg-type]
        run_search(store, plan, runs_dir=tmp_path / "runs", stop=StopRule(trials), listener=Silent(), foresight=foresight)
        return store, predictor, said

    return search


def test_every_trial_has_the_prediction_that_was_made_before_it(searched: Callable[..., Any]) -> None:
    store, _, said = searched(Corrected(scale=0.05))
    trials = store.trials("s")
    assert len(trials) >= 4 and all(trial.prediction is not None for trial in trials)  # the search decides how many
    assert said[0].startswith("predicting ")
    rows = store.query("SELECT trials, under_prediction_rate, false_refusal_rate FROM prediction_accuracy").rows
    completed = sum(trial.fits and trial.purpose == "search" for trial in trials)
    assert rows[0][0] >= completed > 0


def test_a_trial_that_cannot_be_predicted_runs_and_the_reason_is_said_once(searched: Callable[..., Any]) -> None:
    store, _, said = searched(Corrected(refuses=lambda spec: True))
    assert all(trial.prediction is None and trial.result for trial in store.trials("s"))
    assert said.count("runs without a prediction: made up: cannot be modelled") == 1


def test_trials_of_the_same_versions_correct_the_next_prediction(searched: Callable[..., Any]) -> None:
    predictor = Corrected(scale=0.05)
    searched(predictor)
    assert predictor.calibrations["device"].residuals > 0
    assert predictor.constants.measured_steps == len(predictor.timed) > 0


def test_what_trials_have_taught_is_left_out_of_what_is_predicted_for_the_sampler_later(searched: Callable[..., Any]) -> None:
    """Its own model learns from the same trials: with both, a prediction would be corrected twice."""
    predictor = Corrected(scale=0.05)
    searched(predictor, trials=12)
    assert len(predictor.surveyed) >= 2, "other trainings were not asked about after the search"
    assert all(known == ({}, Constants()) for known in predictor.surveyed)
    assert predictor.constants != Constants(), "nothing was learnt that could have been left out"


def test_a_stop_while_other_trainings_are_predicted_does_not_finish_the_study(
    searched: Callable[..., Any], tmp_path: Path
) -> None:
    """Where a limit ends the search they are predicted last, which may take a while."""

    class Stopped(Corrected):
        def all_of(self, specs: Sequence[TrialSpec], model: Model, gpu_mem_bytes: int | None) -> Answers:
            if self.surveyed:
                raise KeyboardInterrupt
            return super().all_of(specs, model, gpu_mem_bytes)

    with pytest.raises(Interrupted, match="--resume"):
        searched(Stopped(scale=0.05), trials=2)
    with Store.open(f"sqlite:///{tmp_path}/autofit.db") as store:
        study = store.study("s")
        assert (study.status, study.winner_trial_number, len(store.trials("s"))) == ("INTERRUPTED", None, 2)


def test_trials_of_other_versions_teach_nothing(searched: Callable[..., Any]) -> None:
    predictor = Corrected(scale=0.05, versions={"torch": "1.0"})
    searched(predictor)
    assert predictor.calibrations["device"].residuals == 0 and predictor.constants == Constants()
