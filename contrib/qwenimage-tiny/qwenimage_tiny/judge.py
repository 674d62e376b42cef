"""Reads a picture back and says whether it is the scene it should be: colours, components, outlines.

The judge is no model. It knows the palette and the outlines, not how the picture was made. It wants the right number of
things: a missing or an additional thing makes the place wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .render import colour, coverage
from .scenes import COLOURS, PLACE_STEP, PLACES, SHAPES, Scene, Thing

MIN_AREA = 60 / 128**2  # smaller specks are not things
MIN_OVERLAP = 0.6  # intersection over union with the best outline; below, it is no shape at all
FOREGROUND = 0.3  # a pixel this far from the ground colour (RMS over channels, of a range of 2) is not ground


@dataclass(frozen=True)
class Verdict:
    """What is right in one picture; `shape_colour`, `position` and `shape` hold for every thing of the scene."""

    ground: bool
    shape_colour: bool
    position: bool
    shape: bool

    @property
    def everything(self) -> bool:
        return self.ground and self.shape_colour and self.position and self.shape


@dataclass(frozen=True)
class Found:
    """One thing seen in the picture."""

    colour: str
    place: str | None
    shape: str | None
    row: float
    column: float


def judge(picture: Tensor, scene: Scene) -> Verdict:
    """`picture` is (3, S, S) in [-1, 1]."""
    ground, found = read(picture)
    matched = [min(found, key=lambda seen: _distance(seen, thing), default=None) for thing in scene.things]
    complete = len(found) == len(scene.things) == len({id(seen) for seen in matched})
    pairs = list(zip(scene.things, matched, strict=True))
    return Verdict(
        ground=ground == scene.ground,
        shape_colour=all(seen is not None and seen.colour == thing.colour for thing, seen in pairs),
        position=complete and all(seen is not None and seen.place == thing.place for thing, seen in pairs),
        shape=all(seen is not None and seen.shape == thing.shape for thing, seen in pairs),
    )


def read(picture: Tensor) -> tuple[str, list[Found]]:
    """The ground colour and the things in a (3, S, S) picture in [-1, 1]."""
    side = picture.shape[-1]
    border = torch.ones(side, side, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    ground = _nearest_colour(picture[:, border].median(dim=1).values)
    distance = (picture - picture[:, border].median(dim=1).values.view(3, 1, 1)).square().mean(0).sqrt()
    masks = components(distance > FOREGROUND, int(MIN_AREA * side * side))
    return ground, [_describe(picture, mask) for mask in masks]


def components(mask: Tensor, min_area: int) -> list[Tensor]:
    """The connected parts (8 neighbours) of an (S, S) mask that have at least `min_area` pixels."""
    side = mask.shape[-1]
    labels = torch.arange(1, side * side + 1, dtype=torch.float32).view(1, 1, side, side) * mask
    while True:  # spread the largest label over each part until nothing changes
        spread = torch.nn.functional.max_pool2d(labels, 3, stride=1, padding=1) * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    names, areas = labels.unique(return_counts=True)
    return [
        labels[0, 0] == name for name, area in zip(names, areas, strict=True) if name > 0 and area >= min_area
    ]


def _describe(picture: Tensor, mask: Tensor) -> Found:
    side = mask.shape[-1]
    inner = -torch.nn.functional.max_pool2d(-mask.float()[None, None], 3, stride=1, padding=1)[0, 0] > 0
    colour_name = _nearest_colour(picture[:, inner if inner.any() else mask].median(dim=1).values)
    rows, columns = mask.nonzero().float().add(0.5).div(side).unbind(1)
    row, column = float(rows.mean()), float(columns.mean())
    return Found(colour_name, _place(row, column), _shape(mask, row, column), row, column)


def _nearest_colour(rgb: Tensor) -> str:
    return min(COLOURS, key=lambda name: float((rgb - colour(name).flatten()).square().sum()))


def _place(row: float, column: float) -> str | None:
    """The place whose middle is nearest along both axes, or None in the outer margin."""
    for place, (place_row, place_column) in PLACES.items():
        off = (abs(row - 0.5 - place_row * PLACE_STEP), abs(column - 0.5 - place_column * PLACE_STEP))
        if max(off) <= PLACE_STEP / 2:
            return place
    return None


def _shape(mask: Tensor, row: float, column: float) -> str | None:
    """The outline of the same area and centroid that overlaps best, or None if none overlaps enough."""
    side = mask.shape[-1]
    area = float(mask.sum())
    overlaps = {}
    for shape in SHAPES:
        unit = (
            coverage(Thing("", shape, "", "", 0.5, 0.5, 0.2), 128).sum() / (0.2 * 128) ** 2
        )  # area at radius 1
        radius = (area / float(unit)) ** 0.5 / side
        outline = coverage(Thing("", shape, "", "", row, column, radius), side) > 0.5
        overlaps[shape] = float((outline & mask).sum()) / float((outline | mask).sum())
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= MIN_OVERLAP else None


def _distance(seen: Found, thing: Thing) -> float:
    return (seen.row - thing.row) ** 2 + (seen.column - thing.column) ** 2
