"""Before anything runs: an epoch of the dataset's own lengths through the simulated caching allocator of the card.

A block that was cut for a short batch may not serve a long one, so that reserved memory creeps up while what is allocated does
not. Nothing of it is known where steps are not replayed: on a CPU, which has no caching allocator, and under ZeRO.
"""

import numpy as np

from autofit.config.model import Model
from autofit.config.prediction import Fragmentation
from autofit.config.trial import TrialSpec
from autofit.data.profile import DataProfile
from autofit.data.throughput import Steps, epoch_steps
from autofit.data.worst import batch_shape
from autofit.predict.predictor import Predictor
from autofit.units import format_bytes

MAX_STEPS = 2000
"""Optimizer steps that are replayed; beyond, an allocator that is still growing has shown it."""
SETTLED = 0.1
"""Share of the steps, from the first on, in which what is reserved may still rise: every length has to come once."""


def foretell(  # noqa: PLR0917 - a question and what it is asked of
    predictor: Predictor, spec: TrialSpec, model: Model, profile: DataProfile, seed: int, gpu_mem_bytes: int | None = None
) -> Fragmentation:
    """What changing lengths do to reserved memory over an epoch, or over MAX_STEPS steps of it.

    Every micro-batch of a step is taken to have the shape of the longest one of rank 0.

    Raises:
        AutofitError: ZeRO; a configuration that cannot be modelled; fewer samples than one step takes.
    """
    steps = epoch_steps(
        profile, spec.cutoff_len, spec.micro_batch_size, spec.gradient_accumulation_steps, spec.num_gpus, seed=seed
    )
    shapes = _shapes(profile, steps, spec)[:MAX_STEPS]
    free = predictor.epoch(spec, model, shapes)
    held = free.peak_reserved_bytes
    settled = max(held[: max(1, round(SETTLED * len(held)))])
    capped = predictor.epoch(spec, model, shapes, gpu_mem_bytes) if gpu_mem_bytes is not None else None
    ran = len(capped.retries) if capped else None
    return Fragmentation(
        steps=len(shapes),
        reserved_early_bytes=settled,
        reserved_end_bytes=max(held),
        allocated_bytes=max(free.peak_allocated_bytes),
        retries=sum(capped.retries) if capped else None,
        fails_at_step=ran if ran is not None and ran < len(shapes) else None,
    )


def words(found: Fragmentation) -> str | None:
    """What to say of it; None where memory stays as it is."""
    if found.fails_at_step is not None:
        return f"predicted: an epoch of your lengths runs out of memory at step {found.fails_at_step}, by fragmentation"
    grown = found.reserved_end_bytes - found.reserved_early_bytes
    if not grown and not found.retries:
        return None
    text = f"predicted: over {found.steps} steps of your lengths reserved memory grows by {format_bytes(grown)} of fragments"
    return f"{text}, and the allocator starts over {found.retries} times" if found.retries else text


def _shapes(profile: DataProfile, steps: Steps, spec: TrialSpec) -> list[tuple[int, int]]:
    """(length, patches) of each step's longest micro-batch on rank 0."""
    mine = steps.samples[:, :: spec.num_gpus]
    count, micro, size = mine.shape
    length, patches = batch_shape(profile, mine.reshape(-1, size), spec.cutoff_len)
    length, patches = length.reshape(count, micro), patches.reshape(count, micro)
    longest = np.argmax(length, axis=1)
    at = np.arange(count)
    return [(int(tokens), int(images)) for tokens, images in zip(length[at, longest], patches[at, longest], strict=True)]
