"""Every recipe draws its example, on a tiny model in the layout of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

import qwenimage_blockwise_controlnet
from qwenimage_blockwise_controlnet.recipes import RECIPES
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_core.values import Recipe

from .conftest import HEIGHT, WIDTH, mask, picture, random_controlnet


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_draws_its_example(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_checkpoint(tmp_path / "Qwen" / "Qwen-Image")
    for number, model in enumerate(recipe.models[3:]):
        channels = 68 if model["model_id"].endswith("Inpaint") else 64
        random_controlnet(tmp_path / model["model_id"] / "model.safetensors", number, channels)
    pipe = QwenImagePipeline.from_recipe(
        recipe.name, local_model_path=tmp_path, skip_download=True, plugins=[qwenimage_blockwise_controlnet]
    )
    monkeypatch.chdir(tmp_path)
    for name in ("edges", "depth", "cat", "garden"):
        picture().save(f"{name}.png")
    mask().save("mask.png")
    small = {"height": HEIGHT, "width": WIDTH, "progress_bar_cmd": iter}
    plan = pipe.plan(**recipe.example, **small)
    assert plan.steps == recipe.defaults["num_inference_steps"]
    assert len(plan.positive.residuals) == len(recipe.models[3:])
    assert plan.options.activation == "quick_gelu"
    assert pipe(**recipe.example, **small, num_inference_steps=2).size == (WIDTH, HEIGHT)
