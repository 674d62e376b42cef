"""Reference pictures at the sizes the published models take. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from qwenimage_core.images import is_transparent

if TYPE_CHECKING:
    from PIL import Image

ENCODED_AREA = 1024 * 1024
SEEN_AREA = 384 * 384
MULTIPLE = 32


@dataclass(frozen=True)
class Reference:
    """One picture of `edit_image`: as `given`, as the VAE has it (`encoded`), as the text encoder has it (`seen`)."""

    given: Image.Image
    encoded: Image.Image
    seen: Image.Image

    @classmethod
    def of(cls, picture: Image.Image, *, resize: bool, several: bool) -> Self:
        """`encoded` is of about a megapixel, or the picture's own size without `resize`. `seen` is the same picture,
        or, for one of `several`, a small copy of it: reduced from what is encoded, not from what was given."""
        plain = picture.convert("RGBA" if is_transparent(picture) else "RGB")
        encoded = resized(plain, ENCODED_AREA) if resize else plain
        return cls(picture, encoded, resized(encoded, SEEN_AREA) if several else encoded)


def resized(picture: Image.Image, area: int) -> Image.Image:
    """The picture, bicubically, at `sides_of(area, its aspect)`."""
    from PIL.Image import Resampling

    return picture.resize(sides_of(area, picture.width / picture.height), Resampling.BICUBIC)


def sides_of(area: int, aspect: float) -> tuple[int, int]:
    """(width, height) of about `area` pixels at `aspect` (width over height), each the nearest multiple of 32."""
    width = math.sqrt(area * aspect)
    height = width / aspect
    return max(round(width / MULTIPLE), 1) * MULTIPLE, max(round(height / MULTIPLE), 1) * MULTIPLE
