"""What the tiny VAE's latents are: per 8 x 8 cell, the mean colour and how it slopes across and down.

Most autoencoders find their latent space by training. Here it is chosen, because a chosen one can be
computed in microseconds: the transformer learns on it while the VAE is still being trained to translate
pictures to it and back. Nine of the sixteen channels are used (mean, slope along rows, slope along columns;
each for red, green, blue); the others are zero. Low frequencies of a picture are easy to diffuse, and
slopes say where an edge lies inside a cell.

Shape legend: B pictures, S pixels a side, h = S/8 latent pixels a side, Z = 16 channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

CELL = 8
CHANNELS = 16
ACTIVE = 9
SLOPE_GAIN = 4.0  # brings slopes to about the range of means

# Of the means: measured over 4096 random training scenes. Of the slopes: 1.6 times the measured deviation, because
# they are zero but for the edges, where they would reach ten deviations. Unused channels are left as they are.
MEAN = (0.1734, -0.1185, -0.2467) + (0.0,) * 13
STD = (0.7656, 0.6302, 0.674) + (0.3,) * 6 + (1.0,) * 7


def cells(picture_B3SS: Tensor) -> Tensor:
    """Latents (B, Z, h, h) of pictures in [-1, 1], not normalised: means, row slopes, column slopes, zeros."""
    batch, colours, height, width = picture_B3SS.shape
    x = picture_B3SS.reshape(batch, colours, height // CELL, CELL, width // CELL, CELL)
    ramp = torch.linspace(-1, 1, CELL) * SLOPE_GAIN
    mean = x.mean(dim=(3, 5))
    row_slope = (x.mean(dim=5) * ramp.view(CELL, 1)).mean(dim=3)
    column_slope = (x.mean(dim=3) * ramp).mean(dim=4)
    unused = x.new_zeros(batch, CHANNELS - ACTIVE, height // CELL, width // CELL)
    return torch.cat([mean, row_slope, column_slope, unused], dim=1)


def normalise(latents_BZhw: Tensor) -> Tensor:
    mean, std = _statistics()
    return (latents_BZhw - mean) / std


def denormalise(latents_BZhw: Tensor) -> Tensor:
    mean, std = _statistics()
    return latents_BZhw * std + mean


def sketch(latents_BZhw: Tensor) -> Tensor:
    """Normalised latents to a picture without a decoder, each cell a tilted plane: to look at in training."""
    raw = denormalise(latents_BZhw)
    ramp = torch.linspace(-1, 1, CELL)
    slope = 1.0 / (SLOPE_GAIN * float(ramp.square().mean()))
    mean, row, column = (part[:, :, :, None, :, None] for part in raw[:, :ACTIVE].split(3, dim=1))
    x = mean + slope * (row * ramp.view(CELL, 1, 1) + column * ramp)  # (B, 3, h, CELL, w, CELL)
    return x.flatten(4, 5).flatten(2, 3)


def _statistics() -> tuple[Tensor, Tensor]:
    return torch.tensor(MEAN).view(1, -1, 1, 1), torch.tensor(STD).view(1, -1, 1, 1)
