"""Single changes that can save memory: families of them, each from its mildest member to its harshest."""

from collections.abc import Iterator
from typing import Any

from autofit.config.legality import canonical, refusal
from autofit.config.model import Model
from autofit.config.trial import TrialSpec

MIN_CUTOFF_LEN = 64
MIN_MAX_PIXELS = 112 * 112
"""Of an image: 16 tokens of 28 x 28 pixels; less is hardly an image."""
MAX_GPUS = 8
"""Of one machine; a spec that has them is offered twice as many."""

Changes = list[tuple[str, dict[str, Any]]]


def families(spec: TrialSpec, model: Model) -> list[list[tuple[str, TrialSpec]]]:
    """Changes of one thing to a canonical spec, legal ones only, as (words, spec).

    The global batch never changes, nor does what a sample holds (its images stay whole). Within a family every member saves
    more than the one before and costs more, so the first that fits is the one to name.
    """
    found = []
    for family in _families(spec):
        points = [(name, canonical(spec.model_copy(update=change), model)) for name, change in family]
        kept = [(name, point) for name, point in points if point != spec and refusal(point, model) is None]
        if kept:
            found.append(kept)
    return found


def _families(spec: TrialSpec) -> Iterator[Changes]:
    yield _micro_batches(spec)
    if not spec.gradient_checkpointing:
        yield [("gradient_checkpointing on", {"gradient_checkpointing": True})]
    if spec.attention == "eager":
        yield [("attention sdpa", {"attention": "sdpa"})]
    yield from _optimizers(spec)
    if spec.num_gpus > 1:
        yield [(f"zero_stage {stage}", {"zero_stage": stage}) for stage in (1, 2, 3) if stage > spec.zero_stage]
    yield from _offloads(spec)
    yield from _more_gpus(spec)
    yield from _precisions(spec)
    yield _halved("cutoff_len", spec.cutoff_len, MIN_CUTOFF_LEN)
    if spec.images.per_sample:
        pixels = _halved("max_pixels", spec.images.max_pixels, MIN_MAX_PIXELS)
        yield [(f"images.{name}", {"images": spec.images.model_copy(update=change)}) for name, change in pixels]
    yield from _less_trained(spec)


def _micro_batches(spec: TrialSpec) -> Changes:
    micro = spec.micro_batch_size
    samples = micro * spec.gradient_accumulation_steps
    return [
        (
            f"micro_batch_size {smaller} x accumulation {samples // smaller}",
            {"micro_batch_size": smaller, "gradient_accumulation_steps": samples // smaller},
        )
        for smaller in range(micro - 1, 0, -1)
        if samples % smaller == 0
    ]


def _optimizers(spec: TrialSpec) -> Iterator[Changes]:
    """Only without ZeRO: under it DeepSpeed's AdamW is what is predicted, whatever the optimizer."""
    if spec.zero_stage or not spec.optimizer.startswith("adamw_torch"):
        return
    yield [("optimizer adamw_torch_fused", {"optimizer": "adamw_torch_fused"})]
    yield [("optimizer adamw_8bit", {"optimizer": "adamw_8bit"})]


def _offloads(spec: TrialSpec) -> Iterator[Changes]:
    """To host memory. What is offered without ZeRO, and with parameters, is the stage that can do it and the switch in one."""
    if not spec.zero_stage:
        yield [("zero_stage 2 with offload_optimizer", {"zero_stage": 2, "offload_optimizer": True})]
    elif not spec.offload_optimizer:
        yield [("offload_optimizer on", {"offload_optimizer": True})]
    if not (spec.offload_optimizer and spec.offload_param):
        change = {"zero_stage": 3, "offload_optimizer": True, "offload_param": True}
        yield [("zero_stage 3 with offload_optimizer and offload_param", change)]


def _more_gpus(spec: TrialSpec) -> Iterator[Changes]:
    """Twice as many devices, and again; fewer accumulation steps make up for them, or a smaller micro-batch.

    A single device has no use for a ZeRO stage, so that one comes with more devices, stage by stage.
    """
    stages = range(spec.zero_stage, 4) if spec.num_gpus == 1 else [spec.zero_stage]
    for stage in stages:
        family: Changes = []
        more, accumulation, micro = spec.num_gpus * 2, spec.gradient_accumulation_steps, spec.micro_batch_size
        while more <= max(MAX_GPUS, 2 * spec.num_gpus):
            if accumulation % 2 == 0:
                accumulation //= 2
            elif micro % 2 == 0:
                micro //= 2
            else:
                break
            change = {
                "num_gpus": more,
                "zero_stage": stage,
                "gradient_accumulation_steps": accumulation,
                "micro_batch_size": micro,
            }
            named = f", zero_stage {stage}" if stage != spec.zero_stage else ""
            family.append((f"num_gpus {more}{named}, micro_batch_size {micro} x accumulation {accumulation}", change))
            more *= 2
        yield family


def _precisions(spec: TrialSpec) -> Iterator[Changes]:
    if spec.precision == "fp32":
        yield [("precision bf16", {"precision": "bf16"})]
    elif spec.precision == "bf16" and not spec.pure_bf16:
        yield [("pure_bf16 on", {"pure_bf16": True})]


def _halved(name: str, value: int, least: int) -> Changes:
    values = []
    while (value := value // 2) >= least:
        values.append(value)
    return [(f"{name} {smaller}", {name: smaller}) for smaller in values]


def _less_trained(spec: TrialSpec) -> Iterator[Changes]:
    for part in ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"):
        if not getattr(spec, part):
            yield [(f"{part} on", {part: True})]
    if spec.method == "full":
        yield [("method freeze", {"method": "freeze"})]
    if spec.method != "lora":
        yield [("method lora", {"method": "lora"})]
