"""What may follow a run: loggers, validation, anything of one's own. Methods are called on the main process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenimage_training.trainer import Trainer


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, counted from 1. `loss` is the mean of its samples in all processes, `grad_norm` the norm
    before any clipping; `loss_by_level` the mean of the main process's samples by noise level, "0.3" being 0.3 to 0.4.
    """

    step: int
    batch: int
    epoch: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    samples: int
    samples_per_second: float = 0.0
    loss_by_level: Mapping[str, float] = field(default_factory=dict)


def by_level(levels: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Mean loss in each tenth of the noise levels that has samples."""
    found: dict[str, list[float]] = {}
    for level, loss in zip(levels, losses, strict=True) if levels else ():
        found.setdefault(f"{min(int(10 * level), 9) / 10:.1f}", []).append(loss)
    return {bucket: sum(values) / len(values) for bucket, values in sorted(found.items())}


class Callback:
    """Subclass it and override what you need."""

    everywhere = False
    """Whether `on_step` is called on all processes: for what computes with weights that may be shared out."""

    def on_validation(self, values: Mapping[str, Any], sheet: Path | None, trainer: Trainer) -> None:
        """After a validation: its line in validation.jsonl, and its contact sheet."""

    def on_step(self, report: StepReport, trainer: Trainer) -> None:
        """After an optimizer step."""

    def on_save(self, files: list[Path], trainer: Trainer) -> None:
        """After weights were saved."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step and save."""
