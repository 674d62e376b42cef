"""Pictures as the encoders of i2L see them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenimage_core.errors import RequestError
from qwenimage_core.images import is_transparent

if TYPE_CHECKING:
    from PIL import Image

FULL_SIDE = 1024
COARSE_SIDE = 224


def check_pictures(pictures: Sequence[Image.Image | None]) -> None:
    """Raises RequestError for none at all, for one that is missing, and for one that is partly transparent."""
    if not pictures:
        raise RequestError(
            "There are no pictures to make a LoRA of.", got="an empty list", expected="at least 1"
        )
    for number, picture in enumerate(pictures, 1):
        if picture is None or is_transparent(picture):
            raise RequestError(
                f"Picture {number} of i2l_images is "
                + ("missing." if picture is None else "partly transparent, which the encoders cannot see."),
                got=None if picture is None else f"a picture of mode {picture.mode}",
                expected="a picture without transparency",
                mend=None
                if picture is None
                else 'put it on a background first, or drop it with picture.convert("RGB")',
            )


def cropped(picture: Image.Image, side: int) -> Image.Image:
    """The middle of the picture as an RGB square: scaled (bilinear) until it covers the square, then cut."""
    from PIL import Image

    scale = max(side / picture.width, side / picture.height)
    width, height = round(picture.width * scale), round(picture.height * scale)
    scaled = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return scaled.crop((left, top, left + side, top + side))
