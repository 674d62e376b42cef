"""EliGen against DiffSynth-Studio, live on equal weights: final latents, and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import qwenimage_eligen
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

from .peers import assert_drawn_alike, diffsynth_pipeline, draw, tanh_gelu

pytest.importorskip("diffsynth")

SHARED: dict[str, Any] = {
    "prompt": "a red circle and a blue square",
    "negative_prompt": "blurred",
    "height": 64,
    "width": 96,
    "num_inference_steps": 4,
    "seed": 7,
    "progress_bar_cmd": iter,
}


def ellipse(bounds: tuple[int, int, int, int], size: tuple[int, int] = (96, 64)) -> Image.Image:
    mask = Image.new("RGB", size)
    ImageDraw.Draw(mask).ellipse(bounds, fill="white")
    return mask


def soft(size: tuple[int, int]) -> Image.Image:
    """Every grey and colour: whether a pixel is on depends on the threshold."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


ENTITIES = {
    "eligen_entity_prompts": ["a red circle", "a blue square with a very long description of it", "sky"],
    "eligen_entity_masks": [ellipse((4, 4, 44, 60)), ellipse((50, 20, 90, 60)), ellipse((0, 0, 95, 30))],
}
CASES: dict[str, dict[str, Any]] = {
    "three entities": ENTITIES,
    "on the negative branch too": {**ENTITIES, "eligen_enable_on_negative": True},
    "without guidance": {**ENTITIES, "cfg_scale": 1.0, "negative_prompt": ""},
    "masks of other sizes": {
        "eligen_entity_prompts": ["a red circle", "sky"],
        "eligen_entity_masks": [ellipse((100, 100, 500, 500), (777, 555)), ellipse((0, 0, 9, 9), (16, 10))],
    },
    "a mask of all greys": {
        "eligen_entity_prompts": ["a red circle"],
        "eligen_entity_masks": [soft((96, 64))],
    },
    "a tall picture": {**ENTITIES, "height": 128, "width": 32},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base") / "model", seed=2)


@pytest.fixture(scope="module")
def ours(folder: Path) -> QwenImagePipeline:
    return QwenImagePipeline.from_pretrained(
        str(folder), torch_dtype=torch.float32, device="cpu", plugins=[qwenimage_eligen]
    )


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return tanh_gelu(diffsynth_pipeline(folder))


@pytest.mark.parametrize("case", CASES)
def test_pictures_and_latents_equal_diffsynth(case: str, ours: QwenImagePipeline, theirs: Any) -> None:
    fields = {**SHARED, **CASES[case]}
    assert_drawn_alike(case, ours, fields, *draw(theirs, **fields))


def test_the_comparison_would_notice_a_missing_mask(ours: QwenImagePipeline, theirs: Any) -> None:
    whole = [Image.new("RGB", (96, 64), "white")] * 3
    _, latents = draw(theirs, **SHARED, **ENTITIES)
    found = ours(**SHARED, **{**ENTITIES, "eligen_entity_masks": whole}, output_type="latent")
    assert (found - latents[0]).abs().max() > 0.05
