"""The training and validation commands of docs/models.md, each row and form, on tiny files in the layout of the hub:
train, save, load, draw.

What the form says is left as published; only the amount of work is less, and references are not brought to a megapixel.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwenimage_core.cli.main import main
from qwenimage_core.recipes import all_recipes
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.values import Recipe, TrainingForm
from qwenimage_training.settings import MODES

from .examples import HEIGHT, WIDTH, assert_drawn, tiny_request, write_pictures
from .test_models_page import table

CELLS = [
    pytest.param(recipe, form, id=f"{recipe.name}-{form.mode}")
    for _, recipe in all_recipes(PluginRegistry.discover()).values()
    for form in recipe.training
]
TABLE = {name: commands for name, *commands in table("Training")}
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
        "seed": 1,
        "rand_device": "cpu",
        "num_inference_steps": 2,
        "cfg_scale": 1,
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


def tiny_options(recipe: Recipe, form: TrainingForm, folder: Path) -> list[str]:
    """The only changes to a training command: the data, the amount of work, and sizes."""
    options = {
        "dataset_base_path": folder,
        "dataset_repeat": 1,
        "num_epochs": 1,
        "output_path": folder / "out",
    }
    if form.mode == "lora":
        options["lora_rank"] = 4  # of the tiny files that some forms start from
    if "edit_image" in form.arguments.get("extra_inputs", ""):
        options["extra_inputs"] = f"{form.arguments['extra_inputs']},{AS_THEY_ARE}"
    if "height" in form.arguments:
        options |= {"height": HEIGHT, "width": WIDTH}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize(("recipe", "form"), CELLS)
def test_the_commands_of_a_form_train_save_load_and_draw(
    recipe: Recipe, form: TrainingForm, offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, lora, validate = TABLE[recipe.name]
    write_pictures(recipe, offline)
    data = offline / "data"
    data.mkdir()
    (data / "metadata.json").write_text(json.dumps([row(recipe, form, data)]))
    program, *words = shlex.split(full if form.mode == "full" else lora)
    assert program == "qwenimage"
    assert main([*words, *tiny_options(recipe, form, data)]) == 0
    program, *words = shlex.split(validate)
    assert program == "qwenimage"
    words = words[: words.index("--recipe") + 2]  # the table names the file that a whole run ends with
    for field, value in tiny_request(recipe).items():
        words += [
            f"--{field.replace('_', '-')}",
            str(value).lower() if isinstance(value, bool) else str(value),
        ]
    drawn, file = offline / "drawn.png", data / "out" / "epoch-0.safetensors"
    capsys.readouterr()
    assert main([*words, f"--{form.mode}", str(file), "-o", str(drawn), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert_drawn([Image.open(path) for path in said["pictures"]], recipe)
    assert Image.open(said["sheet"]).width > 2 * WIDTH
    assert said["difference"] > 0, "what was trained draws something else"


def test_the_table_names_the_files_of_whole_runs() -> None:
    for name, (_, _, validate) in TABLE.items():
        epochs = {"lora": "epoch-4", "full": "epoch-1"}
        if validate != "-":
            mode = "lora" if " --lora " in validate else "full"
            assert validate.endswith(f"--{mode} models/{epochs[mode]}.safetensors"), name
            assert MODES[mode]["num_epochs"] == int(epochs[mode].removeprefix("epoch-")) + 1
