"""Muon: momentum whose matrices are brought to orthogonal form before they are added.

Every direction of a weight matrix then moves by the same amount. For the matrices inside blocks only;
everything else is AdamW's. The orthogonal form is approached by the quintic Newton-Schulz iteration of
Jordan et al. (https://kellerjordan.github.io/posts/muon/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
TOGETHER = 10


class Muon(torch.optim.Optimizer):
    """`params` are matrices; those of equal shape are orthogonalised together, `TOGETHER` at a time.

    `run` is a map: give an executor's to work on several groups at once.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        run: Callable[..., Iterable[None]] = map,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.run = run

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            trained = sorted((p for p in group["params"] if p.grad is not None), key=lambda p: tuple(p.shape))
            jobs = []
            for _, found in groupby(trained, key=lambda p: tuple(p.shape)):
                same = list(found)
                jobs += [same[at : at + TOGETHER] for at in range(0, len(same), TOGETHER)]
            list(self.run(partial(self._step_together, group), jobs))

    @torch.no_grad()
    def _step_together(self, group: dict[str, float], params: list[Tensor]) -> None:
        rows, columns = params[0].shape
        directions = []
        for p in params:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            gradient = p.grad
            assert gradient is not None  # `step` takes only parameters that have one
            momentum.lerp_(gradient, 1 - group["momentum"])
            directions.append(gradient.lerp(momentum, group["momentum"]))  # Nesterov
        updates = orthogonal(torch.stack(directions))
        gain = max(1.0, rows / columns) ** 0.5
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update, alpha=-group["lr"] * gain)


def orthogonal(x_Kmn: Tensor) -> Tensor:
    """Nearly the orthogonal factor of each matrix: singular values end between 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    tall = x_Kmn.shape[1] > x_Kmn.shape[2]
    x = x_Kmn.transpose(1, 2) if tall else x_Kmn
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x
