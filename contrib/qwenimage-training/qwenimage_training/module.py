"""The module that is trained: from planned samples to losses in one forward, so that any engine can wrap it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qwenimage_training.encoded import Encoded, VelocityModel, encode_sample
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

    def forward(self, samples: Sequence[Sample]) -> torch.Tensor:
        """(B,) losses."""
        pipe = self._plain["pipe"]

        def encode(sample: Sample) -> Encoded:
            return encode_sample(sample, dtype=pipe.dtype, device=pipe.device)

        batch = [self.remembered.encoded(sample, encode) for sample in samples]
        draws = [draw_for(self.seed, sample.epoch, sample.index) for sample in samples]
        return self.objective.losses(self._velocity["model"], batch, draws)

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
