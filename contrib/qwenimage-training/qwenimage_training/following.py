"""What follows a run by its options: curves always, trackers and validation where they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import RequestError
from qwenimage_training.curves import Curves
from qwenimage_training.data.arguments import names
from qwenimage_training.data.dataset import TrainingDataset
from qwenimage_training.previews import Previews, read_prompts
from qwenimage_training.trackers import Tracking

if TYPE_CHECKING:
    from qwenimage_training.arguments import TrainingArguments
    from qwenimage_training.callbacks import Callback


def following(arguments: TrainingArguments, held_out: TrainingDataset | None) -> list[Callback]:
    found: list[Callback] = []
    if arguments.validation_steps:
        prompts = read_prompts(arguments.validation_prompts)
        found.append(Previews(arguments.validation_steps, prompts, held_out))
    if trackers := names(arguments.log_with):
        found.append(Tracking(trackers))
    return [*found, Curves()]  # last: what it draws is complete by then


def hold_out(arguments: TrainingArguments, dataset: Any) -> TrainingDataset | None:
    """The rows of --validation_rows: the last of the dataset, which it loses, or those of another metadata file."""
    wanted = arguments.validation_rows
    if wanted is None:
        return None
    if not isinstance(dataset, TrainingDataset):
        raise RequestError(
            "Rows can be held out of a dataset, not of a cache.",
            got=f"--validation_rows {wanted}",
            mend="leave it out, or train without the split",
        )
    if not wanted.isdigit():
        return TrainingDataset(arguments.model_copy(update={"dataset_metadata_path": wanted}))
    count = int(wanted)
    if not 0 < count < len(dataset.records):
        raise RequestError(
            "--validation_rows leaves nothing to train, or nothing to judge.",
            got=wanted,
            expected=f"1 to {len(dataset.records) - 1}, or a metadata file",
        )
    return dataset.take_out(count)
