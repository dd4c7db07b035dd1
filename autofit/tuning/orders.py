"""What a trial of a study is told to do: the worker's `RunSpec`, for a search and for a confirmation."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from autofit.config.record import Purpose, StudyRecord, TrialRecord
from autofit.config.trial import RunSpec, TrialSpec
from autofit.export.llamafactory_arguments import arguments
from autofit.export.user_file import user_arguments
from autofit.tuning.batches import Chosen
from autofit.tuning.plan import Plan
from autofit.units import format_bytes

CONFIRM_FACTOR = 10
"""A confirmation runs this many times as long as a trial.

Two rungs, then: every configuration gets the trial's few steps in a forked process, and the leaders, best first and until one
holds, this many times as many in new processes. A rung in between would time steps that the trials have timed already; what a
trial is too short for (growth, evaluation, saving, resuming) needs the whole length.
"""
CHECKPOINT_STATE_BYTES = 12
"""Bytes per trained parameter that a checkpoint holds beside the weights: fp32 masters and two moments."""


def order(plan: Plan, trial: TrialRecord, said: Callable[[str], None], *, checkpoint: bool) -> RunSpec:
    """The order of one trial.

    Args:
        said: told what of the study's data the trial cannot be given.
        checkpoint: whether a confirmation saves and resumes.
    """
    study = plan.study
    measure, steps = study.space.measure, timed_steps(study, trial.purpose)
    if trial.purpose == "confirm":
        measure = measure.model_copy(update={"steps": steps, "evaluate": True, "save": checkpoint, "resume": checkpoint})
    device = study.hardware.device
    assert device != "none"
    keys = None
    if study.engine == "llamafactory":
        from_file = study.source_yaml is not None
        keys = (
            user_arguments(study, trial.spec) if from_file else arguments(trial.spec, study.model, study.space.dataset, device)
        )
    chosen = plan.batches.choose(trial.spec, steps, said) if plan.batches is not None else Chosen()
    return RunSpec(
        trial=trial.spec,
        model=study.model,
        engine=study.engine,
        arguments=keys,
        worst_batch=chosen.worst_places,
        timed_batches=chosen.timed_places,
        device=device,
        measure=measure,
        memory_budget_bytes=study.memory_budget_bytes,
        seed=study.seed,
    )


def like_all(plan: Plan) -> RunSpec:
    """What every trial of a study has in common: the reference, without samples."""
    study = plan.study
    assert study.hardware.device != "none"
    return RunSpec(
        trial=plan.legal.reference,
        model=study.model,
        engine=study.engine,
        arguments={} if study.engine == "llamafactory" else None,
        device=study.hardware.device,
        measure=study.space.measure,
    )


def timed_steps(study: StudyRecord, purpose: Purpose) -> int:
    """Optimizer steps of a trial that are timed."""
    measure = study.space.measure
    if purpose != "confirm":
        return measure.steps
    return CONFIRM_FACTOR * (measure.warmup_steps + measure.steps) - measure.warmup_steps


def lacks_room_for_checkpoint(spec: TrialSpec, searched: Sequence[TrialRecord], folder: Path) -> str | None:
    """In words, that the disk of `folder` does not hold what a checkpoint of `spec` writes; None: it does, or is not known."""
    known = next((trial.result for trial in searched if trial.spec == spec and trial.result), None)
    if known is None or known.total_parameters is None or known.trainable_parameters is None:
        return None
    width = 4 if spec.precision == "fp32" else 2
    needed = width * known.total_parameters + CHECKPOINT_STATE_BYTES * known.trainable_parameters
    free = shutil.disk_usage(folder).free
    if needed < free:
        return None
    return (
        f"no room for a checkpoint in {folder}: about {format_bytes(needed)} needed, {format_bytes(free)} free; the"
        " confirmation leaves saving and resuming out (--runs names another folder)"
    )
