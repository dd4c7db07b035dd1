"""A search space: YAML -> the finite, ordered list of legal trial specs.

A space fixes some fields of `TrialSpec`, lists values for others (`knobs`), couples them (`conditions`), and names one full
assignment (`reference`): the first trial, and the training that the winner must not fall short of.
`gradient_accumulation_steps` follows from the global batch unless `global_batch_size` is `free`.
"""

import difflib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from autofit.config.base import Frozen, describe, parse, read_yaml
from autofit.config.floor import DataFloor
from autofit.config.legality import canonical, refusal
from autofit.config.model import Model, ModelRef
from autofit.config.objective import OF_AN_EPOCH, Epoch, Objective, rate_of
from autofit.config.quality import Quality, breaches, contradiction
from autofit.config.trial import Measure, TrialSpec
from autofit.errors import UsageError
from autofit.resources import resource_dir

Value = str | int | bool | float
KNOBS = (
    "method",
    "precision",
    "pure_bf16",
    "optimizer",
    "freeze_vision_tower",
    "freeze_multi_modal_projector",
    "freeze_language_model",
    "cutoff_len",
    "gradient_checkpointing",
    "zero_stage",
    "offload_optimizer",
    "offload_param",
    "attention",
    "fused_cross_entropy",
    "micro_batch_size",
    "gradient_accumulation_steps",
)
"""What may vary, in the order in which points are enumerated (the last varies fastest)."""

_SET_BY_SPACE = {"model", "num_gpus"}
MAX_POINTS = 200_000


class Condition(Frozen):
    """Where `when` holds, the knobs in `only` are limited to the values given there."""

    when: dict[str, list[Value] | Value] = Field(min_length=1)
    only: dict[str, list[Value] | Value] = Field(min_length=1)
    why: str = ""

    def allows(self, point: dict[str, Any]) -> bool:
        """Whether a full assignment obeys this condition."""
        if not all(point[name] in _as_list(values) for name, values in self.when.items()):
            return True
        return all(point[name] in _as_list(values) for name, values in self.only.items())

    @property
    def words(self) -> str:
        """The condition as a person would say it, with its reason."""

        def said(values: dict[str, list[Value] | Value]) -> str:
            return ", ".join(f"{name} {' or '.join(map(str, _as_list(given)))}" for name, given in values.items())

        return f"{said(self.when)} only with {said(self.only)}" + (f" ({self.why})" if self.why else "")


class DatasetRef(Frozen):
    """The data that the launcher will read. Trials run on a synthetic worst batch and do not need it."""

    name: str
    """Key in the launcher's `dataset_info.json`."""
    dir: str = "data"
    """Folder of `dataset_info.json` (LLaMA-Factory `dataset_dir`)."""
    template: str | None = None
    """LLaMA-Factory chat template; None: the one that fits the model's type."""


class SearchSpace(Frozen):
    """A search space as people write it."""

    name: str = Field(min_length=1)
    description: str = ""
    model: ModelRef
    dataset: DatasetRef | None = None
    num_gpus: PositiveInt | None = None
    """Devices; None: all that are visible."""
    planned_gpus: PositiveInt = 1
    """Devices to plan for where none is visible and `num_gpus` says nothing."""
    global_batch_size: PositiveInt | Literal["free"] | None = None
    """Samples per optimizer step, held constant, so that accumulation follows from it; None: what the reference multiplies to;
    `free`: whatever the knobs multiply to."""
    objective: Objective = "samples_per_second"
    """Speeds are maximised; an epoch's time and cost are minimised."""
    gpu_hour_price: PositiveFloat | None = None
    """Of one device, in any currency: gives the cost of an epoch."""
    samples_per_epoch: PositiveInt | None = None
    """Samples in the dataset; None: what its profile counts."""
    quality: Quality = Quality()
    """What the winner must keep, and what it may give up; nothing said: it trains what the reference trains."""
    fixed: dict[str, Any] = {}
    """Fields of the trial spec that do not vary."""
    knobs: dict[str, list[Value]] = Field(min_length=1)
    """Field -> the values to try."""
    conditions: list[Condition] = []
    reference: dict[str, Any]
    """A value for every knob: the first trial, and what the winner must train unless `quality` says otherwise."""
    measure: Measure = Measure()
    compromise_trials: int = Field(default=3, ge=0)
    """Trials at most that sampler `guided` spends on other trainings than the reference's, to price them."""

    @model_validator(mode="after")
    def _names_and_values(self) -> Self:
        for name, values in self.knobs.items():
            _check_name(name, KNOBS, "knob")
            if not values or len(set(map(repr, values))) != len(values):
                raise ValueError(f"knob '{name}' needs distinct values, got {values}")
        spec_fields = [field for field in TrialSpec.model_fields if field not in _SET_BY_SPACE]
        for name in self.fixed:
            _check_name(name, spec_fields, "fixed field")
            if name in self.knobs:
                raise ValueError(f"'{name}' is both fixed and a knob")
        for name in self.reference:
            _check_name(name, [*self.knobs, "gradient_accumulation_steps"], "reference knob")
        for condition in self.conditions:
            for name in (*condition.when, *condition.only):
                _check_name(name, list(self.knobs), "knob in a condition")
        if missing := [name for name in self.knobs if name not in self.reference]:
            raise ValueError(f"the reference gives no value for {', '.join(missing)}")
        if isinstance(self.global_batch_size, int) and "gradient_accumulation_steps" in self.reference:
            if "gradient_accumulation_steps" not in self.knobs:
                raise ValueError("global_batch_size sets the accumulation; take it out of the reference")
        if self.objective == "cost_per_epoch" and self.gpu_hour_price is None:
            raise ValueError("objective cost_per_epoch needs gpu_hour_price (--gpu-hour-price)")
        if self.global_batch_size == "free" and "gradient_accumulation_steps" not in self.knobs:
            raise ValueError("global_batch_size is free, so gradient_accumulation_steps must be a knob")
        return self

    @property
    def rate(self) -> str:
        """The field of a result or prediction that is maximised."""
        return rate_of(self.objective)

    @classmethod
    def load(cls, name_or_file: str) -> Self:
        """A space from a YAML file, or one that ships, by name.

        Raises:
            UsageError: neither, or not a valid space.
        """
        path = Path(name_or_file)
        if not path.suffix and not path.exists():
            shipped = {file.stem: file for file in sorted(resource_dir("search_spaces").glob("*.yaml"))}
            if name_or_file not in shipped:
                raise UsageError(f"no search space '{name_or_file}'; {_nearest(name_or_file, list(shipped))}")
            path = shipped[name_or_file]
        return parse(cls, read_yaml(path), str(path))


@dataclass(frozen=True)
class LegalSpace:
    """The enumerated space of one study."""

    points: tuple[TrialSpec, ...]
    """Every legal configuration once, canonical, in enumeration order."""
    reference: TrialSpec
    """The canonical reference; always one of `points`."""
    refused: dict[str, int]
    """Reason -> configurations it removed."""
    knobs: dict[str, tuple[Value, ...]]
    """The knobs that really vary over `points`, with their values in order."""
    quality: Quality = field(default_factory=Quality)
    floor: DataFloor | None = None
    samples_per_epoch: int | None = None
    gpu_hour_price: float | None = None

    @property
    def epoch(self) -> Epoch:
        """What turns a speed into an epoch's time and cost."""
        return Epoch(self.samples_per_epoch, self.reference.num_gpus, self.gpu_hour_price)

    def breaches(self, spec: TrialSpec) -> list[str]:
        """Where a spec's training falls short of what the user asked for; empty: it may win."""
        return breaches(spec, self.reference, self.quality, self.floor)

    def truncated_share(self, spec: TrialSpec) -> float | None:
        """Samples that lose tokens, 0..1 of all; None: the data have no profile."""
        return self.floor.truncated_share(spec.cutoff_len) if self.floor else None


def reference_spec(space: SearchSpace, model: Model, num_gpus: int, floor: DataFloor | None = None) -> TrialSpec:
    """The canonical reference of `space` on `num_gpus` devices; `floor` is what the dataset's profile forbids.

    Raises:
        UsageError: it cannot train, or cannot make up the global batch.
    """
    global_batch = _global_batch(space, num_gpus)
    wanted = _spec(space, {**space.reference}, num_gpus, global_batch)
    if wanted is None:
        raise UsageError(
            f"space {space.name}: the reference's micro_batch_size {space.reference.get('micro_batch_size', 1)} on {num_gpus}"
            f" device(s) does not divide the global batch {global_batch}; change --global-batch-size or --num-gpus"
        )
    reference = canonical(wanted, model)
    if reason := refusal(reference, model, floor):
        raise UsageError(f"space {space.name}: the reference cannot train: {reason}")
    return reference


def enumerate_space(space: SearchSpace, model: Model, num_gpus: int, floor: DataFloor | None = None) -> LegalSpace:
    """All legal points of `space` on `num_gpus` devices; `floor` is what the dataset's profile forbids.

    Raises:
        UsageError: no legal point, an illegal reference, an impossible value, constraints that no point meets, or more than
            MAX_POINTS assignments.
    """
    reference, global_batch = reference_spec(space, model, num_gpus, floor), _global_batch(space, num_gpus)
    points: dict[TrialSpec, None] = {}
    refused: Counter[str] = Counter()
    for assignment in _assignments(space):
        if not all(condition.allows(assignment) for condition in space.conditions):
            continue
        spec = _spec(space, assignment, num_gpus, global_batch)
        if spec is None:
            refused[f"micro_batch_size x ranks does not divide the global batch {global_batch}"] += 1
            continue
        spec = canonical(spec, model)
        if reason := refusal(spec, model, floor):
            refused[reason] += 1
        else:
            points[spec] = None
    if not points:
        said = "; ".join(condition.words for condition in space.conditions)
        reasons = "; ".join(refused) or f"its conditions exclude everything ({said})"
        raise UsageError(f"space {space.name} has no legal point: {reasons}")
    for condition in space.conditions:
        if not condition.allows({**space.fixed, **space.reference}):
            raise UsageError(
                f"space {space.name}: the reference contradicts its condition: {condition.words}; change one of them"
            )
    ordered = tuple(dict.fromkeys([*points, reference]))
    if why := contradiction(space.quality, ordered, reference, floor):
        raise UsageError(f"space {space.name}: contradictory constraints: {why}")
    samples = space.samples_per_epoch or (floor.samples if floor else None)
    if space.objective in OF_AN_EPOCH and samples is None:
        raise UsageError(
            f"space {space.name}: objective {space.objective} needs the number of samples, and the data have no profile; say it"
            " with samples_per_epoch (--samples-per-epoch)"
        )
    varying = _varying(ordered)
    return LegalSpace(ordered, reference, dict(refused), varying, space.quality, floor, samples, space.gpu_hour_price)


def _varying(points: tuple[TrialSpec, ...]) -> dict[str, tuple[Value, ...]]:
    found: dict[str, tuple[Value, ...]] = {}
    for name in KNOBS:
        values = {getattr(point, name) for point in points}
        if len(values) > 1:
            found[name] = tuple(sorted(values))
    return found


def _assignments(space: SearchSpace) -> Iterator[dict[str, Any]]:
    names = [name for name in KNOBS if name in space.knobs]
    size = 1
    for name in names:
        size *= len(space.knobs[name])
    if size > MAX_POINTS:
        raise UsageError(f"space {space.name} has {size} assignments, more than {MAX_POINTS}; list fewer values")
    for values in itertools.product(*(space.knobs[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def _global_batch(space: SearchSpace, num_gpus: int) -> int | None:
    """Samples per optimizer step that every point must have, or None if they are free."""
    if space.global_batch_size == "free":
        return None
    if space.global_batch_size is not None:
        return space.global_batch_size
    given = {**space.fixed, **space.reference}
    micro, accumulation = given.get("micro_batch_size", 1), given.get("gradient_accumulation_steps", 1)
    if not isinstance(micro, int) or not isinstance(accumulation, int):
        raise UsageError(f"space {space.name}: the reference's batch is no whole number: {micro} x {accumulation}")
    return micro * accumulation * num_gpus


def _spec(space: SearchSpace, assignment: dict[str, Any], num_gpus: int, global_batch: int | None) -> TrialSpec | None:
    """The spec of one assignment; None when it cannot make up the global batch."""
    try:
        spec = TrialSpec.model_validate({**space.fixed, **assignment, "model": space.model, "num_gpus": num_gpus})
    except ValidationError as error:
        raise UsageError(f"space {space.name}: {describe(error, TrialSpec)}") from error
    if global_batch is None:
        return spec
    accumulation, rest = divmod(global_batch, spec.micro_batch_size * num_gpus)
    listed = space.knobs.get("gradient_accumulation_steps")
    if rest or not accumulation or (listed is not None and accumulation not in listed):
        return None
    return spec.model_copy(update={"gradient_accumulation_steps": accumulation})


def _check_name(name: str, valid: tuple[str, ...] | list[str], what: str) -> None:
    if name not in valid:
        raise ValueError(f"unknown {what} '{name}'; {_nearest(name, list(valid))}")


def _nearest(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    return f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(sorted(valid))}"


def _as_list(values: list[Value] | Value) -> list[Value]:
    return values if isinstance(values, list) else [values]
