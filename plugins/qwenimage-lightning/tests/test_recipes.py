"""What a Lightning recipe brings to every run. That each draws its example is tested in tests/recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qwenimage_lightning
from qwenimage_core import QwenImagePipeline, RequestError
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_core.values import Recipe
from qwenimage_lightning.recipes import RECIPES

from .conftest import lightning_lora

SMALL = {"height": 64, "width": 48, "progress_bar_cmd": iter}


def open_recipe(recipe: Recipe, folder: Path) -> QwenImagePipeline:
    """The recipe on tiny files at the places that it names."""
    write_tiny_checkpoint(folder / "Qwen" / "Qwen-Image")
    variants: dict[str, Any] = {"Edit": "edit", "2509": "edit-2509", "2511": "edit-2511"}
    base = recipe.models[0]["model_id"]
    write_tiny_checkpoint(folder / base, variant=variants.get(base.rsplit("-", 1)[-1], "base"))
    write_tiny_checkpoint(folder / "Qwen" / "Qwen-Image-Edit", variant="edit")
    file = recipe.given["lightning"]
    lightning_lora(folder / file["model_id"] / file["origin_file_pattern"])
    return QwenImagePipeline.from_recipe(
        recipe.name, local_model_path=folder, skip_download=True, plugins=[qwenimage_lightning]
    )


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_run_of_a_recipe_has_its_file_steps_and_schedule(recipe: Recipe, tmp_path: Path) -> None:
    pipe = open_recipe(recipe, tmp_path)
    plan = pipe.plan("a cat", seed=1, **SMALL)
    assert plan.steps == recipe.defaults["num_inference_steps"]
    assert f"{plan.steps}steps" in plan.adapters[0].name
    assert plan.sigmas[1] == pytest.approx({4: 0.9, 8: 0.954545}[plan.steps], abs=1e-6)
    assert plan.negative is None
    assert pipe("a cat", seed=1, **SMALL).size == (48, 64)
    with pytest.raises(RequestError, match="without guidance"):
        pipe("a cat", **SMALL, cfg_scale=4.0)
