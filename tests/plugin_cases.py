"""The generations of single plugins that are compared with DiffSynth-Studio, and those whose pictures are stored.

The live tests of tests/parity run all of a table. tests/data/plugins keeps the peer's pictures of `STORED`, made by
tests/parity/remake_plugin_pictures.py; tests/composition/test_stored_pictures.py compares with them. This file needs
no peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from qwenimage_core.testing.checkpoints import Variant

from .cases import HEIGHT, WIDTH, mask, picture
from .cases import SHARED as SHARED_OF_CORE

SEED_OF_WEIGHTS = 2
PICTURES = Path(__file__).parent / "data" / "plugins"


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Requests by name: the variant of the tiny checkpoint, and the fields beside the shared ones.

    Fields are ours and DiffSynth-Studio's alike, except `inputs`: what either side's ControlNetInputs are made of.
    """

    shared: dict[str, Any]
    given: dict[str, tuple[Variant, dict[str, Any]]]

    def request(self, case: str) -> tuple[Variant, dict[str, Any]]:
        variant, fields = self.given[case]
        return variant, {**self.shared, **fields}


def waves(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    phase = np.random.default_rng(seed).uniform(0, 6, 4)
    y, x = np.mgrid[0:height, 0:width]
    steps = zip((9, 23, 13, 30), (31, 7, 17, 11), phase, strict=True)
    channels = [127 + 120 * np.sin(x / a + y / b + p) for a, b, p in steps]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8)).convert(mode)


def ellipse(bounds: tuple[int, int, int, int], size: tuple[int, int] = (96, 64)) -> Image.Image:
    drawn = Image.new("RGB", size)
    ImageDraw.Draw(drawn).ellipse(bounds, fill="white")
    return drawn


def soft(size: tuple[int, int]) -> Image.Image:
    """Every grey and colour: whether a pixel is on depends on the threshold."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def write_lightning(path: Path) -> Path:
    """A LoRA with the published keys: down, up, and an alpha that is an eighth of the rank."""
    draw = torch.Generator().manual_seed(1)
    tensors = {}
    for block in range(2):
        for module, inner in (("attn.to_q", 64), ("img_mlp.net.2", 256), ("attn.add_v_proj", 64)):
            name = f"transformer_blocks.{block}.{module}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(8, inner, generator=draw) * inner**-0.5
            tensors[f"{name}.lora_up.weight"] = torch.randn(64, 8, generator=draw)
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)
    return path


UNGUIDED = {"cfg_scale": 1.0, "negative_prompt": ""}
QUICK = {**UNGUIDED, "num_inference_steps": 2}  # for references of a megapixel
AS_IS = {"edit_image_auto_resize": False}
LOW = {**AS_IS, "edit_rope_interpolation": True}
ONE, TWO, THREE = waves(96, 64), waves(160, 96, seed=1), waves(64, 112, seed=2)
EDIT = Cases(
    shared={
        "prompt": "make the circle green, 把圆改成绿色",
        "negative_prompt": "blurred",
        "height": 96,
        "width": 128,
        "num_inference_steps": 3,
        "seed": 7,
        "progress_bar_cmd": iter,
    },
    given={
        "one picture": ("edit", {"edit_image": waves(100, 70), **QUICK}),
        "one picture as it is": ("edit", {"edit_image": ONE, **AS_IS}),
        "one picture without guidance": ("edit", {"edit_image": ONE, **AS_IS, **QUICK}),
        "a list of one": ("edit-2509", {"edit_image": [ONE], **AS_IS}),
        "two pictures": ("edit-2509", {"edit_image": [waves(120, 90), waves(45, 80, seed=1)], **QUICK}),
        "two pictures as they are": ("edit-2509", {"edit_image": [ONE, TWO], **AS_IS}),
        "three pictures as they are": ("edit-2509", {"edit_image": [ONE, TWO, THREE], **AS_IS}),
        "time zero": ("edit-2511", {"edit_image": [ONE, TWO], **AS_IS, "zero_cond_t": True}),
        "time zero refused": ("edit-2511", {"edit_image": [ONE, TWO], **AS_IS, "zero_cond_t": False}),
        "low resolution": ("edit", {"edit_image": waves(64, 48), **LOW}),
        "high resolution": ("edit", {"edit_image": waves(256, 160), **LOW}),
        "interpolation on the same grid": ("edit", {"edit_image": waves(128, 96), **LOW}),
        "several of low resolution": (
            "edit-2509",
            {"edit_image": [waves(64, 48), waves(48, 64, seed=1)], **LOW},
        ),
        "image to image": (
            "edit",
            {"edit_image": ONE, **AS_IS, "input_image": waves(128, 96, seed=3), "denoising_strength": 0.7},
        ),
        "tiled": ("edit", {"edit_image": ONE, **AS_IS, "tiled": True, "tile_size": 8, "tile_stride": 5}),
    },
)

RGBA = waves(96, 64, "RGBA")
CONTEXT = waves(96, 64)
LAYERED = Cases(  # and in-context control, which one of its models is made for
    shared={
        "prompt": "Context_Control. a red circle, 一个红色的圆",
        "negative_prompt": "blurred",
        "height": 64,
        "width": 96,
        "num_inference_steps": 3,
        "seed": 7,
        "progress_bar_cmd": iter,
    },
    given={
        "three layers": ("layered", {"layer_input_image": RGBA, "layer_num": 3}),
        "one layer": ("layered", {"layer_input_image": RGBA, "layer_num": 1, **UNGUIDED}),
        "many layers on few tokens": (
            "layered",
            {"layer_input_image": waves(32, 32, "RGBA"), "layer_num": 6, "height": 32, "width": 32},
        ),
        "the layer that is named": ("layered", {"layer_input_image": RGBA, "layer_num": 0}),
        "the layer under a brush": (
            "layered",
            {
                "layer_input_image": RGBA,
                "layer_num": 0,
                "context_image": waves(96, 64, "RGBA", 1),
                **UNGUIDED,
            },
        ),
        "layers with an opaque context": (
            "layered",
            {"layer_input_image": RGBA, "layer_num": 2, "context_image": waves(96, 64, seed=1)},
        ),
        "context": ("base", {"context_image": CONTEXT}),
        "context of another size": ("base", {"context_image": waves(150, 100), **UNGUIDED}),
        "context and references": (
            "edit-2509",
            {
                "context_image": CONTEXT,
                "edit_image": [waves(64, 64, seed=1), waves(32, 128, seed=2)],
                **AS_IS,
            },
        ),
        "context and references at time zero": (
            "edit-2511",
            {"context_image": CONTEXT, "edit_image": [waves(64, 64, seed=1)], **AS_IS, "zero_cond_t": True},
        ),
    },
)

THREE_MASKS = [ellipse((4, 4, 44, 60)), ellipse((50, 20, 90, 60)), ellipse((0, 0, 95, 30))]
ENTITIES = {
    "eligen_entity_prompts": ["a red circle", "a blue square with a very long description of it", "sky"],
    "eligen_entity_masks": THREE_MASKS,
}
OF_CIRCLE_AND_SQUARE: dict[str, Any] = {
    "prompt": "a red circle and a blue square",
    "negative_prompt": "blurred",
    "seed": 7,
    "progress_bar_cmd": iter,
}
ELIGEN = Cases(
    shared={**OF_CIRCLE_AND_SQUARE, "height": 64, "width": 96, "num_inference_steps": 4},
    given={
        "three entities": ("base", ENTITIES),
        "on the negative branch too": ("base", {**ENTITIES, "eligen_enable_on_negative": True}),
        "without guidance": ("base", {**ENTITIES, **UNGUIDED}),
        "masks of other sizes": (
            "base",
            {
                "eligen_entity_prompts": ["a red circle", "sky"],
                "eligen_entity_masks": [
                    ellipse((100, 100, 500, 500), (777, 555)),
                    ellipse((0, 0, 9, 9), (16, 10)),
                ],
            },
        ),
        "a mask of all greys": (
            "base",
            {"eligen_entity_prompts": ["a red circle"], "eligen_entity_masks": [soft((96, 64))]},
        ),
        "a tall picture": ("base", {**ENTITIES, "height": 128, "width": 32}),
    },
)

EDGES = {"controlnet_id": 0, "image": picture().transpose(Image.Transpose.ROTATE_180)}
INPAINT = {"controlnet_id": 1, "image": picture(), "inpaint_mask": mask().convert("RGB")}
AREA = ellipse((8, 30, 80, 120), (WIDTH, HEIGHT))
TWO_MASKS = [AREA, AREA.rotate(180)]
TWO_ENTITIES = {"eligen_entity_prompts": ["a circle", "sky"], "eligen_entity_masks": TWO_MASKS}
CONTROLNET = Cases(
    shared={**OF_CIRCLE_AND_SQUARE, "height": HEIGHT, "width": WIDTH, "num_inference_steps": 5},
    given={
        "edges": ("base", {"inputs": [EDGES]}),
        "without guidance": ("base", {"inputs": [EDGES], **UNGUIDED}),
        "inpaint": ("base", {"inputs": [INPAINT]}),
        "inpaint, the mask of another size": (
            "base",
            {"inputs": [INPAINT | {"inpaint_mask": mask().convert("RGB").resize((66, 88))}]},
        ),
        "inpaint, with the latents kept too": (
            "base",
            {"inputs": [INPAINT], "input_image": picture(), "inpaint_mask": mask()},
        ),
        "both, scaled": ("base", {"inputs": [EDGES | {"scale": 0.6}, INPAINT | {"scale": 1.3}]}),
        "the same twice": ("base", {"inputs": [EDGES, EDGES | {"scale": -0.4, "image": picture()}]}),
        "the first half of the steps": ("base", {"inputs": [EDGES | {"end": 0.5}]}),
        "windows apart": (
            "base",
            {"inputs": [EDGES | {"start": 0.3}, INPAINT | {"start": 0.8, "end": 0.2}]},
        ),
        "two steps": ("base", {"inputs": [EDGES | {"end": 0.5}], "num_inference_steps": 2}),
        "from a picture": (
            "base",
            {"inputs": [EDGES], "input_image": picture(), "denoising_strength": 0.6},
        ),
        "with entities": ("base", {"inputs": [EDGES, INPAINT], **TWO_ENTITIES}),
        "with entities on both branches": (
            "base",
            {"inputs": [EDGES], **TWO_ENTITIES, "eligen_enable_on_negative": True},
        ),
    },
)

# Ours takes the number of steps and no guidance from the file; the peer is told both.
LIGHTNING_FILE = "Qwen-Image-Lightning-{}steps-V1.0.safetensors"
LIGHTNING = Cases(
    shared=SHARED_OF_CORE,
    given={
        "4 steps": ("base", {"num_inference_steps": 4}),
        "8 steps": ("base", {"num_inference_steps": 8}),
        "from a picture": (
            "base",
            {"num_inference_steps": 4, "input_image": picture(), "denoising_strength": 0.7},
        ),
    },
)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A case in a small size, and a change of its fields that must show in the picture."""

    table: Cases
    case: str
    small: dict[str, Any]
    changed: dict[str, Any]

    def request(self) -> tuple[Variant, dict[str, Any]]:
        variant, fields = self.table.request(self.case)
        return variant, {**fields, **self.small}


def _stored(table: Cases, case: str, small: dict[str, Any], **changed: Any) -> Stored:
    return Stored(table=table, case=case, small=small, changed=changed)


def _shrunk(given: dict[str, Any]) -> dict[str, Any]:
    """A ControlNet's input of half the size: the peer takes its picture in the target's size only."""
    half = (WIDTH // 2, HEIGHT // 2)
    return {k: v.resize(half) if isinstance(v, Image.Image) else v for k, v in given.items()}


TALL: dict[str, Any] = {"height": HEIGHT // 2, "width": WIDTH // 2}
TALLER: dict[str, Any] = {"height": 96, "width": 48}
WIDE: dict[str, Any] = {"height": 48, "width": 64}
STRIP: dict[str, Any] = {"height": 32, "width": 48}
SMALL_RGBA = RGBA.resize((48, 32))
SMALL_EDGES, SMALL_INPAINT = _shrunk(EDGES), _shrunk(INPAINT)
STORED: dict[str, Stored] = {
    "edit": _stored(EDIT, "one picture as it is", WIDE, edit_image=TWO),
    "edit-2509": _stored(EDIT, "two pictures as they are", WIDE, edit_image=[TWO, ONE]),
    "edit-2511": _stored(EDIT, "time zero", WIDE, zero_cond_t=False),
    # twice as tall as its reference and narrower, which shows most: interpolation changes little on a tiny model
    "edit-lowres-fix": _stored(EDIT, "low resolution", TALLER, edit_rope_interpolation=False),
    "layered": _stored(
        LAYERED,
        "three layers",
        {**STRIP, "layer_input_image": SMALL_RGBA},
        layer_input_image=SMALL_RGBA.rotate(180),
    ),
    "eligen": _stored(ELIGEN, "three entities", WIDE, eligen_entity_masks=THREE_MASKS[::-1]),
    "controlnet-edges": _stored(
        CONTROLNET, "edges", {**TALL, "inputs": [SMALL_EDGES]}, inputs=[SMALL_EDGES | {"scale": 0.5}]
    ),
    "controlnet-inpaint": _stored(
        CONTROLNET,
        "inpaint",
        {**TALL, "inputs": [SMALL_INPAINT]},
        inputs=[SMALL_INPAINT | {"inpaint_mask": AREA}],
    ),
    "in-context-control": _stored(LAYERED, "context", STRIP, context_image=CONTEXT.rotate(180)),
    "lightning": _stored(LIGHTNING, "4 steps", TALL, lightning=True),
    "eligen-and-controlnets": _stored(
        CONTROLNET,
        "with entities",
        {**TALL, "inputs": [SMALL_EDGES, SMALL_INPAINT]},
        eligen_entity_masks=TWO_MASKS[::-1],
    ),
}
