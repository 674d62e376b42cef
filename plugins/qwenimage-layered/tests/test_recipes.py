"""Every recipe of layers, run end to end on tiny checkpoints in the layout of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qwenimage_layered
from qwenimage_core import QwenImagePipeline, Recipe
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_layered.recipes import RECIPES

from .conftest import picture

QUICK = {"height": 64, "width": 48, "num_inference_steps": 2, "progress_bar_cmd": iter}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every repository that the recipes name, under one folder."""
    base = tmp_path_factory.mktemp("hub")
    write_tiny_checkpoint(base / "Qwen" / "Qwen-Image")
    layered = write_tiny_checkpoint(base / "Qwen" / "Qwen-Image-Layered", variant="layered")
    (base / "DiffSynth-Studio").mkdir()
    (base / "DiffSynth-Studio" / "Qwen-Image-Layered-Control").symlink_to(layered)
    lora = base / "DiffSynth-Studio" / "Qwen-Image-Layered-Control-V2"
    lora.mkdir()
    target = "transformer_blocks.0.attn.to_q"
    pair = {
        f"{target}.lora_A.default.weight": torch.ones(4, 64),
        f"{target}.lora_B.default.weight": torch.ones(64, 4),
    }
    save_file(pair, lora / "model.safetensors")
    return base


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_draws_its_example(
    recipe: Recipe, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, layers = recipe.example["layer_input_image"], recipe.example["layer_num"]
    pipe = QwenImagePipeline.from_recipe(
        recipe.name, local_model_path=models, skip_download=True, plugins=[qwenimage_layered]
    )
    picture(recipe.defaults["width"], recipe.defaults["height"]).save(name)
    plan = pipe.plan(**recipe.example)
    assert plan.steps == recipe.defaults["num_inference_steps"]
    assert plan.options.activation == ("quick_gelu" if "control" in recipe.name else "gelu_tanh")
    assert len(pipe.loras) == len(recipe.loras)
    picture(48, 64).save(name)
    assert [image.mode for image in pipe(**recipe.example, **QUICK)] == ["RGBA"] * (layers + 1)
