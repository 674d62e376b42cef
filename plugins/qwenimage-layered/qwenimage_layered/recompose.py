"""Layers laid over each other again, and how far that is from the picture they were taken from. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenimage_core.errors import RequestError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Recomposition:
    """The layers as one RGBA picture. `mean` and `worst` are its distance from the original, in codes of 0 to 255 over
    all four channels, colour counted by how much of it shows; None without an original."""

    picture: Image.Image
    mean: float | None = None
    worst: int | None = None


def recompose(layers: Sequence[Image.Image], original: Image.Image | None = None) -> Recomposition:
    """Lay RGBA `layers` over each other, the first at the bottom, and compare with `original`.

    Of what a generation gives, leave out the first picture: it repeats the whole, and is no layer. Raises RequestError
    for no layers, layers without alpha, and sizes that differ.
    """
    from PIL import Image

    if not layers:
        raise RequestError("There are no layers to recompose.", expected="at least one")
    sizes = {picture.size for picture in (*layers, *([original] if original is not None else []))}
    if len(sizes) > 1:
        raise RequestError(
            "The layers, or layers and original, are not of one size.",
            got=", ".join(f"{width} x {height}" for width, height in sorted(sizes)),
        )
    if strange := sorted({layer.mode for layer in layers} - {"RGBA"}):
        raise RequestError("Layers have an alpha channel.", got=", ".join(strange), expected="RGBA")
    whole = layers[0]
    for layer in layers[1:]:
        whole = Image.alpha_composite(whole, layer)
    return Recomposition(whole) if original is None else Recomposition(whole, *_distance(whole, original))


def _distance(one: Image.Image, other: Image.Image) -> tuple[float, int]:
    """(mean, worst) over premultiplied channels: what colour a transparent pixel has does not matter."""
    from PIL import ImageChops, ImageStat

    bands = (picture.convert("RGBA").convert("RGBa").split() for picture in (one, other))
    statistics = [ImageStat.Stat(ImageChops.difference(a, b)) for a, b in zip(*bands, strict=True)]
    return sum(s.mean[0] for s in statistics) / len(statistics), max(s.extrema[0][1] for s in statistics)
