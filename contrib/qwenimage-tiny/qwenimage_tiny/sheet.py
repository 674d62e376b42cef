"""Pictures to look at: contact sheets and loss curves, drawn with pillow."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

COLUMNS = 6
CELL = 160  # pixels a picture takes, with its margin
TEXT = 58  # pixels for its prompt


def contact_sheet(pictures: Sequence[Image.Image], texts: Sequence[str]) -> Image.Image:
    """The pictures in rows, each over its text."""
    rows = math.ceil(len(pictures) / COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * (CELL + TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        x, y = number % COLUMNS * CELL, number // COLUMNS * (CELL + TEXT)
        margin = (CELL - picture.width) // 2
        sheet.paste(picture, (x + margin, y + margin))
        draw.rectangle((x + margin - 1, y + margin - 1, x + CELL - margin, y + CELL - margin), outline="gray")
        draw.multiline_text(
            (x + margin, y + CELL - margin + 4), "\n".join(textwrap.wrap(text, 23)), fill="black"
        )
    return sheet


def loss_curve(log: Path, target: Path, width: int = 900, height: int = 500) -> None:
    """The losses of a training log (lines of JSON), logarithmic: black the mean, coloured by noise level."""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    if len(entries) < 2:
        return
    curves = [
        [entry["loss"] for entry in entries],
        *zip(*(entry["by_level"] for entry in entries), strict=True),
    ]
    values = [value for curve in curves for value in curve if value > 0]
    low, high = math.log(min(values)), math.log(max(values))
    last = entries[-1]["step"]
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    colours = ("black", "#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677")
    for curve, colour in zip(curves, colours, strict=True):
        points = [
            (
                40 + (width - 60) * entry["step"] / last,
                20 + (height - 60) * (high - math.log(value)) / (high - low),
            )
            for entry, value in zip(entries, curve, strict=True)
            if value > 0
        ]
        draw.line(points, fill=colour, width=3 if colour == "black" else 1)
    names = ["mean", *(f"s {n / 5:.1f}-{(n + 1) / 5:.1f}" for n in range(5))]
    for number, (name, colour) in enumerate(zip(names, colours, strict=True)):
        draw.text((width - 110, 25 + 14 * number), f"{name} {curves[number][-1]:.3f}", fill=colour)
    draw.text(
        (40, height - 25),
        f"steps 0 to {last}; loss {math.exp(low):.3f} to {math.exp(high):.2f}",
        fill="black",
    )
    beside = target.with_suffix(".partial.png")
    picture.save(beside)
    beside.replace(target)
