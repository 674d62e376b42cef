"""Every recipe, of the core and of every plugin, draws its own example on tiny files in the exact layout of the hub.

Latents are watched for infinities, because pictures are made from clamped values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qwenimage_core import QwenImagePipeline
from qwenimage_core.recipes import all_recipes
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.values import Recipe

from .examples import assert_drawn, picture_names, tiny_request, write_pictures

RECIPES = [recipe for _, recipe in all_recipes(PluginRegistry.discover()).values()]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def open_recipe(recipe: Recipe, hub: Path, **options: Any) -> QwenImagePipeline:
    return QwenImagePipeline.from_recipe(
        recipe.name, local_model_path=hub, skip_download=True, device="cpu", **options
    )


@every_recipe
def test_what_a_recipe_decides_reaches_the_plan(recipe: Recipe, hub: Path, offline: Path) -> None:
    request = {**recipe.defaults, **recipe.example}
    write_pictures(recipe, offline, size=(request["width"], request["height"]))
    pipe = open_recipe(recipe, hub)
    plan = pipe.plan(**recipe.example)
    assert plan.steps == request["num_inference_steps"]
    for name, value in request.items():
        if not isinstance(value, list) and name not in dict(picture_names(request)):
            assert getattr(plan.request, name) == value, name
    assert (plan.negative is None) == (request["cfg_scale"] == 1)
    assert plan.options.activation == recipe.options.activation
    references = [segment for segment in plan.positive.layout.images if segment.owner == "edit"]
    assert {s.timestep for s in references} <= {"zero" if recipe.options.zero_cond_t else "step"}
    assert [lora.name for lora in pipe.loras] == [recipe.name] * len(recipe.loras)
    made = "lightning" in recipe.given or "i2l_images" in recipe.example
    assert len(plan.adapters) == made, "LoRAs of a run"
    nets = [model for model in recipe.models if "ControlNet" in model["model_id"]]
    assert len(plan.positive.residuals) == len(nets)


@every_recipe
def test_a_recipe_draws_its_example(recipe: Recipe, hub: Path, offline: Path) -> None:
    write_pictures(recipe, offline)
    finite: list[bool] = []
    request = {
        **recipe.example,
        **tiny_request(recipe),
        "progress_bar_cmd": iter,
        "step_callback": lambda report: finite.append(bool(torch.isfinite(report.latents_BNC).all())),
    }
    pipe = open_recipe(recipe, hub)
    drawn = pipe(**request)
    assert finite and all(finite), "after every step"
    assert_drawn(drawn if isinstance(drawn, list) else [drawn], recipe)
    assert pipe(**request) == drawn, "the example has a seed"


@every_recipe
def test_the_low_memory_form_draws_and_leaves_nothing_in_memory(
    recipe: Recipe, hub: Path, offline: Path
) -> None:
    write_pictures(recipe, offline)
    pipe = open_recipe(recipe, hub, low_memory=True)
    for several in pipe.components.values():
        for component in several:
            assert component.placement.offload.on_disk and component.dtype == torch.bfloat16
            assert component.placement.onload.dtype == torch.float8_e4m3fn
    drawn = pipe(**recipe.example, **tiny_request(recipe), progress_bar_cmd=iter)
    assert_drawn(drawn if isinstance(drawn, list) else [drawn], recipe)
    assert not any(component.loaded for several in pipe.components.values() for component in several)
