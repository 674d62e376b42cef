"""Teach the tiny model a shape that it has never seen: make the data, and score what it draws before and after.

    python learn_heart.py data FOLDER                       # pictures with captions, for `qwenimage train`
    python learn_heart.py score FOLDER LORA.safetensors     # FOLDER/before-after.png, FOLDER/scores.json

Needs qwenimage-tiny, which has the world of coloured shapes and the judge that reads a picture back.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qwenimage_tiny import judge as judging
from qwenimage_tiny.captions import caption
from qwenimage_tiny.judge import judge
from qwenimage_tiny.render import DISTANCES, render
from qwenimage_tiny.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene, make_thing, sample_scene
from qwenimage_tiny.sheet import contact_sheet

HEARTS, OTHERS = 192, 64  # training pictures of the new shape, and of the six that must not be forgotten
ASKED = 48  # hearts that are asked for afterwards; half as many of the known shapes
SHOWN = 6  # of them in the picture, before over after


def heart(y: Tensor, x: Tensor) -> Tensor:
    """Signed distance, about: below a line through the middle a square on its corner, above it two half discs."""
    side, root = 1.15, math.sqrt(2)
    y = y - 0.25
    square = (y.abs() + x.abs() - side) / root
    bump = torch.sqrt((y + side / 2) ** 2 + (x.abs() - side / 2) ** 2) - side / root
    return torch.minimum(square, bump)


DISTANCES["heart"] = heart
judging.SHAPES = (*SHAPES, "heart")  # the judge looks for the outline that fits best, of seven now


def heart_scene(rng: random.Random) -> Scene:
    ground = rng.choice(list(COLOURS))
    colour = rng.choice([name for name in COLOURS if name != ground])
    place, size = rng.choice(list(PLACES)), rng.choice(list(SIZES))
    return Scene(ground, (make_thing(colour, "heart", size, place, rng),))


def make_data(folder: Path) -> None:
    """PNG files and metadata.jsonl."""
    rng = random.Random(0)
    scenes = [heart_scene(rng) for _ in range(HEARTS)] + [sample_scene(rng) for _ in range(OTHERS)]
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, scene in enumerate(scenes):
        pixels = ((render(scene) + 1) * 127.5).round().clamp(0, 255).byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number:03}.png")
        rows.append({"image": f"{number:03}.png", "prompt": caption(scene, rng)})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def questions() -> list[tuple[Scene, str]]:
    """Scenes to ask for, none of them in the data: hearts first, then known shapes in unseen combinations."""
    rng = random.Random(1)
    hearts = [heart_scene(rng) for _ in range(ASKED)]
    known = [sample_scene(rng, held_out=True, two_things=0.0) for _ in range(ASKED // 2)]
    return [(scene, caption(scene, rng)) for scene in (*hearts, *known)]


def draw(lora: Path | None) -> list[Image.Image]:
    from qwenimage_core import QwenImagePipeline

    pipe = QwenImagePipeline.from_pretrained("tiny", torch_dtype=torch.float32, device="cpu")
    if lora is not None:
        pipe.load_lora(lora)
    asked = [text for _, text in questions()]
    return [
        pipe(text, height=128, width=128, cfg_scale=4.0, seed=seed, progress_bar_cmd=iter)
        for seed, text in enumerate(asked)
    ]


def scores(pictures: list[Image.Image]) -> dict[str, float]:
    """Shares of pictures that are right: the new shape, all about it (shape, colour, place, ground), known shapes."""
    verdicts = [
        judge(as_tensor(picture), scene) for picture, (scene, _) in zip(pictures, questions(), strict=True)
    ]
    hearts, known = verdicts[:ASKED], verdicts[ASKED:]
    return {
        "heart": sum(v.shape for v in hearts) / len(hearts),
        "heart, and all else": sum(v.everything for v in hearts) / len(hearts),
        "known shapes": sum(v.shape for v in known) / len(known),
        "known shapes, and all else": sum(v.everything for v in known) / len(known),
    }


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1


def score(folder: Path, lora: Path) -> dict[str, Any]:
    before, after = draw(None), draw(lora)
    shown = [0, *range(1, SHOWN)]
    texts = [questions()[i][1] for i in shown]
    sheet = contact_sheet(
        [*(before[i] for i in shown), *(after[i] for i in shown)],
        [*(f"before: {t}" for t in texts), *(f"after: {t}" for t in texts)],
    )
    sheet.save(folder / "before-after.png")
    found = {"before": scores(before), "after": scores(after)}
    (folder / "scores.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data")
    scoring = commands.add_parser("score")
    for each in (data, scoring):
        each.add_argument("folder", type=Path)
    scoring.add_argument("lora", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "data":
        make_data(arguments.folder)
    else:
        print(json.dumps(score(arguments.folder, arguments.lora), indent=2))


if __name__ == "__main__":
    main()
