"""From a plan to tensors: run the encoders once and draw the noise.

B pictures of one prompt, F frames, Z latent channels, h and w latent pixels, N noise tokens, M appended tokens,
C packed channels, L text tokens, E text encoder width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qwenimage_core.latents import draw_noise, pack, redraw_mask
from qwenimage_core.plan import Plan


@dataclass(frozen=True)
class Blend:
    """Keeps the unmasked part of a picture: there, the velocity is the one that lands on the picture exactly."""

    start_1NC: torch.Tensor
    redraw_1NC: torch.Tensor

    def __call__(self, x_BNC: torch.Tensor, v_BNC: torch.Tensor, sigma: float) -> torch.Tensor:
        keep_BNC = (x_BNC - self.start_1NC) / sigma
        return (1 - self.redraw_1NC) * keep_BNC + self.redraw_1NC * v_BNC


@dataclass(frozen=True)
class Inputs:
    """What the encoders gave: everything of a run but the transformer. The latents are float32, the rest `dtype`."""

    latents_BNC: torch.Tensor
    images_1MC: torch.Tensor | None
    texts: tuple[torch.Tensor, ...]  # (1, L, E), one a branch
    blend: Blend | None


def encode(plan: Plan, *, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Compute every `Tokens` of the plan; text encoder and VAE may be released afterwards."""
    texts = tuple(torch.cat([t.value for t in b.text], dim=1).to(device, dtype) for b in plan.branches)
    images = [t.value.to(device, dtype) for t in plan.images]
    for branch in plan.branches:
        for _, residual in branch.residuals:
            for tokens in residual.inputs:
                tokens.value  # noqa: B018  computed here, while its encoder is there, and kept
    latents_BNC, blend = start(plan, dtype, device)
    return Inputs(latents_BNC, torch.cat(images, dim=1) if images else None, texts, blend)


def start(plan: Plan, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, Blend | None]:
    """Latents at the first noise level, and what holds the kept part of an inpainted picture."""
    request, patch = plan.request, plan.backbone.patch_size
    shape = (
        plan.target.frames,
        plan.backbone.latent_channels,
        plan.grid.height * patch,
        plan.grid.width * patch,
    )
    noise_BFZhw = draw_noise(plan.seeds, shape, dtype=dtype, device=request.rand_device)
    noise_BNC = pack(noise_BFZhw, patch).to(device)
    if plan.start is None:
        return noise_BNC, None
    sigma, start_1NC = plan.sigmas[0], plan.start.value.to(device).float()
    latents_BNC = (1 - sigma) * start_1NC + sigma * noise_BNC
    if request.inpaint_mask is None:
        return latents_BNC, None
    mask_111hw = redraw_mask(
        request.inpaint_mask,
        *shape[2:],
        blur_size=request.inpaint_blur_size,
        blur_sigma=request.inpaint_blur_sigma,
    )
    redraw_1NC = pack(mask_111hw.expand(1, *shape), patch).to(device)
    return latents_BNC, Blend(start_1NC, redraw_1NC)
