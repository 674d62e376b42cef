"""The denoising loop. It knows no plugin and no variant: it walks down the noise levels with a velocity.

B pictures, N noise tokens, C packed channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwenimage_core.errors import DenoiseError

Velocity = Callable[[torch.Tensor, int], torch.Tensor]  # (x_BNC float32, step) -> v_BNC: noise minus picture
Blend = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class StepReport:
    """What a step callback sees. `latents_BNC` are the packed latents after the step; `picture_BNC` is the
    transformer's present guess of the finished picture's latents; `preview()` decodes that guess to pictures."""

    step: int
    steps: int
    sigma: float
    latents_BNC: torch.Tensor
    picture_BNC: torch.Tensor
    preview: Callable[[], list[Any]]


def denoise(
    velocity: Velocity,
    x_BNC: torch.Tensor,
    sigmas: Sequence[float],
    *,
    blend: Blend | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    after_step: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
    active: Sequence[str] = (),
) -> torch.Tensor:
    """Euler steps from sigmas[0] down to sigmas[-1], accumulated in float32.

    Raises DenoiseError as soon as a value is not finite; it says what was `active`.
    """
    for step in progress(range(len(sigmas) - 1)):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        v_BNC = velocity(x_BNC, step).float()
        if blend is not None:
            v_BNC = blend(x_BNC, v_BNC, sigma)
        picture_BNC = x_BNC - sigma * v_BNC
        x_BNC = x_BNC + (sigma_next - sigma) * v_BNC
        if not torch.isfinite(x_BNC).all():
            raise DenoiseError(
                f"Latents are not finite after step {step + 1} of {len(sigmas) - 1}.",
                got=f"{int((~torch.isfinite(x_BNC)).sum())} of {x_BNC.numel()} values are NaN or infinite, "
                f"with {', '.join(active) or 'no plugin and no adapter'}",
                mend="use bfloat16 or float32 instead of float16, or leave out the adapters and plugins one by one",
            )
        if after_step is not None:
            after_step(step, x_BNC, picture_BNC)
    return x_BNC


def guide(
    positive_BNC: torch.Tensor, negative_BNC: torch.Tensor, scale: float, normalize: bool = False
) -> torch.Tensor:
    """Classifier-free guidance: negative + scale * (positive - negative).

    With `normalize`, each token is rescaled to the norm that the positive velocity has there.
    """
    v_BNC = negative_BNC + scale * (positive_BNC - negative_BNC)
    if not normalize:
        return v_BNC
    return v_BNC * (positive_BNC.norm(dim=-1, keepdim=True) / v_BNC.norm(dim=-1, keepdim=True))
