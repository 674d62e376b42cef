"""Image to LoRA: pictures become a LoRA, for the request that gives them or, by `qwenimage i2l`, as a file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from qwenimage_core import ComponentSpec
from qwenimage_core.hooks import hookimpl
from qwenimage_core.values import Condition, Recipe
from qwenimage_i2l.components import BIAS_FILE, COMPONENTS
from qwenimage_i2l.fields import Fields
from qwenimage_i2l.recipes import RECIPES

if TYPE_CHECKING:
    import typer

    from qwenimage_core.adapters.weights import LoraWeights
    from qwenimage_core.context import Context

NAME = "i2l"
HOOK_API = ">=1.0,<2"


@hookimpl
def request_fields() -> type[Fields]:
    return Fields


@hookimpl
def components() -> Sequence[ComponentSpec]:
    return COMPONENTS


@hookimpl
def recipes() -> Sequence[Recipe]:
    return RECIPES


@hookimpl
def commands(app: typer.Typer) -> None:
    from qwenimage_i2l.command import i2l

    app.command()(i2l)


@hookimpl
def check_request(ctx: Context) -> None:
    from qwenimage_i2l.check import check_request as check

    check(ctx)


@hookimpl
def condition(ctx: Context) -> Condition | None:
    """The LoRA of the pictures, made when the run starts; none at strength 0."""
    if ctx.request.i2l_images is None or not ctx.request.i2l_strength:
        return None
    from qwenimage_core import Adapter

    weights = partial(_lora, ctx)
    return Condition(adapters=(Adapter(name=NAME, weights=weights, strength=ctx.request.i2l_strength),))


def _lora(ctx: Context) -> LoraWeights:
    """Made once a request, whatever the number of its prompts."""
    from qwenimage_core import ModelConfig
    from qwenimage_i2l.lora import TEMPLATE, make_lora, read_bias

    request = ctx.request
    if not request.i2l_made:
        bias = read_bias(request.i2l_bias or ModelConfig(**BIAS_FILE)) if request.i2l_biased else None
        request.i2l_made.append(
            make_lora(
                request.i2l_images,
                request.i2l_networks,
                component=ctx.component,
                read=lambda picture: ctx.encode_prompt("", TEMPLATE, [picture]).value,
                bias=bias,
            )
        )
    return request.i2l_made[0]
