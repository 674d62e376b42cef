"""A memory plan as a picture: one bar a stage, one colour a component, a line at the limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qwenimage_core.memory.report import size

if TYPE_CHECKING:
    from PIL import Image

WIDTH, BAR, GAP, LEFT, MARGIN, TOP = 900, 34, 22, 90, 110, 64
INK, PAPER, LIMIT, USED, WORK, OTHER = "#222222", "#ffffff", "#c0392b", "#bbbbbb", "#e0b252", "#7a6fb0"
COLOURS = {"transformer": "#3b6ea5", "text_encoder": "#5a9367", "vae": "#a5673b"}


def bars(memory: Mapping[str, Any], title: str) -> Image.Image:
    """Of what `report.facts` gives; what was in use before stands at the left end of every bar."""
    from PIL import Image, ImageDraw, ImageFont

    stages, used = memory["stages"], memory.get("used", 0)
    most = max([used + stage["bytes"] for stage in stages] + [memory.get("limit", 0)])
    scale = (WIDTH - LEFT - MARGIN) / most
    picture = Image.new("RGB", (WIDTH, TOP + len(stages) * (BAR + GAP) + 16), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    draw.text((12, 10), title, INK, font)
    names = list(dict.fromkeys(s["component"] for stage in stages for s in stage["weights"]))
    legend = [("in use", USED)] * (used > 0) + [(n, _colour(n)) for n in names] + [("work", WORK)]
    x = 12.0
    for name, colour in legend:
        draw.rectangle((x, 38, x + 12, 50), colour)
        draw.text((x + 17, 36), name, INK, font)
        x += 34 + draw.textlength(name, font)
    for number, stage in enumerate(stages):
        y = TOP + number * (BAR + GAP)
        draw.text((12, y + 8), stage["name"], INK, font)
        x = float(LEFT)
        pieces = [(used, USED)] + [(s["nbytes"], _colour(s["component"])) for s in stage["weights"]]
        for nbytes, colour in [*pieces, (stage["working"], WORK)]:
            draw.rectangle((x, y, x + nbytes * scale, y + BAR), colour)
            x += nbytes * scale
        draw.text((WIDTH - MARGIN + 14, y + 8), size(used + stage["bytes"]), INK, font)
    if "limit" in memory:
        x = LEFT + memory["limit"] * scale
        draw.line((x, TOP - 8, x, picture.height - 12), LIMIT, 2)
    return picture


def _colour(component: str) -> str:
    return COLOURS.get(component.partition("/")[0], OTHER)
