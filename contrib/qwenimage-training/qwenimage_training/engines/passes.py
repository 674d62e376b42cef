"""The same passes through the transformer in every process. Where its weights are shared out, all processes gather them
together, and one that makes another pass than the others would wait for them for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from qwenimage_training.encoded import Encoded, alike

if TYPE_CHECKING:
    from qwenimage_training.objectives import Objective, Velocity


def losses_in_step(
    objective: Objective,
    velocity: Velocity,
    batch: Sequence[Encoded],
    draws: Callable[[], Sequence[torch.Generator]],
) -> torch.Tensor:
    """The losses (B,) of a batch, while the other processes compute those of theirs.

    Where all make the same passes, nothing changes. Else every sample goes through alone, and a process that is done
    makes passes that count nothing until all are.
    """
    planned = Planned()
    objective.losses(planned, batch, draws())
    everyones = gather_object([planned.passes])
    if all(passes == planned.passes for passes in everyones):
        return objective.losses(velocity, batch, draws())
    alone = OneByOne(velocity)
    losses_B = objective.losses(alone, batch, draws())
    for _ in range(max(map(_samples, everyones)) - _samples(planned.passes)):
        [v_1NC] = alone(batch[:1], [torch.zeros_like(batch[0].target_1NC)], [1.0])
        losses_B = losses_B + 0 * v_1NC.sum()
    return losses_B


def _samples(passes: Sequence[tuple[int, bool]]) -> int:
    return sum(count for count, _ in passes)


@dataclass
class Planned:
    """Makes no pass, but notes of each that is asked for how many samples it takes, and whether gradients go through
    it to what was before it."""

    passes: list[tuple[int, bool]] = field(default_factory=list)

    def __call__(
        self, batch: Sequence[Encoded], x_1NC: Sequence[torch.Tensor], sigmas: Sequence[float], step: int = 0
    ) -> list[torch.Tensor]:
        self.passes += [(len(places), any(x_1NC[i].requires_grad for i in places)) for places in alike(batch)]
        return [torch.zeros_like(x, requires_grad=True) for x in x_1NC]


@dataclass(frozen=True)
class OneByOne:
    """A pass a sample, all alike to an engine, which exchanges gradients when they go on to what was before."""

    velocity: Velocity

    def __call__(
        self, batch: Sequence[Encoded], x_1NC: Sequence[torch.Tensor], sigmas: Sequence[float], step: int = 0
    ) -> list[torch.Tensor]:
        return [
            v
            for encoded, x, sigma in zip(batch, x_1NC, sigmas, strict=True)
            for v in self.velocity([encoded], [_with_gradient(x)], [sigma], step)
        ]


def _with_gradient(x_1NC: torch.Tensor) -> torch.Tensor:
    return x_1NC if x_1NC.requires_grad else x_1NC.detach().requires_grad_()
