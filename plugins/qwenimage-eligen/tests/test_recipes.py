"""Every recipe draws its example, on a tiny model in the layout of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qwenimage_eligen
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_core.values import Recipe
from qwenimage_eligen.recipes import RECIPES

from .conftest import rectangle


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_draws_its_example(recipe: Recipe, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "Qwen" / "Qwen-Image")
    lora = tmp_path / recipe.loras[0]["model_id"]
    lora.mkdir(parents=True)
    name = "transformer_blocks.0.attn.to_q.lora_{}.default.weight"
    save_file(
        {name.format("A"): torch.ones(4, 64), name.format("B"): torch.ones(64, 4)}, lora / "model.safetensors"
    )
    pipe = QwenImagePipeline.from_recipe(
        recipe.name, local_model_path=tmp_path, skip_download=True, plugins=[qwenimage_eligen]
    )
    masks = [
        rectangle(16 * i, 0, 16 * i + 32, 64) for i in range(len(recipe.example["eligen_entity_prompts"]))
    ]
    example = recipe.example | {"eligen_entity_masks": masks}
    plan = pipe.plan(**example)
    assert plan.steps == recipe.defaults["num_inference_steps"]
    assert len(plan.positive.layout.text) == 1 + len(masks)
    assert plan.options.activation == "quick_gelu"
    assert [lora.name for lora in pipe.loras] == [recipe.name]
    small = {"height": 64, "width": 96, "num_inference_steps": 2, "progress_bar_cmd": iter}
    assert pipe(**example, **small).size == (96, 64)
