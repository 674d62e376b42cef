"""What is learnt: an objective turns encoded samples and the model's velocity into a loss a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Protocol

from qwenimage_core.errors import RequestError

if TYPE_CHECKING:
    import torch

    from qwenimage_core.plan import Plan
    from qwenimage_training.arguments import TrainingArguments
    from qwenimage_training.encoded import Encoded


class Velocity(Protocol):
    """The velocity (1, N, C), float32, of each sample at its latents and noise level."""

    def __call__(
        self,
        batch: Sequence[Encoded],
        x_1NC: Sequence[torch.Tensor],
        sigmas: Sequence[float],
        step: int = 0,
    ) -> list[torch.Tensor]: ...


class Objective(Protocol):
    """`fixed` are the request fields that every plan is made with, `refused` the extra inputs that would do nothing.

    `check` refuses plans that it cannot learn from. `losses` gives (B,) float32, one a sample. All that is random in
    sample i is drawn from `draws[i]`, so that a sample's loss depends neither on its batch nor on the process that
    computes it.
    """

    @property
    def fixed(self) -> Mapping[str, Any]: ...

    @property
    def refused(self) -> frozenset[str]: ...

    def check(self, plan: Plan) -> None: ...

    def losses(
        self, velocity: Velocity, batch: Sequence[Encoded], draws: Sequence[torch.Generator]
    ) -> torch.Tensor: ...


def _sft(arguments: TrainingArguments) -> Objective:
    from qwenimage_training.objectives.sft import FlowMatching

    return FlowMatching(bf16_timesteps=arguments.bf16_timesteps)


def _direct_distill(_: TrainingArguments) -> Objective:
    from qwenimage_training.objectives.distill import DirectDistillation

    return DirectDistillation()


OBJECTIVES: dict[str, Callable[[TrainingArguments], Objective]] = {
    "sft": _sft,
    "direct_distill": _direct_distill,
}
"""By `--task`, without its stage. Adding an objective is adding a row."""


def make_objective(arguments: TrainingArguments) -> Objective:
    """The objective of `--task`; RequestError for an unknown one, or for extra inputs that it has no use for."""
    if arguments.objective not in OBJECTIVES:
        near = get_close_matches(arguments.objective, OBJECTIVES, n=1)
        raise RequestError(
            f"There is no task {arguments.task!r}.",
            expected=", ".join(OBJECTIVES),
            mend=f"did you mean {near[0]}?" if near else None,
        )
    objective = OBJECTIVES[arguments.objective](arguments)
    if idle := [name for name in arguments.inputs if name in objective.refused]:
        raise RequestError(
            f"--extra_inputs names what {arguments.task} has no use for.",
            got=", ".join(idle),
            mend="leave it out of the list",
        )
    return objective
