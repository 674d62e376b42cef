"""From arguments to a finished run: what the command line does, as one function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from qwenimage_core.registry import PluginRegistry
from qwenimage_training.data.dataset import TrainingDataset
from qwenimage_training.errors import TrainingError
from qwenimage_training.fp8 import store_in_fp8
from qwenimage_training.opening import open_pipeline
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
    trainer = make_trainer(arguments, registry, callbacks)
    trainer.train()
    return trainer


def make_trainer(
    arguments: TrainingArguments,
    registry: PluginRegistry | None = None,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Everything up to the first step: the data are read before the models, so that a fault in them shows at once."""
    dataset = TrainingDataset(arguments)
    accelerator = make_accelerator(arguments)
    registry = registry or PluginRegistry.discover(arguments.plugin)
    pipe = open_pipeline(arguments, registry, accelerator.device)
    trained = prepare(arguments, pipe)
    store_in_fp8(arguments, pipe)
    return Trainer(arguments, pipe, trained, dataset, accelerator, callbacks)


def make_accelerator(arguments: TrainingArguments) -> Accelerator:
    wanted = arguments.gradient_accumulation_steps
    accelerator = Accelerator(
        gradient_accumulation_steps=wanted,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=arguments.find_unused_parameters)
        ],
    )
    if accelerator.gradient_accumulation_steps != wanted:
        raise TrainingError(
            "The accelerate configuration and --gradient_accumulation_steps disagree.",
            got=f"{accelerator.gradient_accumulation_steps} from accelerate",
            expected=wanted,
            mend="say the same in both",
        )
    return accelerator
