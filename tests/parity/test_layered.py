"""Layers and in-context control against both peers, live on equal weights: final latents, and the pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qwenimage_edit
import qwenimage_in_context_control
import qwenimage_layered
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from tests.cases import assert_pictures_equal

from .peers import assert_drawn_alike, diffsynth_pipeline, diffusers_pipeline, draw, tanh_gelu

SHARED: dict[str, Any] = {
    "prompt": "Context_Control. a red circle, 一个红色的圆",
    "negative_prompt": "blurred",
    "height": 64,
    "width": 96,
    "num_inference_steps": 3,
    "seed": 7,
    "progress_bar_cmd": iter,
}
UNGUIDED = {"cfg_scale": 1.0, "negative_prompt": ""}


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    phase = np.random.default_rng(seed).uniform(0, 6, 4)
    y, x = np.mgrid[0:height, 0:width]
    steps = zip((9, 23, 13, 30), (31, 7, 17, 11), phase, strict=True)
    waves = [127 + 120 * np.sin(x / a + y / b + p) for a, b, p in steps]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode)


RGBA = picture(96, 64, "RGBA")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "three layers": ("layered", {"layer_input_image": RGBA, "layer_num": 3}),
    "one layer": ("layered", {"layer_input_image": RGBA, "layer_num": 1, **UNGUIDED}),
    "many layers on few tokens": (
        "layered",
        {"layer_input_image": picture(32, 32, "RGBA"), "layer_num": 6, "height": 32, "width": 32},
    ),
    "the layer that is named": ("layered", {"layer_input_image": RGBA, "layer_num": 0}),
    "the layer under a brush": (
        "layered",
        {"layer_input_image": RGBA, "layer_num": 0, "context_image": picture(96, 64, "RGBA", 1), **UNGUIDED},
    ),
    "layers with an opaque context": (
        "layered",
        {"layer_input_image": RGBA, "layer_num": 2, "context_image": picture(96, 64, "RGB", 1)},
    ),
    "context": ("base", {"context_image": picture(96, 64)}),
    "context of another size": ("base", {"context_image": picture(150, 100), **UNGUIDED}),
    "context and references": (
        "edit-2509",
        {
            "context_image": picture(96, 64),
            "edit_image": [picture(64, 64, seed=1), picture(32, 128, seed=2)],
            "edit_image_auto_resize": False,
        },
    ),
    "context and references at time zero": (
        "edit-2511",
        {
            "context_image": picture(96, 64),
            "edit_image": [picture(64, 64, seed=1)],
            "edit_image_auto_resize": False,
            "zero_cond_t": True,
        },
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    models = tmp_path_factory.mktemp("models")
    return cache(lambda variant: write_tiny_checkpoint(models / variant, variant=variant, seed=2))


@pytest.fixture(scope="module")
def ours(folder: Callable[[str], Path]) -> Callable[[str], QwenImagePipeline]:
    @cache
    def make(variant: str) -> QwenImagePipeline:
        plugins = [qwenimage_layered, qwenimage_in_context_control, qwenimage_edit]
        pipe = QwenImagePipeline.from_pretrained(
            str(folder(variant)), torch_dtype=torch.float32, device="cpu", plugins=plugins
        )
        pipe.prompts.positions = "flat"  # as the peer under transformers 5
        return pipe

    return make


@pytest.fixture(scope="module")
def diffsynth(folder: Callable[[str], Path]) -> Callable[[str], Any]:
    pytest.importorskip("diffsynth")
    return cache(lambda variant: tanh_gelu(diffsynth_pipeline(folder(variant))))


@pytest.mark.parametrize("case", CASES)
def test_pictures_and_latents_equal_diffsynth(
    case: str, ours: Callable[[str], QwenImagePipeline], diffsynth: Callable[[str], Any]
) -> None:
    variant, fields = CASES[case]
    fields = {**SHARED, **fields}
    assert_drawn_alike(case, ours(variant), fields, *draw(diffsynth(variant), **fields))


def test_layers_equal_diffusers(
    ours: Callable[[str], QwenImagePipeline], folder: Callable[[str], Path]
) -> None:
    """diffusers fixes the size (a bucket of 640 x 640 pixels), shifts its schedule by the root of the number of input
    tokens over 256, and drops the first picture."""
    pytest.importorskip("diffusers")
    peer = diffusers_pipeline(folder("layered"), "QwenImageLayeredPipeline")
    given = picture(640, 640, "RGBA")
    shared = {"prompt": SHARED["prompt"], "negative_prompt": " ", "num_inference_steps": 2}
    theirs = peer(
        image=given,
        layers=2,
        resolution=640,
        true_cfg_scale=3.0,
        generator=torch.Generator().manual_seed(4),
        **shared,
    )
    _, *layers = ours("layered")(
        **shared,
        layer_input_image=given,
        layer_num=2,
        height=640,
        width=640,
        cfg_scale=3.0,
        exponential_shift_mu=(40 * 40 / 256) ** 0.5,
        seed=4,
        progress_bar_cmd=iter,
    )
    for image, other in zip(layers, theirs.images[0], strict=True):
        assert_pictures_equal(image, other)
