"""Pipelines on tiny random models with the plugin, and pictures to take apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qwenimage_layered
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

Fields = dict[str, Any]
MakePipe = Callable[..., QwenImagePipeline]


@pytest.fixture(scope="session")
def make_pipe(tmp_path_factory: pytest.TempPathFactory) -> MakePipe:
    models = tmp_path_factory.mktemp("models")
    folder = cache(lambda variant: str(write_tiny_checkpoint(models / variant, variant=variant)))

    def make(*plugins: Any, variant: str = "layered") -> QwenImagePipeline:
        return QwenImagePipeline.from_pretrained(
            folder(variant), torch_dtype=torch.float32, device="cpu", plugins=plugins
        )

    return make


@pytest.fixture(scope="session")
def pipe(make_pipe: MakePipe) -> QwenImagePipeline:
    """Tests leave it as they found it."""
    return make_pipe(qwenimage_layered)


def picture(width: int, height: int, mode: str = "RGBA", seed: int = 0) -> Image.Image:
    """Smooth waves in every channel."""
    phase = np.random.default_rng(seed).uniform(0, 6, 4)
    y, x = np.mgrid[0:height, 0:width]
    steps = zip((9, 23, 13, 30), (31, 7, 17, 11), phase, strict=True)
    waves = [127 + 120 * np.sin(x / a + y / b + p) for a, b, p in steps]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode)


@pytest.fixture
def small() -> Fields:
    """Request fields of a quick picture."""
    return {"height": 64, "width": 48, "num_inference_steps": 2, "seed": 3, "progress_bar_cmd": iter}
