"""Every published training form of every recipe, on tiny files in the layout of the hub: train, save, load, draw.

What the form says is left as published; only the amount of work is less, and references are not brought to a megapixel.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwenimage_core import ModelConfig, QwenImagePipeline
from qwenimage_core.recipes import all_recipes
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.values import Recipe, TrainingForm
from qwenimage_training.arguments import TrainingArguments
from qwenimage_training.objectives import OBJECTIVES
from qwenimage_training.run import run
from qwenimage_training.settings import merged, validated

from .examples import HEIGHT, WIDTH, tiny_request, write_pictures

CELLS = [
    pytest.param(recipe, form, id=f"{recipe.name}-{form.mode}")
    for _, recipe in all_recipes(PluginRegistry.discover()).values()
    for form in recipe.training
    if form.arguments.get("task", "sft") in OBJECTIVES
]
AS_THEY_ARE = "edit_image_auto_resize"


def picture(folder: Path, name: str, mode: str = "RGB") -> str:
    pixels = np.random.default_rng(len(name)).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(folder / name)
    return name


def row(recipe: Recipe, form: TrainingForm, folder: Path) -> dict[str, Any]:
    """A row with every column that the form names."""
    layers = recipe.example.get("layer_num")
    several = isinstance(recipe.example.get("edit_image"), list)
    columns = {
        "image": "target.png",
        "edit_image": ["one.png", "other.png"] if several else "one.png",
        "blockwise_controlnet_image": "control.png",
        "blockwise_controlnet_inpaint_mask": "mask.png",
        "eligen_entity_prompts": ["a cat", "a mat"],
        "eligen_entity_masks": ["mask.png", "mask.png"],
        "context_image": "context.png",
        "layer_input_image": "whole.png",
        "layer_num": layers,
    }
    if layers is not None:
        columns["image"] = [f"layer{i}.png" for i in range(layers + 1)]
    named = {"image"}
    for option in ("data_file_keys", "extra_inputs"):
        named |= set(form.arguments.get(option, "image").split(","))
    written = {name: columns[name] for name in named}
    for value in written.values():
        for name in value if isinstance(value, list) else [value]:
            if str(name).endswith(".png"):
                picture(folder, name, "RGBA" if name.startswith(("layer", "whole")) else "RGB")
    if "edit_image" in written:
        written[AS_THEY_ARE] = False
    return {"prompt": "Context_Control. a cat", **written}


def arguments_of(recipe: Recipe, form: TrainingForm, folder: Path) -> TrainingArguments:
    given: dict[str, Any] = {
        "dataset_base_path": str(folder),
        "dataset_repeat": 1,
        "num_epochs": 1,
        "output_path": str(folder / "out"),
    }
    if form.mode == "lora":
        given["lora_rank"] = 4  # of the tiny files that some forms start from
    if "edit_image" in form.arguments.get("extra_inputs", ""):
        given["extra_inputs"] = f"{form.arguments['extra_inputs']},{AS_THEY_ARE}"
    return validated(merged(form.mode, recipe, {}, given))


def opened(recipe: Recipe, replaced: dict[int, Path]) -> QwenImagePipeline:
    """The recipe's models, some of them as they were trained."""
    configs = [
        ModelConfig(path=replaced[i]) if i in replaced else ModelConfig(**model)
        for i, model in enumerate(recipe.models)
    ]
    pipe = QwenImagePipeline.from_pretrained(model_configs=configs, device="cpu", torch_dtype=torch.float32)
    pipe.defaults, pipe.options = dict(recipe.defaults), recipe.options
    return pipe


@pytest.mark.parametrize(("recipe", "form"), CELLS)
def test_a_form_trains_saves_loads_and_draws(recipe: Recipe, form: TrainingForm, offline: Path) -> None:
    write_pictures(recipe, offline)
    data = offline / "data"
    data.mkdir()
    (data / "metadata.json").write_text(json.dumps([row(recipe, form, data)]))
    arguments = arguments_of(recipe, form, data)
    run(arguments)
    file = arguments.output / "epoch-0.safetensors"
    request = {**recipe.example, **tiny_request(recipe), "progress_bar_cmd": iter, "output_type": "latent"}
    before = opened(recipe, {})(**request)
    if form.mode == "lora":
        pipe = opened(recipe, {})
        pipe.load_lora(file)
    else:
        pipe = opened(recipe, {3 if arguments.trainable_models == "blockwise_controlnet" else 0: file})
    after = pipe(**request)
    assert torch.isfinite(after).all()
    assert not torch.equal(after, before)
