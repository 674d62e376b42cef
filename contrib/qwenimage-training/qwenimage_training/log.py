"""The log of a run: one JSON object a line, one line an optimizer step, in `log.jsonl` of the output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwenimage_core.writing import whole_file

NAME = "log.jsonl"


class JsonLog:
    """Lines appear at once, so that others may follow. What a stopped run logged beyond the state that it goes on from
    is taken out, so each step stands there once."""

    def __init__(self, folder: Path, steps_done: int, name: str = NAME) -> None:
        self.path = folder / name
        kept = [line for line in self._lines() if line["step"] <= steps_done] if steps_done else []
        with whole_file(self.path) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._stream = self.path.open("a", encoding="utf-8")

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # half a line: the run was killed while it wrote
        return found

    def write(self, values: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(dict(values)) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()
