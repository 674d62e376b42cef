"""Direct distillation: draw the picture in few steps from its own noise, with gradients through all of them.

The teacher's picture was drawn from a known seed in many steps; the student starts from the same noise.
N noise tokens, C packed channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qwenimage_core.errors import RequestError
from qwenimage_training.objectives.sft import training_sigmas

if TYPE_CHECKING:
    from qwenimage_core.plan import Plan
    from qwenimage_training.encoded import Encoded
    from qwenimage_training.objectives import Velocity


@dataclass(frozen=True)
class DirectDistillation:
    """mean((end - picture)²) in float32, where `end` is reached from the seeded noise of the request in its
    `num_inference_steps` Euler steps, without guidance. Noise levels are those of training (shift 0.8, whatever the
    picture's size), and 0 after the last."""

    refused: frozenset[str] = frozenset({"negative_prompt", "denoising_strength"})

    @property
    def fixed(self) -> Mapping[str, Any]:
        return {"cfg_scale": 1.0}

    def check(self, plan: Plan) -> None:
        """RequestError for a plan without a seed or with guidance."""
        if plan.request.seed is None:
            raise RequestError(
                "Distillation starts from the noise that the teacher's picture was drawn from.",
                got="no seed",
                expected="the seed of each picture, in a column",
                mend="add the column seed to the rows, and to --extra_inputs",
            )
        if plan.negative is not None:
            raise RequestError(
                "The student of a distillation draws without guidance.",
                got=f"cfg_scale {plan.request.cfg_scale:g}",
                expected="cfg_scale 1",
                mend="write 1 into the column cfg_scale: it is the student's, not the teacher's",
            )

    def losses(
        self, velocity: Velocity, batch: Sequence[Encoded], draws: Sequence[torch.Generator]
    ) -> torch.Tensor:
        ends_1NC = [e.inputs.latents_BNC for e in batch]
        counts = [e.sample.plan.steps for e in batch]
        for count in sorted(set(counts)):
            places = [i for i, own in enumerate(counts) if own == count]
            sigmas = [*training_sigmas(count), 0.0]
            for step in range(count):
                found_1NC = velocity(
                    [batch[i] for i in places],
                    [ends_1NC[i] for i in places],
                    [sigmas[step]] * len(places),
                    step,
                )
                for i, v_1NC in zip(places, found_1NC, strict=True):
                    ends_1NC[i] = ends_1NC[i] + v_1NC * (sigmas[step + 1] - sigmas[step])
        losses = [(end - e.target_1NC).square().mean() for e, end in zip(batch, ends_1NC, strict=True)]
        return torch.stack(losses)
