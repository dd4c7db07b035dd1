"""Finished trials as Optuna sees them.

Our database is the record; an in-memory Optuna study is built anew from it for every proposal. A trial that ran out of memory
is told as COMPLETE with a violated constraint `memory`, so that samplers learn where the wall is: told as FAIL it would be
ignored (TPE and GP learn from COMPLETE only). Trials that failed for another reason are told as FAIL: they say nothing about
the configuration's worth.
"""

from collections.abc import Sequence

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from autofit.config.legality import training_changes
from autofit.config.record import TrialRecord
from autofit.config.space import LegalSpace, Value
from autofit.config.trial import TrialSpec
from autofit.search.points import is_ordered

DERIVED = "gradient_accumulation_steps"


def distributions(space: LegalSpace) -> dict[str, BaseDistribution]:
    """One distribution a varying knob: numbers by their place in the list of values, names and flags as categories.

    The accumulation is left out where it follows from the micro-batch.
    """
    found: dict[str, BaseDistribution] = {}
    for name, values in space.knobs.items():
        if name == DERIVED and len({point.global_batch_size for point in space.points}) == 1:
            continue
        ordered = is_ordered(name, values[0])
        found[name] = IntDistribution(0, len(values) - 1) if ordered else CategoricalDistribution(list(values))
    return found


def encode(spec: TrialSpec, space: LegalSpace) -> dict[str, Value]:
    """The parameters of a spec under `distributions`."""
    return {
        name: space.knobs[name].index(getattr(spec, name)) if isinstance(dist, IntDistribution) else getattr(spec, name)
        for name, dist in distributions(space).items()
    }


def decode(params: dict[str, Value], space: LegalSpace) -> dict[str, Value]:
    """The knob values of parameters under `distributions`."""
    kinds = distributions(space)
    return {
        name: space.knobs[name][int(value)] if isinstance(kinds[name], IntDistribution) else value
        for name, value in params.items()
    }


def to_frozen(history: Sequence[TrialRecord], space: LegalSpace, budget_bytes: int, objective: str) -> list[FrozenTrial]:
    """The finished trials of a study for Optuna, in their order. The objective is maximised.

    A trial out of memory has no throughput; it is given the lowest that was measured, which tells a Gaussian process
    nothing it did not know, where 0 would bend its surface.
    """
    speeds = [getattr(trial.result, objective) for trial in history if trial.fits]
    floor = min(speeds, default=0.0)
    return [_frozen(trial, space, budget_bytes, objective, floor) for trial in history if trial.result is not None]


def memory_violation(trial: TrialRecord, budget_bytes: int) -> float:
    """Share of the budget by which a trial's peak exceeds it; negative where it fits.

    The peak of a trial that ran out of memory is only known to be above the budget; what the failed allocation asked for
    tightens that, where the message told.
    """
    result = trial.result
    if result is not None and trial.fits and result.peak_device_bytes is not None:
        return result.peak_device_bytes / budget_bytes - 1.0
    least = 0.01
    if result is not None and result.requested_bytes:
        least = max(least, result.requested_bytes / budget_bytes)
    return least


def _frozen(trial: TrialRecord, space: LegalSpace, budget_bytes: int, objective: str, floor: float) -> FrozenTrial:
    params, kinds = encode(trial.spec, space), distributions(space)
    if not (trial.fits or trial.out_of_memory):
        return create_trial(state=TrialState.FAIL, params=params, distributions=kinds)
    return create_trial(
        value=getattr(trial.result, objective) if trial.fits else floor,
        params=params,
        distributions=kinds,
        constraints={
            "memory": memory_violation(trial, budget_bytes),
            "quality": float(len(training_changes(trial.spec, space.reference))),
        },
    )
