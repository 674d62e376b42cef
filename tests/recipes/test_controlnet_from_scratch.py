"""The published runs that begin a ControlNet from nothing: new file, training that changes it, a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenimage_core.cli.main import main
from qwenimage_core.recipes import find_recipe
from qwenimage_core.registry import PluginRegistry

from .examples import HEIGHT, WIDTH, write_pictures
from .test_training import row

BASE = (
    "Qwen/Qwen-Image:transformer/diffusion_pytorch_model*.safetensors,"
    "Qwen/Qwen-Image:text_encoder/model*.safetensors,"
    "Qwen/Qwen-Image:vae/diffusion_pytorch_model.safetensors"
)


@pytest.mark.parametrize("kind", ["canny", "inpaint"])
def test_a_controlnet_from_scratch(
    kind: str, hub: Path, offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"blockwise-controlnet-{kind}"
    recipe = find_recipe(name, PluginRegistry.discover())
    [form] = [form for form in recipe.training if form.mode == "full"]
    new, data = offline / "models" / "blockwise_controlnet.safetensors", offline / "data"
    data.mkdir()
    (data / "metadata.json").write_text(json.dumps([row(recipe, form, data)]))
    words = ["controlnet", "new", "-o", str(new), "--model", str(hub / "Qwen" / "Qwen-Image")]
    assert main([*words, *(["--inpaint"] if kind == "inpaint" else [])]) == 0
    before = load_file(new)
    assert before["img_in.weight"].shape[1] == (68 if kind == "inpaint" else 64)
    assert all(not t.any() for n, t in before.items() if n.startswith("img_in") or "output_proj" in n)
    train = ["train", "--recipe", name, "--mode", "full", "--model_paths", json.dumps([str(new)])]
    train += ["--model_id_with_origin_paths", BASE, "--dataset_base_path", str(data)]
    work = ["--dataset_repeat", "2", "--num_epochs", "1", "--output_path", str(offline / "out")]
    assert main([*train, *work]) == 0
    after = load_file(offline / "out" / "epoch-0.safetensors")
    assert after.keys() == before.keys()
    changed = {n for n, t in after.items() if not torch.equal(t.float(), before[n].float())}
    assert {n for n in before if "output_proj" in n or n.startswith("img_in")} <= changed
    write_pictures(recipe, offline)
    capsys.readouterr()
    words = ["validate", "--recipe", name, "--full", str(offline / "out" / "epoch-0.safetensors"), "--json"]
    words += ["--width", str(WIDTH), "--height", str(HEIGHT), "--num-inference-steps", "2", "-o", "drawn.png"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["difference"] > 0


def test_a_new_controlnet_does_not_replace_a_file(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (offline / "net.safetensors").write_bytes(b"mine")
    assert main(["controlnet", "new", "-o", str(offline / "net.safetensors"), "--model", "tiny"]) == 1
    assert "--overwrite" in capsys.readouterr().err
