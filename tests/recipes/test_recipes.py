"""Every recipe, of the core and of every plugin, draws its own example on tiny files in the exact layout of the hub.

Finite: a picture of the pipeline's is made from values that it clamps, so latents are looked at before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenimage_core import QwenImagePipeline, QwenImageWarning
from qwenimage_core.recipes import all_recipes
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.values import Recipe

from .examples import assert_drawn, tiny_request, write_pictures

RECIPES = [recipe for _, recipe in all_recipes(PluginRegistry.discover()).values()]
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def open_recipe(recipe: Recipe, hub: Path, **options: Any) -> QwenImagePipeline:
    return QwenImagePipeline.from_recipe(
        recipe.name, local_model_path=hub, skip_download=True, device="cpu", **options
    )


@every_recipe
def test_a_recipe_draws_its_example(recipe: Recipe, hub: Path, offline: Path) -> None:
    write_pictures(recipe, offline)
    pipe = open_recipe(recipe, hub)
    tiny = tiny_request(recipe)
    plan = pipe.plan(**recipe.example, **{k: v for k, v in tiny.items() if k in ("width", "height")})
    check_defaults(plan, recipe, overridden=tiny)
    seen: list[bool] = []
    watch = {
        "progress_bar_cmd": iter,
        "step_callback": lambda report: seen.append(bool(torch.isfinite(report.latents_BNC).all())),
    }
    drawn = pipe(**recipe.example, **tiny, **watch)
    assert seen and all(seen), "latents are finite after every step"
    assert_drawn(drawn if isinstance(drawn, list) else [drawn], recipe)
    again = pipe(**recipe.example, **tiny, progress_bar_cmd=iter)
    assert again == drawn, "the example has a seed"


def check_defaults(plan: Any, recipe: Recipe, overridden: Mapping[str, Any]) -> None:
    """What the recipe decides is what was planned."""
    request = {**recipe.defaults, **recipe.example}
    assert plan.steps == request["num_inference_steps"]
    for name in request.keys() - {"width", "height", "num_inference_steps"}:
        if not isinstance(request[name], list | str):
            assert getattr(plan.request, name) == request[name], name
    assert plan.request.negative_prompt == request.get("negative_prompt", "")
    assert (plan.negative is None) == (request["cfg_scale"] == 1)
    assert plan.options.activation == recipe.options.activation
    if recipe.options.zero_cond_t:
        assert [s.timestep for s in plan.positive.layout.images if s.owner != "core"] == ["zero"] * len(
            recipe.example["edit_image"]
        )


@every_recipe
def test_the_low_memory_form_opens_and_says_what_has_no_effect_yet(
    recipe: Recipe, hub: Path, offline: Path
) -> None:
    write_pictures(recipe, offline)
    with pytest.warns(QwenImageWarning, match="placement is not honoured by this version") as caught:
        pipe = open_recipe(recipe, hub, low_memory=True)
    [warning] = [str(w.message) for w in caught if w.category is QwenImageWarning]
    for setting, value in recipe.low_memory.items():
        assert (f"{setting}={value}" in warning) == (value != "cpu"), "it computes on a CPU here anyway"
    plan = pipe.plan(**recipe.example)
    assert plan.steps == {**recipe.defaults, **recipe.example}["num_inference_steps"]
