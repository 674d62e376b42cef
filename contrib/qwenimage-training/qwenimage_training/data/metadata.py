"""Metadata files and caption folders -> records. Nothing is opened but the metadata itself.

A record is one example as it is written down: its prompt, and the other columns that hold a value. An empty cell,
null and a number that is not one are absent values. Text in a prompt is text, whatever it says.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenimage_core.errors import LoadError, QwenImageError

SUFFIXES = (".csv", ".json", ".jsonl")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
NO_VALUE = ("", "none", "null", "nan")  # how csv writers put an absent value; prompts are exempt
SHOWN = 80

OnError = Callable[[QwenImageError], None]


@dataclass(frozen=True)
class Record:
    """`where` names the row for people; `values` are the columns but `prompt`, absent ones left out."""

    where: str
    prompt: str
    values: Mapping[str, Any]


def find_metadata(base: Path, metadata: str | Path | None) -> Path | None:
    """The metadata file to read: the one given, else the one called metadata.* in the folder. None: captions."""
    if metadata is not None:
        return Path(metadata).expanduser()
    found = [file for suffix in SUFFIXES if (file := base / f"metadata{suffix}").is_file()]
    if len(found) > 1:
        raise LoadError(
            f"{base} holds several metadata files.",
            got=", ".join(file.name for file in found),
            expected="one",
            mend="say which with --dataset_metadata_path",
        )
    return found[0] if found else None


def read_records(
    base: Path, metadata: str | Path | None, file_keys: Sequence[str], on_error: OnError | None = None
) -> list[Record]:
    """All records, in their order. The first broken row is raised, unless `on_error` takes each of them.

    `file_keys` are the columns that name files: they stay text, or lists of text, in csv too.
    """
    file = find_metadata(base, metadata)
    if file is None:
        from qwenimage_training.data.captions import read_captions

        return list(read_captions(base, on_error))
    if file.suffix.lower() not in SUFFIXES:
        raise LoadError(
            f"{file} is no metadata that is understood.",
            got=file.suffix or "no suffix",
            expected=", ".join(SUFFIXES),
            mend="save it in one of these forms, with that suffix",
        )
    text = _text(file)
    reader = {".csv": _csv_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}[file.suffix.lower()]
    csv_file_keys = file_keys if file.suffix.lower() == ".csv" else None
    records = []
    for where, row in _guarded(reader(text, file.name), on_error):
        try:
            records.append(_record(where, row() if callable(row) else row, csv_file_keys))
        except QwenImageError as error:
            report(error, on_error)
    if not records:
        report(
            LoadError(f"{file} holds no row.", expected="a row for each example, with prompt and image"),
            on_error,
        )
    return records


def report(error: QwenImageError, on_error: OnError | None) -> None:
    """Hand an error over, or raise it where nobody takes it."""
    if on_error is None:
        raise error
    on_error(error)


def _guarded(rows: Iterator[tuple[str, Any]], on_error: OnError | None) -> Iterator[tuple[str, Any]]:
    """The rows up to where the file itself cannot be read any further."""
    try:
        yield from rows
    except QwenImageError as error:
        report(error, on_error)


def _text(file: Path) -> str:
    if not file.is_file():
        raise LoadError(
            "The metadata is not there.", got=file, expected="a file", mend="check --dataset_metadata_path"
        )
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LoadError(
            f"{file} is not UTF-8.",
            got=f"byte {error.object[error.start]:#04x} at place {error.start}",
            expected="UTF-8 text",
            mend="save it as UTF-8",
        ) from error


def _csv_rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    number = 0
    try:
        for cells in lines:
            if not cells or (len(cells) == 1 and not cells[0].strip()):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_header(header, name)
                continue
            number += 1
            yield f"{name}, row {number} (line {lines.line_num})", _row_of(header, cells, name, number)
    except csv.Error as error:
        raise LoadError(
            f"{name}, row {number + 1} (line {lines.line_num}): this is no csv.",
            got=error,
            expected="cells with commas or line ends in double quotes, quotes in them doubled",
        ) from error


def _check_header(header: list[str], name: str) -> None:
    twice = sorted({cell for cell in header if header.count(cell) > 1})
    if twice or "" in header:
        raise LoadError(
            f"{name}: the header does not name each column once.",
            got=",".join(header),
            expected="distinct names",
        )
    for column in ("prompt", "image"):
        if column not in header:
            raise LoadError(
                f"{name} has no column {column}.",
                got=", ".join(header),
                expected="prompt, image, and any others",
                mend=f"add the column {column} to the first line",
            )


def _row_of(header: list[str], cells: list[str], name: str, number: int) -> Callable[[], dict[str, str]]:
    def row() -> dict[str, str]:
        if len(cells) != len(header):
            raise LoadError(
                f"{name}, row {number}: it has another number of cells than the header.",
                got=f"{len(cells)} cells",
                expected=f"{len(header)}: {', '.join(header)}",
                mend="put cells that hold a comma or a line end in double quotes",
            )
        return dict(zip(header, cells, strict=True))

    return row


def _json_rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    rows = _parse(text, name)
    if not isinstance(rows, list):
        raise LoadError(
            f"{name} has an unknown shape.",
            got=type(rows).__name__,
            expected="one list of objects, each with prompt and image",
            mend="put the objects into [ ]; a file with an object a line is .jsonl",
        )
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", row


def _jsonl_rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    number = 0
    # split("\n"), not splitlines(): JSON text may hold U+2028 and its like as they are
    for line_number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            number += 1
            where = f"{name}, row {number} (line {line_number})"
            yield where, lambda line=line, where=where: _parse(line, where)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise LoadError(
            f"{where}: this is no JSON.",
            got=f"{error} in {_short(text)!r}",
            expected="a JSON object",
            mend="mend or delete the line; `qwenimage dataset check` lists all of them",
        ) from error


def _record(where: str, row: Any, csv_file_keys: Sequence[str] | None) -> Record:
    """`csv_file_keys` is given for cells of csv, which are text still."""
    if not isinstance(row, dict):
        raise LoadError(
            f"{where}: a row of unknown shape.",
            got=_short(repr(row)),
            expected="an object with prompt and image",
        )
    prompt = row.get("prompt")
    if not isinstance(prompt, str):
        raise LoadError(
            f"{where}: there is no prompt.",
            got=_short(repr(prompt)) if "prompt" in row else f"columns {', '.join(map(str, row)) or 'none'}",
            expected="text in prompt",
            mend='write "" to train without a caption',
        )
    values = {}
    for column, cell in row.items():
        if column == "prompt":
            continue
        value = cell if csv_file_keys is None else _cell(cell, column, column in csv_file_keys, where)
        if not _is_absent(value):
            values[column] = value
    if "image" not in values:
        raise LoadError(
            f"{where}: there is no image.",
            got=f"columns {', '.join(row)}" if "image" not in row else "an empty value",
            expected="the target's file name in image (a list of them for layers)",
        )
    return Record(where, prompt, values)


def _cell(text: str, column: str, is_file: bool, where: str) -> Any:
    """A csv cell: JSON lists, numbers and true/false are read as such, other text stays as it is."""
    text = text.strip()
    if text.lower() in NO_VALUE:
        return None
    if is_file and not text.startswith("["):
        return text
    if text in ("True", "False"):  # as pandas writes them
        return text == "True"
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if is_file:
            raise LoadError(
                f"{where}, {column}: this list is no JSON.",
                got=f"{error} in {_short(text)}",
                expected='a list as ["a.png", "b.png"], in csv with its quotes doubled',
                mend="write it so; a single file's name cannot begin with [ in csv, but in json and jsonl",
            ) from error
        return text
    return value if isinstance(value, list | int | float | bool) else text


def _is_absent(value: Any) -> bool:
    """A list without items says that there is nothing, as an empty cell does."""
    return value is None or value in ("", []) or (isinstance(value, float) and math.isnan(value))


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
