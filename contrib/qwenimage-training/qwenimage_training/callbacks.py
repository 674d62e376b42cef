"""What may follow a run: loggers, validation, anything of one's own. All methods are called on the main process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from qwenimage_training.trainer import Trainer


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, counted from 1. `loss` is the mean of its samples in all processes, `grad_norm` the norm
    before any clipping."""

    step: int
    batch: int
    epoch: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    samples: int


class Callback(Protocol):
    """Subclass it and override what you need."""

    def on_step(self, report: StepReport, trainer: Trainer) -> None:
        """After an optimizer step."""

    def on_save(self, files: list[Path], trainer: Trainer) -> None:
        """After weights were saved."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step and save."""
