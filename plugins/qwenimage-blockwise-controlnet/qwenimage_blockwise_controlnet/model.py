"""The side net, with the published tensor names, and how a new one is begun.

B batch, N noise tokens, C channels of a packed control token, D transformer width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenimage_core.writing import whole_file

EPS = 1e-6


def normed(x_BND: Tensor) -> Tensor:
    """Root-mean-square norm without weight, in float32, given back in the dtype of x."""
    x = x_BND.float()
    return (x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPS)).to(x_BND.dtype)


class _Weight(nn.Module):
    """The weight of a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class ControlBlock(nn.Module):
    """Residual of one transformer block: out(gelu(in(norm(x) + norm(y)))), with the erf form of GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x_rms, self.y_rms = _Weight(width), _Weight(width)
        self.input_proj, self.output_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x_BND: Tensor, y_1ND: Tensor) -> Tensor:
        """`x` the block's output, `y` what `BlockwiseControlNet.control` gives."""
        mixed = normed(x_BND) * self.x_rms.weight + y_1ND * self.y_rms.weight
        return self.output_proj(F.gelu(self.input_proj(mixed)))


class BlockwiseControlNet(nn.Module):
    """64 channels take a picture's latents; 68 a mask beside them (one channel, 2 x 2)."""

    def __init__(self, *, blocks: int = 60, channels: int = 64, width: int = 3072) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.img_in = nn.Linear(channels, width)
        self.controlnet_blocks = nn.ModuleList(ControlBlock(width) for _ in range(blocks))

    def control(self, x_1NC: Tensor) -> Tensor:
        """(1, N, D) from packed control latents, normed: the same for every block and step, so computed once."""
        return normed(self.img_in(x_1NC))


def new_controlnet(
    *, blocks: int = 60, channels: int = 64, width: int = 3072, seed: int = 0
) -> BlockwiseControlNet:
    """A ControlNet to train from the start: it adds nothing yet, because what it adds through begins at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = BlockwiseControlNet(blocks=blocks, channels=channels, width=width)
    zero: list[Any] = [net.img_in, *(block.output_proj for block in net.controlnet_blocks)]
    for layer in zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return net


def save_controlnet(net: BlockwiseControlNet, path: Path | str) -> Path:
    """Write a ControlNet as published: one safetensors file, which appears when it is whole."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside:
        save_file({name: t.contiguous() for name, t in net.state_dict().items()}, beside, {"format": "pt"})
    return path
