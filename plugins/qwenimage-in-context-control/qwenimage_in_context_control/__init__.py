"""In-context control: a control picture stands beside the drawn one as tokens of the same grid and steers it.

Edges, depth, pose and other maps for In-Context-Control-Union; the brush mask of Layered-Control-V2.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenimage_core.errors import QwenImageWarning, RequestError
from qwenimage_core.hooks import hookimpl
from qwenimage_core.images import is_transparent
from qwenimage_core.values import ImageSegment, Recipe
from qwenimage_in_context_control.fields import Fields
from qwenimage_in_context_control.recipes import RECIPES, TRIGGER

if TYPE_CHECKING:
    from qwenimage_core.context import Context

NAME = "in-context-control"
HOOK_API = ">=1.0,<2"
SEGMENT = "context"
RANK = 100


@hookimpl
def request_fields() -> type[Fields]:
    return Fields


@hookimpl
def recipes() -> Sequence[Recipe]:
    return RECIPES


@hookimpl
def check_request(ctx: Context) -> None:
    """Refuse a picture of another aspect, or with transparency that the model cannot see.

    Warns of a prompt without the words the published LoRA was trained on; Layered-Control-V2, the one user of context
    on models with layers, has none.
    """
    request, picture = ctx.request, ctx.request.context_image
    off = min(
        abs(request.width - request.height * picture.width / picture.height),
        abs(request.height - request.width * picture.height / picture.width),
    )
    if off >= ctx.backbone.size_multiple:  # less is what rounding to tokens makes
        raise RequestError(
            "context_image is of another aspect than the picture to draw, and would be distorted.",
            got=f"{picture.width} x {picture.height}",
            expected=f"the aspect of {request.width} x {request.height}, at any size",
            mend="crop it, or give its aspect as width and height",
        )
    if ctx.backbone.image_channels == 3 and is_transparent(picture):
        raise RequestError(
            "context_image is partly transparent, which this model cannot see.",
            got=f"a picture of mode {picture.mode}",
            expected="a picture without transparency",
            mend='put it on a background first, or drop the transparency with picture.convert("RGB")',
        )
    if ctx.backbone.position_rule != "layer3d" and not ctx.prompt.startswith(TRIGGER.strip()):
        warnings.warn(
            f"The prompt does not begin with {TRIGGER!r}, by which In-Context-Control-Union knows its task; "
            "the control will hardly be followed.",
            QwenImageWarning,
            stacklevel=2,
        )


@hookimpl
def latent_concat(ctx: Context) -> Sequence[ImageSegment]:
    """The control picture at the target's size, first after the noise."""
    return [ImageSegment(name=SEGMENT, tokens=ctx.encode_picture(ctx.request.context_resized), rank=RANK)]
