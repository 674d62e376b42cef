"""What the recipes of editing make of references. That each draws its example is tested in tests/recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qwenimage_edit
from qwenimage_core import QwenImagePipeline, Recipe
from qwenimage_edit.recipes import RECIPES

from .conftest import picture

QUICK = {"height": 32, "width": 32, "num_inference_steps": 2, "progress_bar_cmd": iter}
VARIANTS = {"Qwen-Image": "base", "Qwen-Image-Edit": "edit"} | {
    f"Qwen-Image-Edit-{number}": f"edit-{number}" for number in ("2509", "2511")
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, folder: Callable[[str], Path]) -> Path:
    """Every repository that the recipes name, under one folder."""
    base = tmp_path_factory.mktemp("hub")
    (base / "Qwen").mkdir()
    for name, variant in VARIANTS.items():
        (base / "Qwen" / name).symlink_to(folder(variant))
    lora = base / "DiffSynth-Studio" / "Qwen-Image-Edit-Lowres-Fix"
    lora.mkdir(parents=True)
    target = "transformer_blocks.0.attn.to_q"
    pair = {
        f"{target}.lora_A.default.weight": torch.ones(4, 64),
        f"{target}.lora_B.default.weight": torch.ones(64, 4),
    }
    save_file(pair, lora / "model.safetensors")
    return base


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_references_are_taken_as_the_recipe_says(
    recipe: Recipe, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = recipe.example["edit_image"]
    for name in given if isinstance(given, list) else [given]:
        picture(48, 32).save(name)
    pipe = QwenImagePipeline.from_recipe(
        recipe.name, local_model_path=models, skip_download=True, plugins=[qwenimage_edit]
    )
    plan = pipe.plan(**recipe.example)
    lowres = recipe.name.endswith("lowres-fix")
    reference = plan.positive.layout["edit/1"]
    assert reference.tokens == (2 * 3 if lowres else 78 * 52), "1248 x 832 pixels are 78 x 52 tokens"
    assert reference.onto == ("noise" if lowres else None)
    assert reference.timestep == ("zero" if "2511" in recipe.name else "step")


def test_a_recipe_of_references_still_draws_without_one(models: Path) -> None:
    """As the published example does to make its own input; what only references need is left out by itself."""
    pipe = QwenImagePipeline.from_recipe(
        "qwen-image-edit-lowres-fix", local_model_path=models, skip_download=True, plugins=[qwenimage_edit]
    )
    assert pipe("a portrait", **QUICK, seed=0).size == (32, 32)
