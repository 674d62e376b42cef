"""The sizes that targets are cut to: a plan of buckets of equal area, and which of them a picture belongs to.

Sizes are (width, height) in pixels. Like published training, a bucket does not enlarge pictures unless it is allowed
to: a picture that it would enlarge more keeps its own size, which batches with others of that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

from qwenimage_training.data.arguments import DataArguments
from qwenimage_training.data.pictures import Size, fitted_size


def plan_buckets(max_pixels: int, step: int, max_aspect: float) -> tuple[Size, ...]:
    """For each width that is a multiple of `step`, the tallest size within `max_pixels`, and its other orientation.

    Sorted from tall to wide. Never empty for step**2 <= max_pixels.
    """
    found = set()
    widest = int(
        (max_pixels * max_aspect) ** 0.5
    )  # width * height <= max_pixels and width <= max_aspect * height
    for width in range(step, widest + 1, step):
        height = max_pixels // width // step * step
        if height and max(width, height) <= max_aspect * min(width, height):
            found |= {(width, height), (height, width)}
    if not found:  # the square is no multiple of the step: the largest one that is
        side = int(max_pixels**0.5) // step * step
        found = {(side, side)}
    return tuple(sorted(found, key=lambda size: (size[0] / size[1], size)))


def choose_bucket(source: Size, buckets: Sequence[Size], enlarge: float) -> Size | None:
    """The bucket nearest in aspect, the larger of two that are equally near; None if all would enlarge too much."""
    near = [size for size in buckets if max(size[0] / source[0], size[1] / source[1]) <= enlarge]
    if not near:
        return None
    aspect = source[0] / source[1]
    return min(near, key=lambda size: (abs(log(size[0] / size[1] / aspect)), -size[0] * size[1], size))


def cut_away(source: Size, size: Size) -> float:
    """The share of a picture that is lost when it is cut to `size`."""
    scale = max(size[0] / source[0], size[1] / source[1])
    return max(0.0, 1 - size[0] * size[1] / (source[0] * source[1] * scale**2))


class TargetSizes:
    """From a target's own size to the size it is trained at: fixed, its bucket's, or its own, floored."""

    def __init__(self, arguments: DataArguments) -> None:
        self.fixed = arguments.fixed_size
        self.max_pixels = arguments.max_pixels
        self.enlarge = arguments.bucket_enlarge
        self.buckets: tuple[Size, ...] = ()
        if arguments.buckets:
            self.buckets = plan_buckets(
                arguments.max_pixels, arguments.bucket_step, arguments.bucket_max_aspect
            )

    def of(self, source: Size, where: str) -> Size:
        if self.fixed is not None:
            return self.fixed
        bucket = choose_bucket(source, self.buckets, self.enlarge) if self.buckets else None
        return bucket or fitted_size(source, self.max_pixels, where)

    def alone(self, source: Size, where: str) -> Size:
        """The size of a picture that need not fit on its target."""
        return self.fixed or fitted_size(source, self.max_pixels, where)
