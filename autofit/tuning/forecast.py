"""Answers without a run: predict specs from a file, and explain one - verdict, shortfall, and what would make it fit."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autofit.config.base import describe, parse, read_yaml
from autofit.config.legality import canonical, refusal, training_changes
from autofit.config.model import Model, ModelRef, resolve_model
from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError, UsageError
from autofit.predict.predictor import Predictor

MIN_CUTOFF_LEN = 64


@dataclass(frozen=True)
class Answer:
    """One line of a file: what it asked for, and the prediction or why there is none."""

    line: int
    spec: TrialSpec | None
    prediction: Prediction | None
    error: str | None


@dataclass(frozen=True)
class Remedy:
    """One change, and what it does."""

    change: str
    spec: TrialSpec
    prediction: Prediction
    training: tuple[str, ...]
    """What it changes in the training itself; empty: nothing."""
    price: float
    """Its samples per second over those of the explained spec."""


@dataclass(frozen=True)
class Explanation:
    """Why a spec fits or not."""

    spec: TrialSpec
    prediction: Prediction
    shortfall_bytes: int
    """Bytes by which the upper end of the prediction exceeds the budget; 0 or less: it fits."""
    remedies: tuple[Remedy, ...]
    """Single changes after which it fits, least loss of training first, then fastest."""


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


def explain(spec: TrialSpec, predictor: Predictor, gpu_mem_bytes: int, said: Callable[[str], None]) -> Explanation:
    """The prediction of a spec, and the single changes that make it fit where it does not.

    Raises:
        AutofitError: the spec cannot train or cannot be modelled.
    """
    model = resolve_model(spec.model)
    spec = canonical(spec, model)
    prediction = predictor.predict(spec, model, gpu_mem_bytes)
    shortfall = prediction.peak_device_bytes_high - (predictor.budget(gpu_mem_bytes) or gpu_mem_bytes)
    if shortfall <= 0:
        return Explanation(spec, prediction, shortfall, ())
    remedies = []
    for change, changed in single_changes(spec, model):
        said(f"trying {change}")
        try:
            after = predictor.predict(changed, model, gpu_mem_bytes)
        except AutofitError as error:
            said(f"{change}: {error}")
            continue
        if after.fits:
            price = after.samples_per_second / prediction.samples_per_second
            remedies.append(Remedy(change, changed, after, tuple(training_changes(changed, spec)), price))
    remedies.sort(key=lambda remedy: (len(remedy.training), -remedy.price))
    return Explanation(spec, prediction, shortfall, tuple(remedies))


def single_changes(spec: TrialSpec, model: Model) -> Sequence[tuple[str, TrialSpec]]:
    """Changes of one knob that can save memory, legal ones only; the global batch stays."""
    found: list[tuple[str, dict[str, Any]]] = []
    micro = spec.micro_batch_size
    if micro > 1:
        samples = micro * spec.gradient_accumulation_steps
        for smaller in (value for value in range(micro - 1, 0, -1) if samples % value == 0):
            change = {"micro_batch_size": smaller, "gradient_accumulation_steps": samples // smaller}
            found.append((f"micro_batch_size {smaller} x accumulation {samples // smaller}", change))
    if not spec.gradient_checkpointing:
        found.append(("gradient_checkpointing on", {"gradient_checkpointing": True}))
    if spec.num_gpus > 1:
        found += [(f"zero_stage {stage}", {"zero_stage": stage}) for stage in (1, 2, 3) if stage > spec.zero_stage]
    if spec.zero_stage and not spec.offload_optimizer:
        found.append(("offload_optimizer on", {"offload_optimizer": True}))
    if spec.precision == "bf16" and not spec.pure_bf16:
        found.append(("pure_bf16 on", {"pure_bf16": True}))
    length = spec.cutoff_len // 2
    while length >= MIN_CUTOFF_LEN:
        found.append((f"cutoff_len {length}", {"cutoff_len": length}))
        length //= 2
    for part in ("freeze_vision_tower", "freeze_multi_modal_projector"):
        if not getattr(spec, part):
            found.append((f"{part} on", {part: True}))
    if spec.method == "full":
        found.append(("method lora", {"method": "lora"}))
    changed = [(name, canonical(spec.model_copy(update=change), model)) for name, change in found]
    return [(name, point) for name, point in changed if point != spec and refusal(point, model) is None]


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
