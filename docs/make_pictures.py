"""Draw the pictures of the plugins' README files: `python docs/make_pictures.py [PLUGIN ...]`.

Needs all seven plugins and qwenimage-tiny. Where the tiny model cannot do what a plugin is for (it was trained to draw
from text alone), the picture shows what goes into a generation, computed by the plugin itself, and no generation.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFont

from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_core.testing.checkpoints import Variant

PLUGINS = Path(__file__).parents[1] / "plugins"
SIDE, GAP, LINE = 160, 16, 18  # pixels: a panel, what is between panels, a line of text
FONT = ImageFont.load_default(13)
INK, PAPER, FILLS = "#222222", "white", ("#dbe7f5", "#f5e3cf", "#dcefdc", "#eedcf0")
LIGHTNING_PROMPT = "a red circle on the left and a yellow square on the right on a blue background"
Panel = tuple[str, Image.Image]


def rows_of_panels(*rows: list[Panel]) -> Image.Image:
    """Panels side by side, each above its label of one or more lines."""
    lines = max(label.count("\n") + 1 for row in rows for label, _ in row)
    width, height = SIDE + GAP, SIDE + lines * LINE + GAP
    sheet = Image.new("RGB", (GAP + width * max(map(len, rows)), GAP + height * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for c, (label, picture) in enumerate(row):
            x, y = GAP + c * width, GAP + r * height
            picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            left, top = x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2
            sheet.paste(picture, (left, top))
            draw.multiline_text((x + SIDE // 2, y + SIDE + 4), label, INK, FONT, anchor="ma", align="center")
    return sheet


def scene(size: int = 320, *, house: bool = True, sun: bool = True) -> Image.Image:
    """A house under the sun, or a part of that."""
    picture = Image.new("RGB", (size, size), "#9cc9ee")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0.7 * size, size, size), fill="#6fa35a")
    if sun:
        draw.ellipse((0.68 * size, 0.1 * size, 0.9 * size, 0.32 * size), fill="#f7d34a")
    if house:
        draw.rectangle((0.22 * size, 0.42 * size, 0.62 * size, 0.8 * size), fill="#c9694f")
        roof = [(0.15 * size, 0.42 * size), (0.42 * size, 0.18 * size), (0.69 * size, 0.42 * size)]
        draw.polygon(roof, "#5b3a34")
        draw.rectangle((0.36 * size, 0.58 * size, 0.48 * size, 0.8 * size), fill="#f0e2c8")
    return picture


def grids(variant: Variant, **fields: Any) -> list[Panel]:
    """A panel for each image segment of the plan of a request: its tokens as squares, all at one scale."""
    with tempfile.TemporaryDirectory() as name:
        pipe = QwenImagePipeline.from_pretrained(
            str(write_tiny_checkpoint(Path(name) / "m", variant=variant))
        )
        segments = [s for s in pipe.plan(**fields).positive.layout.segments if s.grid]
    panels = []
    cell = (SIDE - 2) // max(max(s.grid.width, s.grid.height) for s in segments if s.grid)
    for number, segment in enumerate(segments):
        grid = segment.grid
        assert grid
        picture = Image.new("RGB", (cell * grid.width + 1, cell * grid.height + 1), PAPER)
        draw = ImageDraw.Draw(picture)
        for row in range(grid.height):
            for column in range(grid.width):
                corner = (column * cell, row * cell)
                draw.rectangle((*corner, corner[0] + cell, corner[1] + cell), FILLS[number % 4], "#777777")
        time = "time zero" if segment.timestep == "zero" else "the step's time"
        panels.append((f"{segment.name}\n{grid}: {segment.tokens} tokens\nat {time}", picture))
    return panels


def edit() -> Image.Image:
    wide, tall = (
        scene().crop((0, 40, 320, 280)).resize((128, 96)),
        scene().crop((60, 0, 240, 320)).resize((80, 144)),
    )
    fields = {"edit_image": [wide, tall], "edit_image_auto_resize": False, "height": 128, "width": 128}
    noise, *references = grids("edit-2511", prompt="both in one picture", **fields)
    given = [("what is drawn\n128 x 128", Image.new("RGB", (128, 128), "#e4e4e4"))]
    given += [(f"edit_image {n}\n{p.width} x {p.height}", p) for n, p in ((1, wide), (2, tall))]
    return rows_of_panels(given, [noise, *references])


def in_context_control() -> Image.Image:
    from qwenimage_blockwise_controlnet.annotators import canny

    control = canny(scene())
    fields = {"context_image": control, "height": 128, "width": 128}
    segments = grids("base", prompt="Context_Control. a house", **fields)
    return rows_of_panels([("context_image\n(edges of a drawing)", control), *segments])


def blockwise_controlnet() -> Image.Image:
    from qwenimage_blockwise_controlnet.annotators import canny

    mask = Image.new("L", (320, 320))
    ImageDraw.Draw(mask).rectangle((60, 50, 230, 265), fill=255)
    kept = Image.composite(Image.new("RGB", mask.size, "#808080"), scene(), mask)
    panels = [("image", scene()), ('processor_id="canny"\nmakes this map', canny(scene()))]
    panels += [
        ("inpaint_mask\nwhite is repainted", mask.convert("RGB")),
        ("what is kept\naround the mask", kept),
    ]
    return rows_of_panels(panels)


def layered() -> Image.Image:
    """Layers cut from a drawing, put together again and compared by the plugin's own `recompose`."""
    from qwenimage_layered import recompose

    whole, bare = scene(), scene(house=False, sun=False)
    layers = [bare.convert("RGBA")]
    for part in (scene(house=False), scene(sun=False)):
        area = ImageChops.difference(part, bare).convert("L").point(lambda code: 255 * (code > 0))
        layer = Image.new("RGBA", whole.size)
        layer.paste(part, mask=area)
        layers.append(layer)
    found = recompose(layers, whole.convert("RGBA"))
    board = Image.new("RGBA", whole.size, "white")
    for x in range(0, 320, 20):
        for y in range(x % 40, 320, 40):
            board.paste("#d0d0d0", (x, y, x + 20, y + 20))
    panels = [("layer_input_image", whole)]
    for number, layer in enumerate(layers, 1):
        panels.append((f"layer {number}", Image.alpha_composite(board, layer).convert("RGB")))
    return rows_of_panels([*panels, (f"recompose: off by\n{found.worst} of 255 at worst", found.picture)])


def lightning() -> Image.Image:
    """The schedule on the tiny model, which no Lightning LoRA exists for: a row a schedule, a column a seed."""
    pipe = QwenImagePipeline.from_pretrained("tiny")
    published = {"cfg_scale": 1.0, "num_inference_steps": 4}
    rows = []
    for label, fields in (
        ("lightning, 4 steps", {"lightning": True, "num_inference_steps": 4}),
        ("published, 4 steps", published),
        ("published, 20 steps", {**published, "num_inference_steps": 20}),
    ):
        drawn = (pipe(LIGHTNING_PROMPT, seed=seed, progress_bar_cmd=iter, **fields) for seed in range(4))
        rows.append([(f"{label}\nseed {seed}", image) for seed, image in enumerate(drawn)])
    return rows_of_panels(*rows)


def i2l() -> Image.Image:
    """A drawing of the way from pictures to a LoRA; nothing is computed."""
    texts = ["SigLIP2\nand DINOv3:\none embedding\na picture", "network\n(style, coarse\nor fine)"]
    texts.append("LoRA:\na pair A, B\nfor each layer\nof each block")
    panels: list[Panel] = [("your pictures", scene())]
    for number, (label, text) in enumerate(
        zip(("read by", "sent through", "written as"), texts, strict=True)
    ):
        box = Image.new("RGB", (SIDE, SIDE), PAPER)
        draw = ImageDraw.Draw(box)
        draw.rounded_rectangle((0, 0, SIDE - 1, SIDE - 1), 12, FILLS[number], "#777777")
        middle = (SIDE // 2, SIDE // 2)
        draw.multiline_text(middle, text, INK, FONT, anchor="mm", align="center", spacing=6)
        panels.append((label, box))
    return rows_of_panels(panels)


DRAWN: dict[str, tuple[str, Callable[[], Image.Image]]] = {
    "edit": ("tokens.png", edit),
    "in-context-control": ("tokens.png", in_context_control),
    "blockwise-controlnet": ("control.png", blockwise_controlnet),
    "layered": ("layers.png", layered),
    "lightning": ("steps.png", lightning),
    "i2l": ("way.png", i2l),
}

if __name__ == "__main__":
    for plugin in sys.argv[1:] or DRAWN:
        name, function = DRAWN[plugin]
        function().quantize(128).save(PLUGINS / f"qwenimage-{plugin}" / name, optimize=True)
