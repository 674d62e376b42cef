"""Layers over each other again: against the formula of alpha compositing, and the distance from the original."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qwenimage_core import RequestError
from qwenimage_layered import recompose

from .conftest import picture


def over(layers: list[Image.Image]) -> np.ndarray:
    """C = a * colour + (1 - a) * C from the bottom up, premultiplied, (H, W, 4) in 0..255."""
    whole = np.zeros((*layers[0].size[::-1], 4))
    for layer in layers:
        values = np.asarray(layer, dtype=float)
        alpha = values[..., 3:] / 255
        above = np.concatenate([values[..., :3] * alpha, values[..., 3:]], axis=-1)
        whole = above + (1 - alpha) * whole
    return whole


def test_layers_lie_over_each_other_the_first_at_the_bottom() -> None:
    layers = [picture(20, 30, seed=i) for i in range(4)]
    found = np.asarray(recompose(layers).picture, dtype=float)
    premultiplied = np.concatenate([found[..., :3] * found[..., 3:] / 255, found[..., 3:]], axis=-1)
    assert np.abs(premultiplied - over(layers)).max() <= 4, "each layer rounds once"
    assert not np.array_equal(recompose(layers[::-1]).picture, found)


def test_the_layers_of_a_picture_give_the_picture() -> None:
    """A picture cut in two by a mask, and nothing added or lost."""
    original = picture(20, 30, "RGB").convert("RGBA")
    top, bottom = original.copy(), original.copy()
    half = Image.new("L", original.size)
    half.paste(255, (0, 0, 10, 30))
    top.putalpha(half)
    bottom.putalpha(half.point(lambda code: 255 - code))
    found = recompose([bottom, top], original)
    assert (found.mean, found.worst) == (0, 0)
    assert np.array_equal(found.picture, original)


def test_the_distance_is_that_of_what_shows() -> None:
    original, shifted = (
        Image.new("RGBA", (4, 4), (100, 50, 0, 255)),
        Image.new("RGBA", (4, 4), (104, 50, 0, 255)),
    )
    assert (recompose([shifted], original).mean, recompose([shifted], original).worst) == (1, 4)
    hidden, other = Image.new("RGBA", (4, 4), (9, 9, 9, 0)), Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert recompose([hidden], other).worst == 0


def test_without_an_original_there_is_no_distance() -> None:
    assert recompose([picture(4, 4)]).mean is None


@pytest.mark.parametrize(
    ("layers", "original", "said"),
    [
        ([], None, "no layers"),
        ([picture(4, 4), picture(4, 5)], None, "not of one size"),
        ([picture(4, 4)], picture(5, 4), "not of one size"),
        ([picture(4, 4, "RGB")], None, "alpha channel"),
    ],
)
def test_what_cannot_be_recomposed_is_refused(
    layers: list[Image.Image], original: Image.Image | None, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        recompose(layers, original)
