"""Latents as the transformer takes them: noise, packing, and the mask of what is kept.

B pictures, F frames of one target, Z latent channels, h and w latent pixels (8 image pixels each), N tokens, C token
channels (Z x 2 x 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from qwenimage_core.images import to_tensor
from qwenimage_core.layout import Grid

if TYPE_CHECKING:
    from PIL import Image


def pack(z_BFZhw: torch.Tensor, patch: int = 2) -> torch.Tensor:
    """(B, F, Z, h, w) -> (B, F*h/p*w/p, Z*p*p): frame outermost, tokens row-major, channels (Z, dy, dx)."""
    B, frames, Z, h, w = z_BFZhw.shape
    patches = z_BFZhw.reshape(B, frames, Z, h // patch, patch, w // patch, patch)
    # B F Z gh py gw px -> B F gh gw Z py px
    return patches.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, -1, Z * patch * patch)


def unpack(x_BNC: torch.Tensor, grid: Grid, patch: int = 2) -> torch.Tensor:
    """Inverse of `pack`: (B, N, C) on `grid` -> (B, F, Z, h, w)."""
    B, _, C = x_BNC.shape
    Z = C // (patch * patch)
    patches = x_BNC.reshape(B, grid.frames, grid.height, grid.width, Z, patch, patch)
    # B F gh gw Z py px -> B F Z gh py gw px
    return patches.permute(0, 1, 4, 2, 5, 3, 6).reshape(
        B, grid.frames, Z, grid.height * patch, grid.width * patch
    )


def draw_noise(
    seeds: Sequence[int], shape_FZhw: tuple[int, int, int, int], *, dtype: torch.dtype, device: str
) -> torch.Tensor:
    """(B, F, Z, h, w) standard normal, one generator a seed, drawn in `dtype` on `device`, given as float32.

    Each picture's noise depends on its seed alone, so a batch draws what single runs would.
    """
    drawn = [
        torch.randn(
            shape_FZhw, generator=torch.Generator(device).manual_seed(seed), dtype=dtype, device=device
        )
        for seed in seeds
    ]
    return torch.stack(drawn).float()


def redraw_mask(
    mask: Image.Image,
    height: int,
    width: int,
    *,
    blur_size: int | None = None,
    blur_sigma: float | None = None,
) -> torch.Tensor:
    """(1, 1, 1, h, w) in [0, 1] at latent size, 1 where the picture is redrawn.

    The mask is read as RGB, resized bicubically to latent size and averaged over colours; the blur is a Gaussian of
    2 * blur_size + 1 latent pixels, mirrored at the border. It is not made binary.
    """
    small = mask.convert("RGB").resize((width, height))
    m_11hw = (to_tensor(small).mean(dim=1, keepdim=True) + 1) / 2
    if blur_size is not None and blur_sigma is not None:
        m_11hw = _gaussian_blur(m_11hw, blur_size, blur_sigma)
    return m_11hw[None]


def _gaussian_blur(x_BChw: torch.Tensor, size: int, sigma: float) -> torch.Tensor:
    offsets = torch.arange(-size, size + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    x_BChw = F.pad(x_BChw, (size, size, size, size), mode="reflect")
    x_BChw = F.conv2d(x_BChw, weights.view(1, 1, 1, -1))
    return F.conv2d(x_BChw, weights.view(1, 1, -1, 1))
