"""Flow matching: predict noise minus picture on a straight way between the two, as the published training does.

N noise tokens, C packed channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from qwenimage_core.plan import Plan
    from qwenimage_training.encoded import Encoded
    from qwenimage_training.objectives import Velocity

STEPS = 1000
SHIFT_MU = 0.8  # of training, whatever the picture's size
TERMINAL = 0.02


def training_sigmas(steps: int = STEPS) -> list[float]:
    """Noise levels from 1 down to `TERMINAL`: evenly spaced, shifted by `SHIFT_MU`, stretched to end there."""
    shift = math.exp(SHIFT_MU)
    shifted = [shift / (shift + 1 / (1 - i / steps) - 1) for i in range(steps)]
    stretch = (1 - TERMINAL) / (1 - shifted[-1])
    return [1 - (1 - sigma) * stretch for sigma in shifted]


def training_weights(sigmas: Sequence[float]) -> list[float]:
    """Weight of the loss at each noise level: a bell around the middle of the way, 0 at its lowest, 1 on average."""
    bell = [math.exp(-2 * (sigma - 0.5) ** 2) for sigma in sigmas]
    lowest = min(bell)
    total = sum(value - lowest for value in bell)
    return [(value - lowest) * len(bell) / total for value in bell]


@dataclass(frozen=True)
class FlowMatching:
    """mean((v - (noise - picture))²) · weight, at a noise level drawn evenly from the table.

    `bf16_timesteps` rounds the drawn timestep to bfloat16 and takes level and weight of the table's nearest entry, as
    DiffSynth-Studio does: 376 levels are left of 1000.
    """

    bf16_timesteps: bool = False
    refused: frozenset[str] = frozenset(
        {"seed", "rand_device", "num_inference_steps", "cfg_scale", "negative_prompt", "denoising_strength"}
    )

    @property
    def fixed(self) -> Mapping[str, Any]:
        """One branch, one step: plugins that act in some steps only see the last, progress 0, as published."""
        return {"cfg_scale": 1.0, "num_inference_steps": 1, "seed": 0}

    @cached_property
    def table(self) -> tuple[list[float], list[float]]:
        sigmas = training_sigmas()
        return sigmas, training_weights(sigmas)

    def check(self, plan: Plan) -> None:
        """Every plan will do."""

    def losses(
        self, velocity: Velocity, batch: Sequence[Encoded], draws: Sequence[torch.Generator]
    ) -> torch.Tensor:
        places = [int(torch.randint(STEPS, (1,), generator=draw)) for draw in draws]
        noises = [
            torch.randn(e.target_1NC.shape, generator=draw).to(e.target_1NC)
            for e, draw in zip(batch, draws, strict=True)
        ]
        return self.losses_at(velocity, batch, places, noises)

    def noise_level(self, draw: torch.Generator) -> float:
        """The level that `losses` gives a sample with these dice."""
        return self.level(int(torch.randint(STEPS, (1,), generator=draw)))[0]

    def losses_at(
        self,
        velocity: Velocity,
        batch: Sequence[Encoded],
        places: Sequence[int],
        noises_1NC: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """(B,) losses at given entries of the table, with given noises."""
        levels = [self.level(place) for place in places]
        x_1NC = [
            (1 - sigma) * e.target_1NC + sigma * noise
            for e, noise, (sigma, _, _) in zip(batch, noises_1NC, levels, strict=True)
        ]
        found_1NC = velocity(batch, x_1NC, [time for _, time, _ in levels])
        losses = [
            (v - (noise - e.target_1NC)).square().mean() * weight
            for e, noise, v, (_, _, weight) in zip(batch, noises_1NC, found_1NC, levels, strict=True)
        ]
        return torch.stack(losses)

    def level(self, place: int) -> tuple[float, float, float]:
        """(noise level, the level that the transformer is told, weight) of an entry of the table."""
        sigmas, weights = self.table
        if not self.bf16_timesteps:
            return sigmas[place], sigmas[place], weights[place]
        told = float(torch.tensor(1000 * sigmas[place], dtype=torch.bfloat16)) / 1000
        nearest = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - told))
        return sigmas[nearest], told, weights[nearest]
