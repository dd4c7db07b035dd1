"""Exporting from a study's records: which trial, which reference, what to tell the user."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autofit.config.record import StudyRecord, TrialRecord
from autofit.errors import AutofitError, UsageError
from autofit.export import Source, export, launch_command
from autofit.export.evidence import reference_trial, warning


@dataclass(frozen=True)
class Exported:
    """What was written."""

    trial_number: int
    files: list[Path]
    command: str
    """The shell command that runs the files."""
    warning: str | None
    """Why not to run them: the trial did not run to its end."""


def export_from(
    study: StudyRecord, trials: Sequence[TrialRecord], trial_number: int | None, launcher: str, out_dir: Path
) -> Exported:
    """Exports trial `trial_number` of `study`, or its winner if None.

    Raises:
        UsageError: no such trial or launcher, or a launcher that cannot run it.
        AutofitError: the study has no winner, the trial has not finished, or `out_dir` cannot be written.
    """
    number = study.winner_trial_number if trial_number is None else trial_number
    if number is None:
        raise AutofitError(_why_no_winner(study, trials))
    trial = next((each for each in trials if each.trial_number == number), None)
    if trial is None:
        have = f"it has 0 to {max(each.trial_number for each in trials)}" if trials else "it has none"
        raise UsageError(f"study {study.name} has no trial {number}; {have}")
    reference = reference_trial(study, trials)
    files = export(study, trial, reference, launcher, out_dir, confirm=_confirmation(trial, trials))
    command = launch_command(study, trial, launcher, out_dir)
    return Exported(number, files, command, warning(Source(study, trial, reference).result))


def _confirmation(trial: TrialRecord, trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The finished `confirm` run of a search trial's configuration."""
    runs = [each for each in trials if each.purpose == "confirm" and each.spec == trial.spec and each.result is not None]
    return runs[-1] if runs and trial.purpose == "search" else None


def _why_no_winner(study: StudyRecord, trials: Sequence[TrialRecord]) -> str:
    finished = [trial for trial in trials if trial.result is not None]
    fitting = sum(trial.fits for trial in finished)
    if study.status != "FINISHED":
        todo = f"`autofit search --resume --study {study.name}` finishes it"
        return f"study {study.name} has no winner yet: it is {study.status} with {len(finished)} trial(s) done; {todo}"
    ooms = sum(trial.out_of_memory for trial in finished)
    counted = f"of {len(finished)} trial(s) {fitting} ran to the end and {ooms} ran out of memory"
    return f"study {study.name} has no winner: {counted}; see `autofit trials --study {study.name}`, or name one with --trial"
