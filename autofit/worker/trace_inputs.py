"""The batch of a training step without data: shapes on `meta`, and the few small index tensors whose values matter, real.

Every sequence is `cutoff_len` long (the worst batch), so there is no padding and no attention mask: transformers drops a mask
of ones before attention sees it. Image tokens lie inside the sequences.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

IMAGE_MODELS = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"})

MAX_LAYERS = 2000
"""Ten times the deepest published model; each layer's modules are really made."""


class TraceError(ValueError):
    """This configuration cannot be traced; the message says what is and what is not."""


@dataclass(frozen=True)
class Shape:
    """One batch.

    Attributes:
        micro_batch_size: samples.
        cutoff_len: tokens of each.
        grids: (frames, rows, columns) in patches of every image of the batch; rows and columns are multiples of the merge size.
        regime: shapes that share events: a batch of one needs fewer copies to be contiguous, a sequence beyond a sliding
            window needs a mask. Empty: `one` for a batch of one, else `many`.
    """

    micro_batch_size: int
    cutoff_len: int
    grids: tuple[tuple[int, int, int], ...] = ()
    regime: str = ""

    @property
    def patches(self) -> int:
        """Image patches in the batch."""
        return sum(frames * rows * columns for frames, rows, columns in self.grids)

    @classmethod
    def read(cls, value: dict[str, Any]) -> "Shape":
        """From `{"micro_batch_size": 1, "cutoff_len": 2048, "grids": [[1, 32, 32]], "regime": "one"}`.

        Raises:
            TraceError: a number is missing, or is not a positive whole number.
        """
        try:
            grids = tuple((int(t), int(h), int(w)) for t, h, w in value.get("grids") or [])
            batch = int(value["micro_batch_size"])
            shape = cls(batch, int(value["cutoff_len"]), grids, value.get("regime") or ("one" if batch == 1 else "many"))
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"shape {value!r}: needs micro_batch_size, cutoff_len and grids of three whole numbers") from error
        if min(shape.micro_batch_size, shape.cutoff_len, *(min(grid) for grid in grids)) < 1:
            raise TraceError(f"shape {value!r}: every number must be at least 1")
        return shape

    def written(self) -> dict[str, Any]:
        """The inverse of `read`."""
        grids = [list(grid) for grid in self.grids]
        return {"micro_batch_size": self.micro_batch_size, "cutoff_len": self.cutoff_len, "grids": grids, "regime": self.regime}


def image_grid(max_pixels: int, patch: int, merge: int) -> tuple[int, int, int]:
    """The grid, near to square, of the largest image that has at most `max_pixels` pixels."""
    side = patch * merge
    tokens = max(1, max_pixels // side**2)
    rows = max(1, math.isqrt(tokens))
    return 1, rows * merge, (tokens // rows) * merge


def check_shapes(config: Any) -> None:
    """Raises TraceError for a language model of impossible or absurd shape, before anything is built from it."""
    text = getattr(config, "text_config", None) or config
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"):
        value = getattr(text, name, None)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise TraceError(f"{config.model_type}: {name} {value!r}: must be a whole number of at least 1")
    layers, heads, width = text.num_hidden_layers, text.num_attention_heads, text.hidden_size
    if layers > MAX_LAYERS:
        raise TraceError(f"{config.model_type}: num_hidden_layers {layers}: more than {MAX_LAYERS} cannot be traced")
    if getattr(text, "head_dim", None) is None and width % heads:
        raise TraceError(f"{config.model_type}: hidden_size {width} is no multiple of {heads} attention heads")
    groups = getattr(text, "num_key_value_heads", None) or heads
    if heads % groups:
        raise TraceError(f"{config.model_type}: {heads} attention heads are no multiple of {groups} key-value heads")


def check_images(config: Any, shape: Shape) -> None:
    """Raises TraceError when the images are not for this model or leave no room for text."""
    if not shape.grids:
        return
    if config.model_type not in IMAGE_MODELS:
        raise TraceError(
            f"model_type {config.model_type!r} with images cannot be traced; with images: {', '.join(sorted(IMAGE_MODELS))};"
            " without images any decoder language model"
        )
    merge = int(config.vision_config.spatial_merge_size)
    wrong = [grid for grid in shape.grids if grid[1] % merge or grid[2] % merge]
    if wrong:
        raise TraceError(f"image grid {wrong[0]}: rows and columns must be multiples of {merge}")
    tokens = shape.patches // merge**2 + 2 * len(shape.grids)
    if tokens > shape.micro_batch_size * shape.cutoff_len:
        raise TraceError(
            f"{tokens} image tokens do not fit {shape.micro_batch_size} sequences of cutoff_len {shape.cutoff_len}"
        )


def image_share(config: Any, shape: Shape) -> float:
    """The share of the batch's tokens that are image tokens."""
    if not shape.grids:
        return 0.0
    return shape.patches / int(config.vision_config.spatial_merge_size) ** 2 / (shape.micro_batch_size * shape.cutoff_len)


def make_batch(config: Any, shape: Shape, pixels: torch.dtype = torch.float32, device: str = "meta") -> dict[str, Any]:
    """Keyword arguments of one forward. Grids are real on the CPU; everything else has no values.

    Args:
        pixels: type of the images; LLaMA-Factory's collator casts them to what is computed in.
    """
    rows = (shape.micro_batch_size, shape.cutoff_len)
    batch: dict[str, Any] = {
        "input_ids": torch.empty(rows, dtype=torch.long, device=device),
        "labels": torch.empty(rows, dtype=torch.long, device=device),
    }
    if config.model_type in IMAGE_MODELS:
        batch["position_ids"] = torch.empty((3, *rows), dtype=torch.long, device=device)
    if shape.grids:
        vision = config.vision_config
        width = int(vision.in_channels) * int(vision.temporal_patch_size) * int(vision.patch_size) ** 2
        batch["pixel_values"] = torch.empty((shape.patches, width), dtype=pixels, device=device)
        batch["image_grid_thw"] = torch.tensor(shape.grids, dtype=torch.long)
    return batch


def resident_only(config: Any, shape: Shape, device: str = "meta") -> list[torch.Tensor]:
    """Tensors that the collator puts on the device and the step does not read.

    The mask of ones; with images LLaMA-Factory's text positions (a fourth row of `position_ids`) and `rope_deltas`.
    """
    kept = [(shape.micro_batch_size, shape.cutoff_len)]
    if config.model_type in IMAGE_MODELS:
        kept += [(shape.micro_batch_size, shape.cutoff_len), (shape.micro_batch_size, 1)]
    return [torch.empty(size, dtype=torch.long, device=device) for size in kept]
