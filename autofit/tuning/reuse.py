"""What earlier studies measured, for the next one.

A trial of a study of the same things (model, data, devices, engine, versions, length of a trial) is the trial of this study,
as far as it holds for its budget: it is taken over and not run again. A trial of another model of the family only teaches how
wrong predictions are: it becomes a prior.

What a budget does to a trial: with a peak inside it, nothing. A peak above it would not fit; on CUDA that is certain only of
what was allocated, since cached blocks can be given back. Out of memory under a larger budget is out of memory under this one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from autofit.config.record import Purpose, StudyRecord, TrialRecord
from autofit.launch.environment import probe
from autofit.predict.learned import STACK, Basis
from autofit.search.expectation import Earlier
from autofit.search.history import at_least_bytes
from autofit.store.store import Store
from autofit.tuning.plan import Plan

LIMIT = 100
"""Earlier trials at most that serve as priors, the newest first."""


def own_trials(study: StudyRecord, trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Those that the study ran itself: one that was taken over began before the study did."""
    return [trial for trial in trials if trial.started_at >= study.created_at]


def take_over(store: Store, plan: Plan, said: Callable[[str], None]) -> int:
    """Copies what earlier studies measured and this budget leaves true into a study without trials; returns how many.

    Args:
        said: told from which study they are.
    """
    study = plan.study
    others = [each for each in store.studies() if each.name != study.name and same_things(each, study)]
    if not others or store.trials(study.name):
        return 0
    versions = probe(study.python).versions
    taken: dict[tuple[Purpose, str], TrialRecord] = {}
    legal = set(plan.legal.points)
    for other in reversed(others):
        found = [trial for trial in store.trials(other.name) if trial.spec in legal and _holds(trial, other, study, versions)]
        fresh = {(trial.purpose, trial.spec.config_key()): trial for trial in found}
        fresh = {key: trial for key, trial in fresh.items() if key not in taken}
        if fresh:
            said(f"{len(fresh)} trial(s) of study {other.name} hold for this budget as well and are not run again")
        taken |= fresh
    ordered = sorted(taken.values(), key=lambda trial: (trial.purpose == "confirm", trial.started_at))
    records = [_copied(trial, study.name, number) for number, trial in enumerate(ordered)]
    if records:
        store.add_trials(study.name, records)
    return len(records)


def earlier_trials(store: Store, study: StudyRecord, known: Iterable[TrialRecord]) -> list[Earlier]:
    """Trials of the same model family, device and versions that are not among `known`, as priors; newest studies first."""
    others = [each for each in store.studies() if each.name != study.name and each.hardware.device == study.hardware.device]
    if not others:
        return []
    device = study.hardware.devices[0].name
    wanted = Basis.of(study.model, device, probe(study.python).versions)
    have = {trial.spec for trial in known}
    found: list[Earlier] = []
    for other in reversed(others):
        for trial in store.trials(other.name, purpose="search"):
            if trial.result is None or trial.spec in have or len(found) >= LIMIT:
                continue
            if Basis.of(other.model, other.hardware.devices[0].name, trial.result.versions) == wanted:
                found += _as_prior(trial, other, study)
    return found


def same_things(one: StudyRecord, other: StudyRecord) -> bool:
    """Whether a trial of one study is a trial of the other, but for the budget."""

    def ground(study: StudyRecord) -> tuple[object, ...]:
        hardware = study.hardware
        devices = (hardware.device, [device.name for device in hardware.devices])
        return study.model, devices, study.engine, study.space.dataset, study.space.measure, study.source_yaml

    return ground(one) == ground(other)


def _holds(trial: TrialRecord, other: StudyRecord, study: StudyRecord, versions: Mapping[str, str]) -> bool:
    """Whether a trial of a study of the same things says what it would under this study's budget."""
    result, budget = trial.result, study.memory_budget_bytes
    if result is None or trial.purpose == "launch":
        return False
    if any(result.versions[name] != versions.get(name) for name in STACK if name in result.versions):
        return False
    if trial.out_of_memory:
        return at_least_bytes(trial, other.memory_budget_bytes) >= budget
    peak = result.peak_device_bytes
    if not trial.fits or peak is None:
        return False
    if any(rank.num_alloc_retries for rank in result.ranks):
        return budget == other.memory_budget_bytes  # its speed is that of this budget alone
    return peak <= budget or study.hardware.device == "cpu" or (result.peak_allocated_bytes or 0) > budget


def _copied(trial: TrialRecord, study: str, number: int) -> TrialRecord:
    reason = f"taken over from trial {trial.trial_number} of study {trial.study}: {trial.reason}"
    return trial.model_copy(update={"study": study, "trial_number": number, "reason": reason, "attempt": 1})


def _as_prior(trial: TrialRecord, other: StudyRecord, study: StudyRecord) -> Sequence[Earlier]:
    result = trial.result
    if trial.prediction is None and other.model != study.model:
        return ()
    if trial.out_of_memory:
        bound = at_least_bytes(trial, other.memory_budget_bytes)
        return (Earlier(other.name, trial.spec, trial.prediction, at_least_bytes=bound),)
    if not trial.fits or result is None or result.peak_device_bytes is None:
        return ()
    speed = getattr(result, study.space.rate)
    return (Earlier(other.name, trial.spec, trial.prediction, peak_bytes=result.peak_device_bytes, speed=speed),)
