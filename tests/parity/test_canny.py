"""Our canny against OpenCV's (`pip install opencv-python-headless`): the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from qwenimage_blockwise_controlnet.annotators import canny

cv2 = pytest.importorskip("cv2")


def shapes() -> Image.Image:
    picture = Image.new("RGB", (200, 150), (30, 60, 90))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((20, 20, 120, 130), fill=(200, 180, 20))
    draw.rectangle((100, 60, 180, 140), fill=(20, 200, 40))
    draw.line((0, 0, 199, 149), fill="white", width=3)
    return picture


def waves() -> Image.Image:
    y, x = np.mgrid[0:128, 0:96]
    colours = [127 + 120 * np.sin(x / a + y / b) for a, b in ((9, 31), (23, 7), (13, 17))]
    return Image.fromarray(np.stack(colours, -1).astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = {
    "shapes": shapes(),
    "blurred shapes": shapes().filter(ImageFilter.GaussianBlur(2)),
    "waves": waves(),
    "noise": noise(91, 67),
    "smooth noise": noise(20, 20).resize((160, 140)),
}


@pytest.mark.parametrize(("low", "high"), [(100, 200), (30, 90), (10, 40)])
@pytest.mark.parametrize("name", PICTURES)
def test_edges_equal_opencv(name: str, low: int, high: int) -> None:
    expected = cv2.Canny(np.array(PICTURES[name]), low, high)
    found = np.array(canny(PICTURES[name], low, high))
    assert (found == expected[..., None]).all()
