"""ControlNets and Lightning together with other plugins against DiffSynth-Studio, live on equal weights.

A Lightning file is fused into the peer's weights, whose scheduler is replaced: those pipelines are made anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import qwenimage_blockwise_controlnet
import qwenimage_edit
import qwenimage_eligen
import qwenimage_in_context_control
import qwenimage_layered
import qwenimage_lightning
from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from tests.cases import HEIGHT, WIDTH, mask, picture
from tests.plugin_cases import write_lightning

from .peers import assert_drawn_alike, diffsynth_pipeline, draw, side_nets, tanh_gelu

pytest.importorskip("diffsynth")

PLUGINS = [
    qwenimage_blockwise_controlnet,
    qwenimage_edit,
    qwenimage_eligen,
    qwenimage_in_context_control,
    qwenimage_layered,
    qwenimage_lightning,
]
SHARED: dict[str, Any] = {
    "prompt": "Context_Control. a red circle",
    "height": HEIGHT,
    "width": WIDTH,
    "num_inference_steps": 4,
    "seed": 7,
    "progress_bar_cmd": iter,
}
FLIPPED = picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
SIDE = {"inputs": [{"image": FLIPPED, "end": 0.3}]}
BOTH_SIDES = {
    "inputs": [
        {"image": FLIPPED},
        {"controlnet_id": 1, "image": picture(), "inpaint_mask": mask().convert("RGB")},
    ]
}
ENTITIES = {
    "eligen_entity_prompts": ["a circle", "sky"],
    "eligen_entity_masks": [mask().convert("RGB"), mask().convert("RGB").rotate(180)],
}
EDIT = {"edit_image": [picture(), FLIPPED], "edit_image_auto_resize": False}
ZERO = {"zero_cond_t": True}
CONTEXT = {"context_image": picture().rotate(180)}
ONE_LAYER = {"layer_input_image": picture().convert("RGBA"), "layer_num": 0}
LAYERS = ONE_LAYER | {"layer_num": 2}
RGBA_SIDES = {
    "inputs": [
        {key: v.convert("RGBA") if key == "image" else v for key, v in i.items()}
        for i in BOTH_SIDES["inputs"]
    ]
}

# Variant, fields, and whether in few steps: with a Lightning file, or its schedule alone where there is none.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "a ControlNet and references at time zero": ("edit-2511", SIDE | EDIT | ZERO, False),
    "a ControlNet and context": ("base", SIDE | CONTEXT, False),
    "a ControlNet and entities": ("base", SIDE | ENTITIES, False),
    "two ControlNets, entities, references and context": (
        "edit-2509",
        BOTH_SIDES | ENTITIES | EDIT | CONTEXT,
        False,
    ),
    "two ControlNets and one layer": ("layered", RGBA_SIDES | ONE_LAYER, False),
    "few steps and references at time zero": ("edit-2511", EDIT | ZERO, True),
    "few steps and one reference": ("edit", EDIT | {"edit_image": picture()}, True),
    "few steps and entities": ("base", ENTITIES, True),
    "few steps and a ControlNet": ("base", SIDE, True),
    "few steps and layers": ("layered", LAYERS, True),
    "few steps, entities and a ControlNet": ("base", ENTITIES | SIDE, True),
    "few steps and context": ("base", CONTEXT, True),
    "few steps, references at time zero, entities and a ControlNet": (
        "edit-2511",
        EDIT | ZERO | ENTITIES | SIDE,
        True,
    ),
}


def lightning_name(variant: str) -> str:
    return {"base": "Qwen-Image", "edit": "Qwen-Image-Edit", "edit-2511": "Qwen-Image-Edit-2511"}[variant] + (
        "-Lightning-4steps-V1.0-bf16.safetensors"
    )


Both = Callable[[str, bool], tuple[QwenImagePipeline, Any, Path | bool]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Ours, theirs, and the Lightning file that theirs has within (True: the schedule alone)."""
    models = tmp_path_factory.mktemp("models")

    @cache
    def make(variant: Any, lightning: bool) -> tuple[QwenImagePipeline, Any, Path | bool]:
        from diffsynth.diffusion import FlowMatchScheduler

        folder = write_tiny_checkpoint(models / f"{variant}-{lightning}", variant=variant, seed=2)
        files, side = side_nets(folder)
        ours = QwenImagePipeline.from_pretrained(
            model_configs=[
                *(ModelConfig(path=folder / name) for name in ("transformer", "text_encoder", "vae")),
                *(ModelConfig(path=file) for file in files),
            ],
            tokenizer_config=ModelConfig(path=folder / "tokenizer"),
            processor_config=ModelConfig(path=folder / "processor"),
            torch_dtype=torch.float32,
            device="cpu",
            plugins=PLUGINS,
        )
        ours.prompts.positions = "flat"  # as the peer under transformers 5
        theirs = tanh_gelu(diffsynth_pipeline(folder))
        theirs.blockwise_controlnet = side
        file: Path | bool = lightning
        if lightning:
            theirs.scheduler = FlowMatchScheduler("Qwen-Image-Lightning")
        if lightning and variant != "layered":
            file = write_lightning(folder / lightning_name(variant))
            theirs.load_lora(theirs.dit, str(file))
        return ours, theirs, file

    return make


@pytest.mark.parametrize("case", CASES)
def test_pictures_and_latents_equal_diffsynth(case: str, both: Both) -> None:
    from diffsynth.utils.controlnet import ControlNetInput as TheirInput

    variant, given, few = CASES[case]
    ours, theirs, file = both(variant, few)
    fields = {**SHARED, **given}
    inputs = fields.pop("inputs", None)
    guidance = {"cfg_scale": 1.0} if few else {"negative_prompt": "blurred"}
    side = {"blockwise_controlnet_inputs": [TheirInput(**i) for i in inputs]} if inputs else {}
    images, latents = draw(theirs, **fields, **guidance, **side)
    mine = {**fields, **({"lightning": file} if few else guidance)}
    mine |= {"blockwise_controlnet_inputs": inputs} if inputs else {}
    assert_drawn_alike(case, ours, mine, images, latents)
