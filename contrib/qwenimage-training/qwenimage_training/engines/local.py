"""What of a tensor this process holds: all of a plain one, its shard of one that is shared out (DTensor)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The values held here, sharing memory with `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(other: Tensor, held: Tensor) -> Tensor:
    """`held` as this process's part of a tensor that is shared out as `other` is."""
    if not isinstance(other, DTensor):
        return held
    return DTensor.from_local(
        held.to(other.device),
        other.device_mesh,
        other.placements,
        run_check=False,
        shape=other.shape,
        stride=other.stride(),
    )


def whole(tensor: Tensor) -> Tensor:
    """All of it. Every process must ask, and in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def norm_value(norm: Tensor) -> float:
    return float(whole(norm)) if isinstance(norm, torch.Tensor) else float(norm)
