"""Whole generations against both peers, run live on equal weights: the final picture within 1/255 on average, 3/255
at worst. DiffSynth-Studio truncates where we round, which alone makes up to 1/255.

The peers' pictures are also kept in tests/data, where the default run compares with them; this file remakes them:

    python -m tests.parity.test_generation
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

from ..cases import DIFFSYNTH, DIFFUSERS, PROMPT, SEED_OF_WEIGHTS, SHARED, assert_pictures_equal
from .peers import diffsynth_pipeline, diffusers_pipeline, tanh_gelu

PICTURES = Path(__file__).parents[1] / "data" / "generation"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base") / "model", seed=SEED_OF_WEIGHTS)


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


def of_diffusers(pipe: Any, **fields: Any) -> Any:
    """Call diffusers with our names for what both have."""
    fields["generator"] = torch.Generator().manual_seed(fields.pop("seed"))
    return pipe(**fields).images[0]


@pytest.mark.parametrize("case", DIFFSYNTH)
def test_pictures_equal_diffsynth(case: str, ours: QwenImagePipeline, diffsynth: Any) -> None:
    fields = {**SHARED, **DIFFSYNTH[case]}
    assert_pictures_equal(ours(**fields), diffsynth(**fields))


def test_pictures_equal_diffsynth_with_its_own_activation(ours: QwenImagePipeline, folder: Path) -> None:
    """With the sigmoid form of GELU, which its own weights were trained with."""
    pytest.importorskip("diffsynth")
    plan = ours.plan(**SHARED)
    plan = replace(plan, options=replace(plan.options, activation="quick_gelu"))
    assert_pictures_equal(ours.run(plan)[0], diffsynth_pipeline(folder)(**SHARED))


@pytest.mark.parametrize("case", DIFFUSERS)
def test_pictures_equal_diffusers(case: str, ours: QwenImagePipeline, diffusers: Any) -> None:
    fields, theirs = DIFFUSERS[case]
    assert_pictures_equal(ours(**SHARED, **fields), of_diffusers(diffusers, **SHARED, **theirs))


def test_it_is_the_norm_rescale_that_makes_guided_pictures_equal(
    ours: QwenImagePipeline, diffusers: Any
) -> None:
    fields, theirs = DIFFUSERS["normalized-guidance"]
    with pytest.raises(AssertionError):
        assert_pictures_equal(
            ours(**SHARED, **{**fields, "cfg_normalize": False}), of_diffusers(diffusers, **SHARED, **theirs)
        )


def test_a_batch_of_prompts_equals_diffusers_one_by_one(ours: QwenImagePipeline, diffusers: Any) -> None:
    shared = {**SHARED, "seed": 2}
    prompts = ["a cat", f"a much longer prompt about {PROMPT}"]
    for prompt, image in zip(prompts, ours(**{**shared, "prompt": prompts}, cfg_scale=1), strict=True):
        assert_pictures_equal(image, of_diffusers(diffusers, **{**shared, "prompt": prompt}))


def remake_pictures() -> None:
    """Write the peers' pictures of all cases to tests/data."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = write_tiny_checkpoint(Path(name) / "model", seed=SEED_OF_WEIGHTS)
        diffsynth, diffusers = tanh_gelu(diffsynth_pipeline(folder)), diffusers_pipeline(folder)
    for case, fields in DIFFSYNTH.items():
        diffsynth(**SHARED, **fields).save(PICTURES / f"diffsynth-{case}.png")
    for case, (_, theirs) in DIFFUSERS.items():
        of_diffusers(diffusers, **SHARED, **theirs).save(PICTURES / f"diffusers-{case}.png")


if __name__ == "__main__":
    remake_pictures()
