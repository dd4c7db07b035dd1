"""Finished trials as Optuna sees them.

Our database is the record; an in-memory Optuna study is built anew from it for every proposal. A trial that ran out of memory
is told as COMPLETE with a violated constraint `memory`, so that samplers learn where the wall is: told as FAIL it would be
ignored (TPE and GP learn from COMPLETE only). Trials that failed for another reason are told as FAIL: they say nothing about
the configuration's worth.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from autofit.config.record import TrialRecord
from autofit.config.space import LegalSpace, Value
from autofit.config.trial import TrialSpec
from autofit.search.points import is_ordered

_Kinds = Mapping[str, BaseDistribution]
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


def encode(spec: TrialSpec, space: LegalSpace, kinds: _Kinds) -> dict[str, Value]:
    """The parameters of a spec under `kinds`, the space's `distributions`."""
    return {
        name: space.knobs[name].index(getattr(spec, name)) if isinstance(dist, IntDistribution) else getattr(spec, name)
        for name, dist in kinds.items()
    }


def decode(params: Mapping[str, Value], space: LegalSpace, kinds: _Kinds) -> dict[str, Value]:
    """The knob values of parameters under `kinds`, the space's `distributions`."""
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
    floor, kinds = min(speeds, default=0.0), distributions(space)

    def value(trial: TrialRecord) -> float | None:
        if trial.fits:
            return float(getattr(trial.result, objective))
        return floor if trial.out_of_memory else None

    return [_frozen(trial, space, kinds, budget_bytes, value(trial)) for trial in history if trial.result is not None]


def memory_violation(trial: TrialRecord, budget_bytes: int) -> float:
    """Share of the budget by which a trial's peak exceeds it; negative where it fits.

    The peak of a trial that ran out of memory is only known to be above the budget; what the failed allocation asked for
    tightens that, where the message told.
    """
    result = trial.result
    if result is not None and trial.fits and result.peak_device_bytes is not None:
        return result.peak_device_bytes / budget_bytes - 1.0
    least = max(0.01, at_least_bytes(trial, budget_bytes) / budget_bytes - 1.0)
    if result is not None and result.requested_bytes and not result.allocated_bytes:
        least = max(least, result.requested_bytes / budget_bytes)
    return least


def at_least_bytes(trial: TrialRecord, budget_bytes: int) -> int:
    """What the peak of a trial that ran out of memory is above for certain: the budget, or what was held and asked for."""
    result = trial.result
    if result is None or result.allocated_bytes is None or result.requested_bytes is None:
        return budget_bytes
    return max(budget_bytes, result.allocated_bytes + result.requested_bytes)


def _frozen(trial: TrialRecord, space: LegalSpace, kinds: _Kinds, budget_bytes: int, value: float | None) -> FrozenTrial:
    """`value`: the objective, or None for a trial that says nothing of the configuration's worth."""
    params, told = encode(trial.spec, space, kinds), _told(trial, budget_bytes)
    if value is None:
        return create_trial(state=TrialState.FAIL, params=params, distributions=dict(kinds), user_attrs=told)
    broken = {
        "memory": memory_violation(trial, budget_bytes),
        "quality": float(len(space.breaches(trial.spec))),
    }
    return create_trial(value=value, params=params, distributions=dict(kinds), user_attrs=told, constraints=broken)


def _told(trial: TrialRecord, budget_bytes: int) -> dict[str, Any]:
    """What the guided sampler reads. A run that thrashed at the limit needs more than there is, whatever its peak was."""
    result = trial.result
    if result is None:
        return {}
    if trial.out_of_memory or result.outcome == "THRASH":
        return {"at_least_bytes": at_least_bytes(trial, budget_bytes)}
    if not trial.fits or result.peak_device_bytes is None or result.step_time_seconds is None:
        return {}
    told: dict[str, Any] = {"peak_bytes": result.peak_device_bytes, "step_seconds": result.step_time_seconds}
    if trial.finished_at is not None and result.timed_steps:
        work = result.step_time_seconds * max(result.timed_steps, len(result.losses))
        told["startup_seconds"] = max(0.0, (trial.finished_at - trial.started_at).total_seconds() - work)
    return told
