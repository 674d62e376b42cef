"""Rotary position embedding over three axes (frame, row, column), in real float32 arithmetic.

Shape legend: B batch, H heads, S tokens, D head width, K = D/2 rotated pairs.

Channels 2k and 2k+1 of a head are one pair, turned by position * theta**(-2j/axis_dim); the pairs are shared
out to the axes in the order frame, row, column. Real arithmetic, because complex tensors neither compile nor
run on every device; the tables are no module buffers, because `.to(dtype)` would round them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """Cosines and sines of every token's rotation, float32, (S, D): each for both channels of its pair, sines with the
    sign that the channel takes them with. Built once a run by `rope_tables`."""

    cos_SD: Tensor
    sin_SD: Tensor

    def apply(self, x_BHSD: Tensor) -> Tensor:
        """Turn queries or keys; the arithmetic is float32, the result has the dtype of `x_BHSD`."""
        x = x_BHSD.float()
        swapped = x.unflatten(-1, (-1, 2)).roll(1, -1).flatten(-2)  # (even, odd) -> (odd, even)
        return (x * self.cos_SD + swapped * self.sin_SD).to(x_BHSD.dtype)

    def rows(self, start: int, stop: int) -> Rope:
        """The tables of tokens start..stop-1 only."""
        return Rope(self.cos_SD[start:stop], self.sin_SD[start:stop])

    def to(self, device: torch.device | str) -> Rope:
        return Rope(self.cos_SD.to(device), self.sin_SD.to(device))

    def __len__(self) -> int:
        return self.cos_SD.shape[0]


def rope_tables(positions_S3: Tensor, axes_dims: Sequence[int], theta: float = 10000.0) -> Rope:
    """Tables for tokens at integer `positions_S3` (S, 3), of either sign and any size.

    `axes_dims` are the channels each axis gets; their sum is the head width. The tables live on the
    positions' device.
    """
    if positions_S3.ndim != 2 or positions_S3.shape[1] != len(axes_dims):
        raise ValueError(f"positions have shape {tuple(positions_S3.shape)}, expected (S, {len(axes_dims)})")
    if positions_S3.is_floating_point() or any(dim % 2 for dim in axes_dims):
        raise ValueError(f"positions are integers, axis widths even; got {positions_S3.dtype}, {axes_dims}")
    angles = []
    for axis, dim in enumerate(axes_dims):
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions_S3.device) / dim
        frequencies = 1.0 / torch.pow(theta, exponents)
        angles.append(positions_S3[:, axis, None].float() * frequencies)  # (S, dim/2)
    angles_SK = torch.cat(angles, dim=1)
    sin_SK = angles_SK.sin()
    signed_SD = torch.stack((-sin_SK, sin_SK), dim=-1).flatten(-2)  # (S, K, 2) -> (S, D)
    return Rope(angles_SK.cos().repeat_interleave(2, dim=-1), signed_SD)
