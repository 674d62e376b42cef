"""From a record to a row: its files read, cut and put in place of their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from qwenimage_training.data.arguments import DataArguments, names
from qwenimage_training.data.buckets import TargetSizes
from qwenimage_training.data.fields import ALIGNED, RGBA, matches
from qwenimage_training.data.files import Root
from qwenimage_training.data.metadata import Record
from qwenimage_training.data.pictures import (
    Cut,
    Mode,
    Size,
    check_aligned,
    picture_size,
    read_picture,
)


@dataclass(frozen=True)
class Row:
    """One example, ready to be trained: its place in the epoch, its prompt, and every other column that has a value.

    Files are pillow pictures, or lists of them where the metadata has lists. `fields["image"]` is the target: an RGB
    picture, or a list of RGBA pictures of one size (layers).
    """

    index: int
    prompt: str
    fields: Mapping[str, Any]


class RowReader:
    """Reads the files of records. Paths, sizes and pictures of a record come from here, and every complaint names the
    row and the column."""

    def __init__(self, arguments: DataArguments, root: Root) -> None:
        self.root = root
        self.file_keys = arguments.file_keys
        self.sizes = TargetSizes(arguments)
        aligned = arguments.aligned_fields
        self.aligned = ALIGNED if aligned is None else names(aligned)

    def paths(self, record: Record) -> dict[str, list[Path]]:
        """The files of each column that names some, each of them there and inside the root."""
        found = {}
        for column in self.file_keys:
            if column in record.values:
                value = record.values[column]
                listed = value if isinstance(value, list) else [value]
                found[column] = [self.root.find(name, f"{record.where}, {column}") for name in listed]
        return found

    def source_size(self, record: Record) -> Size:
        """The target's own size; of the first layer where there are several."""
        where = f"{record.where}, image"
        value = record.values["image"]
        name = value[0] if isinstance(value, list) else value
        return picture_size(self.root.find(name, where), where)

    def target_size(self, record: Record) -> Size:
        """The size that the target is trained at, from its header alone."""
        return self.sizes.of(self.source_size(record), f"{record.where}, image")

    def is_aligned(self, column: str) -> bool:
        return column == "image" or matches(column, self.aligned)

    def read(self, record: Record, index: int) -> Row:
        paths = self.paths(record)
        where = f"{record.where}, image"
        layered = isinstance(record.values["image"], list)
        target = [read_picture(path, "RGBA" if layered else "RGB", where) for path in paths["image"]]
        source = target[0].size
        cut = Cut.centre(source, self.sizes.of(source, where))
        fields: dict[str, Any] = dict(record.values)
        for column, files in paths.items():
            where = f"{record.where}, {column}"
            mode: Mode = "RGBA" if matches(column, RGBA) else "RGB"
            pictures = target if column == "image" else [read_picture(path, mode, where) for path in files]
            done = [self._cut(picture, column, source, cut, where) for picture in pictures]
            fields[column] = done if isinstance(record.values[column], list) else done[0]
        return Row(index, record.prompt, fields)

    def _cut(self, picture: Image.Image, column: str, source: Size, cut: Cut, where: str) -> Image.Image:
        if not self.is_aligned(column):
            own = Cut.centre(picture.size, self.sizes.alone(picture.size, where))
            return own.apply(picture)
        check_aligned(source, picture.size, where)
        return cut.apply(picture)
