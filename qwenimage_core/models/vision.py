"""Pictures as the vision tower of Qwen2.5-VL takes them: resized, normalised, cut into rows of patches.

The same numbers as transformers' own processor, without torchvision. Shapes: C = 3 colours, T = 2 equal
frames, P pixels a patch side, G patches of one picture, F = C * T * P * P features of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from qwenimage_core.errors import LoadError, RequestError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MAX_ASPECT = 200  # the published processor refuses pictures that are longer


@dataclass(frozen=True, kw_only=True)
class PicturePreparation:
    """The constants of the published `processor/preprocessor_config.json`."""

    min_pixels: int = 56 * 56
    max_pixels: int = 12_845_056
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """From the keys of `preprocessor_config.json`, in the spelling of any transformers version."""
        steps = {
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "resample": 3,
        }
        for key, expected in steps.items():
            if config.get(key, expected) != expected:
                raise LoadError(
                    f"this picture processor works another way: {key}", got=config[key], expected=expected
                )
        found = {key: config[key] for key in cls.__dataclass_fields__ if config.get(key) is not None}
        size = config.get("size") or {}
        found.setdefault("min_pixels", size.get("shortest_edge", size.get("min_pixels", cls.min_pixels)))
        found.setdefault("max_pixels", size.get("longest_edge", size.get("max_pixels", cls.max_pixels)))
        for key in ("image_mean", "image_std"):
            if key in found:
                found[key] = tuple(found[key])
        return cls(**found)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing: multiples of a merged patch, between min_pixels and max_pixels in
        all."""
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise RequestError(
                "this picture is too long for the vision tower",
                got=f"{width} x {height}",
                expected=f"sides in a ratio of at most {MAX_ASPECT}",
            )
        side = self.patch_size * self.merge_size
        new_width, new_height = round(width / side) * side, round(height / side) * side
        if new_width * new_height > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            new_width = max(side, math.floor(width / shrink / side) * side)
            new_height = max(side, math.floor(height / shrink / side) * side)
        elif new_width * new_height < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            new_width = math.ceil(width * grow / side) * side
            new_height = math.ceil(height * grow / side) * side
        return new_width, new_height

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of the prompt tokens that a picture of this size becomes."""
        new_width, new_height = self.resized(width, height)
        side = self.patch_size * self.merge_size
        return new_height // side, new_width // side

    def patches(self, picture: Image) -> Tensor:
        """Rows of patches (G, F), float32, four neighbours (one merged patch) after each other."""
        import numpy
        import torch
        from PIL.Image import Resampling

        resized = _on_white(picture).resize(self.resized(*picture.size), Resampling.BICUBIC)
        pixels_HWC = torch.from_numpy(numpy.array(resized)).float() / 255
        pixels_HWC = (pixels_HWC - torch.tensor(self.image_mean)) / torch.tensor(self.image_std)
        patch, merge = self.patch_size, self.merge_size
        rows, columns = pixels_HWC.shape[0] // (patch * merge), pixels_HWC.shape[1] // (patch * merge)
        # (rows, merge, P, columns, merge, P, C) -> (rows, columns, merge, merge, C, P, P)
        cut = pixels_HWC.reshape(rows, merge, patch, columns, merge, patch, 3).permute(0, 3, 1, 4, 6, 2, 5)
        cut = cut.reshape(-1, 3, 1, patch, patch).expand(-1, -1, self.temporal_patch_size, -1, -1)
        return cut.reshape(cut.shape[0], -1)


def _on_white(picture: Image) -> Image:
    """RGB; what is transparent shows white, as transformers has it."""
    from PIL import Image as images

    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return images.alpha_composite(images.new("RGBA", picture.size, "white"), picture).convert("RGB")
