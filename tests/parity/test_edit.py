"""Editing against both peers, run live on equal weights: final latents, and the picture.

The peers feed the text encoder flat positions for pictures under transformers 5; so does ours for the comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import qwenimage_edit
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from tests.cases import assert_pictures_equal
from tests.plugin_cases import AS_IS, EDIT, ONE, SEED_OF_WEIGHTS, waves

from .peers import assert_drawn_alike, diffsynth_pipeline, diffusers_pipeline, draw, tanh_gelu

FULL, FULL_TALL = waves(1184, 896), waves(832, 1248, seed=1)  # of the sizes that resizing leaves alone
DIFFUSERS: dict[str, tuple[str, str, Any]] = {
    "one picture": ("edit", "QwenImageEditPipeline", FULL),
    "two pictures": ("edit-2509", "QwenImageEditPlusPipeline", [FULL, FULL_TALL]),
    "time zero": ("edit-2511", "QwenImageEditPlusPipeline", [FULL_TALL]),
}


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
        pipe = QwenImagePipeline.from_pretrained(
            str(folder(variant)), torch_dtype=torch.float32, device="cpu", plugins=[qwenimage_edit]
        )
        pipe.prompts.positions = "flat"
        return pipe

    return make


@pytest.fixture(scope="module")
def diffsynth(folder: Callable[[str], Path]) -> Callable[[str], Any]:
    pytest.importorskip("diffsynth")
    return cache(lambda variant: tanh_gelu(diffsynth_pipeline(folder(variant))))


def of_diffsynth(pipe: Any, **fields: Any) -> tuple[list[Image.Image], torch.Tensor]:
    """Its picture and final latents. Positions that it keeps from earlier calls would change what it draws."""
    pipe.dit.pos_embed.rope_cache.clear()
    return draw(pipe, **fields)


@pytest.mark.parametrize("case", EDIT.given)
def test_pictures_and_latents_equal_diffsynth(
    case: str, ours: Callable[[str], QwenImagePipeline], diffsynth: Callable[[str], Any]
) -> None:
    variant, fields = EDIT.request(case)
    assert_drawn_alike(case, ours(variant), fields, *of_diffsynth(diffsynth(variant), **fields))


def test_the_checkpoint_says_what_diffsynth_must_be_told(
    ours: Callable[[str], QwenImagePipeline], diffsynth: Callable[[str], Any]
) -> None:
    fields = {**EDIT.shared, "edit_image": [ONE], **AS_IS}
    _, latents = of_diffsynth(diffsynth("edit-2511"), **fields, zero_cond_t=True)
    found = ours("edit-2511")(**fields, output_type="latent")
    torch.testing.assert_close(found, latents[0], atol=1e-4, rtol=0)
    _, forgotten = of_diffsynth(diffsynth("edit-2511"), **fields)
    assert (found - forgotten[0]).abs().max() > 0.01


@pytest.mark.parametrize("case", DIFFUSERS)
def test_pictures_equal_diffusers(
    case: str, ours: Callable[[str], QwenImagePipeline], folder: Callable[[str], Path]
) -> None:
    """diffusers resizes with another filter, so it is set to ours and given pictures that keep their size."""
    pytest.importorskip("diffusers")
    variant, name, pictures = DIFFUSERS[case]
    peer = diffusers_pipeline(folder(variant), name)
    peer.image_processor.register_to_config(resample="bicubic")
    fields = {**EDIT.shared, "num_inference_steps": 2}
    found = ours(variant)(**fields, edit_image=pictures, cfg_normalize=True)
    theirs = {k: v for k, v in fields.items() if k not in ("seed", "progress_bar_cmd")}
    generator = torch.Generator().manual_seed(fields["seed"])
    assert_pictures_equal(found, peer(image=pictures, **theirs, generator=generator).images[0])
