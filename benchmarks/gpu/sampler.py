"""Which configurations are measured: drawn by a seeded generator, before anything is measured, family by family."""

import random
from collections.abc import Callable, Iterator
from typing import Any

from autofit.config.legality import canonical, refusal
from autofit.config.model import resolve_model
from autofit.config.trial import TrialSpec
from benchmarks.gpu.workload import Workload

_MAX_DRAWS = 2000
Draw = Callable[[random.Random, Workload], dict[str, Any]]


def candidates(family: str, load: Workload, seed: int) -> Iterator[TrialSpec]:
    """Legal, distinct configurations of a family, in an order that only the seed decides.

    Raises:
        KeyError: no such family.
    """
    draw, knobs = random.Random(f"{seed}/{family}"), FAMILIES[family]
    seen: set[str] = set()
    for _ in range(_MAX_DRAWS):
        spec = TrialSpec.model_validate({"num_gpus": 1, **knobs(draw, load)})
        model = resolve_model(spec.model)
        spec = canonical(spec, model)
        if refusal(spec, model) is None and spec.config_key() not in seen:
            seen.add(spec.config_key())
            yield spec


def _images(draw: random.Random, load: Workload) -> dict[str, int]:
    return {"per_sample": 1, "max_pixels": draw.choice(load.pixels)}


def _vision_lora(draw: random.Random, load: Workload) -> dict[str, Any]:
    return {
        "model": load.vision,
        "method": "lora",
        "lora": {"rank": draw.choice((8, 64))},
        "micro_batch_size": draw.choice(load.micro_batches),
        "gradient_accumulation_steps": draw.choice((1, 1, 2)),
        "cutoff_len": draw.choice(load.cutoffs),
        "images": _images(draw, load),
        "gradient_checkpointing": draw.random() < 0.6,
        "freeze_vision_tower": draw.random() < 0.6,
        "freeze_language_model": draw.random() < 0.15,
        "pure_bf16": draw.random() < 0.3,
        "optimizer": draw.choice(("adamw_torch", "adamw_torch_fused")),
    }


def _vision_full(draw: random.Random, load: Workload) -> dict[str, Any]:
    return {
        **_vision_lora(draw, load),
        "model": load.vision_cut,
        "method": "full",
        "freeze_multi_modal_projector": draw.random() < 0.5,
        "freeze_language_model": draw.random() < 0.25,
        "pure_bf16": draw.random() < 0.5,
    }


def _text_lora(draw: random.Random, load: Workload) -> dict[str, Any]:
    return {
        "model": draw.choice(load.texts),
        "method": "lora",
        "lora": {"rank": draw.choice((8, 64))},
        "micro_batch_size": draw.choice(load.micro_batches),
        "gradient_accumulation_steps": draw.choice((1, 2)),
        "cutoff_len": draw.choice(load.text_cutoffs),
        "gradient_checkpointing": draw.random() < 0.6,
        "pure_bf16": draw.random() < 0.3,
        "optimizer": draw.choice(("adamw_torch", "adamw_torch_fused")),
    }


def _text_full(draw: random.Random, load: Workload) -> dict[str, Any]:
    masters = {"model": draw.choice(load.texts_cut), "method": "full", "pure_bf16": draw.random() < 0.5}
    return {**_text_lora(draw, load), **masters}


def _zero(draw: random.Random, load: Workload) -> dict[str, Any]:
    drawn = _vision_full(draw, load) if draw.random() < 0.5 else _text_full(draw, load)
    return {**drawn, "zero_stage": draw.choice((1, 2, 3)), "pure_bf16": False}


def _attention(draw: random.Random, load: Workload) -> dict[str, Any]:
    drawn = _vision_lora(draw, load) if draw.random() < 0.5 else _text_lora(draw, load)
    short = {"micro_batch_size": load.micro_batches[0], "cutoff_len": load.cutoffs[-1]}
    return {**drawn, **short, "attention": draw.choice(("flash_attention_2", "flash_attention_2", "sdpa", "eager"))}


FAMILIES: dict[str, Draw] = {
    "vision_lora": _vision_lora,
    "vision_full": _vision_full,
    "text_lora": _text_lora,
    "text_full": _text_full,
    "zero": _zero,
    "attention": _attention,
}
