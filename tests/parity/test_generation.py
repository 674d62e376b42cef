"""Whole generations against both peers, run live on equal weights: the final picture within 1/255 on average, 3/255
at worst. DiffSynth-Studio truncates where we round, which alone makes up to 1/255."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

from .peers import assert_pictures_equal, diffsynth_pipeline, diffusers_pipeline, tanh_gelu

WIDTH, HEIGHT, STEPS = 96, 128, 4
PROMPT = "a red circle on a blue background, 一个红色的圆"
SHARED: dict[str, Any] = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base") / "model", seed=3)


@pytest.fixture(scope="module")
def ours(folder: Path) -> QwenImagePipeline:
    return QwenImagePipeline.from_pretrained(str(folder), torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def diffusers(folder: Path) -> Any:
    pytest.importorskip("diffusers")
    return diffusers_pipeline(folder)


@pytest.fixture(scope="module")
def diffsynth(folder: Path) -> Any:
    pytest.importorskip("diffsynth")
    return tanh_gelu(diffsynth_pipeline(folder))


def picture() -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [127 + 120 * np.sin(x / a + y / b) for a, b in ((9, 31), (23, 7), (13, 17))]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def mask() -> Image.Image:
    image = Image.new("L", (WIDTH, HEIGHT), 0)
    image.paste(255, (20, 30, 70, 100))
    return image


DIFFSYNTH_CASES: dict[str, dict[str, Any]] = {
    "plain": {"cfg_scale": 1.0},
    "guided": {"cfg_scale": 4.0, "negative_prompt": "blurry, grey"},
    "guided by the empty prompt": {},
    "mu given": {"exponential_shift_mu": 1.7},
    "image to image": {"input_image": picture(), "denoising_strength": 0.6},
    "inpainting": {"input_image": picture(), "inpaint_mask": mask()},
    "inpainting with blur": {
        "input_image": picture(),
        "inpaint_mask": mask(),
        "inpaint_blur_size": 3,
        "inpaint_blur_sigma": 1.5,
        "denoising_strength": 0.8,
    },
    "tiled": {"tiled": True, "tile_size": 8, "tile_stride": 5},
    "tiled image to image": {
        "input_image": picture(),
        "denoising_strength": 0.5,
        "tiled": True,
        "tile_size": 10,
        "tile_stride": 6,
    },
}


@pytest.mark.parametrize("case", DIFFSYNTH_CASES)
def test_pictures_equal_diffsynth(case: str, ours: QwenImagePipeline, diffsynth: Any) -> None:
    fields = {"prompt": PROMPT, "seed": 11, **SHARED, **DIFFSYNTH_CASES[case]}
    assert_pictures_equal(ours(**fields), diffsynth(**fields))


def test_pictures_equal_diffsynth_with_its_own_activation(
    ours: QwenImagePipeline, folder: Path
) -> None:
    """With the sigmoid form of GELU, which its own weights were trained with."""
    pytest.importorskip("diffsynth")
    from dataclasses import replace

    plan = ours.plan(PROMPT, seed=11, **SHARED)
    plan = replace(plan, options=replace(plan.options, activation="quick_gelu"))
    assert_pictures_equal(ours.run(plan)[0], diffsynth_pipeline(folder)(prompt=PROMPT, seed=11, **SHARED))


@pytest.mark.parametrize("seed", [0, 4])
def test_unguided_pictures_equal_diffusers(seed: int, ours: QwenImagePipeline, diffusers: Any) -> None:
    peer = diffusers(PROMPT, generator=torch.Generator().manual_seed(seed), **SHARED).images[0]
    assert_pictures_equal(ours(PROMPT, seed=seed, cfg_scale=1, **SHARED), peer)


def test_guided_pictures_equal_diffusers_with_its_norm_rescale(ours: QwenImagePipeline, diffusers: Any) -> None:
    peer = diffusers(
        PROMPT, negative_prompt="grey", true_cfg_scale=4.0, generator=torch.Generator().manual_seed(8), **SHARED
    ).images[0]
    guided = {"negative_prompt": "grey", "cfg_scale": 4.0, "seed": 8, **SHARED}
    assert_pictures_equal(ours(PROMPT, cfg_normalize=True, **guided), peer)
    with pytest.raises(AssertionError):  # the rescale is what makes them equal
        assert_pictures_equal(ours(PROMPT, **guided), peer)


def test_a_batch_of_prompts_equals_diffusers_one_by_one(ours: QwenImagePipeline, diffusers: Any) -> None:
    prompts = ["a cat", "a much longer prompt about two green stars"]
    for prompt, image in zip(prompts, ours(prompts, seed=2, cfg_scale=1, **SHARED), strict=True):
        assert_pictures_equal(image, diffusers(prompt, generator=torch.Generator().manual_seed(2), **SHARED).images[0])
