"""The course of a run as a picture: loss over steps, and loss by noise level, drawn from the log with pillow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from qwenimage_core.writing import whole_file
from qwenimage_training.callbacks import Callback

if TYPE_CHECKING:
    from qwenimage_training.trainer import Trainer

NAME = "curves.png"
WIDTH, HEIGHT, MARGIN = 460, 300, 44
MEAN = 25  # steps that the dark line is the mean of
PALE, DARK, HELD_OUT = "#b7c9e2", "#1f4e8c", "#c23b22"


class Curves(Callback):
    """Draws `curves.png` into the output folder when training ends."""

    def on_end(self, trainer: Trainer) -> None:
        folder = trainer.arguments.output
        lines = _read(folder / "log.jsonl")
        if lines:
            sheet = draw_curves(lines, _read(folder / "validation.jsonl"))
            with whole_file(folder / NAME) as beside:
                sheet.save(beside, format="PNG")


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def draw_curves(log: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]] = ()) -> Image.Image:
    """Left the loss by step (pale), its running mean (dark) and that of rows held out (red); right the mean loss by
    noise level, of the first half of the run (pale) and of the second (dark)."""
    sheet = Image.new("RGB", (2 * WIDTH, HEIGHT), "white")
    losses = [(line["step"], line["loss"]) for line in log]
    held_out = [(line["step"], line["loss"]) for line in validation if "loss" in line]
    series = [(losses, PALE), (running_mean(losses, MEAN), DARK), (held_out, HELD_OUT)]
    last = f"loss by step; last mean {series[1][0][-1][1]:.4f}"
    _plot(sheet, 0, last + (f"; held out {held_out[-1][1]:.4f}" if held_out else ""), series)
    half = len(log) // 2
    levels = [(mean_by_level(part), colour) for part, colour in ((log[:half], PALE), (log[half:], DARK))]
    _plot(sheet, WIDTH, "loss by noise level: first half of the run, second half", levels)
    return sheet


def running_mean(points: Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """At each point, the mean of the last `count` values."""
    means = []
    for i, (x, _) in enumerate(points):
        window = [y for _, y in points[max(i + 1 - count, 0) : i + 1]]
        means.append((x, sum(window) / len(window)))
    return means


def mean_by_level(log: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(middle of a bucket of noise levels, mean loss of the steps that had samples in it)."""
    found: dict[str, list[float]] = {}
    for line in log:
        for bucket, loss in line.get("loss_by_level", {}).items():
            found.setdefault(bucket, []).append(loss)
    return sorted((float(bucket) + 0.05, sum(values) / len(values)) for bucket, values in found.items())


def _plot(sheet: Image.Image, left: int, title: str, series: Sequence[tuple[Any, str]]) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((left + MARGIN, 8), title, fill="black")
    box = (left + MARGIN, 28, left + WIDTH - 16, HEIGHT - 28)
    draw.rectangle(box, outline="lightgray")
    points = [point for line, _ in series for point in line]
    if not points:
        draw.text((box[0] + 8, box[1] + 8), "nothing to show", fill="gray")
        return
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high, top = min(xs), max(xs), max(ys) * 1.05 or 1.0
    draw.text((left + 4, box[1] - 4), f"{top:.3g}", fill="gray")
    draw.text((left + 4, box[3] - 8), "0", fill="gray")
    draw.text((box[0], box[3] + 6), f"{low:g}", fill="gray")
    draw.text((box[2] - 24, box[3] + 6), f"{high:g}", fill="gray")
    for line, colour in series:
        places = [
            (
                box[0] + (x - low) / ((high - low) or 1) * (box[2] - box[0]),
                box[3] - y / top * (box[3] - box[1]),
            )
            for x, y in line
        ]
        draw.line(places, fill=colour, width=1 if colour == PALE else 2)
        for x, y in places if len(places) < 30 else ():
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
