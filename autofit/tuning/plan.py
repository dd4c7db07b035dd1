"""From what the user asked to a study that can start: space, model, hardware, budget, interpreter - each checked once."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

import autofit
from autofit.config.base import describe
from autofit.config.hardware import Device, Hardware
from autofit.config.model import Model, ModelRef, resolve_model
from autofit.config.record import StudyRecord
from autofit.config.space import DatasetRef, LegalSpace, SearchSpace, enumerate_space, reference_spec
from autofit.data.collect import Progress
from autofit.data.sources import find_sources
from autofit.errors import UsageError
from autofit.launch import gpus
from autofit.launch.environment import TrainingEnvironment, probe
from autofit.predict.devices import device_model, for_memory, of_hardware
from autofit.predict.predictor import Predictor
from autofit.tuning.batches import Batches
from autofit.tuning.data import StudyData, data_notes, read_data
from autofit.tuning.engine import Choice, choose
from autofit.tuning.from_file import Start, start_from
from autofit.units import format_bytes

DEFAULT_SPACE = "qwen2_5_vl_7b"
HEADROOM = 0.02
"""Share of the memory that is left free: what a run may need beyond what a short trial shows."""
MIN_BUDGET_BYTES = {"cuda": 1024**3, "none": 1024**3, "cpu": 32 * 1024**2}
"""A CUDA context with its libraries takes about half a GiB before the first tensor."""


@dataclass(frozen=True)
class SearchRequest:
    """What `autofit search` was asked. None: not said."""

    gpu_mem_bytes: int
    space: str | None = None
    model: str | None = None
    dataset: str | None = None
    num_gpus: int | None = None
    global_batch_size: int | None = None
    device: Literal["auto", "cuda", "cpu", "none"] = "auto"
    card: str | None = None
    engine: Literal["auto", "llamafactory", "transformers"] = "auto"
    python: str | None = None
    sampler: str = "guided"
    seed: int = 0
    study: str | None = None
    from_file: str | None = None
    """The user's LLaMA-Factory YAML, instead of space, model, data set and global batch."""
    free: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    objective: str | None = None
    gpu_hour_price: float | None = None
    samples_per_epoch: int | None = None
    quality: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Quality`, which override the space's; those that were not said are missing."""


@dataclass(frozen=True)
class Plan:
    """A study that can start."""

    study: StudyRecord
    legal: LegalSpace
    notes: tuple[str, ...] = field(default=())
    """What the user should know before it runs."""
    batches: Batches | None = None
    """Which samples of the user's data the trials see; None: there is no profile of them, or trials run on synthetic ones."""
    data: StudyData | None = None
    predictor: Predictor | None = None
    """In the study's training environment, for its devices as far as their rates are known. All share its traces."""


def plan_study(request: SearchRequest, progress: Progress | None = None) -> Plan:
    """Everything that `run_search` needs, checked. The data are profiled, with `progress`, unless that was done before.

    Raises:
        UsageError: a space, model, device or budget that cannot be.
        LaunchError: the interpreter cannot run the trials.
        AutofitError: the data hold rows that end every training on them.
    """
    start = _start(request) if request.from_file is not None else None
    space = _demanded(start.space if start else _space(request), request)
    model = resolve_model(space.model)
    hardware, notes = _hardware(request, space, model)
    budget, more = _budget(request.gpu_mem_bytes, hardware)
    notes += more
    runs = hardware.device != "none"
    environment = probe(request.python or sys.executable)
    predictor = predictor_of(environment, hardware)
    _warm_up(predictor, request, space, model, hardware)
    data, why_not = read_data(space, model, environment, (start.path, start.text) if start else None, progress)
    reference = reference_spec(space, model, len(hardware.devices), data.floor(None, model) if data else None)
    choice = Choice("transformers", "nothing is run")
    if runs:
        choice = choose(request.engine, environment, model, space.dataset, reference, hardware.device)
        notes += [f"engine {choice.engine}: {choice.why}"] + ([choice.warning] if choice.warning else [])
    floor = data.floor(None if choice.engine == "llamafactory" else reference.images, model) if data else None
    legal = enumerate_space(space, model, len(hardware.devices), floor)
    _check_interpreter(environment, legal, runs=runs)
    notes += data_notes(data, why_not, legal, choice.engine, hardware.device)
    now = datetime.now(UTC)
    study = StudyRecord(
        name=request.study or f"{space.name}-{now:%Y%m%d-%H%M%S}",
        created_at=now,
        space=space,
        model=model,
        hardware=hardware,
        engine=choice.engine,
        python=environment.python,
        sampler=request.sampler,
        seed=request.seed,
        gpu_mem_bytes=request.gpu_mem_bytes,
        memory_budget_bytes=budget,
        autofit_version=autofit.__version__,
        floor=floor,
        source_path=start.path if start else None,
        source_yaml=start.text if start else None,
    )
    if start:
        start.refuse(study.engine)
    return Plan(study, legal, tuple(notes), batches_of(study, data, predictor), data, predictor)


def predictor_of(environment: TrainingEnvironment, hardware: Hardware) -> Predictor:
    """The predictor of a study."""
    return Predictor(environment.python, environment.versions, device=of_hardware(hardware))


def batches_of(study: StudyRecord, data: StudyData | None, predictor: Predictor) -> Batches | None:
    """The samples that a study's trials see; None where they are synthetic."""
    if data is None or study.engine != "llamafactory":
        return None
    return Batches(data, study.model, predictor, study.seed)


def _warm_up(predictor: Predictor, request: SearchRequest, space: SearchSpace, model: Model, hardware: Hardware) -> None:
    """Has what traces import while the data are read, if the reference's variant is not known yet."""
    predicts = hardware.device == "none" or (request.sampler == "guided" and predictor.device is not None)
    try:
        known = predictor.kept(reference_spec(space, model, len(hardware.devices)), model)
    except UsageError:  # of its data, perhaps, it may turn out to be a legal one
        known = False
    if predicts and not known:
        predictor.warm_up()


def _start(request: SearchRequest) -> Start:
    """The user's file as a space, for the devices that the study will have."""
    said = {
        "space": request.space,
        "model": request.model,
        "dataset": request.dataset,
        "global-batch-size": request.global_batch_size,
    }
    if clash := [name for name, value in said.items() if value is not None]:
        raise UsageError(f"--from takes the file's own; leave --{clash[0]} out, or change the file")
    visible = len(gpus.cuda_devices()) if request.device != "cpu" else 0
    device: Literal["cuda", "cpu"] = "cpu" if request.device == "cpu" else "cuda"
    return start_from(str(request.from_file), device, request.num_gpus or visible or 1, free=request.free, keep=request.keep)


def _space(request: SearchRequest) -> SearchSpace:
    """The space with the flags that override it."""
    space = SearchSpace.load(request.space or DEFAULT_SPACE)
    changes: dict[str, Any] = {}
    if request.model is not None:
        changes["model"] = ModelRef.from_text(request.model)
    if request.num_gpus is not None:
        changes["num_gpus"] = request.num_gpus
    if request.global_batch_size is not None:
        changes["global_batch_size"] = request.global_batch_size
        changes["reference"] = {k: v for k, v in space.reference.items() if k != "gradient_accumulation_steps"}
    if request.dataset is not None:
        changes["dataset"] = _dataset(request.dataset, space.dataset)
    try:
        return SearchSpace.model_validate({**space.model_dump(), **changes})
    except ValidationError as error:
        raise UsageError(f"space {space.name}: {describe(error, SearchSpace)}") from error


def _demanded(space: SearchSpace, request: SearchRequest) -> SearchSpace:
    """The space with the objective and the constraints that the flags name."""
    said = {name: getattr(request, name) for name in ("objective", "gpu_hour_price", "samples_per_epoch")}
    changes: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    if request.quality:
        changes["quality"] = {**space.quality.model_dump(), **request.quality}
    try:
        return SearchSpace.model_validate({**space.model_dump(), **changes})
    except ValidationError as error:
        raise UsageError(f"space {space.name}: {describe(error, SearchSpace)}") from error


def _dataset(text: str, known: DatasetRef | None) -> DatasetRef:
    """A data FILE that the `dataset_info.json` beside it lists, or a NAME in the space's dataset folder."""
    template = known.template if known else None
    file = Path(text)
    if not file.suffix and not file.exists():
        return DatasetRef(name=text, dir=known.dir if known else "data", template=template)
    found = find_sources(text, str(file.parent))
    return DatasetRef(name=found.names[0], dir=found.dataset_dir, template=template)


def _hardware(request: SearchRequest, space: SearchSpace, model: Model) -> tuple[Hardware, list[str]]:
    """What the trials run on, or what is planned for where nothing can be run, and what to say about it."""
    device = request.device
    if device == "auto":
        device = "cuda" if gpus.cuda_devices() else "none"
    if device == "cpu" and not model.is_tiny:
        raise UsageError(
            f"--device cpu really trains, and {model.label} is too large for that; take a GPU, a tiny model"
            " (--space tiny_qwen2_5_vl), or --device none, which predicts"
        )
    if device != "none":
        if request.card is not None:
            raise UsageError(
                f"--card {request.card}: only --device none plans for a card; trials run on the device that is here"
            )
        return gpus.detect(device, space.num_gpus), []
    card = device_model(request.card) if request.card else for_memory(request.gpu_mem_bytes)
    count = space.num_gpus or space.planned_gpus
    notes = ["nothing is run here: every figure is predicted; run the same command where the GPUs are to measure"]
    if request.device == "auto":
        notes[0] = f"no CUDA GPU is visible; {notes[0]}"
    said = [f"{count} devices" if space.num_gpus is None else "", card.name if request.card is None else ""]
    if assumed := ", ".join(filter(None, said)):
        notes.append(f"assumed: {assumed}; --num-gpus and --card say otherwise")
    one = Device(index=0, uuid="planned", name=card.name, memory_bytes=card.memory_bytes)
    return gpus.planned(one, count), notes


def _budget(gpu_mem_bytes: int, hardware: Hardware) -> tuple[int, list[str]]:
    """What a rank may use, and what to say about it."""
    smallest = min(device.memory_bytes for device in hardware.devices)
    if hardware.device == "cpu":
        smallest //= len(hardware.devices)
    notes = []
    if gpu_mem_bytes > smallest:
        notes.append(f"the device has {format_bytes(smallest)}, less than --gpu-mem; its own memory is the limit")
    elif hardware.device == "cuda" and gpu_mem_bytes < 0.98 * smallest:
        notes.append(f"a card of {format_bytes(gpu_mem_bytes)} is emulated on one of {format_bytes(smallest)}")
    budget = int(min(gpu_mem_bytes, smallest) * (1 - HEADROOM))
    least = MIN_BUDGET_BYTES[hardware.device]
    if budget < least:
        raise UsageError(
            f"--gpu-mem {format_bytes(gpu_mem_bytes)} is impossible: at least {format_bytes(least / (1 - HEADROOM))} is needed"
            " before the first tensor"
        )
    return budget, notes


def _check_interpreter(environment: TrainingEnvironment, legal: LegalSpace, *, runs: bool) -> None:
    """Refuses an interpreter without what the space's trials (or only their predictions) need."""
    methods: set[str] = {point.method for point in legal.points}
    stages: set[int] = {point.zero_stage for point in legal.points} if runs else set()
    if missing := environment.missing(methods, stages):
        raise UsageError(
            f"{environment.python} lacks {', '.join(missing)}, which the trials need; install them there, or name your training"
            " environment with --python PATH"
        )
