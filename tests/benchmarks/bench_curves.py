"""What a step costs: seconds and memory against tokens, batch, references, entities and ControlNets, as pictures.

`python tests/benchmarks/bench_curves.py [FOLDER]` writes curves.png and curves.json (default: docs/). A random model of
512 channels and 4 blocks, float32, without guidance; time is processor seconds of one step, memory the anonymous memory
of this process above what it was before the step; of both the least of three.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from timing import machine

from qwenimage_blockwise_controlnet.model import new_controlnet, save_controlnet
from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.inputs import encode
from qwenimage_core.memory import measure
from qwenimage_core.models.transformer import QwenImageTransformer, TransformerConfig
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_core.testing.checkpoints import transformer_config
from qwenimage_core.velocity import bind

WIDTH, BLOCKS, NETS, REPEATS = 512, 4, 4, 3
MIB = 2**20
SIDE = 512  # pixels, where the number of tokens is not what changes
PARTS = ("transformer", "text_encoder", "vae")


@dataclass(frozen=True)
class Point:
    x: float
    seconds: float
    mib: float


def write(folder: Path) -> Path:
    """A tiny edit model with a wider transformer, and ControlNets for it."""
    write_tiny_checkpoint(folder, variant="edit-2509")
    config = transformer_config(
        BLOCKS, num_attention_heads=8, attention_head_dim=64, axes_dims_rope=[8, 28, 28]
    )
    torch.manual_seed(0)
    model = QwenImageTransformer(TransformerConfig.from_dict(config))
    for file in (folder / "transformer").glob("*"):
        file.unlink()
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    for number in range(NETS):
        save_controlnet(new_controlnet(blocks=BLOCKS, width=WIDTH), folder / f"net-{number}.safetensors")
    return folder


def opened(folder: Path) -> QwenImagePipeline:
    nets = [f"net-{number}.safetensors" for number in range(NETS)]
    return QwenImagePipeline.from_pretrained(
        model_configs=[ModelConfig(path=folder / name) for name in (*PARTS, *nets)],
        tokenizer_config=ModelConfig(path=folder / "tokenizer"),
        processor_config=ModelConfig(path=folder / "processor"),
        device="cpu",
    )


def curves() -> Iterator[tuple[str, str, list[tuple[float, dict[str, Any]]]]]:
    """(name, what is on the axis, [(x, request)])."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    sides = (256, 512, 768, 1024)
    yield "tokens", "image tokens", [((s // 16) ** 2, {"height": s, "width": s}) for s in sides]
    yield "batch", "pictures at once", [(n, {"num_images_per_prompt": n}) for n in (1, 2, 4, 6)]
    references = [
        (n, {"edit_image": [picture] * n, "edit_image_auto_resize": False} if n else {}) for n in range(5)
    ]
    yield "references", f"references of {SIDE} x {SIDE}", references
    yield "entities", "entities, each a quarter of the picture", [(n, entities(n)) for n in (0, 1, 2, 4, 8)]
    nets = [
        (
            n,
            {"blockwise_controlnet_inputs": [{"controlnet_id": i, "image": picture} for i in range(n)]}
            if n
            else {},
        )
        for n in range(NETS + 1)
    ]
    yield "ControlNets", "ControlNets", nets


def entities(number: int) -> dict[str, Any]:
    masks = []
    for at in range(number):
        mask = Image.new("RGB", (SIDE, SIDE))
        left, top = (at % 4) * SIDE // 6, (at // 4) * SIDE // 2
        mask.paste("white", (left, top, left + SIDE // 2, top + SIDE // 2))
        masks.append(mask)
    prompts = [f"thing number {at}" for at in range(number)]
    return {"eligen_entity_prompts": prompts, "eligen_entity_masks": masks} if number else {}


@torch.no_grad()
def cost(pipe: QwenImagePipeline, x: float, request: dict[str, Any]) -> Point:
    request = {"height": SIDE, "width": SIDE, "cfg_scale": 1, "num_inference_steps": 2, "seed": 0, **request}
    plan = pipe.plan("a red circle", **request)
    inputs = encode(plan, dtype=torch.float32, device=torch.device("cpu"))
    velocity = bind(pipe.components["transformer"][0].module, plan, inputs)
    velocity(inputs.latents_BNC, 0)
    taken = []
    for _ in range(REPEATS):
        start = time.process_time()
        velocity(inputs.latents_BNC, 0)
        taken.append(time.process_time() - start)
    grown = min(memory(lambda: velocity(inputs.latents_BNC, 0)) for _ in range(REPEATS))
    return Point(x, min(taken), grown)


def memory(run: Any) -> float:
    """MiB beyond what was in use before; memory that was freed is given back to the system first."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = measure.in_use(torch.device("cpu")) or 0
    with measure.peak(torch.device("cpu")) as most:
        run()
    return ((most.bytes or 0) - before) / MIB


def draw(found: dict[str, tuple[str, list[Point]]], file: Path) -> None:
    """Two rows: seconds, MiB; a column a curve. Axes begin at 0."""
    font, wide, high, gap = ImageFont.load_default(12), 230, 170, 46
    sheet = Image.new("RGB", (gap + (wide + gap) * len(found), gap + (high + gap) * 2), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (name, (axis, points)) in enumerate(found.items()):
        for row, (unit, colour) in enumerate((("seconds", "#2266aa"), ("MiB", "#aa5522"))):
            left, top = gap + column * (wide + gap), gap + row * (high + gap)
            values = [p.seconds if unit == "seconds" else p.mib for p in points]
            most_x, most_y = max(p.x for p in points) or 1, max(values) * 1.1 or 1
            pen.line([(left, top), (left, top + high), (left + wide, top + high)], fill="#888888")
            at = [
                (left + p.x / most_x * wide, top + high - v / most_y * high)
                for p, v in zip(points, values, strict=True)
            ]
            pen.line(at, fill=colour, width=2)
            for x, y in at:
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
            pen.text((left, top - 18), f"{name}: {unit}, up to {max(values):.2f}", fill="black", font=font)
            pen.text((left, top + high + 4), f"{axis}, up to {most_x:g}", fill="#555555", font=font)
    sheet.save(file)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "docs"
    measure.INTERVAL = 0.002
    print(machine())
    found = {}
    with tempfile.TemporaryDirectory() as where:
        pipe = opened(write(Path(where)))
        for name, axis, requests in curves():
            found[name] = axis, [cost(pipe, x, request) for x, request in requests]
            print(name, ", ".join(f"{p.x:g}: {p.seconds:.2f} s {p.mib:.0f} MiB" for p in found[name][1]))
    draw(found, folder / "curves.png")
    record = {name: [vars(p) for p in points] for name, (_, points) in found.items()}
    (folder / "curves.json").write_text(json.dumps({"machine": machine(), **record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
