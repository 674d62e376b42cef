"""The canonical form of an adapter, whatever its file looked like: per linear layer, how its weight changes.

Shape legend: O output and I input features of the layer, R rank; for a Kronecker product O = A C and I = B D.
Nothing here imports torch by itself, so that key formats can be listed and tested without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA: W + scale * up @ down. `scale` is alpha / rank where the file has an alpha, else 1."""

    down_RI: Tensor
    up_OR: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return int(self.down_RI.shape[0])

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I) of the layer this belongs to."""
        return int(self.up_OR.shape[0]), int(self.down_RI.shape[1])

    def delta_OI(self) -> Tensor:
        """The change of the weight at strength 1, in float32."""
        return (self.up_OR.float() @ self.down_RI.float()) * self.scale


@dataclass(frozen=True, eq=False)
class Kronecker:
    """LoKr: W + scale * kron(left, right), kept as its two small factors."""

    left_AB: Tensor
    right_CD: Tensor
    scale: float = 1.0
    rank: int | None = None
    alpha: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        (a, b), (c, d) = self.left_AB.shape, self.right_CD.shape
        return int(a * c), int(b * d)

    def delta_OI(self) -> Tensor:
        """The change of the weight at strength 1, in float32."""
        import torch

        return torch.kron(self.left_AB.float(), self.right_CD.float()) * self.scale


Change = LowRank | Kronecker


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """Changes by module path (dotted, as the model names its modules), and where they came from.

    `format` is a name of the table in `formats.py`; `metadata` is the file's own; `source` names it in messages.
    """

    modules: Mapping[str, Change]
    format: str = "memory"
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: str = "adapter made in memory"
