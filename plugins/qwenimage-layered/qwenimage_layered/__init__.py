"""Layers: a picture is taken apart into pictures with transparency that lie over each other.

All layers are denoised together, each a frame of the noise; the picture itself is an image segment behind them, on
frame -1. Layered-Control draws one layer alone, the one that the prompt names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenimage_core.errors import RequestError
from qwenimage_core.hooks import hookimpl
from qwenimage_core.values import Condition, ImageSegment, Recipe, Target
from qwenimage_layered.fields import Fields
from qwenimage_layered.recipes import RECIPES
from qwenimage_layered.recompose import Recomposition, recompose

if TYPE_CHECKING:
    from qwenimage_core.context import Context

__all__ = ["Recomposition", "recompose"]

NAME = "layered"
HOOK_API = ">=1.0,<2"
SEGMENT = "layered/input"
RANK = 300
FRAME = -1


@hookimpl
def request_fields() -> type[Fields]:
    return Fields


@hookimpl
def recipes() -> Sequence[Recipe]:
    return RECIPES


@hookimpl
def check_request(ctx: Context) -> None:
    """Refuse a model without layers, a picture without alpha or of another size, and one layer that nothing names."""
    request, picture = ctx.request, ctx.request.layer_input_image
    if ctx.backbone.position_rule != "layer3d" or not ctx.backbone.additional_t:
        raise RequestError(
            "layer_input_image needs a transformer that knows layers.",
            got="one without: use_layer3d_rope and use_additional_t_cond are not in its config.json",
            mend="load Qwen/Qwen-Image-Layered or DiffSynth-Studio/Qwen-Image-Layered-Control",
        )
    if not picture.has_transparency_data:
        raise RequestError(
            "layer_input_image has no alpha channel, and the model takes pictures with one.",
            got=f"a picture of mode {picture.mode}",
            expected="RGBA",
            mend='convert it if it has no transparent parts: picture.convert("RGBA")',
        )
    if picture.size != (request.width, request.height):
        raise RequestError(
            "layer_input_image is not of the size that is drawn.",
            got=f"{picture.width} x {picture.height}",
            expected=f"{request.width} x {request.height}",
            mend="resize the picture, or give its size as width and height",
        )
    if request.layer_num == 0 and not ctx.prompt.strip():
        raise RequestError(
            "layer_num=0 draws the one layer that the prompt names, and the prompt is empty.",
            mend="name the element to take out of the picture (Layered-Control), or give a layer_num of at least 1",
        )


@hookimpl
def condition(ctx: Context) -> Condition:
    """Frame 0 repeats the whole picture and the layers follow, bottom first; or frame 0 is the one layer asked for."""
    return Condition(target=Target(frames=ctx.request.layer_num + 1, channels=4, series=True))


@hookimpl
def latent_concat(ctx: Context) -> Sequence[ImageSegment]:
    tokens = ctx.encode_picture(ctx.request.layer_input_rgba)
    return [ImageSegment(name=SEGMENT, tokens=tokens, rank=RANK, frame=FRAME)]
