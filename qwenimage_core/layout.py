"""Where every token stands: segments, grids, and the positions that the rotary embedding sees.

A layout describes one branch. Its joint sequence is all text segments, then the noise segment, then the appended
image segments; the *image stream* is the same without the text. Nothing here knows a model or imports torch, so a
plan can be printed before anything is loaded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qwenimage_core.errors import RequestError

Kind = Literal["text", "image"]
TimestepRule = Literal["step", "zero"]
PositionRule = Literal["image_index", "layer3d"]
Position = tuple[int, int, int]  # frame, row, column

NOISE = "noise"
PROMPT = "prompt"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Tokens of an image segment: `frames` pictures of `height` x `width` tokens, frame outermost, row-major."""

    height: int
    width: int
    frames: int = 1

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.frames) < 1:
            raise RequestError("A grid needs at least one token a side.", got=self, expected="all sides >= 1")

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width

    def __str__(self) -> str:
        return f"{self.frames} x {self.height} x {self.width}"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A named run of tokens with one owner.

    The core owns the prompt and the noise, unless a plugin replaces how prompts are read or what is drawn.
    `frame` fixes the frame position of an image segment's first picture; None takes the next free one in order.
    `onto` spreads the rows and columns over the grid of another image segment instead of centring on its own.
    `timestep` says whether the tokens are modulated at the step's time or at time zero.
    """

    name: str
    owner: str
    kind: Kind
    tokens: int
    grid: Grid | None = None
    frame: int | None = None
    onto: str | None = None
    timestep: TimestepRule = "step"

    def __post_init__(self) -> None:
        if self.kind == "image" and (self.grid is None or self.grid.tokens != self.tokens):
            raise RequestError(
                f"Segment {self.name!r} of {self.owner} needs a grid that holds its tokens.",
                got=f"{self.tokens} tokens on grid {self.grid}",
                expected="grid.tokens == tokens",
            )
        if self.kind == "text" and (self.grid, self.frame, self.onto, self.timestep) != (
            None,
            None,
            None,
            "step",
        ):
            raise RequestError(
                f"Text segment {self.name!r} of {self.owner} cannot have a grid, frame, onto or timestep rule."
            )
        if self.tokens < 1:
            raise RequestError(f"Segment {self.name!r} of {self.owner} has no tokens.", got=self.tokens)


def centred(n: int) -> range:
    """n positions around zero, the negative side taking the odd one: 4 -> -2..1, 3 -> -2..0."""
    return range(-(n - n // 2), n // 2)


def spread(n: int, onto: int) -> list[int]:
    """n of the centred positions of a side of `onto` tokens, first and last included, rounded down.

    The weights that use this were trained on positions computed in float32 from both ends towards the middle, which
    now and then fall just below a whole number and so one position lower than exact arithmetic; that is followed.
    """
    places, step = centred(onto), _float32((onto - 1) / max(n - 1, 1))
    near = [_float32(step * i) for i in range(n // 2)]
    far = [_float32(onto - 1 - step * (n - 1 - i)) for i in range(n // 2, n)] if n > 1 else [0.0]
    return [places[int(place)] for place in near + far]


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


@dataclass(frozen=True)
class Layout:
    """The ordered segments of one branch. Names are unique; text comes first, then noise, then appended images."""

    segments: tuple[Segment, ...]
    rule: PositionRule = "image_index"

    def __post_init__(self) -> None:
        names = [s.name for s in self.segments]
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            owners = sorted({s.owner for s in self.segments if s.name in twice})
            raise RequestError(f"Segments must have different names; {twice} come from {owners}.")
        kinds = [s.kind for s in self.segments]
        if kinds != sorted(kinds, key=["text", "image"].index):
            raise RequestError("Text segments come before image segments.", got=kinds)
        if not self.images or self.images[0].name != NOISE:
            raise RequestError(
                f"The first image segment must be {NOISE!r}.", got=[s.name for s in self.images]
            )

    @property
    def text(self) -> tuple[Segment, ...]:
        return tuple(s for s in self.segments if s.kind == "text")

    @property
    def images(self) -> tuple[Segment, ...]:
        return tuple(s for s in self.segments if s.kind == "image")

    @property
    def tokens(self) -> int:
        return sum(s.tokens for s in self.segments)

    @property
    def text_tokens(self) -> int:
        return sum(s.tokens for s in self.text)

    def __getitem__(self, name: str) -> Segment:
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise KeyError(f"no segment {name!r}; this layout has {[s.name for s in self.segments]}")

    def __contains__(self, name: object) -> bool:
        return any(s.name == name for s in self.segments)

    def joint_slice(self, name: str) -> slice:
        """Place of a segment in the joint sequence."""
        before = self.segments[: self.segments.index(self[name])]
        start = sum(s.tokens for s in before)
        return slice(start, start + self[name].tokens)

    def image_slice(self, name: str) -> slice:
        """Place of an image segment in the image stream."""
        joint = self.joint_slice(name)
        return slice(joint.start - self.text_tokens, joint.stop - self.text_tokens)

    @property
    def zero_slices(self) -> tuple[slice, ...]:
        """Runs of the image stream that are modulated at time zero, neighbours joined."""
        runs: list[slice] = []
        for segment in self.images:
            if segment.timestep == "step":
                continue
            here = self.image_slice(segment.name)
            if runs and runs[-1].stop == here.start:
                here = slice(runs.pop().start, here.stop)
            runs.append(here)
        return tuple(runs)

    def positions(self) -> list[Position]:
        """(frame, row, column) of every token of the joint sequence.

        Pictures take frames 0, 1, ... in order unless fixed, rows and columns centred on their grid. Every text
        segment counts up on all three axes from the same start: half the longest side of any picture, and, where
        the backbone counts layers as frames (`layer3d`), at least the number of pictures less one.
        """
        pictures = [p for s in self._image_positions() for p in s]
        start = self._text_start()
        texts = [(start + j,) * 3 for s in self.text for j in range(s.tokens)]
        return [*texts, *pictures]

    def _text_start(self) -> int:
        grids = [s.grid for s in self.images if s.grid is not None]
        start = max(max(g.height // 2, g.width // 2) for g in grids)
        return max(start, sum(g.frames for g in grids) - 1) if self.rule == "layer3d" else start

    def _image_positions(self) -> Iterator[list[Position]]:
        next_frame = 0
        for segment in self.images:
            grid = segment.grid
            assert grid is not None  # Segment checks it
            first = next_frame if segment.frame is None else segment.frame
            next_frame += grid.frames if segment.frame is None else 0
            rows, columns = self._rows_and_columns(segment, grid)
            yield [(first + f, r, c) for f in range(grid.frames) for r in rows for c in columns]

    def _rows_and_columns(self, segment: Segment, grid: Grid) -> tuple[list[int], list[int]]:
        if segment.onto is None:
            return list(centred(grid.height)), list(centred(grid.width))
        onto = self[segment.onto].grid
        if onto is None:
            raise RequestError(
                f"Segment {segment.name!r} of {segment.owner} is spread over {segment.onto!r}, which is no picture."
            )
        return spread(grid.height, onto.height), spread(grid.width, onto.width)

    def __str__(self) -> str:
        return " | ".join(
            f"{s.name} {s.tokens}"
            + (f" ({s.grid})" if s.grid else "")
            + (" @0" if s.timestep == "zero" else "")
            for s in self.segments
        )
