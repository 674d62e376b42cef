"""The parts of a module that are read and dropped as one: its blocks, and what a run needs only once.

A component's spec names them by module paths with "*" for a number (`transformer_blocks.*`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes; every tensor of a buffer begins at a multiple of it


@dataclass(frozen=True)
class Leaf:
    """One parameter of a unit: the module that owns it, its name there, and its name in the whole component."""

    owner: nn.Module
    attribute: str
    name: str
    empty: nn.Parameter  # on the meta device, in the dtype of computation

    def put(self, tensor: Tensor) -> None:
        self.owner._parameters[self.attribute] = nn.Parameter(tensor, requires_grad=False)

    @property
    def value(self) -> Tensor:
        found = self.owner._parameters[self.attribute]
        assert found is not None
        return found.data

    def clear(self) -> None:
        self.owner._parameters[self.attribute] = self.empty

    def nbytes(self, dtype: torch.dtype) -> int:
        return self.empty.numel() * dtype.itemsize


@dataclass(frozen=True)
class Unit:
    """A module and the parameters that come and go with it."""

    path: str
    module: nn.Module
    leaves: tuple[Leaf, ...]

    def nbytes(self, dtype: torch.dtype) -> int:
        """In a buffer, every tensor at an aligned offset."""
        return sum(aligned(leaf.nbytes(dtype)) for leaf in self.leaves)


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def units(
    module: nn.Module, patterns: Sequence[str], dtype: torch.dtype, apart: Sequence[Unit] = ()
) -> tuple[Unit, ...]:
    """The units that the patterns name, in the order of the patterns and then of the module. What belongs to a unit of
    `apart` is left to that."""
    taken = {leaf.name for unit in apart for leaf in unit.leaves}
    found = []
    for pattern in patterns:
        expression = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        for path, part in module.named_modules():
            if expression.fullmatch(path):
                leaves = tuple(leaf for leaf in _leaves(part, path, dtype) if leaf.name not in taken)
                found.append(Unit(path, part, leaves))
    return tuple(found)


def _leaves(part: nn.Module, path: str, dtype: torch.dtype) -> Iterator[Leaf]:
    for owner_path, owner in part.named_modules(prefix=path):
        for attribute, parameter in owner.named_parameters(recurse=False):
            meta = torch.empty_like(
                parameter, device="meta", dtype=dtype if parameter.is_floating_point() else None
            )
            empty = nn.Parameter(meta, requires_grad=False)
            yield Leaf(owner, attribute, f"{owner_path}.{attribute}", empty)
