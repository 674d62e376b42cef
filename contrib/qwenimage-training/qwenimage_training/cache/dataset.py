"""The second stage: a finished cache as a dataset, and a planner that reads planned samples from it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from qwenimage_training.cache import files
from qwenimage_training.cache.files import Entry, Left
from qwenimage_training.cache.frozen import thaw
from qwenimage_training.cache.make import ENCODING
from qwenimage_training.data.rows import Row
from qwenimage_training.errors import TrainingError
from qwenimage_training.parts import KINDS

if TYPE_CHECKING:
    from qwenimage_core import QwenImagePipeline
    from qwenimage_training.arguments import TrainingArguments
    from qwenimage_training.data.pictures import Size
    from qwenimage_training.sample import Sample


@dataclass(frozen=True)
class CachedRecord:
    where: str
    size: Size
    digest: str
    files: tuple[Entry, ...]
    values: Mapping[str, Any] = field(default_factory=dict)  # columns: none, they are in the files


class CachedDataset(Dataset[Row]):
    """As `TrainingDataset`; an item is an empty row, because what it stands for is read when it is known what dropout
    leaves out of it. Raises TrainingError for a cache that is absent, unfinished, or of other settings."""

    def __init__(self, arguments: TrainingArguments) -> None:
        self.folder = Path(arguments.dataset_base_path or ".").expanduser()
        manifest = files.read_manifest(self.folder)
        if manifest is None:
            raise TrainingError(
                f"There is no cache in {self.folder}.",
                expected=files.MANIFEST,
                mend=f"make it with --task {arguments.objective}:data_process --output_path {self.folder}, "
                "then name it as --dataset_base_path",
            )
        self.manifest = manifest
        self.repeat = arguments.dataset_repeat
        self.lefts: list[Left] = [(bool(a), bool(b)) for a, b in manifest["left_out"]]
        self._check(arguments)
        self.records = [
            CachedRecord(
                row["name"],
                (row["size"][0], row["size"][1]),
                row["digest"],
                tuple(Entry(**entry) for entry in row["files"]),
            )
            for row in manifest["rows"]
        ]

    def __len__(self) -> int:
        return len(self.records) * self.repeat

    def __getitem__(self, index: int) -> Row:
        return Row(index, "", {})

    def name_of(self, index: int) -> str:
        return self.records[index % len(self.records)].where

    def sizes(self) -> list[Size]:
        return [record.size for record in self.records] * self.repeat

    def digest(self) -> str:
        return files.digest_of([self.manifest["inputs"], [record.digest for record in self.records]])

    def entry(self, record: int, left: Left) -> Entry:
        return self.records[record].files[self.lefts.index(left)]

    def _check(self, arguments: TrainingArguments) -> None:
        manifest, inputs = self.manifest, self.manifest["inputs"]
        if not manifest["complete"]:
            raise TrainingError(
                f"The cache in {self.folder} is not finished.",
                got=f"{len(files.finished(self.folder))} files are there",
                mend="run its data_process command again: it goes on where it stopped",
            )
        if inputs["task"] != arguments.objective:
            raise TrainingError(
                f"The cache in {self.folder} is for another task.",
                got=arguments.task,
                expected=inputs["task"],
            )
        if arguments.dataset_metadata_path is not None:
            raise TrainingError(
                "--dataset_metadata_path does nothing here: the rows are in the cache.", mend="leave it out"
            )
        if arguments.validation_prompts and arguments.model is None:
            raise TrainingError(
                "--validation_prompts needs the encoders, which the second stage does not open.",
                mend="draw with `qwenimage validate` when it is done, or name a whole model with --model",
            )
        given = arguments.model_dump(
            mode="json", include=arguments.model_fields_set & set(ENCODING) - {"fp8_models"}
        )
        for name, value in given.items():
            if value != inputs["arguments"][name]:
                raise TrainingError(
                    f"--{name} is not as it was when the cache was made.",
                    got=value,
                    expected=inputs["arguments"][name],
                    mend=f"leave it out, or make the cache again with --{name} {value}",
                )
        for place, option in enumerate(("caption_dropout", "condition_dropout")):
            if getattr(arguments, option) and not any(left[place] for left in self.lefts):
                raise TrainingError(
                    f"--{option} leaves out what is encoded in the cache, which holds nothing without it.",
                    mend=f"make the cache with --{option} too: any share above 0 keeps both forms",
                )

    def check_trained(self, arguments: TrainingArguments) -> None:
        """TrainingError for what made the cache: trained from it, it would never be seen to change."""
        chosen = [*arguments.trained, *([arguments.lora_base_model] if arguments.lora_base_model else [])]
        for name in chosen:
            first = name.removeprefix("pipe.").split(".")[0]
            if KINDS.get(first, first) in self.manifest["frozen"]:
                raise TrainingError(
                    f"{first} made the cache, so it cannot be trained from it.",
                    got=name,
                    expected="something that runs after it, such as dit",
                    mend=f"train it in one stage, with --task {arguments.objective}",
                )


class CachedPlanner:
    """Reads a sample with its plan and all tensors, instead of planning and encoding it."""

    def __init__(self, pipe: QwenImagePipeline, dataset: CachedDataset, inputs: Iterable[str] = ()) -> None:
        self.pipe, self.dataset = pipe, dataset
        here, made = str(pipe.dtype).removeprefix("torch."), dataset.manifest["inputs"]["dtype"]
        if here != made:
            raise TrainingError(
                "The cache was made in another precision than this run computes in.",
                got=here,
                expected=made,
                mend=f"give --mixed_precision {'no' if made == 'float32' else 'bf16'}, or make the cache with it",
            )

    def check_columns(self, columns: Iterable[str]) -> None:
        """Nothing to check: the columns were chosen when the cache was made."""

    def plan(self, row: Row, name: str, epoch: int = 0, key: Hashable = None) -> Sample:
        """The sample of `key`: (record, what is left out)."""
        keyed: Any = key
        record, left = keyed if key is not None else (row.index % len(self.dataset.records), (False, False))
        frozen = files.read_sample(self.dataset.folder, self.dataset.entry(record, left))
        return thaw(frozen, self.pipe, name, row.index, epoch, key)
