"""Small datasets on disk."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwenimage_training.data.arguments import DataArguments

Rows = Sequence[Mapping[str, Any]]


class Folder:
    """A dataset's folder, and ways to fill it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def picture(
        self, name: str, size: tuple[int, int] = (64, 48), colour: Any = (255, 0, 0), mode: str = "RGB"
    ) -> str:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(file)
        return name

    def text(self, name: str, text: str) -> Path:
        (self.path / name).write_text(text, encoding="utf-8")
        return self.path / name

    def jsonl(self, rows: Rows) -> Path:
        return self.text("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def json(self, rows: Any) -> Path:
        return self.text("metadata.json", json.dumps(rows))

    def csv(self, rows: Rows) -> Path:
        with (self.path / "metadata.csv").open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return self.path / "metadata.csv"

    def arguments(self, **more: Any) -> DataArguments:
        return DataArguments(dataset_base_path=str(self.path), **more)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    path = tmp_path / "dataset"
    path.mkdir()
    return Folder(path)
