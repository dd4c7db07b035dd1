"""Who won, by how much, and what each compromise would buy."""

from collections.abc import Sequence
from dataclasses import dataclass

from autofit.config.legality import compromises
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.trial import TrialSpec


@dataclass(frozen=True)
class Compromise:
    """The fastest measured trial that gives up the same things."""

    given_up: tuple[str, ...]
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
    """Search trials inside the budget that keep all of `wanted`'s training, fastest first."""
    eligible = [
        trial
        for trial in trials
        if trial.purpose == "search" and within_budget(trial, study) and not compromises(trial.spec, wanted)
    ]
    return sorted(eligible, key=lambda trial: speed(trial, study), reverse=True)


def compromise_table(
    study: StudyRecord, trials: Sequence[TrialRecord], wanted: TrialSpec, winner: TrialRecord
) -> list[Compromise]:
    """For each set of things given up that was measured: its fastest trial, if it is faster than the winner or smaller."""
    best: dict[tuple[str, ...], TrialRecord] = {}
    for trial in trials:
        given_up = tuple(compromises(trial.spec, wanted))
        if trial.purpose != "search" or not given_up or not within_budget(trial, study):
            continue
        if given_up not in best or speed(trial, study) > speed(best[given_up], study):
            best[given_up] = trial
    rows = [Compromise(what, trial, speed(trial, study) / speed(winner, study)) for what, trial in best.items()]
    return sorted(rows, key=lambda row: row.speedup, reverse=True)


def nearest_miss(trials: Sequence[TrialRecord], study: StudyRecord) -> TrialRecord | None:
    """The completed trial that exceeds the budget by the least, where none fits."""
    peaks = [trial for trial in trials if trial.fits and not within_budget(trial, study)]
    return min(peaks, key=lambda trial: trial.result.peak_device_bytes or 0 if trial.result else 0, default=None)
