"""Plugins that append pictures, together: where each stands, at sizes and in numbers that no peer can do."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from pathlib import Path
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
from qwenimage_core.layout import Layout
from qwenimage_core.testing import write_tiny_checkpoint

PLUGINS = (qwenimage_edit, qwenimage_eligen, qwenimage_in_context_control, qwenimage_layered)
PROMPT = "Context_Control. a red circle"
SMALL: dict[str, Any] = {
    "height": 64,
    "width": 48,
    "num_inference_steps": 2,
    "seed": 3,
    "progress_bar_cmd": iter,
}


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


EDIT: dict[str, Any] = {"edit_image": [picture(64, 16), picture(32, 96)], "edit_image_auto_resize": False}
CONTEXT: dict[str, Any] = {"context_image": picture(48, 64)}
ENTITIES: dict[str, Any] = {
    "eligen_entity_prompts": ["a square"],
    "eligen_entity_masks": [Image.new("L", (48, 64), "white")],
}
LAYERS: dict[str, Any] = {"layer_input_image": picture(48, 64, "RGBA"), "layer_num": 2}


@pytest.fixture(scope="module")
def make_pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    models = tmp_path_factory.mktemp("models")
    folder = cache(lambda variant: write_tiny_checkpoint(models / variant, variant=variant))

    def make(variant: str, *plugins: Any) -> QwenImagePipeline:
        path: Path = folder(variant)
        return QwenImagePipeline.from_pretrained(
            str(path), torch_dtype=torch.float32, device="cpu", plugins=plugins or PLUGINS
        )

    return make


def frames(layout: Layout) -> dict[str, list[int]]:
    """The frames of every image segment."""
    positions = np.array(layout.positions())
    return {s.name: np.unique(positions[layout.joint_slice(s.name), 0]).tolist() for s in layout.images}


def test_context_stands_before_references_and_the_input_of_layers_last(make_pipe: Any) -> None:
    plan = make_pipe("layered").plan(PROMPT, **SMALL, **LAYERS, **EDIT, **CONTEXT)
    expected = {"noise": [0, 1, 2], "context": [3], "edit/1": [4], "edit/2": [5], "layered/input": [-1]}
    for branch in plan.branches:
        assert list(frames(branch.layout).items()) == list(expected.items())


def test_one_layer_under_a_brush_takes_the_published_frames(make_pipe: Any) -> None:
    fields = {**SMALL, **LAYERS, "layer_num": 0, **CONTEXT, "cfg_scale": 1}
    layout = make_pipe("layered").plan("text", **fields).positive.layout
    assert frames(layout) == {"noise": [0], "context": [1], "layered/input": [-1]}


def test_neither_the_order_of_plugins_nor_of_fields_matters(make_pipe: Any) -> None:
    given = [EDIT, CONTEXT, ENTITIES]
    drawn = []
    for plugins, order in zip(permutations(PLUGINS[:3]), permutations(given), strict=True):
        fields = {name: value for part in order[::-1] for name, value in part.items()}
        drawn.append(make_pipe("edit-2509", *plugins)(PROMPT, **SMALL, **fields, output_type="latent"))
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])


def test_time_zero_holds_for_every_appended_picture(make_pipe: Any) -> None:
    layout = make_pipe("edit-2511").plan(PROMPT, **SMALL, **EDIT, **CONTEXT).positive.layout
    assert [s.timestep for s in layout.images] == ["step", "zero", "zero", "zero"]
    assert layout.zero_slices == (slice(12, layout.tokens - layout.text_tokens),)


def test_a_batch_of_all_draws_what_single_calls_draw(make_pipe: Any) -> None:
    pipe = make_pipe("edit-2511")
    fields = {**SMALL, **EDIT, **CONTEXT, **ENTITIES, "output_type": "latent"}
    seed, prompts = fields.pop("seed"), [PROMPT, PROMPT + " and a square"]
    batch = pipe(prompts, **fields, seed=seed, num_images_per_prompt=2)
    singles = [pipe(p, **fields, seed=seed + i) for p in prompts for i in (0, 1)]
    for together, alone in zip(batch, singles, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
