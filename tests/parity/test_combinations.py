"""Several plugins in one run against DiffSynth-Studio, live on equal weights.

It repeats EliGen's masks over appended pictures, so they must be of the target's size here; ours may be of any size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import qwenimage_edit
import qwenimage_eligen
import qwenimage_in_context_control
import qwenimage_layered
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

from .peers import assert_drawn_alike, diffsynth_pipeline, draw, tanh_gelu

pytest.importorskip("diffsynth")

PLUGINS = [qwenimage_edit, qwenimage_eligen, qwenimage_in_context_control, qwenimage_layered]
SHARED: dict[str, Any] = {
    "prompt": "Context_Control. a red circle",
    "negative_prompt": "blurred",
    "height": 64,
    "width": 96,
    "num_inference_steps": 3,
    "seed": 7,
    "progress_bar_cmd": iter,
}


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    phase = np.random.default_rng(seed).uniform(0, 6, 4)
    y, x = np.mgrid[0:64, 0:96]
    steps = zip((9, 23, 13, 30), (31, 7, 17, 11), phase, strict=True)
    waves = [127 + 120 * np.sin(x / a + y / b + p) for a, b, p in steps]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8)).convert(mode)


def rectangle(*bounds: int) -> Image.Image:
    mask = Image.new("RGB", (96, 64))
    mask.paste("white", bounds)
    return mask


ENTITIES: dict[str, Any] = {
    "eligen_entity_prompts": ["a blue square", "a very green sea"],
    "eligen_entity_masks": [rectangle(0, 0, 40, 64), rectangle(48, 24, 96, 64)],
}
EDIT: dict[str, Any] = {"edit_image": [picture(seed=1), picture(seed=2)], "edit_image_auto_resize": False}
CONTEXT: dict[str, Any] = {"context_image": picture(seed=3)}
LAYERS: dict[str, Any] = {"layer_input_image": picture("RGBA", 4), "layer_num": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "entities and references": ("edit-2509", ENTITIES | EDIT),
    "entities and context": ("base", ENTITIES | CONTEXT),
    "entities, references and context": ("edit-2509", ENTITIES | EDIT | CONTEXT),
    "entities on both branches, and one reference": (
        "edit",
        ENTITIES | {**EDIT, "edit_image": picture(seed=1), "eligen_enable_on_negative": True},
    ),
    "entities and references at time zero": ("edit-2511", ENTITIES | EDIT | {"zero_cond_t": True}),
    "entities and layers": ("layered", ENTITIES | LAYERS),
    "references and layers": (  # the peer takes them as they are, so with the four channels of this VAE
        "layered",
        LAYERS | {**EDIT, "edit_image": [picture("RGBA", 1), picture("RGBA", 2)]},
    ),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[QwenImagePipeline, Any]]:
    """Ours and theirs on the same weights."""
    models = tmp_path_factory.mktemp("models")

    @cache
    def make(variant: Any) -> tuple[QwenImagePipeline, Any]:
        folder = write_tiny_checkpoint(models / variant, variant=variant, seed=2)
        ours = QwenImagePipeline.from_pretrained(
            str(folder), torch_dtype=torch.float32, device="cpu", plugins=PLUGINS
        )
        ours.prompts.positions = "flat"  # as the peer under transformers 5
        return ours, tanh_gelu(diffsynth_pipeline(folder))

    return make


@pytest.mark.parametrize("case", CASES)
def test_pictures_and_latents_equal_diffsynth(
    case: str, both: Callable[[str], tuple[QwenImagePipeline, Any]]
) -> None:
    variant, fields = CASES[case]
    fields = {**SHARED, **fields}
    ours, theirs = both(variant)
    assert_drawn_alike(case, ours, fields, *draw(theirs, **fields))
