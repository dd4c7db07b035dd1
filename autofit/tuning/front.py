"""The Pareto front of speed x memory x quality: what nothing else beats in all three."""

from collections.abc import Sequence

from autofit.config.floor import DataFloor
from autofit.config.quality import at_least
from autofit.tuning.figures import Figures


def pareto_front(known: Sequence[Figures], floor: DataFloor | None = None) -> list[Figures]:
    """Configurations that fit and that none other dominates, fastest first. Measured ones only, where any was measured.

    One dominates another that is no faster, needs no less memory and trains in no respect more (`quality.at_least`), and that
    differs from it in one of these.

    Args:
        floor: what the dataset's profile says of truncation; without it a longer `cutoff_len` is more.
    """
    fitting = [one for one in known if one.fits and one.rate is not None and one.peak_device_bytes is not None]
    if any(one.evidence == "measured" for one in fitting):
        fitting = [one for one in fitting if one.evidence == "measured"]
    # whoever dominates comes before whom it dominates, except among equals in speed and memory
    ordered = sorted(fitting, key=lambda one: (-(one.rate or 0.0), one.peak_device_bytes or 0))
    front: list[Figures] = []
    for one in ordered:
        if any(_dominates(other, one, floor) for other in front):
            continue
        front = [other for other in front if not _dominates(one, other, floor)]
        front.append(one)
    return front


def _dominates(one: Figures, other: Figures, floor: DataFloor | None) -> bool:
    mine, theirs = (one.rate or 0.0, -(one.peak_device_bytes or 0)), (other.rate or 0.0, -(other.peak_device_bytes or 0))
    if mine[0] < theirs[0] or mine[1] < theirs[1] or not at_least(one.spec, other.spec, floor):
        return False
    return mine != theirs or not at_least(other.spec, one.spec, floor)
