"""EliGen against DiffSynth-Studio, live on equal weights: final latents, and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import qwenimage_eligen
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from tests.plugin_cases import ELIGEN, ENTITIES, SEED_OF_WEIGHTS

from .peers import assert_drawn_alike, diffsynth_pipeline, draw, tanh_gelu

pytest.importorskip("diffsynth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base") / "model", seed=SEED_OF_WEIGHTS)


@pytest.fixture(scope="module")
def ours(folder: Path) -> QwenImagePipeline:
    return QwenImagePipeline.from_pretrained(
        str(folder), torch_dtype=torch.float32, device="cpu", plugins=[qwenimage_eligen]
    )


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return tanh_gelu(diffsynth_pipeline(folder))


@pytest.mark.parametrize("case", ELIGEN.given)
def test_pictures_and_latents_equal_diffsynth(case: str, ours: QwenImagePipeline, theirs: Any) -> None:
    _, fields = ELIGEN.request(case)
    assert_drawn_alike(case, ours, fields, *draw(theirs, **fields))


def test_the_comparison_would_notice_a_missing_mask(ours: QwenImagePipeline, theirs: Any) -> None:
    whole = [Image.new("RGB", (96, 64), "white")] * 3
    _, latents = draw(theirs, **ELIGEN.shared, **ENTITIES)
    found = ours(**ELIGEN.shared, **{**ENTITIES, "eligen_entity_masks": whole}, output_type="latent")
    assert (found - latents[0]).abs().max() > 0.05
