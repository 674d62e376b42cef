"""Encoded samples that are kept in memory, so that later epochs neither read their files nor run their encoders."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

if TYPE_CHECKING:
    from qwenimage_training.encoded import Encoded
    from qwenimage_training.sample import Sample


class Remembered:
    """Keeps what comes first until `limit` bytes are full, and nothing of it is let go: every epoch asks for every
    sample once, and then dropping the oldest would always drop what is asked for next.

    What carries a gradient is never kept: its encoder is being trained, and gives something else next time.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: dict[Hashable, Encoded] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def sample(self, key: Hashable, index: int, epoch: int) -> Sample:
        """The planned sample of a key that is kept, as item `index` of `epoch`."""
        return replace(self._kept[key].sample, index=index, epoch=epoch)

    def encoded(self, sample: Sample, encode: Callable[[Sample], Encoded]) -> Encoded:
        """What is kept for the sample, or what `encode` makes of it."""
        if (kept := self._kept.get(sample.key)) is not None:
            return replace(kept, sample=sample)
        found = encode(sample)
        if self.limit and sample.key is not None and not any(t.requires_grad for t in tensors_of(found)):
            size = bytes_of(found)
            if self.bytes + size <= self.limit:
                self.bytes += size
                self._kept[sample.key] = replace(found, sample=replace(sample, target=()))
        return found


def tensors_of(encoded: Encoded) -> Iterator[torch.Tensor]:
    inputs = encoded.inputs
    yield from (encoded.target_1NC, inputs.latents_BNC, *inputs.texts)
    if inputs.images_1MC is not None:
        yield inputs.images_1MC
    for branch in encoded.sample.plan.branches:
        for _, residual in branch.residuals:
            yield from (tokens.value for tokens in residual.inputs)


def bytes_of(encoded: Encoded) -> int:
    """Of the tensors, and of the pictures in the request, which the plan holds on to."""
    pictures = [p for _, value in encoded.sample.plan.request for p in _pictures(value)]
    return sum(t.nbytes for t in tensors_of(encoded)) + sum(
        p.width * p.height * len(p.getbands()) for p in pictures
    )


def _pictures(value: Any) -> Iterator[Image.Image]:
    if isinstance(value, Image.Image):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _pictures(item)
