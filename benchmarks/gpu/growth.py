"""Part (e): batches that change from step to step. Does memory grow, and did the allocator's replay say so?

Qwen2.5-VL, whose vision tower attends in windows, against Qwen2-VL, which does not: the same sequence of lengths and images.
"""

import random
import statistics
from typing import Any

from autofit.config.legality import canonical
from autofit.config.model import ModelRef, resolve_model
from autofit.config.trial import Images, Measure, StepShape, TrialSpec
from autofit.errors import AutofitError
from autofit.predict.images import image_patches
from autofit.predict.lengths import BatchShape, replay_batches
from autofit.tuning.growth import judge
from benchmarks.gpu.place import Place, measured

_WARMUP = 2
_IMAGE_ROOM = 32
"""Tokens of a sample beside its image."""


def run(place: Place) -> tuple[int, int]:
    """(models recorded, models planned)"""
    ledger = place.ledger("growth")
    models = {"qwen2.5-vl": place.load.vision, "qwen2-vl": place.load.old_vision}
    for name, ref in models.items():
        if name not in ledger.mine():
            ledger.add(name, **_run(place, name, ref))
    return len(ledger.mine()), len(models)


def shapes_of(place: Place, ref: ModelRef) -> tuple[StepShape, ...]:
    """The steps of the run, drawn by the seed: the same for both models. An image that its sample cannot hold gets smaller."""
    draw, model = random.Random(f"{place.seed}/growth"), resolve_model(ref)
    shapes = []
    for _ in range(place.load.growth_steps):
        length, pixels = draw.choice(place.load.growth_cutoffs), draw.choice(place.load.growth_pixels)
        fitting = [
            each for each in place.load.growth_pixels if each <= pixels and model.image_tokens(each) + _IMAGE_ROOM <= length
        ]
        shapes.append(StepShape(cutoff_len=length, image_max_pixels=max(fitting, default=min(place.load.growth_pixels))))
    return tuple(shapes)


def _run(place: Place, name: str, ref: ModelRef) -> dict[str, Any]:
    model, shapes = resolve_model(ref), shapes_of(place, ref)
    spec = canonical(
        TrialSpec(
            model=ref,
            method="lora",
            cutoff_len=max(shape.cutoff_len for shape in shapes),
            images=Images(per_sample=1, max_pixels=max(place.load.growth_pixels)),
            optimizer="adamw_torch_fused",
        ),
        model,
    )
    said = _forecast(place, spec, shapes)
    steps = max(1, place.load.growth_steps - _WARMUP)
    ran = place.run(f"growth-{name}", spec, measure=Measure(warmup_steps=_WARMUP, steps=steps), shapes=shapes)
    judged = judge(ran.result, place.budget(place.device.memory_bytes), _WARMUP, place.kind)
    rank = ran.result.ranks[0] if ran.result.ranks else None
    outside = ran.result.hardware.get("non_torch_bytes", 0)
    peaks = [peak - outside for peak in rank.step_peak_bytes] if rank else []
    return {
        "spec": spec.model_dump(mode="json"),
        "steps": len(peaks),
        "predicted": said,
        "measured": measured(ran) | {"step_peaks": peaks, "step_tokens": rank.step_batch_tokens if rank else []},
        "verdict": {"outcome": judged.outcome, "bytes_a_step": judged.growth_bytes_per_step, "message": judged.message},
        "step_errors": step_errors(said.get("peak_reserved", []), peaks) if place.kind == "cuda" else None,
    }


def step_errors(predicted: list[int], peaks: list[int]) -> dict[str, float] | None:
    """How the replay's peak of each step did against the measured one; None where there is nothing to compare."""
    errors = [said / seen - 1 for said, seen in zip(predicted, peaks, strict=False) if seen > 0]
    if not errors:
        return None
    sizes = [abs(error) for error in errors]
    return {"median": statistics.median(sizes), "worst": max(sizes), "mean": statistics.fmean(errors), "last": errors[-1]}


def _forecast(place: Place, spec: TrialSpec, shapes: tuple[StepShape, ...]) -> dict[str, Any]:
    """The allocator's replay of the whole run, made before it."""
    model = resolve_model(spec.model)
    batches = []
    for shape in shapes:
        largest = spec.model_copy(update={"images": Images(per_sample=1, max_pixels=shape.image_max_pixels)})
        batches.append(BatchShape(1, shape.cutoff_len, image_patches(largest, model)))
    try:
        epoch = replay_batches(place.forecaster().trace(spec), batches)
    except AutofitError as error:
        return {"error": str(error)}
    return {
        "peak_reserved": epoch.peak_reserved_bytes,
        "peak_allocated": epoch.peak_allocated_bytes,
        "end_reserved": epoch.reserved_bytes,
        "retries": sum(epoch.retries),
        "fits": epoch.total.fits,
    }
