"""From arguments to a finished run: what the command line does, as one function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwenimage_core.registry import PluginRegistry
from qwenimage_training.cache.dataset import CachedDataset
from qwenimage_training.cache.make import CacheMaker
from qwenimage_training.checkpoint import make_output
from qwenimage_training.data.dataset import TrainingDataset
from qwenimage_training.engines.launcher import make_accelerator
from qwenimage_training.errors import TrainingError
from qwenimage_training.following import following, hold_out
from qwenimage_training.fp8 import store_in_fp8
from qwenimage_training.opening import open_pipeline
from qwenimage_training.planning import open_dataset
from qwenimage_training.trained import prepare
from qwenimage_training.trainer import Trainer

if TYPE_CHECKING:
    from qwenimage_training.arguments import TrainingArguments
    from qwenimage_training.callbacks import Callback


def run(
    arguments: TrainingArguments,
    registry: PluginRegistry | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Train, and give the trainer back."""
    make_output(arguments.output)
    trainer = make_trainer(arguments, registry, callbacks)
    trainer.train()
    return trainer


def make_trainer(
    arguments: TrainingArguments,
    registry: PluginRegistry | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Everything up to the first step: the data are read before the models, so that a fault in them shows at once."""
    if arguments.stage == "data_process":
        raise TrainingError(
            f"The task {arguments.task} trains nothing.", mend="call make_cache, or give another task"
        )
    dataset = open_dataset(arguments)
    held_out = hold_out(arguments, dataset)
    callbacks = [*callbacks, *following(arguments, held_out)]
    accelerator = make_accelerator(arguments)
    registry = registry or PluginRegistry.discover(arguments.plugin)
    known = dataset.manifest["backbone"] if isinstance(dataset, CachedDataset) else None
    pipe = open_pipeline(arguments, registry, accelerator.device, known)
    trained = prepare(arguments, pipe)
    store_in_fp8(arguments, pipe)
    return Trainer(arguments, pipe, trained, dataset, accelerator, callbacks)


def make_cache(arguments: TrainingArguments, registry: PluginRegistry | None = None) -> Path:
    """The first of two stages: run the encoders over all rows, and write what they give into the output folder."""
    make_output(arguments.output)
    dataset = TrainingDataset(arguments)
    accelerator = make_accelerator(arguments)
    pipe = open_pipeline(arguments, registry or PluginRegistry.discover(arguments.plugin), accelerator.device)
    store_in_fp8(arguments, pipe)
    return CacheMaker(arguments, pipe, dataset, accelerator).make()
