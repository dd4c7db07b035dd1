"""How many tokens and patches an image becomes, from its size alone: no pixel is decoded.

Sources: LLaMA-Factory 0.9.5 `data/mm_plugin.py` (`MMPluginMixin._preprocess_image`, `Qwen2VLPlugin._preprocess_image`), then
`smart_resize` of transformers' `Qwen2VLImageProcessor`, which Qwen2-VL, Qwen2.5-VL and Qwen3-VL share.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHORTEST_SIDE = 28
_LARGEST_RATIO = 200
_STRETCHED_RATIO = 180
_TAIL_BYTES = 64
_ENDINGS = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "GIF": b";"}
"""What the last bytes of a whole file hold. One that lacks it is decoded, to know whether it is whole."""


class ImageError(Exception):
    """An image that training could not read; the message names it."""


@dataclass(frozen=True)
class ImageRule:
    """The limits that decide an image's size in training.

    Attributes:
        max_pixels, min_pixels: LLaMA-Factory's `image_max_pixels` and `image_min_pixels`.
        patch, merge: side of a patch in pixels, and of the square of patches that makes a token.
        shortest, longest: the processor's own least and most pixels (`size` in `preprocessor_config.json`).
    """

    max_pixels: int
    min_pixels: int
    patch: int
    merge: int
    shortest: int
    longest: int

    @classmethod
    def of_processor(cls, processor: Any, max_pixels: int, min_pixels: int) -> "ImageRule | None":
        """The rule of an image processor of the Qwen2-VL kind; None for any other."""
        size = getattr(processor, "size", None)
        if size is None or not hasattr(processor, "merge_size") or not hasattr(processor, "patch_size"):
            return None
        shortest, longest = (_entry(size, name) for name in ("shortest_edge", "longest_edge"))
        if not shortest or not longest:
            return None
        return cls(max_pixels, min_pixels, int(processor.patch_size), int(processor.merge_size), shortest, longest)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of that size."""
        width, height = self._prepared(width, height)
        factor = self.patch * self.merge
        rows, columns = self._smart(height, width, factor)
        return rows // self.patch, columns // self.patch

    def tokens(self, width: int, height: int) -> int:
        """Image tokens, without the two that bound them."""
        rows, columns = self.grid(width, height)
        return rows * columns // self.merge**2

    def _prepared(self, width: int, height: int) -> tuple[int, int]:
        """As LLaMA-Factory hands the image to the processor."""
        if width * height > self.max_pixels:
            by = math.sqrt(self.max_pixels / (width * height))
            width, height = int(width * by), int(height * by)
        if width * height < self.min_pixels:
            if not width or not height:  # what LLaMA-Factory's division makes of a line of pixels
                raise ImageError(f"is too thin: it would shrink to {width} x {height} pixels")
            by = math.sqrt(self.min_pixels / (width * height))
            width, height = int(width * by), int(height * by)
        if min(width, height) < _SHORTEST_SIDE:
            width, height = max(width, _SHORTEST_SIDE), max(height, _SHORTEST_SIDE)
        if width / height > _LARGEST_RATIO:
            width = height * _STRETCHED_RATIO
        if height / width > _LARGEST_RATIO:
            height = width * _STRETCHED_RATIO
        return width, height

    def _smart(self, height: int, width: int, factor: int) -> tuple[int, int]:
        rows, columns = round(height / factor) * factor, round(width / factor) * factor
        if rows * columns > self.longest:
            by = math.sqrt(height * width / self.longest)
            rows, columns = (max(factor, math.floor(side / by / factor) * factor) for side in (height, width))
        elif rows * columns < self.shortest:
            by = math.sqrt(self.shortest / (height * width))
            rows, columns = (math.ceil(side * by / factor) * factor for side in (height, width))
        return rows, columns


def image_size(image: Any) -> tuple[int, int]:
    """Width and height of what a dataset holds in place of an image: a path, bytes, or a mapping or object with either.

    Reads the file's header and, to notice one that was cut short, its end. What lies between is not looked at.

    Raises:
        ImageError: it is missing, no image, or cut short.
    """
    if hasattr(image, "width") and hasattr(image, "height"):
        return int(image.width), int(image.height)
    source, name = image, "the image in the row"
    if isinstance(image, dict):
        source = image.get("bytes") or image.get("path")
    if isinstance(source, str):
        name = source
    elif not isinstance(source, bytes):
        raise ImageError(f"{name} is a {type(source).__name__}, neither a path nor bytes")
    try:
        return _measured(source)
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{name} is no whole image ({_reason(error)})") from error


def _measured(source: str | bytes) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            size: tuple[int, int] = opened.size
            ending = _ENDINGS.get(opened.format or "")
            if ending is not None and ending not in _tail(source):
                opened.load()  # raises if it is cut short
    except Image.DecompressionBombError as error:  # of no family of its own; training would stop at it too
        raise ValueError(error) from error
    return size


def _tail(source: str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[-_TAIL_BYTES:]
    with Path(source).open("rb") as file:
        file.seek(0, io.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        return file.read()


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "its header is of no known kind" if "cannot identify" in text else text


def _entry(size: Any, name: str) -> int:
    value = size.get(name) if isinstance(size, dict) else getattr(size, name, None)
    return int(value or 0)
