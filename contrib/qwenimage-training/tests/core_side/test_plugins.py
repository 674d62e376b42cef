"""Plugins are trained with no line of their own in the trainer: a single file, the columns of an item, a component."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qwenimage_core.errors import QwenImageError
from qwenimage_core.registry import PluginRegistry
from qwenimage_training.errors import TrainingError
from qwenimage_training.run import make_trainer, run

from .conftest import picture

PLUGIN = '''
"""A third party's: pictures to look at, each with a weight, given as a list of items."""
from typing import Annotated
import torch
from torch import nn
from pydantic import BaseModel, ConfigDict
from qwenimage_core import ComponentSpec, FieldsModel, ImageSegment, Picture, Residual, Tokens, hookimpl
from qwenimage_core.request import Columns

NAME = "glance"

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.glance_in = nn.Linear(64, width)

class Glance(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    image: Picture
    weight: float = 1.0

class Fields(FieldsModel):
    glances: Annotated[list[Glance] | None, Columns("glance_")] = None
    side_image: Picture | None = None

@hookimpl
def request_fields():
    return Fields

@hookimpl
def components():
    build = lambda config, shapes: Net(shapes["glance_in.weight"][0])
    return [ComponentSpec(name="glance_net", signature=("glance_in.weight",), build=build)]

@hookimpl
def latent_concat(ctx):
    side = ctx.request.side_image
    return [ImageSegment(name="side", tokens=ctx.encode_picture(side), rank=200)] if side else []

@hookimpl
def residual_inject(ctx, layout):
    found = []
    for i, glance in enumerate(ctx.request.glances or ()):
        tokens = ctx.encode_picture(glance.image)
        def compute(tokens=tokens):
            net = ctx.component("glance_net")
            return net.glance_in(tokens.value)
        def delta(block, step, x, y, weight=glance.weight):
            return weight * y
        found.append(Residual(name=f"glance {i}", delta=delta, inputs=(Tokens(tokens.count, compute),), blocks=(0,)))
    return found
'''


@pytest.fixture
def glance(tmp_path: Path) -> dict:
    """Options that train with the plugin: its file, its net's weights, and rows with its columns."""
    from safetensors.torch import save_file

    (tmp_path / "glance.py").write_text(PLUGIN)
    rows = []
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
        row = {"image": f"{i}.png", "prompt": "a cat"}
        if i:  # rows may lack what others have
            row |= {"glance_image": f"{i}.png", "glance_weight": 0.5, "side_image": f"{i}.png"}
        rows.append(row)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    net = tmp_path / "net.safetensors"
    save_file({"glance_in.weight": torch.randn(64, 64) / 8, "glance_in.bias": torch.zeros(64)}, net)
    return {
        "plugin": [str(tmp_path / "glance.py")],
        "dataset_base_path": str(tmp_path),
        "dataset_metadata_path": str(tmp_path / "rows.json"),
        "data_file_keys": "image,glance_image,side_image",
        "extra_inputs": "glance_image,glance_weight,side_image",
        "net": net,
    }


def parts(folder: Path, net: Path) -> dict:
    return {
        "model": None,
        "model_paths": [*(str(folder / n) for n in ("transformer", "text_encoder", "vae")), str(net)],
        "tokenizer_path": str(folder / "tokenizer"),
    }


def test_a_single_file_plugin_is_trained(make_arguments, glance: dict, folder: Path) -> None:
    net = glance.pop("net")
    options = {**glance, **parts(folder, net)}
    trainer = make_trainer(make_arguments(**options))
    planned = [trainer.planner.plan(trainer.dataset[i], f"row {i}").plan for i in range(3)]
    assert [len(p.images) for p in planned] == [0, 1, 1]
    assert [len(p.positive.residuals) for p in planned] == [0, 1, 1]
    [item] = planned[1].request.glances
    assert (item.weight, item.image.size) == (0.5, (64, 48))
    trainer.train()
    assert (trainer.arguments.output / "epoch-0.safetensors").is_file()


def test_a_plugin_s_component_is_trained(make_arguments, glance: dict, folder: Path) -> None:
    from safetensors.torch import load_file

    net = glance.pop("net")
    options = {**glance, **parts(folder, net), "lora": False, "trainable_models": "glance_net"}
    with pytest.raises(TrainingError, match=r"nothing to do with what is trained") as caught:
        run(make_arguments(**options, max_train_steps=3))
    assert "0.png" in str(caught.value.got)
    rows = Path(options["dataset_metadata_path"])
    rows.write_text(json.dumps(json.loads(rows.read_text())[1:]))
    arguments = make_arguments(
        **options, learning_rate=1e-2, remove_prefix_in_ckpt="pipe.glance_net.", num_epochs=2
    )
    run(arguments)
    before, after = load_file(net), load_file(arguments.output / "epoch-1.safetensors")
    assert before.keys() == after.keys()
    assert (before["glance_in.weight"] - after["glance_in.weight"]).abs().min() > 0


def test_a_column_that_no_plugin_knows_is_an_error_that_names_the_row(make_arguments) -> None:
    trainer = make_trainer(make_arguments(extra_inputs="side_image", data_file_keys="image,side_image"))
    with pytest.raises(QwenImageError, match="side_image") as caught:
        trainer.train()
    assert any("metadata.json" in note for note in caught.value.__notes__)


def test_training_is_a_plugin_without_request_fields() -> None:
    import qwenimage_training

    registry = PluginRegistry.discover([qwenimage_training])
    assert registry.get("training").fields == ()
