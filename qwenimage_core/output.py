"""Final latents to what the caller asked for.

B pictures of one prompt, N noise tokens, C packed channels, F frames, Z latent channels, h and w latent pixels.
"""

from __future__ import annotations

from typing import Any

import torch

from qwenimage_core.errors import ConflictError
from qwenimage_core.images import to_pictures
from qwenimage_core.latents import unpack
from qwenimage_core.plan import Plan


def finish(x_BNC: torch.Tensor, plan: Plan) -> list[Any]:
    """One entry a seed: a PIL picture (`pil`), values in [-1, 1] (`tensor`: (C, H, W)) or `latent`s (Z, h, w).

    Targets of several frames, and series of one, give (F, ...) tensors and lists of pictures.
    """
    kind = plan.request.output_type
    if kind == "pil":
        return pictures(x_BNC, plan)
    z_BFZhw = unpack(x_BNC, plan.grid, plan.backbone.patch_size)
    if kind == "latent":
        return [_single(z_FZhw, plan) for z_FZhw in z_BFZhw]
    return [_single(decode(z_FZhw, plan).clamp(-1, 1), plan) for z_FZhw in z_BFZhw]


def pictures(x_BNC: torch.Tensor, plan: Plan) -> list[Any]:
    """Pictures, one entry a seed; made by the `decode` hook of an active plugin where there is one."""
    made = []
    for z_FZhw in unpack(x_BNC, plan.grid, plan.backbone.patch_size):
        given = [
            (p, images) for p in plan.plugins if (images := p.call("decode", ctx=plan.ctx, latents=z_FZhw))
        ]
        if len(given) > 1:
            raise ConflictError(f"{given[0][0].name} and {given[1][0].name} both decode the picture.")
        made.append(_single(given[0][1] if given else to_pictures(decode(z_FZhw, plan)), plan))
    return made


def decode(z_FZhw: torch.Tensor, plan: Plan) -> torch.Tensor:
    """(F, C, H, W) float32, not clamped."""
    from qwenimage_core.models.vae_tiling import decode_tiled

    vae, request = plan.ctx.component("vae"), plan.request
    z_FZhw = z_FZhw.to(next(vae.parameters()))
    if request.tiled:
        return decode_tiled(vae, z_FZhw, request.tile_size, request.tile_stride).float()
    return vae.decode(z_FZhw).float()


def _single(values: Any, plan: Plan) -> Any:
    """A run of one frame is given without its frame axis, unless it is a series."""
    return values[0] if len(values) == 1 and not plan.target.series else values
