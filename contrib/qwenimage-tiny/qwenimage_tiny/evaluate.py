"""Measures prompt-following: draws held-out prompts with the public pipeline and lets the judge read the
pictures.

Every prompt has at least one combination (shape and colour, or shape colour and ground) that no training
scene had.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from qwenimage_core import QwenImagePipeline
from qwenimage_core.images import to_tensor

from . import model_path
from .captions import caption
from .judge import Verdict, judge
from .scenes import Scene, sample_scene
from .sheet import contact_sheet

SIDE = 128
FIGURES = ("ground", "shape_colour", "position", "shape", "everything")


def held_out_prompts(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes with a held-out combination, half of them with two things, and a caption each."""
    rng = random.Random(f"held-out-{seed}")
    scenes = [sample_scene(rng, held_out=True) for _ in range(count)]
    return [(scene, caption(scene, rng)) for scene in scenes]


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Each figure as the share of pictures that are right."""
    return {name: sum(getattr(verdict, name) for verdict in verdicts) / len(verdicts) for name in FIGURES}


def evaluate(
    pipe: QwenImagePipeline, prompts: Sequence[tuple[Scene, str]], steps: int, guidance: float
) -> tuple[list[Image.Image], list[Verdict], float]:
    """Pictures, verdicts and mean seconds a picture. The n-th prompt is drawn from seed n."""
    pictures, verdicts = [], []
    started = time.perf_counter()
    for seed, (_, text) in enumerate(prompts):
        picture = pipe(
            text,
            height=SIDE,
            width=SIDE,
            num_inference_steps=steps,
            cfg_scale=guidance,
            seed=seed,
            progress_bar_cmd=iter,  # no bar a picture
        )
        pictures.append(picture)
    seconds = (time.perf_counter() - started) / len(prompts)
    for picture, (scene, _) in zip(pictures, prompts, strict=True):
        verdicts.append(judge(to_tensor(picture)[0], scene))
    return pictures, verdicts, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge the model on held-out prompts.")
    parser.add_argument("--model", type=Path, default=model_path(), help="a model in hub layout")
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0, help="which prompts")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--figures", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--sheet", type=Path, help="write the first 24 pictures here, with their prompts")
    arguments = parser.parse_args()
    prompts = held_out_prompts(arguments.prompts, arguments.seed)
    pipe = QwenImagePipeline.from_pretrained(str(arguments.model), torch_dtype=torch.float32, device="cpu")
    pictures, verdicts, seconds = evaluate(pipe, prompts, arguments.steps, arguments.guidance)
    figures = {
        "prompts": len(prompts),
        **{name: round(share, 4) for name, share in shares(verdicts).items()},
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "seconds_a_picture": round(seconds, 3),
    }
    print(json.dumps(figures, indent=2))
    if arguments.figures:
        arguments.figures.write_text(json.dumps(figures, indent=2) + "\n")
    if arguments.sheet:
        marks = ["" if verdict.everything else "x " for verdict in verdicts]
        texts = [mark + text for mark, (_, text) in zip(marks, prompts, strict=True)]
        contact_sheet(pictures[:24], texts[:24]).save(arguments.sheet)


if __name__ == "__main__":
    main()
