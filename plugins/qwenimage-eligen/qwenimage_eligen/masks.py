"""From mask pictures to which tokens an entity sees.

h and w latent pixels; H and W tokens (2 x 2 latent pixels each).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from qwenimage_core.errors import RequestError
from qwenimage_core.images import to_tensor

if TYPE_CHECKING:
    from PIL import Image

    from qwenimage_core.context import Context


def entity_maps(ctx: Context, height: int, width: int) -> list[torch.Tensor]:
    """A (H, W) boolean map an entity. Raises RequestError, naming it, for a mask that covers no token."""
    patch = ctx.backbone.patch_size
    maps = []
    for number, mask in enumerate(ctx.request.eligen_entity_masks, 1):
        where_HW = token_map(mask, height, width, patch)
        if not where_HW.any():
            raise RequestError(
                f"Mask {number} of eligen_entity_masks covers nothing of the picture, so its entity could not appear.",
                got=f"{mask.width} x {mask.height}, with no pixel above mid-grey among the "
                f"{patch * width} x {patch * height} that are read",
                expected="white where the entity belongs",
                mend="draw the area larger or brighter; resize the mask to the picture's size first if it is fine",
            )
        maps.append(where_HW)
    return maps


def token_map(mask: Image.Image, height: int, width: int, patch: int) -> torch.Tensor:
    """(H, W) boolean: a token is on if any of its latent pixels is.

    The mask is reduced to latent size by taking the nearest pixel; a latent pixel is on if the mean of its three
    colours is above mid-grey.
    """
    from PIL import Image

    small = mask.convert("RGB").resize((width * patch, height * patch), Image.Resampling.NEAREST)
    on_hw = to_tensor(small)[0].mean(dim=0) > 0
    return on_hw.view(height, patch, width, patch).any(dim=3).any(dim=1)


def resample(where_HW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The same area on another grid, by nearest token; a grid of the same size keeps it as it is."""
    scaled = F.interpolate(where_HW[None, None].float(), size=(height, width), mode="nearest-exact")
    return scaled[0, 0] > 0.5
