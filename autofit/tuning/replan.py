"""A stored study as a plan, to go on with: what the user repeats must agree with it, and its devices must be here."""

from collections.abc import Mapping
from typing import Any

from autofit.config.model import ModelRef
from autofit.config.record import StudyRecord
from autofit.config.space import SearchSpace, enumerate_space
from autofit.data.collect import Progress
from autofit.errors import UsageError
from autofit.launch import gpus
from autofit.launch.environment import probe
from autofit.store.store import Store
from autofit.tuning.data import read_data
from autofit.tuning.plan import Plan, batches_of, predictor_of


def stored_study(store: Store, name: str | None) -> StudyRecord:
    """The study of that name, or the newest one.

    Raises:
        StoreError: no study has that name.
        UsageError: there is no study at all.
    """
    if name is not None:
        return store.study(name)
    studies = store.studies()
    if not studies:
        raise UsageError("--resume: the database holds no study yet; leave --resume out to start one")
    return max(studies, key=lambda study: study.created_at)


def replan(study: StudyRecord, given: Mapping[str, Any], progress: Progress | None = None) -> Plan:
    """A stored study, to go on with. `given` holds the settings that the user repeated (None: not said); they must agree.

    What is legal stays as the study recorded it; the batches of its trials are chosen from the data as they are now.

    Raises:
        UsageError: a setting differs from the study's.
        LaunchError: its interpreter cannot run the trials any more.
    """
    stored = {
        "gpu-mem": study.gpu_mem_bytes,
        "space": study.space.name,
        "sampler": study.sampler,
        "seed": study.seed,
        "num-gpus": len(study.hardware.devices),
        "device": study.hardware.device,
        "card": study.hardware.devices[0].name,
        "engine": study.engine,
        "global-batch-size": study.space.global_batch_size,
        "model": study.space.model,
        "from": study.source_path,
        "objective": study.space.objective,
        "gpu-hour-price": study.space.gpu_hour_price,
        "samples-per-epoch": study.space.samples_per_epoch,
        "max-truncated-share": study.space.quality.max_truncated_share,
        "min-cutoff-len": study.space.quality.min_cutoff_len,
        "allow-freezing": study.space.quality.allow_freezing,
        "allow-precision": study.space.quality.precision,
    }
    for name, value in given.items():
        if name == "space" and value not in {None, study.space.name}:
            _check_same_space(SearchSpace.load(str(value)), study)
        elif value is not None and value != stored[name]:
            raise UsageError(
                f"study {study.name} was started with --{name} {_shown(stored[name])}, not {_shown(value)}; start another with"
                " --study NAME"
            )
    hardware = study.hardware
    if study.hardware.device != "none":
        hardware = gpus.detect(study.hardware.device, len(study.hardware.devices))
    if [device.name for device in hardware.devices] != [device.name for device in study.hardware.devices]:
        raise UsageError(
            f"study {study.name} was measured on {study.hardware.devices[0].name}, this is {hardware.devices[0].name}"
        )
    legal = enumerate_space(study.space, study.model, len(study.hardware.devices), study.floor)
    study = study.model_copy(update={"hardware": hardware})
    environment = probe(study.python)
    predictor = predictor_of(environment, hardware)
    if study.floor is None:
        return Plan(study, legal, predictor=predictor)
    source = (study.source_path, study.source_yaml) if study.source_path and study.source_yaml else None
    data, why_not = read_data(study.space, study.model, environment, source, progress)
    return Plan(study, legal, (why_not,) if why_not else (), batches_of(study, data, predictor), data, predictor)


def _check_same_space(space: SearchSpace, study: StudyRecord) -> None:
    """Whether a space's file still says what the study began with; flags may have changed the rest of it.

    Raises:
        UsageError: it is another space, or its file has changed.
    """
    if space.name != study.space.name:
        raise UsageError(
            f"study {study.name} was started with --space {study.space.name}, not {space.name}; start another with --study NAME"
        )
    parts = ("knobs", "fixed", "conditions", "measure")
    if changed := [part for part in parts if getattr(space, part) != getattr(study.space, part)]:
        raise UsageError(
            f"space {space.name} has changed since study {study.name} began ({', '.join(changed)}); start another with --study"
            " NAME"
        )


def _shown(value: object) -> object:
    if isinstance(value, tuple):
        return ",".join(value) or "nothing"
    return value.label if isinstance(value, ModelRef) else value
