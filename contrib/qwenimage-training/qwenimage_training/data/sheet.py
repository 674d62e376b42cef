"""A contact sheet of a dataset: targets as they will be trained, the row's other pictures beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from qwenimage_core.errors import QwenImageError, RequestError
from qwenimage_core.writing import whole_file
from qwenimage_training.data.metadata import Record
from qwenimage_training.data.rows import RowReader

SHOWN = 48
COLUMNS = 6
SIDE = 160  # pixels of a target
SMALL = 76  # of each picture beside it; two of them and the gap between make a side
TEXT = 60
GAP = 8
LETTERS = 40  # a line of text


def draw_sheet(records: Sequence[Record], reader: RowReader) -> Image.Image:
    """At most 48 rows, evenly spread over the dataset. A row that cannot be read says why in red."""
    step = max(len(records) / SHOWN, 1)
    shown = [int(i * step) for i in range(min(len(records), SHOWN))]
    width, height = SIDE + SMALL + 3 * GAP, SIDE + TEXT + 2 * GAP
    lines = max(-(-len(shown) // COLUMNS), 1)
    sheet = Image.new("RGB", (min(max(len(shown), 1), COLUMNS) * width, lines * height), "white")
    for place, index in enumerate(shown):
        corner = place % COLUMNS * width + GAP, place // COLUMNS * height + GAP
        _cell(sheet, corner, records[index], index, reader)
    return sheet


def _cell(sheet: Image.Image, corner: tuple[int, int], record: Record, index: int, reader: RowReader) -> None:
    x, y = corner
    draw = ImageDraw.Draw(sheet)
    try:
        row = reader.read(record, index)
    except QwenImageError as error:
        draw.rectangle((x, y, x + SIDE, y + SIDE), outline="red")
        draw.multiline_text((x + 4, y + 4), lines_of(f"{error.what} {error.got}", 26, 11), fill="red")
        return
    beside = [column for column in reader.file_keys if column in row.fields and column != "image"]
    target, *others = [picture for column in ("image", *beside) for picture in _listed(row.fields[column])]
    _paste(sheet, target, (x, y), SIDE)
    for number, other in enumerate(others[:2]):
        _paste(sheet, other, (x + SIDE + GAP, y + number * (SMALL + GAP)), SMALL)
    more = f" (+{len(others) - 2})" if len(others) > 2 else ""
    label = f"{index + 1}: {target.width} x {target.height}{more}"
    draw.text((x, y + SIDE + 4), label, fill="gray")
    draw.multiline_text((x, y + SIDE + 18), lines_of(row.prompt or "(no prompt)", LETTERS, 3), fill="black")


def _listed(value: Image.Image | list[Image.Image]) -> list[Image.Image]:
    return value if isinstance(value, list) else [value]


def _paste(sheet: Image.Image, picture: Image.Image, corner: tuple[int, int], side: int) -> None:
    small = ImageOps.contain(picture, (side, side)).convert("RGBA")
    place = corner[0] + (side - small.width) // 2, corner[1] + (side - small.height) // 2
    sheet.paste(small, place, small)
    outline = (corner[0], corner[1], corner[0] + side, corner[1] + side)
    ImageDraw.Draw(sheet).rectangle(outline, outline="lightgray")


def lines_of(text: str, letters: int, count: int) -> str:
    """Text broken into lines; what pillow's own font lacks becomes a question mark."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return "\n".join(textwrap.wrap(plain, letters, max_lines=count, placeholder=" ..."))


def save_sheet(sheet: Image.Image, file: Path) -> None:
    """Write a PNG whole or not at all."""
    try:
        with whole_file(file) as beside:
            sheet.save(beside, format="PNG")
    except OSError as error:
        raise RequestError("The contact sheet cannot be written.", got=error, mend="check --sheet") from error


def check_sheet_file(file: Path, *, overwrite: bool) -> None:
    """Refuse before any work is done what could not be written, or would replace a file unasked."""
    if file.suffix.lower() != ".png":
        raise RequestError("--sheet writes PNG.", got=file.name, expected="a name that ends in .png")
    if not file.parent.is_dir():
        raise RequestError("The folder of --sheet is not there.", got=file.parent, mend="create it")
    if file.exists() and not overwrite:
        raise RequestError(
            "The file of --sheet is there already.", got=file, mend="choose another name, or add --overwrite"
        )
