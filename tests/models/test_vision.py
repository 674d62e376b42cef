"""Picture preparation against transformers' own processor (its PIL form)."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from qwenimage_core.errors import LoadError, RequestError
from qwenimage_core.models.vision import PicturePreparation

PUBLISHED = PicturePreparation()


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(noise.squeeze(), mode)


@pytest.mark.parametrize("size", [(56, 84), (30, 40), (20, 20), (333, 97), (448, 352), (1300, 700)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_patches_and_grid_equal_transformers(size, mode):
    processor = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=400_000)
    expected = processor(images=picture(*size, mode), return_tensors="pt")
    ours = PicturePreparation(max_pixels=400_000)

    torch.testing.assert_close(
        ours.patches(picture(*size, mode)), expected["pixel_values"], atol=1e-6, rtol=0
    )
    rows, columns = ours.grid(*size)
    assert expected["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]


# Numbers of image tokens that the published processor gives.
@pytest.mark.parametrize(
    ("size", "tokens"),
    [((1024, 1024), 1369), ((384, 384), 196), ((896, 1152), 1312), ((352, 448), 208), ((224, 224), 64)],
)
def test_token_counts_of_published_sizes(size, tokens):
    rows, columns = PUBLISHED.grid(*size)
    assert rows * columns == tokens


def test_a_very_long_picture_is_refused():
    with pytest.raises(RequestError, match="too long"):
        PUBLISHED.grid(2010, 10)


def test_config_in_old_and_new_spelling():
    old = {"min_pixels": 3136, "max_pixels": 50_000, "patch_size": 14, "resample": 3, "do_resize": True}
    new = {"size": {"shortest_edge": 3136, "longest_edge": 50_000}, "merge_size": 2}
    assert PicturePreparation.from_dict(old) == PicturePreparation.from_dict(new)
    assert PicturePreparation.from_dict({}) == PUBLISHED
    with pytest.raises(LoadError, match="resample"):
        PicturePreparation.from_dict({"resample": 2})
