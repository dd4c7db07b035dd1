"""Who won, by how much, and what each change of the training would buy."""

from collections.abc import Sequence
from dataclasses import dataclass

from autofit.config.legality import training_changes
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.trial import TrialSpec


@dataclass(frozen=True)
class Compromise:
    """The fastest measured trial of those that change the training in the same way."""

    changes: tuple[str, ...]
    trial: TrialRecord
    speedup: float
    """Its objective over the winner's."""


def speed(trial: TrialRecord, study: StudyRecord) -> float:
    """The study's objective of a completed trial."""
    value = getattr(trial.result, study.space.objective)
    assert isinstance(value, float)
    return value


def within_budget(trial: TrialRecord, study: StudyRecord) -> bool:
    """Whether a trial ran to its end with its peak inside the budget."""
    peak = trial.result.peak_device_bytes if trial.result else None
    return trial.fits and peak is not None and peak <= study.memory_budget_bytes


def ranking(study: StudyRecord, trials: Sequence[TrialRecord], wanted: TrialSpec) -> list[TrialRecord]:
    """Search trials inside the budget that run `wanted`'s training, fastest first."""
    eligible = [
        trial
        for trial in trials
        if trial.purpose == "search" and within_budget(trial, study) and not training_changes(trial.spec, wanted)
    ]
    return sorted(eligible, key=lambda trial: speed(trial, study), reverse=True)


def compromise_table(
    study: StudyRecord, trials: Sequence[TrialRecord], wanted: TrialSpec, winner: TrialRecord
) -> list[Compromise]:
    """For each way of changing the training that was measured: its fastest trial."""
    best: dict[tuple[str, ...], TrialRecord] = {}
    for trial in trials:
        changes = tuple(training_changes(trial.spec, wanted))
        if trial.purpose != "search" or not changes or not within_budget(trial, study):
            continue
        if changes not in best or speed(trial, study) > speed(best[changes], study):
            best[changes] = trial
    rows = [Compromise(what, trial, speed(trial, study) / speed(winner, study)) for what, trial in best.items()]
    return sorted(rows, key=lambda row: row.speedup, reverse=True)
