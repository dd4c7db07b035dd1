"""`search --device none`: the whole legal space predicted and ranked, nothing run.

Every legal configuration becomes a row: PREDICTED where it fits with the margin of its prediction, SKIPPED where it does not or
cannot be predicted (its message says why). The rows are written in one transaction, best first: a survey that was killed has
left none and is made again. The winner is chosen as a search chooses it: the fastest whose training is what the user asked for.
What other trainings would do is listed by quality setting, never chosen silently.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from autofit.config.legality import training_changes
from autofit.config.objective import rate_of_prediction
from autofit.config.prediction import Prediction
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import LegalSpace
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.predict.many import Answers, Forecaster
from autofit.store.store import Store
from autofit.tuning.compromise import Compromise, compromise_table
from autofit.tuning.figures import Figures, figures
from autofit.tuning.front import pareto_front
from autofit.tuning.plan import Plan
from autofit.units import format_bytes

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and of how much."""


@dataclass(frozen=True)
class Setting:
    """One quality setting: what is trained, on how much of each sample."""

    changes: tuple[str, ...]
    """How it differs from the reference's training; empty for a way to run that training."""
    cutoff_len: int
    best: TrialRecord
    """Its fastest configuration that fits; where none does, the one that exceeds the budget by the least."""
    speedup: float | None
    """Of `best` over the winner's objective; None where it does not fit or there is no winner."""


@dataclass(frozen=True)
class SurveyReport:
    """What was predicted. No figure here was measured."""

    study: StudyRecord
    trials: tuple[TrialRecord, ...]
    """Best first: those that fit by speed, then those that do not by memory, then those without a prediction."""
    reference: TrialRecord | None
    winner: TrialRecord | None
    settings: tuple[Setting, ...]
    """The reference's training first, then by speed."""
    legal: LegalSpace
    front: tuple[Figures, ...]
    """The Pareto front of speed x memory x quality, fastest first."""
    compromises: tuple[Compromise, ...]
    unpredictable: dict[str, int]
    """Reason -> configurations that could not be predicted."""


def run_survey(store: Store, plan: Plan, forecaster: Forecaster, progress: Progress) -> SurveyReport:
    """Predicts every point of the plan's space and stores it. The study must be in the store; a finished one is only read.

    Raises:
        AutofitError: nothing at all could be predicted (says why), or the store fails.
    """
    study = plan.study
    trials = store.trials(study.name)
    if not trials:
        started = datetime.now(UTC)
        found = _predictions(plan, forecaster, progress)
        if not any(isinstance(answer, Prediction) for answer in found.values()):
            raise AutofitError(f"no configuration of {study.space.name} can be predicted: {next(iter(found.values()))}")
        trials = _records(plan, found, started)
        store.add_trials(study.name, trials)
    wanted = plan.legal.reference
    winner = next((trial for trial in trials if fits(trial) and not plan.legal.breaches(trial.spec)), None)
    store.set_study_status(study.name, "FINISHED", winner.trial_number if winner else None)
    reasons: dict[str, int] = {}
    for trial in trials:
        if trial.prediction is None and trial.result is not None:
            reasons[trial.result.message or ""] = reasons.get(trial.result.message or "", 0) + 1
    return SurveyReport(
        study=store.study(study.name),
        trials=tuple(trials),
        reference=next((trial for trial in trials if trial.spec == wanted), None),
        winner=winner,
        settings=tuple(_settings(study, trials, wanted, winner)),
        legal=plan.legal,
        front=tuple(pareto_front(figures(study, trials), plan.legal.floor)),
        compromises=tuple(compromise_table(study, trials, winner) if winner else ()),
        unpredictable=reasons,
    )


def predicted_speed(trial: TrialRecord, study: StudyRecord) -> float:
    """The study's objective as it is predicted for a trial that has a prediction."""
    assert trial.prediction is not None
    return rate_of_prediction(trial.prediction, study.space.rate)


def _predictions(plan: Plan, forecaster: Forecaster, progress: Progress) -> Answers:
    """Spec -> its prediction, or why there is none."""
    study, points = plan.study, plan.legal.points
    forecaster.prepare([(spec, study.model) for spec in points], lambda done, of: progress("tracing variants", done, of))
    found: Answers = {}
    for part in forecaster.many(points, study.model, study.memory_budget_bytes):
        found |= part
        progress("predicting", len(found), len(points))
    return {spec: found[spec] for spec in points}


def _records(plan: Plan, found: Answers, started: datetime) -> list[TrialRecord]:
    """Finished trials, best first."""
    study = plan.study

    def rank(item: tuple[TrialSpec, Prediction | str]) -> tuple[int, float]:
        answer = item[1]
        if isinstance(answer, str):
            return 2, 0.0
        return (0, -rate_of_prediction(answer, study.space.rate)) if answer.fits else (1, answer.peak_device_bytes_high)

    finished = datetime.now(UTC)
    return [
        TrialRecord(
            study=study.name,
            trial_number=number,
            spec=spec,
            reason="every legal configuration is predicted",
            run_dir=str(Path()),
            started_at=started,
            finished_at=finished,
            result=_result(answer, study.memory_budget_bytes),
            prediction=None if isinstance(answer, str) else answer,
        )
        for number, (spec, answer) in enumerate(sorted(found.items(), key=rank))
    ]


def _result(answer: Prediction | str, budget_bytes: int) -> TrialResult:
    if isinstance(answer, str):
        return TrialResult(outcome="SKIPPED", message=f"cannot be predicted: {answer}")
    known = {
        "precision_mode": answer.precision_mode,
        "versions": answer.versions,
        "not_measured": ["everything: it was not run"],
    }
    if answer.fits:
        return TrialResult(outcome="PREDICTED", **known)
    over = format_bytes(answer.peak_device_bytes_high - budget_bytes)
    return TrialResult(outcome="SKIPPED", message=f"predicted not to fit: up to {over} over the budget", **known)


def _settings(
    study: StudyRecord, trials: Sequence[TrialRecord], wanted: TrialSpec, winner: TrialRecord | None
) -> list[Setting]:
    """The best of each quality setting; `trials` come best first."""
    best: dict[tuple[tuple[str, ...], int], TrialRecord] = {}
    for trial in trials:
        if trial.prediction is not None:
            best.setdefault((tuple(training_changes(trial.spec, wanted)), trial.spec.cutoff_len), trial)
    rows = []
    for (changes, cutoff), trial in best.items():
        compare = winner if fits(trial) else None
        ratio = predicted_speed(trial, study) / predicted_speed(compare, study) if compare else None
        rows.append(Setting(changes, cutoff, trial, ratio))
    return sorted(rows, key=lambda row: (bool(row.changes), not fits(row.best), -predicted_speed(row.best, study)))


def fits(trial: TrialRecord) -> bool:
    """Whether a trial of a survey is predicted to fit."""
    return trial.result is not None and trial.result.outcome == "PREDICTED"
