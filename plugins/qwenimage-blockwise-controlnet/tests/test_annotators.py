"""Canny edges of pictures whose edges are known, and what is said where an annotator is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qwenimage_blockwise_controlnet import ControlNetInput
from qwenimage_blockwise_controlnet.annotators import annotate, canny, check_installed
from qwenimage_core import RequestError


def edges(picture: Image.Image, **thresholds: int) -> np.ndarray:
    return np.array(canny(picture, **thresholds))[..., 0] > 0


def test_a_step_gives_one_straight_line() -> None:
    """Two columns are equally strong at a step between them; the first of them is the edge."""
    picture = Image.new("RGB", (12, 8))
    picture.paste((255, 255, 255), (6, 0, 12, 8))
    found = edges(picture)
    assert found[:, 5].all()
    assert found.sum() == 8
    assert edges(picture.transpose(Image.Transpose.TRANSPOSE))[5].all()


def test_a_flat_picture_has_no_edges() -> None:
    assert not edges(Image.new("RGB", (16, 16), (90, 90, 90))).any()


def test_strength_is_the_sum_of_both_derivatives() -> None:
    """A step of 30 has the strength 4 x 30 = 120: above 100, not above 200."""
    picture = Image.new("L", (12, 8))
    picture.paste(30, (6, 0, 12, 8))
    assert not edges(picture).any()
    assert edges(picture, low=50, high=119).any()
    assert not edges(picture, low=50, high=120).any()


def test_the_strongest_colour_counts() -> None:
    picture = Image.new("RGB", (12, 8), (0, 100, 0))
    picture.paste((0, 100, 200), (6, 0, 12, 8))
    assert edges(picture)[:, 5].all()


def test_a_weak_edge_goes_on_where_it_meets_a_strong_one() -> None:
    """The lower half of the step is weak: alone it is nothing, below the strong half it is kept."""
    weak = Image.new("L", (12, 16))
    weak.paste(40, (6, 0, 12, 16))
    assert not edges(weak).any()
    weak.paste(255, (6, 0, 12, 8))
    assert edges(weak)[10:, 5].all()


def test_a_circle_gives_a_closed_thin_line() -> None:
    picture = Image.new("RGB", (64, 64))
    ImageDraw.Draw(picture).ellipse((12, 12, 52, 52), fill="white")
    found = edges(picture)
    rows, columns = np.nonzero(found)
    radius = np.hypot(rows - 32, columns - 32)
    assert (abs(radius - 20) < 1.6).all()
    assert 0.8 * 2 * np.pi * 20 < found.sum() < 1.2 * 2 * np.pi * 20
    angles = np.sort(np.arctan2(rows - 32, columns - 32))
    assert np.diff(angles).max() < 0.2, "no gap"


def test_the_map_has_the_pictures_size_and_three_colours() -> None:
    found = annotate(Image.new("RGBA", (33, 17), (9, 9, 9, 255)), "canny")
    assert (found.size, found.mode) == ((33, 17), "RGB")


@pytest.mark.skipif(find_spec("controlnet_aux") is not None, reason="controlnet-aux is installed")
def test_an_annotator_that_is_not_installed_says_how_to_get_it() -> None:
    with pytest.raises(RequestError, match=r"qwenimage-blockwise-controlnet\[annotators\]"):
        check_installed("depth")
    assert ControlNetInput(image=Image.new("RGB", (16, 16)), processor_id="depth").processor_id == "depth"
