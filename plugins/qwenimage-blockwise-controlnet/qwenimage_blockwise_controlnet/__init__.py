"""Blockwise ControlNets: a side net adds a residual to the noise tokens after every transformer block, guided by a
picture's edges, its depth, or what surrounds the part to be repainted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenimage_blockwise_controlnet.component import CONTROLNET
from qwenimage_blockwise_controlnet.fields import ControlNetInput, Fields
from qwenimage_blockwise_controlnet.recipes import RECIPES
from qwenimage_core import ComponentSpec
from qwenimage_core.hooks import hookimpl
from qwenimage_core.values import Recipe, Residual

if TYPE_CHECKING:
    import typer

    from qwenimage_core.context import Context
    from qwenimage_core.layout import Layout

NAME = "blockwise-controlnet"
HOOK_API = ">=1.0,<2"

__all__ = ["ControlNetInput"]


@hookimpl
def request_fields() -> type[Fields]:
    return Fields


@hookimpl
def components() -> Sequence[ComponentSpec]:
    return (CONTROLNET,)


@hookimpl
def recipes() -> Sequence[Recipe]:
    return RECIPES


@hookimpl
def check_request(ctx: Context) -> None:
    from qwenimage_blockwise_controlnet.check import check_input

    for number, given in enumerate(ctx.request.blockwise_controlnet_inputs or (), 1):
        check_input(ctx, number, given)


@hookimpl
def residual_inject(ctx: Context, layout: Layout) -> Sequence[Residual]:
    """A residual an input, but for those of scale 0."""
    from qwenimage_blockwise_controlnet.residual import check_target, residual

    check_target(layout)
    inputs = enumerate(ctx.request.blockwise_controlnet_inputs or (), 1)
    return [residual(ctx, number, given) for number, given in inputs if given.scale]


@hookimpl
def commands(app: typer.Typer) -> None:
    from qwenimage_blockwise_controlnet.command import app as controlnet

    app.add_typer(controlnet, name="controlnet")
