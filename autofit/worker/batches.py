"""The worst batch: every sequence exactly `cutoff_len` tokens, every image the largest that is legal. Synthetic, deterministic.

Or batches of the shapes that the order lists, one an optimizer step.

Sample `i` of seed `s` is the same whatever the ranks, the ZeRO stage or the split into micro-batches, so that losses compare.
"""

import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch

from autofit.worker.models import model_class, text_config
from autofit.worker.outcomes import DataError
from autofit.worker.precision import dtypes

IGNORED_LABEL = -100
MAX_ASPECT_RATIO = 4.0
"""Of the largest image: the grid with the most patches among shapes that photographs have."""
_QWEN_LAYOUT = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"})
"""Vision-language models whose images are flat patches with `image_grid_thw`."""
_FIRST_WORD_ID = 3
"""Ids below are left to padding and the like."""


@dataclass(frozen=True)
class ImageLayout:
    """How a Qwen-style processor would hand over one image."""

    grid: tuple[int, int, int]
    """Frames, rows and columns of patches (`image_grid_thw`)."""
    patch_values: int
    """Numbers in a patch: channels x temporal patch x patch side squared."""
    tokens: int
    """Image tokens in the sequence: patches / merge side squared."""
    image_token: int
    start_token: int | None
    end_token: int | None


class WorstBatch(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """`length` samples, each a dict of tensors without a batch dimension; batch them with `collate`."""

    def __init__(
        self, config: Any, trial: dict[str, Any], *, seed: int, length: int, noise: torch.Tensor | None = None
    ) -> None:
        """`noise` is what images are made of, [patches or more, patch values]; None: made when the first one is."""
        self._vocabulary = _words(config)
        self._cutoff = int(trial["cutoff_len"])
        self._seed = seed
        self._length = length
        vision = getattr(config, "vision_config", None) is not None
        self._images = int(trial["images"]["per_sample"]) if vision else 0
        self._layout = image_layout(config, int(trial["images"]["max_pixels"])) if vision else None
        self._needs_token_types = "mm_token_type_ids" in inspect.signature(model_class(config).forward).parameters
        rows = math.prod(self._layout.grid) * self._images if self._layout else 0
        self._pixels = noise[:rows] if noise is not None else None
        kinds = dtypes(trial)
        self._pixel_type = kinds.autocast or kinds.base
        if self._layout and self._images * (self._layout.tokens + 2) + 2 > self._cutoff:
            raise DataError(
                f"{self._images} image(s) of {self._layout.tokens} tokens do not fit into cutoff_len {self._cutoff}; raise"
                f" cutoff_len or lower images.max_pixels"
            )

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        low, high = self._vocabulary
        ids = torch.randint(low, high, (self._cutoff,), generator=generator)
        labels = ids.clone()
        sample = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
        if self._layout and self._images:
            spans = self._place_images(ids, self._layout)
            labels[spans] = IGNORED_LABEL
            sample["pixel_values"] = self._image_values(self._layout, index)
            sample["image_grid_thw"] = torch.tensor([self._layout.grid] * self._images)
        if self._needs_token_types:
            is_image = ids == self._layout.image_token if self._layout else torch.zeros_like(ids, dtype=torch.bool)
            sample["mm_token_type_ids"] = is_image.to(torch.int)
        return sample

    def _place_images(self, ids: torch.Tensor, layout: ImageLayout) -> torch.Tensor:
        """Writes the images' tokens into `ids` after its first token; returns a mask of all that they took."""
        block = [layout.image_token] * layout.tokens
        if layout.start_token is not None and layout.end_token is not None:
            block = [layout.start_token, *block, layout.end_token]
        taken = torch.zeros_like(ids, dtype=torch.bool)
        end = 1 + len(block) * self._images
        ids[1:end] = torch.tensor(block * self._images)
        taken[1:end] = True
        return taken

    def _image_values(self, layout: ImageLayout, index: int) -> torch.Tensor:
        """[patches, patch_values] in the type that is computed in: LLaMA-Factory's collator casts what the processor gives.

        One noise image, dimmed by the sample's index: a fresh one each time would cost the step tens of
        milliseconds for nothing.
        """
        if self._pixels is None:
            rows = math.prod(layout.grid) * self._images
            generator = torch.Generator().manual_seed(self._seed)
            self._pixels = torch.randn(rows, layout.patch_values, generator=generator)
        return (self._pixels * (1.0 - 0.5 * (index % 7) / 7)).to(self._pixel_type)


class StepBatches(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """`length` samples whose shape changes with each optimizer step: `shapes` in turn (`autofit.config.trial.StepShape`)."""

    def __init__(
        self, config: Any, trial: dict[str, Any], shapes: list[dict[str, int]], *, seed: int, length: int, step_samples: int
    ) -> None:
        images = trial["images"]
        noise = _noise(config, images, seed)
        self._length, self._step_samples = length, step_samples
        made: dict[tuple[int, int], WorstBatch] = {}
        for shape in shapes:
            tokens, pixels = int(shape["cutoff_len"]), int(shape["image_max_pixels"])
            count = int(images["per_sample"]) if pixels else 0
            knobs = {
                **trial,
                "cutoff_len": tokens,
                "images": {"per_sample": count, "max_pixels": pixels or images["max_pixels"]},
            }
            if (tokens, pixels) not in made:
                made[tokens, pixels] = WorstBatch(config, knobs, seed=seed, length=length, noise=noise)
        self._steps = [made[int(shape["cutoff_len"]), int(shape["image_max_pixels"])] for shape in shapes]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._steps[index // self._step_samples % len(self._steps)][index]


def _noise(config: Any, images: dict[str, Any], seed: int) -> torch.Tensor | None:
    """One noise for the images of all shapes, as large as the largest needs it; None for a model without a vision tower."""
    if getattr(config, "vision_config", None) is None or not int(images["per_sample"]):
        return None
    layout = image_layout(config, int(images["max_pixels"]))
    rows = math.prod(layout.grid) * int(images["per_sample"])
    return torch.randn(rows, layout.patch_values, generator=torch.Generator().manual_seed(seed))


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stacks sequences; images of all samples follow one another, as the model expects them."""
    flat = {"pixel_values", "image_grid_thw"}
    return {
        name: torch.cat([sample[name] for sample in samples])
        if name in flat
        else torch.stack([sample[name] for sample in samples])
        for name in samples[0]
    }


def image_layout(config: Any, max_pixels: int) -> ImageLayout:
    """The largest legal image of a Qwen-style model: most patches within `max_pixels`, as square as that allows.

    Raises:
        DataError: another kind of vision-language model.
    """
    if config.model_type not in _QWEN_LAYOUT:
        raise DataError(
            f"model_type '{config.model_type}': the transformers engine cannot make images for it; supported:"
            f" {', '.join(sorted(_QWEN_LAYOUT))}; use a text model or another engine"
        )
    vision = config.vision_config
    merge, patch = int(vision.spatial_merge_size), int(vision.patch_size)
    rows, columns = _largest_grid(max_pixels // (patch * merge) ** 2)
    return ImageLayout(
        grid=(1, rows * merge, columns * merge),
        patch_values=int(getattr(vision, "in_channels", 3)) * int(vision.temporal_patch_size) * patch * patch,
        tokens=rows * columns,
        image_token=int(config.image_token_id),
        start_token=getattr(config, "vision_start_token_id", None),
        end_token=getattr(config, "vision_end_token_id", None),
    )


def _largest_grid(cells: int) -> tuple[int, int]:
    """Rows and columns with the largest product <= `cells` at an aspect ratio <= MAX_ASPECT_RATIO; the squarest of those."""
    best = (1, 1)
    for rows in range(1, math.isqrt(max(1, cells)) + 1):
        columns = min(cells // rows, int(rows * MAX_ASPECT_RATIO))
        if columns >= 1 and rows * columns >= best[0] * best[1]:
            best = (rows, columns)
    return best


def _words(config: Any) -> tuple[int, int]:
    """Half-open range of ordinary token ids: below every special id that the config names, and not the first few."""
    special = [
        value
        for holder in (config, text_config(config))
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")
        if isinstance(value := getattr(holder, name, None), int)
    ]
    high = min([int(text_config(config).vocab_size), *special])
    low = min(_FIRST_WORD_ID, high - 1)
    return low, high
