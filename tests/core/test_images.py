"""Pictures become tensors by their values, whatever depth they are stored with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenimage_core.images import open_picture, to_tensor

SIXTEEN = np.array([[0, 257 * 128, 65535]], dtype=np.uint16)
EIGHT = [0, 128, 255]


def codes(picture: Image.Image, channels: int) -> list[list[float]]:
    """The 8-bit values of the only row, channel by channel."""
    return ((to_tensor(picture, channels)[0, :, 0] + 1) * 127.5).round().tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(channels: int) -> None:
    assert codes(Image.fromarray(SIXTEEN), channels) == [EIGHT] * channels


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "picture"])
def test_a_picture_of_a_request_has_eight_bits(tmp_path: Path, as_file: bool) -> None:
    """Plugins convert it themselves: a depth map must not be white by then."""
    given: object = Image.fromarray(SIXTEEN)
    if as_file:
        given = tmp_path / "depth.png"
        Image.fromarray(SIXTEEN).save(given)
    assert np.array(open_picture(given).convert("RGB"))[0, :, 0].tolist() == EIGHT


def test_values_whose_white_nobody_knows_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bits"):
        open_picture(Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)))
