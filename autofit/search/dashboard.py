"""A study of ours as an Optuna study that people look at with optuna-dashboard: values instead of places, everything named.

It is a copy in memory of what the store has now; nothing that is done to it comes back.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from autofit.config.objective import rate_of_prediction
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.space import LegalSpace, Value
from autofit.errors import UsageError
from autofit.search.history import decode, distributions, to_frozen

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

CONSTRAINTS = ("memory", "quality")
"""Of a trial, in this order: above zero it does not fit, or trains less than was asked for."""


def rebuilt(study: StudyRecord, space: LegalSpace, trials: Sequence[TrialRecord]) -> optuna.Study:
    """The finished search trials of a study as an Optuna study in memory. Its one objective, the study's rate, is maximised.

    A trial that ran, or ran out of memory, is COMPLETE, as samplers are told it (`history.to_frozen`); so is one that is only
    predicted to fit, whose value then is predicted. Others are FAIL.
    """
    rate = study.space.rate
    made = optuna.create_study(storage=InMemoryStorage(), study_name=study.name, direction="maximize")
    name = f"predicted {rate}" if study.hardware.device == "none" else rate
    # where Optuna itself keeps an objective's name; its own setter warns that it is experimental
    made._storage.set_study_system_attr(made._study_id, "study:metric_names", [name])
    told = {"model": study.model.label, "device": study.hardware.device, "memory_budget_bytes": study.memory_budget_bytes}
    for key, value in {**told, "winner_trial_number": study.winner_trial_number, "sampler": study.sampler}.items():
        made.set_user_attr(key, value)
    finished = [trial for trial in trials if trial.purpose == "search" and trial.result is not None]
    kinds = distributions(space)
    shown = {name: _readable(kind, space.knobs[name]) for name, kind in kinds.items()}
    for trial, frozen in zip(finished, to_frozen(finished, space, study.memory_budget_bytes, rate), strict=True):
        made.add_trial(_shown(trial, frozen, decode(frozen.params, space, kinds), shown, study))
    return made


def application(study: optuna.Study) -> "WSGIApplication":
    """optuna-dashboard over a study.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise UsageError("the dashboard is an extra: pip install 'autofit-llm[dashboard]'") from None
    app: WSGIApplication = wsgi(study._storage)
    return app


def _readable(kind: BaseDistribution, values: Sequence[Value]) -> BaseDistribution:
    """Numbers as numbers, on a logarithmic axis where they can be."""
    if not isinstance(kind, IntDistribution):
        return kind
    low, high = int(values[0]), int(values[-1])
    return IntDistribution(low, high, log=low >= 1)


def _shown(
    trial: TrialRecord,
    frozen: FrozenTrial,
    params: Mapping[str, Value],
    kinds: Mapping[str, BaseDistribution],
    study: StudyRecord,
) -> FrozenTrial:
    assert trial.result is not None
    state, value = frozen.state, frozen.value if frozen.state == TrialState.COMPLETE else None
    if trial.result.outcome == "PREDICTED" and trial.prediction is not None:
        state, value = TrialState.COMPLETE, rate_of_prediction(trial.prediction, study.space.rate)
    # the form of a constraint that the dashboard reads, and Optuna too
    broken = {"constraints": [frozen.constraints[name] for name in CONSTRAINTS]} if frozen.constraints else {}
    made = create_trial(
        state=state,
        value=value,
        params=dict(params),
        distributions=dict(kinds),
        user_attrs=_attributes(trial),
        system_attrs=broken,
    )
    made.datetime_start, made.datetime_complete = _local(trial.started_at), _local(trial.finished_at)
    return made


def _attributes(trial: TrialRecord) -> dict[str, Any]:
    """What the dashboard lists beside the knobs; what is not known is left out."""
    result, told = trial.result, trial.prediction
    assert result is not None
    known = {
        "trial_number": trial.trial_number,
        "outcome": result.outcome,
        "reason": trial.reason,
        "phase": result.phase,
        "peak_device_bytes": result.peak_device_bytes,
        "predicted_peak_bytes": told.peak_device_bytes if told else None,
        "step_time_seconds": result.step_time_seconds,
        "message": result.message,
    }
    return {name: value for name, value in known.items() if value is not None}


def _local(moment: datetime | None) -> datetime | None:
    """As Optuna writes times: local, without a zone."""
    return moment.astimezone().replace(tzinfo=None) if moment is not None else None
