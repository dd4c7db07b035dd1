"""What is predicted when: the reference's training first, others when the search for speed is over, nothing twice."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_survey import MadeUp

from autofit.config.prediction import Prediction
from autofit.config.record import TrialRecord
from autofit.config.result import TrialResult
from autofit.config.trial import TrialSpec
from autofit.search.guide import Choice, Halt
from autofit.search.kinds import irreducible, kind_of
from autofit.store.store import Store
from autofit.tuning.guidance import Guidance
from autofit.tuning.plan import Plan, SearchRequest, plan_study

MIB = 1024**2


class Watched:
    """A foresight that keeps what it was asked, survey by survey."""

    def __init__(self, budget_bytes: int, more_for_tower: float = 1.0) -> None:
        self.asked: list[set[TrialSpec]] = []
        self._budget, self._more_for_tower = budget_bytes, more_for_tower

    def survey(self, points: Sequence[TrialSpec]) -> dict[TrialSpec, Prediction]:
        self.asked.append(set(points))
        return {spec: self.of(spec) for spec in points}

    def of(self, spec: TrialSpec) -> Prediction:
        heavy = not spec.freeze_vision_tower and not spec.zero_stage
        return MadeUp(0.05 * (self._more_for_tower if heavy else 1.0)).predict(spec, None, self._budget)  # type: ignore[arg-type]


@pytest.fixture
def plan(stub_python: str, tmp_path: Path) -> Plan:
    return plan_study(
        SearchRequest(
            gpu_mem_bytes=300 * MIB, space="tiny_qwen2_5_vl", device="cpu", python=stub_python, study="s", engine="transformers"
        )
    )


@pytest.fixture
def store(plan: Plan, tmp_path: Path) -> Store:
    store = Store.open(f"sqlite:///{tmp_path}/autofit.db")
    store.create_study(plan.study)
    return store


def search(plan: Plan, store: Store, foresight: Watched, fits: bool = True) -> tuple[Guidance, list[TrialRecord]]:
    """Runs a search to its end; every trial comes back as it was predicted, or out of memory."""
    guidance = Guidance(plan, store, foresight, lambda message: None)  # type: ignore[arg-type]
    history: list[TrialRecord] = []
    while isinstance(found := guidance.propose(history), Choice):
        history.append(_trial(plan, len(history), found.spec, foresight.of(found.spec), fits))
    assert isinstance(found, Halt)
    return guidance, history


def _trial(plan: Plan, number: int, spec: TrialSpec, told: Prediction, fits: bool) -> TrialRecord:
    if fits and told.fits:
        result = TrialResult(
            outcome="COMPLETED",
            peak_device_bytes=told.peak_device_bytes,
            step_time_seconds=told.step_time_seconds,
            samples_per_second=told.samples_per_second,
            tokens_per_second=told.tokens_per_second,
            effective_tokens_per_second=told.tokens_per_second,
        )
    else:
        result = TrialResult(outcome="OOM", phase="forward", message="out of memory")
    now = datetime.now(UTC)
    return TrialRecord(
        study="s",
        trial_number=number,
        spec=spec,
        reason="test",
        run_dir=".",
        started_at=now,
        finished_at=now,
        result=result,
        prediction=told,
    )


def test_the_references_training_is_predicted_first_and_others_when_its_search_is_over(plan: Plan, store: Store) -> None:
    foresight = Watched(plan.study.memory_budget_bytes)
    guidance, history = search(plan, store, foresight)
    legal = plan.legal
    own = {spec for spec in legal.points if not legal.breaches(spec)}
    assert foresight.asked[0] == own
    beside = set(irreducible([spec for spec in legal.points if legal.breaches(spec)], legal))
    later = set.union(*foresight.asked[1:])
    assert later < beside, "combinations, or every way to run another training"
    assert {kind_of(spec, legal) for spec in later} == {kind_of(spec, legal) for spec in beside}
    others = [trial for trial in history if legal.breaches(trial.spec)]
    assert others, "no compromise was priced"
    best = max((trial for trial in history if trial.spec in own), key=lambda trial: trial.result.samples_per_second or 0)  # type: ignore[union-attr]
    asked = len(foresight.asked)
    assert set(guidance.beside(best)) == set.union(*foresight.asked)
    assert len(foresight.asked) == asked, "asked again what is known"
    resumed = Guidance(plan, store, foresight, lambda message: None)  # type: ignore[arg-type]
    assert resumed.beside(best) == guidance.beside(best), "a study that goes on at its limit proposes nothing"


def test_another_training_is_predicted_as_the_best_runs_and_otherwise_only_where_that_does_not_fit(
    plan: Plan, store: Store
) -> None:
    legal, budget = plan.legal, plan.study.memory_budget_bytes
    tower = ("vision tower trained",)

    def stages(foresight: Watched, kind: tuple[str, ...]) -> set[int]:
        search(plan, store, foresight)
        return {spec.zero_stage for asked in foresight.asked for spec in asked if kind_of(spec, legal) == kind}

    assert stages(Watched(budget), tower) == {0}
    assert stages(Watched(budget, more_for_tower=100), tower) == {0, 2, 3}
    assert stages(Watched(budget), ("cutoff_len 96 instead of 192",)) == {0, 2, 3}, "these need no further trace"


def test_where_nothing_fits_every_training_is_predicted(plan: Plan, store: Store) -> None:
    foresight = Watched(plan.study.memory_budget_bytes)
    search(plan, store, foresight, fits=False)
    assert set.union(*foresight.asked) == set(plan.legal.points)
    assert sum(map(len, foresight.asked)) == len(plan.legal.points)


def test_other_samplers_ask_for_nothing(plan: Plan, store: Store) -> None:
    foresight = Watched(plan.study.memory_budget_bytes)
    study = plan.study.model_copy(update={"sampler": "random"})
    guidance = Guidance(Plan(study, plan.legal), store, foresight, lambda message: None)  # type: ignore[arg-type]
    assert isinstance(guidance.propose([]), Choice)
    trial = _trial(plan, 0, plan.legal.reference, foresight.of(plan.legal.reference), fits=True)
    assert guidance.beside(trial) == {} and foresight.asked == []
