"""Other logs beside log.jsonl, by `--log_with`: TensorBoard, Weights & Biases, trackio. Each is an extra of its own.

TensorBoard and wandb write into the output folder, trackio where TRACKIO_DIR says. WANDB_PROJECT and TRACKIO_PROJECT
name the project.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qwenimage_core.errors import RequestError
from qwenimage_training.callbacks import Callback, StepReport

if TYPE_CHECKING:
    from qwenimage_training.trainer import Trainer

PROJECT = "qwenimage-training"
TAKEN = ("loss", "learning_rate", "grad_norm", "samples_per_second", "epoch")


class Tracker(Protocol):
    """`log` takes numbers by name and the step they belong to; `close` ends it."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def picture(self, name: str, file: Path, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("options", "\n".join(f"    {name}: {value}" for name, value in config.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a run that is stopped loses no step

    def picture(self, name: str, file: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        self.writer.add_image(name, np.asarray(Image.open(file).convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Run:
    """wandb and trackio have one interface: init, log, finish."""

    def __init__(self, module: str, config: Mapping[str, Any], **options: Any) -> None:
        from importlib import import_module

        self.library: Any = import_module(module)
        project = os.environ.get(f"{module.upper()}_PROJECT") or PROJECT
        self.library.init(project=project, config=dict(config), **options)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.library.log(dict(values), step=step)

    def picture(self, name: str, file: Path, step: int) -> None:
        self.library.log({name: self.library.Image(str(file))}, step=step)

    def close(self) -> None:
        self.library.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda folder, config: Run("wandb", config, dir=str(folder)),
    "trackio": lambda folder, config: Run("trackio", config),
}
"""By the name of the package, which is also that of the extra. Adding a tracker is adding a row."""


def check_trackers(names: tuple[str, ...]) -> None:
    """RequestError for a tracker that is unknown or not installed; before any model is read."""
    for name in names:
        if name not in TRACKERS:
            raise RequestError(
                "--log_with names no log that there is.", got=name, expected=", ".join(TRACKERS)
            )
        if find_spec(name) is None:
            raise RequestError(
                f"--log_with {name} needs the package {name}, which is not installed.",
                mend=f'pip install "qwenimage-training[{name}]"',
            )


class Tracking(Callback):
    """Gives every step to the trackers. They are opened with the first one, on the main process."""

    def __init__(self, names: tuple[str, ...]) -> None:
        check_trackers(names)
        self.names = names
        self.open: list[Tracker] = []

    def _trackers(self, trainer: Trainer) -> list[Tracker]:
        if not self.open:
            folder, config = trainer.arguments.output, trainer.arguments.model_dump(mode="json")
            self.open = [TRACKERS[name](folder, config) for name in self.names]
        return self.open

    def on_step(self, report: StepReport, trainer: Trainer) -> None:
        values = {name: float(getattr(report, name)) for name in TAKEN}
        values |= {f"loss_by_level/{bucket}": loss for bucket, loss in report.loss_by_level.items()}
        for tracker in self._trackers(trainer):
            tracker.log(values, report.step)

    def on_validation(self, values: Mapping[str, Any], sheet: Path | None, trainer: Trainer) -> None:
        for tracker in self._trackers(trainer):
            if "loss" in values:
                tracker.log({"validation_loss": values["loss"]}, values["step"])
            if sheet is not None:
                tracker.picture("validation", sheet, values["step"])

    def on_end(self, trainer: Trainer) -> None:
        for tracker in self.open:
            tracker.close()
        self.open = []
