"""The recipe of in-context control, run end to end on a tiny checkpoint in the layout of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qwenimage_in_context_control as plugin
from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint

from .conftest import picture


def test_the_recipe_draws_its_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_checkpoint(tmp_path / "Qwen" / "Qwen-Image")
    [recipe] = plugin.RECIPES
    lora = tmp_path / "DiffSynth-Studio" / "Qwen-Image-In-Context-Control-Union"
    lora.mkdir(parents=True)
    target = "transformer_blocks.0.attn.to_q"
    pair = {
        f"{target}.lora_A.default.weight": torch.ones(4, 64),
        f"{target}.lora_B.default.weight": torch.ones(64, 4),
    }
    save_file(pair, lora / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    picture(64, 64).save(recipe.example["context_image"])
    pipe = QwenImagePipeline.from_recipe(
        recipe.name, local_model_path=tmp_path, skip_download=True, plugins=[plugin]
    )
    plan = pipe.plan(**recipe.example)
    assert plan.options.activation == "quick_gelu"
    assert plan.positive.layout["context"].tokens == 64 * 64
    assert [a.name for a in pipe.loras] == [recipe.name]
    quick = {"height": 32, "width": 32, "num_inference_steps": 2, "progress_bar_cmd": iter}
    assert pipe(**recipe.example, **quick).size == (32, 32)
