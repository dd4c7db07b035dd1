"""When nothing fits: which configuration comes nearest, and what would make it fit."""

from dataclasses import dataclass

from autofit.config.record import StudyRecord
from autofit.config.trial import TrialSpec
from autofit.search.samplers import Context, nearest_to_budget
from autofit.tuning.foresight import Foresight
from autofit.tuning.plan import HEADROOM


@dataclass(frozen=True)
class Miss:
    """The configuration of the reference's training that needs the least memory."""

    spec: TrialSpec
    peak_bytes: int
    measured: bool
    """Whether it ran; False: estimated from the study's trials and what was expected of it."""
    gpu_mem_bytes: int
    """`--gpu-mem` that would hold it, headroom included; from an estimate with its uncertainty on top."""
    changes: tuple[str, ...]
    """Single changes after which it is predicted to fit; empty also where nothing can be predicted."""


def nearest(study: StudyRecord, context: Context, foresight: Foresight | None) -> Miss:
    """The nearest miss of a study in which nothing fits."""
    found = nearest_to_budget(context)
    changes = foresight.remedies(found.spec) if foresight else ()
    return Miss(found.spec, found.peak_bytes, found.measured, int(found.high_bytes / (1 - HEADROOM)) + 1, changes)
