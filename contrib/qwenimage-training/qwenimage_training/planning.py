"""Where planned samples come from: rows that are planned, or a cache of planned and encoded ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwenimage_training.cache.dataset import CachedDataset, CachedPlanner
from qwenimage_training.data.dataset import TrainingDataset
from qwenimage_training.sample import Planner

if TYPE_CHECKING:
    from qwenimage_core import QwenImagePipeline
    from qwenimage_training.arguments import TrainingArguments
    from qwenimage_training.objectives import Objective


def open_dataset(arguments: TrainingArguments) -> TrainingDataset | CachedDataset:
    """The rows, or in the second of two stages the cache."""
    if arguments.stage != "train":
        return TrainingDataset(arguments)
    dataset = CachedDataset(arguments)
    dataset.check_trained(arguments)
    return dataset


def make_planner(
    pipe: QwenImagePipeline,
    arguments: TrainingArguments,
    dataset: TrainingDataset | CachedDataset,
    objective: Objective,
) -> Planner | CachedPlanner:
    """What plans the items of the dataset; RequestError for columns that no row has."""
    if isinstance(dataset, CachedDataset):
        return CachedPlanner(pipe, dataset)
    planner = Planner(pipe, arguments.inputs, objective.fixed, objective.check)
    planner.check_columns(column for record in dataset.records for column in record.values)
    return planner
