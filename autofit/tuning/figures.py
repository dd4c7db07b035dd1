"""A study's configurations with what is known of each: measured where it ran, else predicted. Never mixed in one figure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from autofit.config.objective import rate_of_prediction
from autofit.config.prediction import Prediction
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.trial import TrialSpec
from autofit.units import format_bytes

Evidence = Literal["measured", "predicted"]
_SAYS_OF_MEMORY = frozenset({"OOM", "HOST_OOM", "GROWTH", "THRASH"})
"""Outcomes, beside COMPLETED, that tell something of a configuration's worth."""


@dataclass(frozen=True)
class Figures:
    """One configuration's figures, all of one kind of evidence."""

    spec: TrialSpec
    evidence: Evidence
    trial_number: int | None
    """None: predicted, and no trial of the study."""
    fits: bool
    """Measured: it ran to its end within the budget. Predicted: it does so with the margin of its prediction."""
    outcome: str
    """`fits`, or why it does not, in words."""
    rate: float | None
    """The study's objective as a rate, see `objective.rate_of`."""
    samples_per_second: float | None
    peak_device_bytes: int | None


def figures(
    study: StudyRecord, trials: Iterable[TrialRecord], forecasts: Mapping[TrialSpec, Prediction] | None = None
) -> list[Figures]:
    """What is known of a study's configurations: its search trials in order, then `forecasts` of those that were not tried."""
    found = [known for trial in trials if trial.purpose == "search" and (known := of_trial(study, trial)) is not None]
    tried = {known.spec for known in found}
    untried = ((spec, prediction) for spec, prediction in (forecasts or {}).items() if spec not in tried)
    return found + [of_prediction(study, spec, prediction) for spec, prediction in untried]


def of_trial(study: StudyRecord, trial: TrialRecord) -> Figures | None:
    """Of one trial; None where it says nothing of the configuration: it runs, it crashed, or it could not be predicted."""
    result = trial.result
    if result is None:
        return None
    if result.outcome in {"PREDICTED", "SKIPPED"}:
        return of_prediction(study, trial.spec, trial.prediction, trial.trial_number) if trial.prediction else None
    if result.outcome != "COMPLETED" and result.outcome not in _SAYS_OF_MEMORY:
        return None
    peak, budget = result.peak_device_bytes, study.memory_budget_bytes
    completed = result.outcome == "COMPLETED"
    fits = completed and peak is not None and peak <= budget
    over = f"{format_bytes(peak - budget)} over the budget" if peak is not None else ""
    ended = f"{result.outcome} in {result.phase}" if result.phase else result.outcome
    return Figures(
        spec=trial.spec,
        evidence="measured",
        trial_number=trial.trial_number,
        fits=fits,
        outcome="fits" if fits else over if completed else ended,
        rate=getattr(result, study.space.rate) if completed else None,
        samples_per_second=result.samples_per_second if completed else None,
        peak_device_bytes=peak,
    )


def of_prediction(study: StudyRecord, spec: TrialSpec, told: Prediction, trial_number: int | None = None) -> Figures:
    """Of a configuration that was predicted under the study's budget."""
    over = told.peak_device_bytes_high - study.memory_budget_bytes
    fits = over <= 0 if told.fits is None else told.fits
    return Figures(
        spec=spec,
        evidence="predicted",
        trial_number=trial_number,
        fits=fits,
        outcome="fits" if fits else f"up to {format_bytes(over)} over the budget",
        rate=rate_of_prediction(told, study.space.rate),
        samples_per_second=told.samples_per_second,
        peak_device_bytes=told.peak_device_bytes,
    )


def fastest(candidates: Sequence[Figures]) -> Figures | None:
    """The best by objective of those that fit and have a rate; the earlier of two equal ones."""
    fitting = [one for one in candidates if one.fits and one.rate is not None]
    return max(fitting, key=lambda one: one.rate or 0.0, default=None)
