"""The little world the tiny model draws: one or two coloured shapes at a place on a coloured ground.

A scene is what is meant; `captions.py` says it in words, `render.py` draws it, `judge.py` reads it back
from a picture. Some combinations are held out of training altogether, so that prompt-following can be
measured on unseen ones.

Lengths are fractions of the picture's side, so a scene can be drawn at any size.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 160, 60),
    "blue": (35, 70, 220),
    "yellow": (250, 220, 40),
    "orange": (245, 135, 20),
    "purple": (130, 40, 160),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
SIZES: dict[str, float] = {"small": 14 / 128, "medium": 20 / 128, "large": 26 / 128}  # radius of the circle
PLACES: dict[str, tuple[int, int]] = {  # (row, column) of a 3 x 3 raster whose middle is (0, 0)
    "top left": (-1, -1),
    "top": (-1, 0),
    "top right": (-1, 1),
    "left": (0, -1),
    "centre": (0, 0),
    "right": (0, 1),
    "bottom left": (1, -1),
    "bottom": (1, 0),
    "bottom right": (1, 1),
}
PLACE_STEP = 32 / 128  # distance between neighbouring places
JITTER = 3 / 128  # places vary by up to this along each axis
REACH = 1.35  # no two outlines touch beyond this many radii
SIZE_JITTER = 0.06  # sizes vary by up to this factor

HELD_OUT_SHAPES = frozenset(
    {
        ("red", "star"),
        ("green", "triangle"),
        ("blue", "circle"),
        ("yellow", "cross"),
        ("orange", "square"),
        ("purple", "diamond"),
        ("black", "star"),
        ("white", "triangle"),
    }
)
HELD_OUT_GROUNDS = frozenset({("red", "green"), ("yellow", "purple"), ("blue", "white"), ("orange", "black")})
"""(colour of a shape, colour of the ground) pairs that no training scene has."""


@dataclass(frozen=True)
class Thing:
    """One shape. `row` and `column` are the centre, `radius` the size, all as fractions of the side."""

    colour: str
    shape: str
    size: str
    place: str
    row: float
    column: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A ground colour and one or two things, in reading order (top to bottom, then left to right)."""

    ground: str
    things: tuple[Thing, ...]

    @property
    def held_out(self) -> bool:
        return any(
            (thing.colour, thing.shape) in HELD_OUT_SHAPES or (thing.colour, self.ground) in HELD_OUT_GROUNDS
            for thing in self.things
        )


def make_thing(colour: str, shape: str, size: str, place: str, rng: random.Random | None = None) -> Thing:
    """A thing at the middle of its place and size, or varied a little by `rng`."""
    row, column = PLACES[place]
    vary = (lambda amount: rng.uniform(-amount, amount)) if rng else (lambda amount: 0.0)
    return Thing(
        colour,
        shape,
        size,
        place,
        row=0.5 + row * PLACE_STEP + vary(JITTER),
        column=0.5 + column * PLACE_STEP + vary(JITTER),
        radius=SIZES[size] * (1 + vary(SIZE_JITTER)),
    )


def sample_scene(rng: random.Random, held_out: bool = False, two_things: float = 0.5) -> Scene:
    """A random scene from the training combinations, or one with at least one held-out combination."""
    while True:
        scene = _sample_any(rng, two_things)
        if scene.held_out == held_out:
            return scene


def _sample_any(rng: random.Random, two_things: float) -> Scene:
    ground = rng.choice(list(COLOURS))
    colours = [colour for colour in COLOURS if colour != ground]
    count = 2 if rng.random() < two_things else 1
    while True:
        places = sorted((rng.choice(list(PLACES)) for _ in range(count)), key=PLACES.__getitem__)
        things = tuple(
            make_thing(rng.choice(colours), rng.choice(SHAPES), rng.choice(list(SIZES)), place, rng)
            for place in places
        )
        if count == 1 or _apart(*things):
            return Scene(ground, things)


def _apart(first: Thing, second: Thing) -> bool:
    """Whether two things, whatever their outlines, leave ground between them."""
    distance = math.hypot(first.row - second.row, first.column - second.column)
    return distance > REACH * (first.radius + second.radius)
