"""Generations against pictures that the peers drew on the same weights (made by tests/parity/test_generation.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

from ..cases import DIFFSYNTH, DIFFUSERS, SEED_OF_WEIGHTS, SHARED, assert_pictures_equal

PICTURES = Path(__file__).parents[1] / "data" / "generation"
CASES = {f"diffsynth-{c}": fields for c, fields in DIFFSYNTH.items()}
CASES |= {f"diffusers-{c}": fields for c, (fields, _) in DIFFUSERS.items()}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> QwenImagePipeline:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("stored") / "model", seed=SEED_OF_WEIGHTS)
    return QwenImagePipeline.from_pretrained(str(folder), torch_dtype=torch.float32)


@pytest.mark.parametrize("case", CASES)
def test_pictures_equal_the_peers(case: str, pipe: QwenImagePipeline) -> None:
    assert_pictures_equal(pipe(**SHARED, **CASES[case]), Image.open(PICTURES / f"{case}.png"))
