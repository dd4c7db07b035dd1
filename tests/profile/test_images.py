"""Sizes from headers, and files that are no images or are cut short."""

from pathlib import Path

import pytest
from PIL import Image

from autofit.worker.profile_images import ImageError, ImageRule, image_size

RULE = ImageRule(max_pixels=589_824, min_pixels=1024, patch=14, merge=2, shortest=56 * 56, longest=28 * 28 * 1280)


@pytest.mark.parametrize(
    ("size", "grid"),
    [((64, 64), (4, 4)), ((1000, 1000), (54, 54)), ((28, 28), (4, 4)), ((1, 300), (40, 2)), ((5000, 20), (2, 358))],
)
def test_known_grids(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert RULE.grid(*size) == grid
    assert RULE.tokens(*size) == grid[0] * grid[1] // 4


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_a_size_is_read_from_a_file_and_from_bytes(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    Image.new("RGB", (37, 91), "red").save(file)
    for source in (str(file), file.read_bytes(), {"path": str(file), "bytes": None}, Image.open(file)):
        assert image_size(source) == (37, 91)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_cut_short_is_noticed(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    Image.effect_noise((300, 300), 80).convert("RGB").save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=rf"a\.{suffix} is no whole image"):
        image_size(str(file))
    file.write_bytes(whole + b"trailing bytes that no reader minds" * 4)
    assert image_size(str(file)) == (300, 300)


def test_what_is_no_image(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    with pytest.raises(ImageError, match="does not exist"):
        image_size(str(file))
    file.write_text("hello")
    with pytest.raises(ImageError, match="header is of no known kind"):
        image_size(str(file))
    with pytest.raises(ImageError, match="neither a path nor bytes"):
        image_size(7)


def test_an_image_that_pillow_refuses(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("1", (14_000, 14_000)).save(file)
    with pytest.raises(ImageError, match="decompression bomb"):
        image_size(str(file))


def test_a_line_of_pixels_cannot_be_shrunk() -> None:
    with pytest.raises(ImageError, match="too thin"):
        RULE.grid(1_000_000, 1)
