"""What recipes are to the core: LoRAs, names, errors, commands. Each is run end to end in tests/recipes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qwenimage_core import HOOK_API, ConflictError, QwenImagePipeline, Recipe, RequestError, hookimpl
from qwenimage_core.cli.main import main
from qwenimage_core.recipes import CORE_RECIPES, all_recipes, find_recipe
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.testing import write_tiny_checkpoint

QUICK = {"height": 32, "width": 32, "num_inference_steps": 2, "progress_bar_cmd": iter}
WIDTH = 64  # of the tiny transformer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every repository that the core's recipes name, tiny, under one folder."""
    base = tmp_path_factory.mktemp("hub")
    whole = write_tiny_checkpoint(base / "Qwen" / "Qwen-Image")
    shutil.copytree(whole / "transformer", base / "Qwen" / "Qwen-Image-2512" / "transformer")
    shutil.copytree(whole / "transformer", base / "DiffSynth-Studio" / "Qwen-Image-Distill-Full")
    lora = base / "DiffSynth-Studio" / "Qwen-Image-Distill-LoRA"
    lora.mkdir()
    target = "transformer_blocks.0.attn.to_q"
    draw = torch.Generator().manual_seed(0)
    save_file(
        {
            f"{target}.lora_A.default.weight": torch.randn(4, WIDTH, generator=draw),
            f"{target}.lora_B.default.weight": torch.randn(WIDTH, 4, generator=draw),
        },
        lora / "model.safetensors",
    )
    return base


def open_recipe(name: str, models: Path) -> QwenImagePipeline:
    return QwenImagePipeline.from_recipe(name, local_model_path=models, skip_download=True)


def test_a_recipe_with_a_lora_attaches_it(models: Path) -> None:
    request: dict[str, Any] = {"prompt": "x", "seed": 1, **QUICK, "output_type": "latent"}
    with_lora = open_recipe("qwen-image-distill-lora", models)
    without = open_recipe("qwen-image-distill-full", models)
    assert [lora.name for lora in with_lora.loras] == ["qwen-image-distill-lora"]
    assert not torch.allclose(with_lora(**request), without(**request), atol=1e-4)
    with_lora.clear_lora()
    assert torch.equal(with_lora(**request), without(**request))


def test_a_missing_file_names_the_repository(models: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Qwen/Qwen-Image"):
        QwenImagePipeline.from_recipe("qwen-image", local_model_path=tmp_path, skip_download=True)


class Owner:
    NAME = "owner"
    HOOK_API = f">={HOOK_API[0]}.0"

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe

    @hookimpl
    def recipes(self) -> list[Recipe]:
        return [Recipe(name=self.recipe, summary="mine", models=())]


def test_plugins_own_recipes_and_names_are_unique() -> None:
    registry = PluginRegistry.discover([Owner("my-model")], disable_all=True)
    assert all_recipes(registry)["my-model"][0] == "owner"
    with pytest.raises(ConflictError, match="owner"):
        all_recipes(PluginRegistry.discover([Owner("qwen-image")], disable_all=True))
    with pytest.raises(RequestError, match=r"(?s)no recipe 'my-modal'.*did you mean 'my-model'"):
        find_recipe("my-modal", registry)


def test_the_command_line_lists_shows_and_runs_them(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", "list", "--json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)["recipes"]}
    assert names >= {recipe.name for recipe in CORE_RECIPES}
    assert main(["recipes", "show", "qwen-image-2512"]) == 0
    assert "Qwen/Qwen-Image-2512: transformer/" in capsys.readouterr().out
    monkeypatch.setenv("QWENIMAGE_MODEL_BASE_PATH", str(models))
    monkeypatch.setenv("QWENIMAGE_SKIP_DOWNLOAD", "True")
    picture, again = tmp_path / "x.png", tmp_path / "again.png"
    options = ["--height", "32", "--width", "32", "--num-inference-steps", "2", "-o", str(picture)]
    assert main(["generate", "x", "--recipe", "qwen-image-distill-lora", *options]) == 0
    assert main(["again", str(picture), "-o", str(again)]) == 0
    from PIL import Image

    assert Image.open(again).tobytes() == Image.open(picture).tobytes()
    assert main(["generate", "x", "--recipe", "qwen-image", "--model", "tiny"]) == 1
    assert "leave one out" in capsys.readouterr().err
