"""The images of a batch as a trial makes them."""

from autofit.config.model import Model
from autofit.config.trial import TrialSpec

MAX_ASPECT_RATIO = 4.0


def image_patches(spec: TrialSpec, model: Model) -> int:
    """Patches of the largest image: the grid with the most of them within `max_pixels`, sides whole tokens, at most 4 to 1.

    The same rule as the worst batch of a trial (`worker/batches.py`), which a test holds equal.
    """
    if not model.is_vision_language or not spec.images.per_sample:
        return 0
    vision = (model.config or {})["vision_config"]
    merge = int(vision.get("spatial_merge_size", 2))
    side = int(vision.get("patch_size", 14)) * merge
    cells = spec.images.max_pixels // side**2
    best = 1
    for rows in range(1, int(cells**0.5) + 1):
        columns = min(cells // rows, int(rows * MAX_ASPECT_RATIO))
        best = max(best, rows * columns)
    return best * merge**2
