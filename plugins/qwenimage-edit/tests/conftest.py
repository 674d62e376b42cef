"""Pipelines on tiny random models with the plugin, and pictures to edit."""

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
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

Fields = dict[str, Any]
MakePipe = Callable[..., QwenImagePipeline]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    models = tmp_path_factory.mktemp("models")
    return cache(lambda variant: write_tiny_checkpoint(models / variant, variant=variant))


@pytest.fixture(scope="session")
def make_pipe(folder: Callable[[str], Path]) -> MakePipe:
    def make(*plugins: Any, variant: str = "edit") -> QwenImagePipeline:
        path = str(folder(variant))
        return QwenImagePipeline.from_pretrained(
            path, torch_dtype=torch.float32, device="cpu", plugins=plugins
        )

    return make


@pytest.fixture(scope="session")
def pipe(make_pipe: MakePipe) -> QwenImagePipeline:
    """Tests leave it as they found it."""
    return make_pipe(qwenimage_edit)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth colour waves, so that resizing keeps something of them."""
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        127 + 120 * np.sin(x / a + y / b + p) for a, b, p in zip((9, 23, 13), (31, 7, 17), phase, strict=True)
    ]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode)


@pytest.fixture
def small() -> Fields:
    """Request fields of a quick picture; references are taken as they are."""
    return {
        "height": 64,
        "width": 48,
        "num_inference_steps": 2,
        "seed": 3,
        "progress_bar_cmd": iter,
        "edit_image_auto_resize": False,
    }


@pytest.fixture
def bare(small: Fields) -> Fields:
    """The same without any field of the plugin."""
    return {name: value for name, value in small.items() if not name.startswith("edit")}
