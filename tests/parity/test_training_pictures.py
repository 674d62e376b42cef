"""Pictures of a dataset come out as DiffSynth-Studio's trainer cuts them: same size, same pixels."""

from __future__ import annotations

import random

import pytest
from diffsynth.core.data.operators import ImageCropAndResize
from PIL import Image, ImageChops

from qwenimage_training.data.pictures import Cut, Size, fitted_size

FIXED = (320, 256)


def sources() -> list[tuple[Size, str]]:
    dice = random.Random(0)
    return [((dice.randint(64, 900), dice.randint(64, 900)), dice.choice(["RGB", "RGBA"])) for _ in range(40)]


def noise(size: Size, mode: str) -> Image.Image:
    return Image.merge(mode, [Image.effect_noise(size, 80) for _ in mode])


def same(one: Image.Image, other: Image.Image) -> bool:
    channels = zip(one.split(), other.split(), strict=True)
    return one.size == other.size and not any(ImageChops.difference(a, b).getbbox() for a, b in channels)


@pytest.mark.parametrize("cap", [40_000, 262_144, 1_048_576])
def test_pictures_are_cut_as_the_peer_cuts_them(cap: int) -> None:
    peer = ImageCropAndResize(None, None, cap, 16, 16)
    for size, mode in sources():
        picture = noise(size, mode)
        assert same(Cut.centre(size, fitted_size(size, cap, "here")).apply(picture), peer(picture)), (
            size,
            mode,
        )


def test_a_fixed_size_is_cut_as_the_peer_cuts_it() -> None:
    peer = ImageCropAndResize(FIXED[1], FIXED[0], None, 16, 16)
    for size, mode in sources():
        picture = noise(size, mode)
        assert same(Cut.centre(size, FIXED).apply(picture), peer(picture)), (size, mode)
