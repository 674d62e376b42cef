"""Draws scenes: each shape is a signed distance, its edge is softened over one pixel.

Pictures are (3, S, S) float tensors in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .scenes import COLOURS, Scene, Thing

# Extents that give the shapes about the area of a circle of radius 1, so that size is not read as shape.
SQUARE_HALF = 0.87
DIAMOND_HALF = 1.22
TRIANGLE_INRADIUS = 0.76
STAR_OUTER, STAR_INNER = 1.35, 0.62
CROSS_LONG, CROSS_SHORT = 1.1, 0.4


def _circle(y: Tensor, x: Tensor) -> Tensor:
    return torch.sqrt(y * y + x * x) - 1.0


def _square(y: Tensor, x: Tensor) -> Tensor:
    return torch.maximum(y.abs(), x.abs()) - SQUARE_HALF


def _diamond(y: Tensor, x: Tensor) -> Tensor:
    return (y.abs() + x.abs() - DIAMOND_HALF) / math.sqrt(2)


def _triangle(y: Tensor, x: Tensor) -> Tensor:
    """Equilateral, standing on its base; the centre of the inscribed circle is its centroid."""
    sides = (x.abs() * math.cos(math.pi / 6) - y * math.sin(math.pi / 6), y)
    return torch.maximum(*sides) - TRIANGLE_INRADIUS


def _star(y: Tensor, x: Tensor) -> Tensor:
    """Five points, one up: fold the angle into half a point, then one straight edge from tip to notch."""
    angle = torch.atan2(x, -y)  # 0 is up
    sector = 2 * math.pi / 5
    folded = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    radius = torch.sqrt(y * y + x * x)
    along, across = radius * folded.cos(), radius * folded.sin()
    tip = (STAR_OUTER, 0.0)
    notch = (STAR_INNER * math.cos(sector / 2), STAR_INNER * math.sin(sector / 2))
    edge = (notch[0] - tip[0], notch[1] - tip[1])
    length = math.hypot(*edge)
    return ((along - tip[0]) * edge[1] - (across - tip[1]) * edge[0]) / length


def _cross(y: Tensor, x: Tensor) -> Tensor:
    upright = torch.maximum(y.abs() - CROSS_LONG, x.abs() - CROSS_SHORT)
    lying = torch.maximum(y.abs() - CROSS_SHORT, x.abs() - CROSS_LONG)
    return torch.minimum(upright, lying)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
}


def coverage(thing: Thing, side: int) -> Tensor:
    """How much of each pixel the thing covers, (S, S) in 0..1."""
    pixels = torch.arange(side, dtype=torch.float32) + 0.5
    radius = thing.radius * side
    y = (pixels - thing.row * side)[:, None] / radius
    x = (pixels - thing.column * side)[None, :] / radius
    return (0.5 - DISTANCES[thing.shape](y, x) * radius).clamp(0, 1)


def render(scene: Scene, side: int = 128) -> Tensor:
    """The scene as a (3, S, S) picture in [-1, 1]."""
    picture = colour(scene.ground).expand(3, side, side).clone()
    for thing in scene.things:
        picture += coverage(thing, side) * (colour(thing.colour) - picture)
    return picture


def colour(name: str) -> Tensor:
    """A palette colour as (3, 1, 1) in [-1, 1]."""
    return torch.tensor(COLOURS[name], dtype=torch.float32).view(3, 1, 1) / 127.5 - 1
