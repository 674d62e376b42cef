"""The embedded model in the stock diffusers pipeline: it loads, and draws our picture."""

from __future__ import annotations

import pytest
import torch

from qwenimage_core import QwenImagePipeline

from ..cases import assert_pictures_equal
from .peers import diffusers_pipeline

qwenimage_tiny = pytest.importorskip("qwenimage_tiny")

PROMPT = "a red circle on a blue background"
SIDES = {"height": 128, "width": 128}


def test_diffusers_draws_the_same_picture() -> None:
    folder = qwenimage_tiny.model_path()
    ours = QwenImagePipeline.from_pretrained(str(folder), torch_dtype=torch.float32, device="cpu")
    mine = ours(PROMPT, cfg_scale=3.0, cfg_normalize=True, num_inference_steps=8, seed=5, **SIDES)
    theirs = diffusers_pipeline(folder)(
        PROMPT,
        negative_prompt="",
        true_cfg_scale=3.0,
        num_inference_steps=8,
        generator=torch.Generator().manual_seed(5),
        **SIDES,
    )
    assert_pictures_equal(mine, theirs.images[0])
