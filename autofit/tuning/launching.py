"""`autofit launch`: the launcher on what was exported, and, where the user wants it, on from an out-of-memory."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from autofit.config.certificate import Certificate
from autofit.config.record import TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import enumerate_space
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError, UsageError
from autofit.export import in_folder
from autofit.export.deepspeed import USERS_PROGRAM
from autofit.export.llamafactory import FILE
from autofit.launch.environment import CPU_MALLOC
from autofit.launch.foreground import run_in_foreground
from autofit.launch.memory_errors import memory_error
from autofit.store.store import Store
from autofit.tuning.recovery import Progress, next_safer, progress_of, write_recovery
from autofit.tuning.verification import read_certificate, verify


@dataclass(frozen=True)
class Launched:
    """How the run went."""

    status: int
    """Exit status of the last launcher."""
    folder: Path
    """What it ran: the exported folder, or the last `recovered-N` in it."""
    recoveries: tuple[str, ...] = field(default=())
    """A line for each time that it went on."""


def launch(folder: Path, python: str | None, store: Store | None, said: Callable[[str], None]) -> Launched:
    """Runs what was exported into `folder` from the current folder, to which its paths are relative.

    What of its certificate does not hold is said first, and does not stop the run. With a `store`, an out-of-memory is written
    to it as a trial of purpose `launch`, and the run goes on from its last checkpoint with the next safer configuration of the
    study.

    Raises:
        UsageError: nothing that autofit can launch.
        AutofitError: the launcher is not there, or no safer configuration is left.
    """
    certificate = read_certificate(folder)
    _refuse(folder, certificate, recover=store is not None)
    verdict = verify(folder, certificate, python)
    for line in verdict.broken:
        said(f"warning: the certificate does not hold: {line}")
    recoveries: list[str] = []
    while True:
        begun = datetime.now(UTC)
        ended = run_in_foreground(_argv(folder, certificate, python), launch_environment(certificate, python))
        error = memory_error(ended.last_words) if ended.status and not ended.interrupted else None
        if error is None or store is None:
            if error is not None:
                said(
                    f"the run ran out of memory: {error[1]}; `autofit launch {folder} --recover` goes on with a safer"
                    " configuration"
                )
            return Launched(ended.status, folder, tuple(recoveries))
        failure = _Failure(*error, progress_of((folder / FILE).read_text(encoding="utf-8"), str(folder / FILE)), begun)
        folder, certificate, line = _recover(folder, certificate, store, failure)
        recoveries.append(line)
        said(line)


@dataclass(frozen=True)
class _Failure:
    """An out-of-memory of the real run."""

    on_host: bool
    line: str
    """The launcher's own words."""
    progress: Progress
    begun: datetime


def _recover(folder: Path, certificate: Certificate, store: Store, failure: _Failure) -> tuple[Path, Certificate, str]:
    """Notes what happened and makes the files to go on with."""
    study, progress = store.study(certificate.study), failure.progress
    number = _observe(store, folder, certificate, failure)
    trials = store.trials(certificate.study)
    legal = enumerate_space(study.space, study.model, certificate.spec.num_gpus, study.floor)
    unusable = _resume_problem(trials) if progress.checkpoint else None
    checkpoint = None if unusable else progress.checkpoint
    resumed = checkpoint is not None
    safer = next_safer(legal.points, trials, certificate.spec, same_sharding=resumed)
    happened = f"out of memory {progress.words} (trial {number} of study {study.name})"
    if safer is None:
        anew = next_safer(legal.points, trials, certificate.spec, same_sharding=False) if resumed else None
        hint = (
            f"; only from the start, because a checkpoint keeps its ZeRO stage: {_difference(certificate.spec, anew)}"
            if anew
            else ""
        )
        raise AutofitError(f"{happened}; the study has no safer configuration to go on with{hint}")
    target, after = write_recovery(folder, certificate, safer, trials, checkpoint)
    where = f"from {checkpoint.name}" if checkpoint else "from the start" + (f", because {unusable}," if unusable else "")
    return target, after, f"{happened}; goes on {where} with {_difference(certificate.spec, safer)}: {target / FILE}"


def _resume_problem(trials: Sequence[TrialRecord]) -> str | None:
    """What a confirmation of the study found wrong with resuming: a checkpoint that loses weights must not be gone on from."""
    found = [trial.result.resume_problem for trial in trials if trial.purpose == "confirm" and trial.result]
    return next((problem for problem in reversed(found) if problem), None)


def _observe(store: Store, folder: Path, certificate: Certificate, failure: _Failure) -> int:
    """Stores the run as a trial and returns its number."""
    number = max((trial.trial_number for trial in store.trials(certificate.study)), default=-1) + 1
    now = datetime.now(UTC)
    record = TrialRecord(
        study=certificate.study,
        trial_number=number,
        purpose="launch",
        spec=certificate.spec,
        reason=f"launched from {folder}",
        run_dir=str(folder.resolve()),
        started_at=failure.begun,
    )
    outcome = "HOST_OOM" if failure.on_host and certificate.hardware.device == "cuda" else "OOM"
    store.start_trial(record)
    result = TrialResult(
        outcome=outcome,
        message=f"{failure.progress.words}: {failure.line}",
        not_measured=["peak", "speed"],
        versions=certificate.versions,
    )
    store.finish_trial(certificate.study, number, now, result)
    return number


def _refuse(folder: Path, certificate: Certificate, *, recover: bool) -> None:
    if USERS_PROGRAM in certificate.start.arguments:
        raise UsageError(
            f"{folder} was exported for {certificate.launcher}, which runs a program of your own; put its name for"
            f" {USERS_PROGRAM} and run: {' '.join(certificate.start.arguments)}"
        )
    if recover and certificate.launcher != "llamafactory":
        raise UsageError(f"--recover knows LLaMA-Factory's checkpoints; {folder} was exported for {certificate.launcher}")
    if "FORCE_TORCHRUN" in certificate.start.environment and any(letter.isspace() for letter in str(folder)):
        raise UsageError(f"LLaMA-Factory hands torchrun its file without quotes; give {str(folder)!r} a path without spaces")


def _argv(folder: Path, certificate: Certificate, python: str | None) -> list[str]:
    """The launcher beside the training environment's interpreter, or on the PATH."""
    program, *rest = in_folder(certificate.start, folder)
    beside = Path(python or certificate.python or sys.executable).parent / program
    found = str(beside) if beside.is_file() else shutil.which(program)
    if found is None:
        raise AutofitError(
            f"{program} is neither beside {python or certificate.python} nor on the PATH; name its Python with --python"
        )
    return [found, *rest]


def launch_environment(certificate: Certificate, python: str | None) -> dict[str, str]:
    """The user's own, with the launcher's variables; torchrun is found beside the interpreter."""
    beside = Path(python or certificate.python or sys.executable).parent
    env = {**os.environ, **certificate.start.environment, "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"}
    if certificate.hardware.device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        for name, value in {"OMP_NUM_THREADS": "1", **CPU_MALLOC}.items():
            env.setdefault(name, value)
    return env


def _difference(before: TrialSpec, after: TrialSpec) -> str:
    names = ("micro_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "zero_stage", "offload_optimizer")
    changed = [f"{name} {getattr(after, name)}" for name in names if getattr(before, name) != getattr(after, name)]
    return ", ".join(changed)
