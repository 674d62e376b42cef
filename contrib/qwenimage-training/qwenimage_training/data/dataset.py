"""A dataset for torch's DataLoader: rows with their pictures, `dataset_repeat` times over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from copy import copy
from pathlib import Path

from torch.utils.data import Dataset

from qwenimage_training.data.arguments import DataArguments
from qwenimage_training.data.columns import check_columns
from qwenimage_training.data.files import Root
from qwenimage_training.data.metadata import Record, read_records
from qwenimage_training.data.pictures import Size
from qwenimage_training.data.rows import Row, RowReader


class TrainingDataset(Dataset[Row]):
    """Reads the metadata and looks for every file at once; pictures are read row by row.

    Item i is row i modulo the number of rows. Raises LoadError for what is wrong with the metadata, with a path, or
    with a picture when its row is read, naming the row.
    """

    def __init__(self, arguments: DataArguments) -> None:
        root = Root(arguments.dataset_base_path)
        self.records = read_records(root.folder, arguments.dataset_metadata_path, arguments.file_keys)
        check_columns(arguments, self.records)
        self.reader = RowReader(arguments, root)
        self.repeat = arguments.dataset_repeat
        for record in self.records:
            self.reader.paths(record)
        self._sizes: list[Size] | None = None

    def __len__(self) -> int:
        return len(self.records) * self.repeat

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.reader.read(self._record(index), index)

    def name_of(self, index: int) -> str:
        """What to call item `index` in messages: where its row is written, and its target."""
        record = self._record(index)
        target = record.values["image"]
        file = target if isinstance(target, str) else ", ".join(target)
        return record.where if record.where == file else f"{record.where} ({file})"

    def sizes(self) -> list[Size]:
        """(width, height) that each item's target is cut to, for BatchSampler. Reads the header of every target."""
        if self._sizes is None:
            fixed = self.reader.sizes.fixed
            self._sizes = [fixed or self.reader.target_size(record) for record in self.records]
        return self._sizes * self.repeat

    def take_out(self, count: int) -> TrainingDataset:
        """The last `count` rows as a dataset of their own, once each; this one is without them from now on."""
        other = copy(self)
        other.records, other.repeat, other._sizes = self.records[-count:], 1, None
        self.records, self._sizes = self.records[:-count], None
        return other

    def digest(self) -> str:
        """sha256 of the rows (all columns, in their order) and of each file's name, size and modification time.

        Contents are not read: a dataset is large, and an edited file has another time. Where the dataset lies and how
        it is cut are not part of it.
        """
        return dataset_digest(self.records, self.reader)

    def _record(self, index: int) -> Record:
        return self.records[index % len(self.records)]


def dataset_digest(records: Iterable[Record], reader: RowReader) -> str:
    found = hashlib.sha256()
    for record in records:
        files = [
            _facts(path, reader.root.folder) for paths in reader.paths(record).values() for path in paths
        ]
        row = {"prompt": record.prompt, "values": dict(record.values), "files": files}
        found.update(json.dumps(row, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return found.hexdigest()


def _facts(path: Path, base: Path) -> tuple[str, int, int]:
    state = path.stat()
    return path.relative_to(base).as_posix(), state.st_size, state.st_mtime_ns
