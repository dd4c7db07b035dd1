"""The certificate of an export, from the study's records alone."""

from collections.abc import Mapping
from pathlib import Path

from autofit.config.certificate import Certificate, Figures, FileDigest, Start
from autofit.config.launcher_yaml import launcher_values
from autofit.config.record import TrialRecord
from autofit.config.space import DatasetRef
from autofit.export.digest import dataset_digest, text_digest
from autofit.export.evidence import NEVER_RUN
from autofit.export.source import Source


def certificate(source: Source, launcher: str, start: Start, texts: Mapping[str, str]) -> Certificate:
    """What `texts` (file name -> text) are proved by; reads the data set's files for their digest."""
    study, result, confirm = source.study, source.result, source.confirm
    never_run = result.outcome in NEVER_RUN
    proof = confirm.result if confirm and confirm.result else result
    return Certificate(
        autofit_version=study.autofit_version,
        study=study.name,
        trial_number=source.trial.trial_number,
        evidence="predicted" if never_run else "measured" if result.outcome == "COMPLETED" else "failed",
        engine=study.engine,
        python=study.python,
        launcher=launcher,
        start=start,
        spec=source.spec,
        files=tuple(FileDigest(name=name, sha256=text_digest(text)) for name, text in texts.items()),
        dataset=dataset_digest(_dataset(source), _media_dir(source)),
        versions=proof.versions,
        hardware=study.hardware,
        gpu_mem_bytes=study.gpu_mem_bytes,
        memory_budget_bytes=study.memory_budget_bytes,
        search=None if never_run else _figures(source.trial, study.memory_budget_bytes),
        confirm=_figures(confirm, study.memory_budget_bytes) if confirm and not never_run else None,
    )


def _dataset(source: Source) -> DatasetRef | None:
    return source.dataset if source.study.space.dataset is not None else None


def _media_dir(source: Source) -> str | None:
    """Absolute, of the user's own file."""
    study = source.study
    if study.source_yaml is None:
        return None
    folder = launcher_values(study.source_yaml, str(study.source_path)).get("media_dir")
    return str(Path(folder).resolve()) if folder else None


def _figures(trial: TrialRecord, budget: int) -> Figures | None:
    result = trial.result
    if result is None:
        return None
    peak = result.peak_device_bytes
    measured = result.outcome == "COMPLETED"
    return Figures(
        trial_number=trial.trial_number,
        outcome=result.outcome,
        phase=result.phase,
        peak_device_bytes=peak,
        margin_bytes=None if peak is None else budget - peak,
        step_time_seconds=result.step_time_seconds if measured else None,
        samples_per_second=result.samples_per_second if measured else None,
        tokens_per_second=result.tokens_per_second if measured else None,
        effective_tokens_per_second=result.effective_tokens_per_second if measured else None,
        timed_steps=result.timed_steps if measured else None,
        epoch=result.epoch if measured else None,
        memory_limit=result.memory_limit,
        finished_at=trial.finished_at,
    )
