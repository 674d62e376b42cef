"""Leaving out captions and conditions of some rows, so that a model also learns to do without them (guidance).

Which rows it meets follows from (seed, epoch, row) alone: the same after a resume, on any number of processes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Self

from PIL import Image

from qwenimage_training.data.arguments import DataArguments
from qwenimage_training.data.fields import is_condition
from qwenimage_training.data.rows import Row


@dataclass(frozen=True)
class Dropout:
    """Apply to each row as it is trained: `dropout(row, epoch)`. Shares are probabilities, drawn apart."""

    caption: float
    condition: float
    fields: tuple[str, ...] | None
    seed: int

    @classmethod
    def of(cls, arguments: DataArguments, seed: int) -> Self:
        return cls(arguments.caption_dropout, arguments.condition_dropout, arguments.dropped_fields, seed)

    def drawn(self, index: int, epoch: int) -> tuple[bool, bool]:
        """Whether item `index` is without its caption, and without its conditions, in this epoch."""
        return (
            self._draw("caption", index, epoch) < self.caption,
            self._draw("condition", index, epoch) < self.condition,
        )

    def __call__(self, row: Row, epoch: int) -> Row:
        return leave_out(row, self.drawn(row.index, epoch), self.fields)

    def _draw(self, what: str, index: int, epoch: int) -> float:
        """Uniform in [0, 1), with the 53 bits that a float holds."""
        digest = hashlib.sha256(f"{what}:{self.seed}:{epoch}:{index}".encode()).digest()
        return (int.from_bytes(digest[:8]) >> 11) / 2**53


def leave_out(row: Row, left: tuple[bool, bool], fields: tuple[str, ...] | None) -> Row:
    """The row without its caption, and without its conditions, as `left` says."""
    without_caption, without_conditions = left
    if without_caption:
        row = replace(row, prompt="")
    if without_conditions:
        kept = {f: v for f, v in row.fields.items() if not is_condition(f, has_picture(v), fields)}
        row = replace(row, fields=kept)
    return row


def has_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (
        isinstance(value, list | tuple) and any(isinstance(item, Image.Image) for item in value)
    )
