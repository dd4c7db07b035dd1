"""Predict and explain: nothing is run, and every figure is called predicted."""

from typing import Any

import numpy as np
from fastapi import APIRouter, Response

from autofit.config.legality import canonical
from autofit.config.model import Model, resolve_model
from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.predict.devices import DEVICES
from autofit.predict.predictor import Predictor
from autofit.predict.timeline import Timeline
from autofit.report import words
from autofit.store import Store
from autofit.tuning import forecast
from autofit.units import parse_bytes
from autofit.web.confine import confined_spec
from autofit.web.context import Context, Here
from autofit.web.problems import RESPONSES, Refused
from autofit.web.questions import answer
from autofit.web.schemas import Asked, Explained, Predicted, Study, TrialNumber

router = APIRouter(prefix="/api", tags=["predictions"], responses=RESPONSES)
BINS = 240
"""Points of a timeline over all its segments; each is the highest of its bin, so that no peak is lost."""
_SUMS = {"activations_and_gathers": ("activations and gathers", words.TERMS["activations"][1])}
"""Terms that a prediction under ZeRO has and a timeline tells apart."""
_MOST = 2**16
"""Largest micro-batch and accumulation that is answered: arithmetic beyond it says nothing about any card."""


@router.post("/predict", response_model=Predicted)
def predict(body: Asked, here: Here) -> Response:
    """Memory and time of a configuration."""
    spec, budget, card = _asked(here, body)
    model = resolve_model(spec.model)
    with here.predictors.use(here.settings.python, card) as predictor:
        spec = canonical(spec, model)
        found = predictor.predict(spec, model, budget)
        steps = predictor.timeline(spec, model) if body.timeline else None
        return answer(_document(found, predictor.budget(budget), steps))


@router.post("/explain", response_model=Explained)
def explain(body: Asked, here: Here) -> Response:
    """Memory by term and phase, the verdict, and the mildest changes after which it fits."""
    spec, budget, card = _asked(here, body)
    if budget is None:
        raise Refused(422, "gpu_mem: explain needs a budget, for example 24GB", "gpu_mem")
    with here.predictors.use(here.settings.python, card) as predictor:
        found = forecast.explain(spec, predictor, budget, lambda line: None)
        document = _document(found.prediction, predictor.budget(budget), found.timeline)
    remedies = [item.document() for item in found.remedies]
    verdict = {"fits": found.shortfall_bytes <= 0, "shortfall_bytes": max(0, found.shortfall_bytes)}
    return answer({**document, **verdict, "phases": found.timeline.phases, "remedies": remedies})


@router.get("/studies/{study}/trials/{trial_number}/timeline", response_model=Predicted)
def timeline(study: Study, trial_number: TrialNumber, here: Here) -> Response:
    """The predicted memory of a trial over one step, by term."""
    with Store.open(str(here.settings.database), read_only=True) as store:
        found = forecast.question_of(store.study(study), [store.trial(study, trial_number)], trial_number, None)
    assert found.model is not None
    with here.predictors.use(found.python or here.settings.python, found.card) as predictor:
        return answer(_timed(predictor, found.spec, found.model, found.memory_budget_bytes))


def _timed(predictor: Predictor, spec: TrialSpec, model: Model, budget: int) -> dict[str, Any]:
    return _document(predictor.predict(spec, model, budget), budget, predictor.timeline(spec, model))


def _asked(here: Context, body: Asked) -> tuple[TrialSpec, int | None, str | None]:
    """The confined spec, the budget in bytes, the card."""
    spec = confined_spec(here.settings, body.spec)
    if max(spec.micro_batch_size, spec.gradient_accumulation_steps, spec.num_gpus, spec.lora.rank) > _MOST:
        raise Refused(422, f"spec: batches, devices and ranks up to {_MOST} are answered", "spec")
    if body.card is not None and body.card not in DEVICES:
        raise UsageError(f"no card '{body.card}'; known: {', '.join(DEVICES)}")
    budget = parse_bytes(body.gpu_mem) if body.gpu_mem is not None else None
    if budget is not None and budget > 2**50:
        raise Refused(422, "gpu_mem: no card has that much", "gpu_mem")
    return spec, budget, body.card


def _document(prediction: Prediction, budget: int | None, steps: Timeline | None) -> dict[str, Any]:
    return {
        "prediction": prediction.model_dump(mode="json"),
        "memory_budget_bytes": budget,
        "timeline": None if steps is None else shown(steps),
        "terms": [_term(name, size) for name, size in prediction.terms.items()],
    }


def _term(name: str, size: int) -> dict[str, Any]:
    beside: tuple[str, str | None] = (words.BESIDE.get(name, name.replace("_", " ")), None)
    label, colour = _SUMS.get(name) or words.TERMS.get(name) or beside
    return {"name": name, "label": label, "colour": colour, "bytes": size}


def shown(steps: Timeline) -> dict[str, Any]:
    """A timeline as a picture needs it: few points, none of them a lost peak; terms from the bottom of the stack."""
    order = words.stacked(steps)
    places = [steps.terms.index(name) for name in order]
    total = sum(np.sqrt(segment.stop - segment.start) for segment in steps.segments)
    segments, rows = [], []
    for segment in steps.segments:
        share = np.sqrt(segment.stop - segment.start) / total
        part = steps.highest(segment, max(4, round(BINS * share)))[:, places]
        segments.append({"phase": segment.phase, "micro_batch": segment.micro_batch, "points": len(part)})
        rows += part.tolist()
    return {
        "terms": [_term(name, int(steps.use[steps.peak, place])) for name, place in zip(order, places, strict=True)],
        "segments": segments,
        "use": rows,
        "peak_bytes": int(steps.allocated[steps.peak]),
        "peak_phase": steps.peak_segment.phase,
        "first_step": steps.first_step,
        "micro_batches": steps.micro_batches,
        "phases": steps.phases,
        "not_shown": list(steps.not_shown),
    }
