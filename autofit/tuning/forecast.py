"""Answers without a run: predict specs from a file, and explain one - verdict, shortfall, and what would make it fit."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autofit.config.base import describe, parse, read_yaml
from autofit.config.legality import canonical, training_changes
from autofit.config.model import Model, ModelRef, resolve_model
from autofit.config.prediction import Prediction
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.space import reference_spec
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError, UsageError
from autofit.predict.devices import of_hardware
from autofit.predict.predictor import Predictor
from autofit.predict.timeline import Timeline
from autofit.tuning.remedies import families


@dataclass(frozen=True)
class Answer:
    """One line of a file: what it asked for, and the prediction or why there is none."""

    line: int
    spec: TrialSpec | None
    prediction: Prediction | None
    error: str | None


@dataclass(frozen=True)
class Question:
    """What is to be explained."""

    spec: TrialSpec
    memory_budget_bytes: int
    model: Model | None = None
    """None: the one that the spec names."""
    python: str | None = None
    card: str | None = None


@dataclass(frozen=True)
class Remedy:
    """One change, and what it does."""

    change: str
    spec: TrialSpec
    prediction: Prediction
    training: tuple[str, ...]
    """What it changes in the training itself; empty: nothing."""
    price: float
    """Its samples per second over those of the explained spec, both predicted."""
    not_modelled: tuple[str, ...] = ()
    """What its prediction leaves out and that of the explained spec does not; mostly time, so that the price may be higher."""

    @property
    def moves_to_host(self) -> bool:
        """Whether state travels to host memory, whose time is not in the price."""
        return self.spec.offload_optimizer or self.spec.offload_param

    def document(self) -> dict[str, Any]:
        """For a program."""
        return {
            "change": self.change,
            "peak_device_bytes_high": self.prediction.peak_device_bytes_high,
            "samples_per_second_ratio": self.price,
            "training_changes": list(self.training),
            "not_modelled": list(self.not_modelled),
            "spec": self.spec.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class Explanation:
    """Why a spec fits or not."""

    spec: TrialSpec
    prediction: Prediction
    timeline: Timeline
    """Allocated memory over a step, and the highest of each phase."""
    shortfall_bytes: int
    """Bytes by which the upper end of the prediction exceeds the budget; 0 or less: it fits."""
    remedies: tuple[Remedy, ...]
    """The mildest single change of each kind after which it fits: least loss of training first, then fastest."""


def read_spec(file: Path) -> TrialSpec:
    """The spec in a YAML or JSON file.

    Raises:
        UsageError: not readable, or not a spec.
    """
    return parse(TrialSpec, read_yaml(file), str(file))


def predict_file(file: Path, predictor: Predictor, gpu_mem_bytes: int | None) -> Iterator[Answer]:
    """Predicts every spec of a file, in order. A line that cannot be answered is an error in its place.

    Raises:
        UsageError: the file cannot be read; or it holds one spec and that is none.
    """
    models: dict[ModelRef, Model] = {}
    if file.suffix != ".jsonl":
        yield _answer(1, read_spec(file), models, predictor, gpu_mem_bytes)
        return
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            spec = TrialSpec.model_validate(json.loads(line))
        except ValidationError as error:
            yield Answer(number, None, None, f"line {number}: {describe(error, TrialSpec)}")
        except ValueError as error:
            yield Answer(number, None, None, f"line {number}: is no JSON ({error})")
        else:
            yield _answer(number, spec, models, predictor, gpu_mem_bytes)


def question_of(
    study: StudyRecord, trials: Sequence[TrialRecord], trial_number: int | None, gpu_mem_bytes: int | None
) -> Question:
    """The question that a trial of a study asks; None: its winner, or the reference where none has won.

    Raises:
        UsageError: no such trial.
    """
    number = study.winner_trial_number if trial_number is None else trial_number
    wanted = reference_spec(study.space, study.model, len(study.hardware.devices), study.floor) if number is None else None
    trial = next((each for each in trials if each.trial_number == number or each.spec == wanted), None)
    if trial is None:
        raise UsageError(f"study {study.name} has no trial {number}; see autofit trials --study {study.name}")
    card = of_hardware(study.hardware)
    budget = gpu_mem_bytes or study.memory_budget_bytes
    return Question(trial.spec, budget, study.model, study.python, card.name if card else None)


def explain(
    spec: TrialSpec, predictor: Predictor, gpu_mem_bytes: int, said: Callable[[str], None], model: Model | None = None
) -> Explanation:
    """The prediction of a spec, and the single changes that make it fit where it does not.

    Raises:
        AutofitError: the spec cannot train or cannot be modelled.
    """
    model = model or resolve_model(spec.model)
    spec = canonical(spec, model)
    prediction = predictor.predict(spec, model, gpu_mem_bytes)
    timeline = predictor.timeline(spec, model)
    shortfall = prediction.peak_device_bytes_high - (predictor.budget(gpu_mem_bytes) or gpu_mem_bytes)
    if shortfall <= 0:
        return Explanation(spec, prediction, timeline, shortfall, ())
    found = []
    for family in families(spec, model):
        for change, changed in family:
            said(f"trying {change}")
            try:
                after = predictor.predict(changed, model, gpu_mem_bytes)
            except AutofitError as error:
                said(f"{change}: {error}")
                continue
            if after.fits:
                found.append(_remedy(change, changed, after, (spec, prediction)))
                break
    found.sort(key=lambda remedy: (len(remedy.training), remedy.moves_to_host, -remedy.price))
    return Explanation(spec, prediction, timeline, shortfall, tuple(found))


def _remedy(change: str, spec: TrialSpec, prediction: Prediction, explained: tuple[TrialSpec, Prediction]) -> Remedy:
    wanted, before = explained
    return Remedy(
        change,
        spec,
        prediction,
        training=tuple(training_changes(spec, wanted)),
        price=prediction.samples_per_second / before.samples_per_second,
        not_modelled=tuple(item for item in prediction.not_modelled if item not in before.not_modelled),
    )


def _answer(
    number: int, spec: TrialSpec, models: dict[ModelRef, Model], predictor: Predictor, gpu_mem_bytes: int | None
) -> Answer:
    try:
        if spec.model not in models:
            models[spec.model] = resolve_model(spec.model)
        model = models[spec.model]
        return Answer(number, spec, predictor.predict(canonical(spec, model), model, gpu_mem_bytes), None)
    except AutofitError as error:
        return Answer(number, spec, None, str(error))
