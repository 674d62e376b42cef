"""Layers and in-context control against both peers, live on equal weights: final latents, and the pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import qwenimage_edit
import qwenimage_in_context_control
import qwenimage_layered
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from tests.cases import assert_pictures_equal
from tests.plugin_cases import LAYERED, SEED_OF_WEIGHTS, waves

from .peers import assert_drawn_alike, diffsynth_pipeline, diffusers_pipeline, draw, tanh_gelu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    models = tmp_path_factory.mktemp("models")
    return cache(
        lambda variant: write_tiny_checkpoint(models / variant, variant=variant, seed=SEED_OF_WEIGHTS)
    )


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


@pytest.mark.parametrize("case", LAYERED.given)
def test_pictures_and_latents_equal_diffsynth(
    case: str, ours: Callable[[str], QwenImagePipeline], diffsynth: Callable[[str], Any]
) -> None:
    variant, fields = LAYERED.request(case)
    assert_drawn_alike(case, ours(variant), fields, *draw(diffsynth(variant), **fields))


def test_layers_equal_diffusers(
    ours: Callable[[str], QwenImagePipeline], folder: Callable[[str], Path]
) -> None:
    """diffusers fixes the size (a bucket of 640 x 640 pixels), shifts its schedule by the root of the number of input
    tokens over 256, and drops the first picture."""
    pytest.importorskip("diffusers")
    peer = diffusers_pipeline(folder("layered"), "QwenImageLayeredPipeline")
    given = waves(640, 640, "RGBA")
    shared = {"prompt": LAYERED.shared["prompt"], "negative_prompt": " ", "num_inference_steps": 2}
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
