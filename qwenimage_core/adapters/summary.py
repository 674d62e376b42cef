"""What a LoRA is, in figures: for people (`qwenimage lora show`) and for programs that recognise files."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .diagnose import owner
from .formats import published_modules
from .weights import Change, LoraWeights, LowRank

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Target:
    """All layers of one type, e.g. `transformer_blocks.*.attn.to_q`. `ranks` and `scales` are those that occur."""

    type: str
    count: int
    shape: tuple[int, int]
    ranks: tuple[int | None, ...]
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Summary:
    """Ranks and alphas count layers; a rank of None is a full Kronecker factor, an alpha of None a missing one."""

    format: str
    base: str
    modules: int
    parameters: int
    dtypes: tuple[str, ...]
    ranks: dict[int | None, int]
    alphas: dict[float | None, int]
    targets: tuple[Target, ...]


def summarise(weights: LoraWeights) -> Summary:
    changes = weights.modules
    tensors = [tensor for change in changes.values() for tensor in _tensors(change)]
    types: dict[tuple[str, tuple[int, int]], list[Change]] = {}
    for name, change in changes.items():
        types.setdefault((layer_type(name), change.shape), []).append(change)
    return Summary(
        format=weights.format,
        base=guess_base(weights),
        modules=len(changes),
        parameters=sum(tensor.numel() for tensor in tensors),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
        ranks=dict(Counter(change.rank for change in changes.values()).most_common()),
        alphas=dict(Counter(change.alpha for change in changes.values()).most_common()),
        targets=tuple(_target(*key, group) for key, group in sorted(types.items())),
    )


def layer_type(name: str) -> str:
    """The path with the number of its block left open."""
    return re.sub(r"(blocks|layers)\.\d+\.", r"\1.*.", name)


def guess_base(weights: LoraWeights) -> str:
    """Which model the layers are of. Members of the family cannot be told apart: their layers are the same."""
    blocks = [int(n) for name in weights.modules for n in re.findall(r"^transformer_blocks\.(\d+)\.", name)]
    depth = max(blocks, default=-1) + 1
    if set(weights.modules) <= set(published_modules(depth)):
        widths = Counter(width for change in weights.modules.values() for width in change.shape)
        size = f", at least {depth} blocks" if depth else ""
        return f"a transformer of the Qwen-Image family{size}, width {widths.most_common(1)[0][0]}"
    return owner(weights.modules) or "unknown"


def _target(name: str, shape: tuple[int, int], changes: list[Change]) -> Target:
    ranks = sorted({change.rank for change in changes}, key=lambda rank: rank or 0)
    scales = sorted({round(change.scale, 6) for change in changes})
    return Target(name, len(changes), shape, tuple(ranks), tuple(scales))


def _tensors(change: Change) -> tuple[Tensor, ...]:
    if isinstance(change, LowRank):
        return change.down_RI, change.up_OR
    return change.left_AB, change.right_CD
