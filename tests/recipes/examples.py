"""What a recipe's example needs to run at tiny size: small pictures under the names it gives, and a small request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qwenimage_core.values import Recipe

WIDTH, HEIGHT = 64, 48
SUFFIXES = (".png", ".jpg")


def tiny_request(recipe: Recipe) -> dict[str, Any]:
    """The only changes to an example: sizes, of references too, and two steps unless the model was distilled for a
    number of them."""
    steps = {} if "lightning" in recipe.given else {"num_inference_steps": 2}
    references = {"edit_image_auto_resize": False} if "edit_image" in recipe.example else {}
    return {"width": WIDTH, "height": HEIGHT, **steps, **references}


def write_pictures(recipe: Recipe, folder: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """A picture for every name in the example, by default tiny: a mask where a mask is meant, else colours; with alpha
    where the model has it."""
    for field, name in picture_names(recipe.example):
        picture = _mask(*size) if "mask" in field else _colours(sum(name.encode()), size)
        picture.convert("RGBA" if "layer" in field else "RGB").save(folder / name)


def picture_names(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """(field, file name) of every picture in an example, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from picture_names(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from picture_names(inner, field)
    elif isinstance(value, str) and value.endswith(SUFFIXES):
        yield field, value


def _colours(seed: int, size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def _mask(width: int, height: int) -> Image.Image:
    """White in the middle."""
    drawn = Image.new("L", (width, height))
    drawn.paste(255, (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    return drawn


def expected_pictures(recipe: Recipe) -> list[str]:
    """The modes of the pictures that the example gives: of layers one more than asked for, with alpha."""
    layers = recipe.example.get("layer_num")
    return ["RGB"] if layers is None else ["RGBA"] * (layers + 1)


def assert_drawn(pictures: list[Image.Image], recipe: Recipe) -> None:
    """As many as the example gives, of the tiny size and the right mode, and none of one colour."""
    assert [picture.mode for picture in pictures] == expected_pictures(recipe)
    for picture in pictures:
        assert picture.size == (WIDTH, HEIGHT)
        assert np.asarray(picture).std() > 5, "a flat picture shows nothing"
