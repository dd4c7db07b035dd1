"""What a stored study found, for whoever shows it afterwards: the same choices that its search made, from its rows alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.space import LegalSpace, enumerate_space
from autofit.tuning.compromise import Compromise, compromise_table
from autofit.tuning.figures import Evidence, Figures, figures, of_trial
from autofit.tuning.front import pareto_front


@dataclass(frozen=True)
class Findings:
    """A study and what follows from its trials."""

    study: StudyRecord
    legal: LegalSpace
    trials: tuple[TrialRecord, ...]
    """All of them, confirmations and launches too, by number."""
    known: tuple[Figures, ...]
    """Figures of the search trials that have any."""
    reference: TrialRecord | None
    winner: TrialRecord | None
    """As the study recorded it; None: there is none, or it still runs."""
    confirmed_by: TrialRecord | None
    front: tuple[Figures, ...]
    compromises: tuple[Compromise, ...]

    @property
    def evidence(self) -> Evidence:
        """What the study's figures are: of one that only plans, nothing is measured."""
        return "predicted" if self.study.hardware.device == "none" else "measured"

    @property
    def emulated(self) -> bool:
        """Whether a smaller card than the one that ran the trials was emulated."""
        return any(trial.result and "emulated" in (trial.result.memory_limit or "") for trial in self.trials)

    def figures_of(self, trial: TrialRecord | None) -> Figures | None:
        """A trial's figures; None without a trial, or of one that says nothing."""
        return of_trial(self.study, trial) if trial else None


def find(study: StudyRecord, trials: Sequence[TrialRecord]) -> Findings:
    """What a study's trials say.

    Raises:
        UsageError: the stored space has become illegal under this autofit.
    """
    legal = enumerate_space(study.space, study.model, len(study.hardware.devices), study.floor)
    searched = [trial for trial in trials if trial.purpose == "search"]
    winner = next((trial for trial in searched if trial.trial_number == study.winner_trial_number), None)
    known = figures(study, trials)
    confirmed = [t for t in trials if t.purpose == "confirm" and winner and t.spec == winner.spec and t.fits]
    return Findings(
        study=study,
        legal=legal,
        trials=tuple(trials),
        known=tuple(known),
        reference=next((trial for trial in searched if trial.spec == legal.reference), None),
        winner=winner,
        confirmed_by=confirmed[-1] if confirmed else None,
        front=tuple(pareto_front(known, study.floor)),
        compromises=tuple(compromise_table(study, trials, winner) if winner else ()),
    )
