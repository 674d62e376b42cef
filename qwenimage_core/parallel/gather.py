"""Puts the tokens of all processes together, in their own order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


class Gather:
    """`parts` are the token numbers that each process has, by rank; they need not be equally many."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)
        self.longest = max(len(part) for part in parts)
        # where each token is, when all processes' parts stand one after the other, each as long as the longest
        places = [
            torch.arange(len(part), device=part.device) + i * self.longest for i, part in enumerate(parts)
        ]
        self.places = torch.cat(places)[torch.argsort(torch.cat(self.parts))]

    def __call__(self, own: Tensor, dim: int) -> Tensor:
        """The tokens of all processes along `dim`, on each process, from every process's own."""
        first = own.transpose(0, dim)
        padding = (0, 0) * (own.ndim - 1) + (0, self.longest - len(first))
        sent = F.pad(first, padding).contiguous()
        received = sent.new_empty(len(self.parts) * self.longest, *sent.shape[1:])
        dist.all_gather(list(received.chunk(len(self.parts))), sent)
        return received[self.places].transpose(0, dim)
