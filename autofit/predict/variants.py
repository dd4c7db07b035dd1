"""Structural variants: which specs share a trace, which shapes calibrate it, and where it is cached on disk."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from autofit.config.model import Model
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.predict.symbolic import FORMAT, SymbolicTrace, read_document
from autofit.predict.tracers import Tracers

Progress = Callable[[int, int], None]
"""Told (answered, in all)."""

_MANY = (
    (2, 640, (64, 64)),
    (3, 512, (64, 256, 64)),
    (4, 384, (64,) * 4),
    (2, 1024, (256, 256)),
    (5, 896, (64, 144, 64, 64, 64)),
)
_ONE = ((1, 512, (144,)), (1, 1024, (64,)), (1, 768, (400,)))
"""(samples, tokens of each, image tokens of each): tokens in multiples of 64, images in whole windows of 8 x 8 patches."""


def structure(spec: TrialSpec, model: Model) -> dict[str, Any]:
    """The knobs of a spec that change the events of a step; specs with equal structures share a trace."""
    knobs = spec.model_dump(
        mode="json",
        exclude={"model", "micro_batch_size", "cutoff_len", "num_gpus", "images", "offload_optimizer", "offload_param"},
    )
    knobs["gradient_accumulation_steps"] = min(2, spec.gradient_accumulation_steps)
    knobs["zero_stage"] = int(spec.zero_stage > 0)
    knobs["images"] = bool(model.is_vision_language and spec.images.per_sample)
    if spec.zero_stage:
        knobs["optimizer"] = "adamw_torch"  # DeepSpeed's own step is not traced
    if knobs["attention"] == "auto":
        knobs["attention"] = "sdpa"  # what transformers chooses by itself, and LLaMA-Factory leaves to it
    if spec.method != "lora":
        del knobs["lora"]
    return knobs


def variant_key(spec: TrialSpec, model: Model, versions: Mapping[str, str], target: str = "cuda") -> str:
    """Digest of model, structure, library versions and trace format: the name of the cache file."""
    parts = {
        "config": model.config,
        "id": model.id if model.config is None else None,
        "weights": model.path if not {"dtype", "torch_dtype"} & set(model.config or {}) else None,  # their dtype decides then
        "structure": structure(spec, model),
        "versions": dict(versions),
        "target": target,
        "format": FORMAT,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def sliding_window(model: Model) -> int | None:
    """Tokens beyond which a sliding window needs a mask of its own; None where the config has none in use."""
    config = model.config or {}
    text = config.get("text_config") or config
    window = text.get("sliding_window")
    if not window or text.get("use_sliding_window") is False:
        return None
    return int(window)


def calibration_shapes(model: Model, images: bool) -> list[dict[str, Any]]:
    """The shapes that determine every polynomial of a variant, in all its regimes."""
    window = sliding_window(model)
    shapes = _shapes(0, "", images, limit=window)
    if window is not None:
        shapes += _shapes(-(-window // 64) * 64, "+window", images, limit=None)
    return shapes


def request(spec: TrialSpec, model: Model, target: str = "cuda") -> dict[str, Any]:
    """What `autofit.worker trace` reads to calibrate the variant of `spec`; with accumulation also the one without."""
    trial = spec.model_dump(mode="json") | {"num_gpus": 1}
    images = model.is_vision_language and spec.images.per_sample > 0
    return {
        "trial": trial,
        "model": model.model_dump(mode="json"),
        "trace": {"target": target, "depth": "shallow", "single": True, "shapes": calibration_shapes(model, images)},
    }


def symbolic_trace(  # noqa: PLR0917 - all but the last have no default
    spec: TrialSpec,
    model: Model,
    versions: Mapping[str, str],
    cache: Path,
    tracers: Tracers,
    target: str = "cuda",
) -> SymbolicTrace:
    """The symbolic trace of a spec's variant, from the cache or made by the training environment.

    Args:
        versions: of the training environment's torch, transformers and peft; part of the cache key.
        cache: folder, made if missing.
        tracers: of the training environment.

    Raises:
        AutofitError: the worker could not trace it; its own line says why.
    """
    (found,) = symbolic_traces([(spec, model)], versions, cache, tracers, target).values()
    if isinstance(found, AutofitError):
        raise found
    return found


def symbolic_traces(  # noqa: PLR0917 - as `symbolic_trace`
    wanted: Iterable[tuple[TrialSpec, Model]],
    versions: Mapping[str, str],
    cache: Path,
    tracers: Tracers,
    target: str = "cuda",
    on_progress: Progress = lambda done, total: None,
) -> dict[str, SymbolicTrace | AutofitError]:
    """The symbolic traces of many specs' variants, each traced once; those that the cache lacks side by side.

    Variants that differ in accumulation alone are traced together, and where there is accumulation the one without is kept too.

    Args:
        wanted: specs with their models; specs of one variant count as one.
        on_progress: told (variants answered, variants in all) after each.

    Returns:
        By variant key the trace, or the error that says why there is none.
    """
    variants: dict[str, tuple[TrialSpec, Model]] = {}
    for spec, model in wanted:
        variants.setdefault(variant_key(spec, model, versions, target), (spec, model))
    result: dict[str, SymbolicTrace | AutofitError] = {}

    def answer(key: str, found: SymbolicTrace | AutofitError) -> None:
        result[key] = found
        on_progress(len(result), len(variants))

    missing: dict[str, str] = {}
    """Of each variant without accumulation, whether or not it is asked for: the key of the one to trace."""
    for key, (spec, model) in variants.items():
        kept = _kept(cache / f"{key}.npz")
        if kept is None:
            single = _single(spec, model, versions, target)
            if key != single or single not in missing:
                missing[single] = key
        else:
            answer(key, kept)
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        orders = {key: request(*variants[key], target) for key in missing.values()}
        singles = {key: single for single, key in missing.items()}
        for key, document in tracers.traced(orders):
            found = _fitted(document, variants[key][1])
            for name, micro_steps in ((singles[key], 1), (key, 2)):
                trace = found if isinstance(found, AutofitError) else found.get(micro_steps)
                if isinstance(trace, SymbolicTrace):
                    trace.save(cache / f"{name}.npz")
                if trace is not None and name in variants and name not in result:
                    answer(name, trace)
    return {key: result[key] for key in variants}


def _kept(file: Path) -> SymbolicTrace | None:
    if not file.is_file():
        return None
    try:
        return SymbolicTrace.load(file)
    except AutofitError:
        file.unlink(missing_ok=True)  # torn or of an older format: make it again
        return None


def _single(spec: TrialSpec, model: Model, versions: Mapping[str, str], target: str) -> str:
    """Key of the variant without accumulation."""
    return variant_key(spec.model_copy(update={"gradient_accumulation_steps": 1}), model, versions, target)


def _fitted(document: Path | AutofitError, model: Model) -> dict[int, SymbolicTrace] | AutofitError:
    """By micro-batches of a traced step."""
    if isinstance(document, AutofitError):
        return document
    try:
        content = read_document(document)
        kinds = sorted({int(group["micro_steps"]) for group in content["groups"]})
        return {kind: SymbolicTrace.from_document(content, sliding_window(model), kind) for kind in kinds}
    except AutofitError as error:
        return error


def _shapes(beyond: int, suffix: str, images: bool, limit: int | None) -> list[dict[str, Any]]:
    result = []
    for batch, length, tokens in (*_MANY, *_ONE):
        grids = [_grid(count) for count in tokens] if images else []
        shape = {"micro_batch_size": batch, "cutoff_len": beyond + length, "grids": grids}
        if limit is not None and length >= limit:
            shape["cutoff_len"] = max(8, length * (limit - 1) // 1024)  # a tiny window: keep the ratios
        result.append(shape | {"regime": ("one" if batch == 1 else "many") + suffix})
    return result


def _grid(tokens: int) -> list[int]:
    """A square image of that many tokens, with 2 x 2 patches a token."""
    side = 2 * round(tokens**0.5)
    return [1, side, side]
