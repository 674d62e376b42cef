"""Encoding and decoding tile by tile: memory follows the tile, not the picture. The published algorithm.

Tiles start every `stride` latent pixels and are cut off at the far edges. Where two overlap, each counts with a weight
that rises linearly from its border; there is no ramp at the edges of the picture. Sizes are latent pixels.

B pictures, C channels in, D channels out, H and W pixels of a tensor, h and w those of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from qwenimage_core.errors import RequestError
from qwenimage_core.models.vae import QwenImageVAE

Span = tuple[int, int]  # first latent pixel of a tile and the one after its last


def encode_tiled(vae: QwenImageVAE, x_BCHW: Tensor, size: int, stride: int) -> Tensor:
    """Normalised latents (B, Z, H/8, W/8), as `vae.encode` gives them, from tiles of `size` latent pixels."""
    return _tiled(vae.encode, x_BCHW, size, stride, scale_in=vae.config.scale, scale_out=1)


def decode_tiled(vae: QwenImageVAE, z_BZHW: Tensor, size: int, stride: int) -> Tensor:
    """Pixels (B, C, 8H, 8W), not clamped, as `vae.decode` gives them, from tiles of `size` latent pixels."""
    return _tiled(vae.decode, z_BZHW, size, stride, scale_in=1, scale_out=vae.config.scale)


def _tiled(
    run: Callable[[Tensor], Tensor], x_BCHW: Tensor, size: int, stride: int, *, scale_in: int, scale_out: int
) -> Tensor:
    if not 0 < stride <= size:
        raise RequestError(
            "Tiles would leave gaps.", got=f"size {size}, stride {stride}", expected="0 < stride <= size"
        )
    height, width = (side // scale_in for side in x_BCHW.shape[-2:])
    border = (size - stride) * scale_out
    total, weight = None, torch.zeros(height * scale_out, width * scale_out, device=x_BCHW.device)
    for rows in spans(height, size, stride):
        for columns in spans(width, size, stride):
            tile = run(x_BCHW[..., _cut(rows, scale_in), _cut(columns, scale_in)]).float()
            if total is None:
                total = tile.new_zeros(*tile.shape[:2], *weight.shape)
            ramp_h = _ramp(rows, height, scale_out, border).to(tile.device)
            ramp_w = _ramp(columns, width, scale_out, border).to(tile.device)
            share_hw = torch.minimum(ramp_h[:, None], ramp_w[None, :])
            place = (..., _cut(rows, scale_out), _cut(columns, scale_out))
            total[place] += tile * share_hw
            weight[place] += share_hw
    assert total is not None  # a picture has at least one tile
    return (total / weight).to(x_BCHW.dtype)


def spans(length: int, size: int, stride: int) -> Iterator[Span]:
    """Tiles along one side; a start is left out when the tile before it already reaches the end."""
    for start in range(0, length, stride):
        if start == 0 or start - stride + size < length:
            yield start, min(start + size, length)


def _cut(span: Span, scale: int) -> slice:
    return slice(span[0] * scale, span[1] * scale)


def _ramp(span: Span, length: int, scale: int, border: int) -> Tensor:
    """Weights along one side of a tile: 1, but rising over `border` output pixels where another tile overlaps."""
    weights = torch.ones((span[1] - span[0]) * scale)
    if border and span[0] > 0:
        weights[:border] = torch.arange(1, border + 1) / border
    if border and span[1] < length:
        weights[-border:] = torch.arange(border, 0, -1) / border
    return weights
