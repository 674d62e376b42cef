"""The two norms of the transformer, each with the epsilon that was published."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6


class RMSNorm(nn.Module):
    """Root-mean-square norm of the last axis: statistics in float32, cast back, then times the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return _RMS.apply(x, self.weight)


class _RMS(torch.autograd.Function):
    """With a backward pass of its own: half the operations, and half the tensors kept, of the one that is derived."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        root = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + EPSILON)
        normed = (wide * root).to(x.dtype)
        ctx.save_for_backward(normed, root, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """d(x·r) = r·(d - n·mean(n·d)), with r the inverse root and n the normed x."""
        normed, root, weight = ctx.saved_tensors
        down = (gradient * weight).float()
        back = (down - normed * (down * normed).mean(dim=-1, keepdim=True)) * root
        sums = (gradient * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return back.to(normed.dtype), sums


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Over the last axis; the published model has no weights there, but those of a timestep act as such."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPSILON)
