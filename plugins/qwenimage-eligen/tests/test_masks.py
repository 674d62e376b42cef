"""Mask pictures to token maps, against pictures small enough to work out by hand."""

from __future__ import annotations

import torch
from PIL import Image

from qwenimage_eligen.masks import resample, token_map

from .conftest import rectangle


def test_a_token_is_on_if_any_of_its_latent_pixels_is() -> None:
    # 48 x 32 pixels: 6 x 4 latent pixels, 3 x 2 tokens. Latent pixel (row 1, column 3) alone is on.
    mask = rectangle(24, 8, 32, 16, size=(48, 32))
    assert token_map(mask, 2, 3, 2).tolist() == [[False, True, False], [False, False, False]]


def test_the_nearest_pixel_decides_not_the_mean_of_an_area() -> None:
    # Pixel 4 of 8 stands for a latent pixel; a line elsewhere in the cell is not seen, one there is.
    for column, seen in ((3, False), (4, True), (5, False)):
        assert bool(token_map(rectangle(column, 0, column + 1, 16, size=(16, 16)), 1, 1, 2).any()) is seen


def test_grey_from_128_is_on() -> None:
    for grey, on in ((127, False), (128, True)):
        assert bool(token_map(Image.new("L", (16, 16), grey), 1, 1, 2).all()) is on
    # the mean of the colours counts: (255 + 128 + 0) / 3 is just above mid-grey
    for colour, on in (((255, 128, 0), True), ((255, 127, 0), False)):
        assert bool(token_map(Image.new("RGB", (16, 16), colour), 1, 1, 2).all()) is on


def test_the_size_of_the_mask_does_not_matter() -> None:
    small, large = rectangle(2, 1, 6, 3, size=(12, 8)), rectangle(200, 100, 600, 300, size=(1200, 800))
    assert torch.equal(token_map(small, 4, 6, 2), token_map(large, 4, 6, 2))


def test_resampling_keeps_an_equal_grid_and_covers_the_same_part_of_another() -> None:
    where = torch.zeros(4, 6, dtype=torch.bool)
    where[2:, :3] = True
    assert torch.equal(resample(where, 4, 6), where)
    for height, width in ((2, 4), (8, 12), (6, 2)):
        other = resample(where, height, width)
        assert other.float().mean() == 0.25
        assert bool(other[height // 2 :, : width // 2].all())
