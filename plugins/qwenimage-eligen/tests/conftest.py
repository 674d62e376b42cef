"""A pipeline on a tiny random model with the plugin, and pictures to mask with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

import qwenimage_eligen
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing.checkpoints import write_tiny_checkpoint

HEIGHT, WIDTH = 64, 96


@pytest.fixture(scope="session")
def make_pipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., QwenImagePipeline]:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "base")
    return lambda *plugins: QwenImagePipeline.from_pretrained(
        str(folder), torch_dtype=torch.float32, device="cpu", plugins=plugins
    )


@pytest.fixture(scope="session")
def pipe(make_pipe: Callable[..., QwenImagePipeline]) -> QwenImagePipeline:
    return make_pipe(qwenimage_eligen)


def rectangle(
    left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Image.Image:
    """White inside the pixel bounds (right and bottom excluded), black outside."""
    mask = Image.new("RGB", size)
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill="white")
    return mask


@pytest.fixture
def request_fields() -> dict[str, Any]:
    """Two entities: the left third, and the lower half of the right two thirds."""
    return {
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": 2,
        "seed": 3,
        "progress_bar_cmd": iter,
        "output_type": "latent",
        "eligen_entity_prompts": ["a square", "a very green sea"],
        "eligen_entity_masks": [rectangle(0, 0, 32, 64), rectangle(32, 32, 96, 64)],
    }
