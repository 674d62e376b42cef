"""A plugin of a third party, as a single file, and the files of a model with its net."""

from __future__ import annotations

from pathlib import Path

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


def parts(folder: Path, net: Path) -> dict:
    return {
        "model": None,
        "model_paths": [*(str(folder / n) for n in ("transformer", "text_encoder", "vae")), str(net)],
        "tokenizer_path": str(folder / "tokenizer"),
    }
