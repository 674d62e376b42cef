"""The module that is trained: from planned samples to losses in one forward, so that any engine can wrap it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qwenimage_training.encoded import Encoded, VelocityModel, encode_sample
from qwenimage_training.engines.passes import losses_in_step
from qwenimage_training.remembered import Remembered

if TYPE_CHECKING:
    from qwenimage_core import QwenImagePipeline
    from qwenimage_training.objectives import Objective
    from qwenimage_training.sample import Sample


class TrainingModule(nn.Module):
    """Holds the components that are trained, and the pipeline (unregistered) that plans with all of them."""

    def __init__(
        self,
        pipe: QwenImagePipeline,
        trained: Mapping[str, nn.Module],
        objective: Objective,
        *,
        seed: int = 0,
        checkpointing: bool = False,
        offload: bool = False,
        remembered: int = 0,
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(trained)
        self.objective, self.seed = objective, seed
        self.remembered = Remembered(remembered)
        self._plain: dict[str, Any] = {
            "pipe": pipe
        }  # not a submodule: frozen components stay out of the engine
        self._velocity = {"model": _velocity(pipe, checkpointing, offload)}
        self.in_step = False
        """Whether all processes must make the same passes, as an engine that shares out weights needs it."""

    def forward(self, samples: Sequence[Sample]) -> torch.Tensor:
        """(B,) losses."""
        batch = [self.encoded(sample) for sample in samples]
        if self.in_step:
            return losses_in_step(
                self.objective, self.velocity, batch, lambda: [self._draw(sample) for sample in samples]
            )
        return self.objective.losses(self.velocity, batch, [self._draw(sample) for sample in samples])

    def encoded(self, sample: Sample) -> Encoded:
        """What the encoders make of a sample, or made of it before."""
        pipe = self._plain["pipe"]
        with torch.enable_grad():  # so that it shows which of them are being trained
            return self.remembered.encoded(
                sample, lambda sample: encode_sample(sample, dtype=pipe.dtype, device=pipe.device)
            )

    @property
    def velocity(self) -> VelocityModel:
        return self._velocity["model"]

    def levels(self, samples: Sequence[Sample]) -> list[float]:
        """The noise level that each sample is trained at; none for an objective that takes several at once."""
        level = getattr(self.objective, "noise_level", None)
        return [] if level is None else [level(self._draw(sample)) for sample in samples]

    def _draw(self, sample: Sample) -> torch.Generator:
        return draw_for(self.seed, sample.epoch, sample.index)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter that has gradients, in a fixed order."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def _velocity(pipe: QwenImagePipeline, checkpointing: bool, offload: bool) -> VelocityModel:
    transformer = pipe.components["transformer"][0].load(whole=True)
    return VelocityModel(transformer, checkpointing=checkpointing, offload=offload)


def draw_for(seed: int, epoch: int, index: int) -> torch.Generator:
    """The dice of one sample in one epoch: the same on any number of processes, and after a resume."""
    digest = hashlib.sha256(f"draw:{seed}:{epoch}:{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
