"""Who won under the user's constraints, and who came nearest where nobody did."""

from collections.abc import Sequence

from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.space import LegalSpace


def speed(trial: TrialRecord, study: StudyRecord) -> float:
    """The study's objective of a completed trial, as a rate."""
    value = getattr(trial.result, study.space.rate)
    assert isinstance(value, float)
    return value


def within_budget(trial: TrialRecord, study: StudyRecord) -> bool:
    """Whether a trial ran to its end with its peak inside the budget."""
    peak = trial.result.peak_device_bytes if trial.result else None
    return trial.fits and peak is not None and peak <= study.memory_budget_bytes


def ranking(study: StudyRecord, trials: Sequence[TrialRecord], legal: LegalSpace) -> list[TrialRecord]:
    """Search trials inside the budget whose training is what the user asked for, fastest first."""
    eligible = [
        trial
        for trial in trials
        if trial.purpose == "search" and within_budget(trial, study) and not legal.breaches(trial.spec)
    ]
    return sorted(eligible, key=lambda trial: speed(trial, study), reverse=True)
