"""Editing: the prompt is read together with reference pictures, and the drawn picture sees them as tokens.

One picture takes the prompt template of Qwen-Image-Edit, a list that of Edit-2509 and 2511. Each reference becomes an
image segment, `edit/1`, `edit/2`, ..., on a frame of its own after the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenimage_core.errors import RequestError
from qwenimage_core.hooks import hookimpl
from qwenimage_core.images import is_transparent
from qwenimage_core.layout import NOISE
from qwenimage_core.values import Condition, ImageSegment, Recipe, Tokens, TransformerOptions
from qwenimage_edit.fields import Fields
from qwenimage_edit.recipes import RECIPES

if TYPE_CHECKING:
    from qwenimage_core.context import Context

NAME = "edit"
HOOK_API = ">=1.0,<2"
RANK = 200


@hookimpl
def request_fields() -> type[Fields]:
    return Fields


@hookimpl
def recipes() -> Sequence[Recipe]:
    return RECIPES


@hookimpl
def check_request(ctx: Context) -> None:
    """Refuse transparency that the model cannot see, and a size that cannot become tokens as it is."""
    multiple = ctx.backbone.size_multiple
    for number, reference in enumerate(ctx.request.edit_references, 1):
        picture = reference.encoded
        if ctx.backbone.image_channels == 3 and is_transparent(picture):
            raise RequestError(
                f"Picture {number} of edit_image is partly transparent, which this model cannot see.",
                got=f"a picture of mode {reference.given.mode}",
                expected="a picture without transparency",
                mend='put it on a background first, or drop the transparency with picture.convert("RGB")',
            )
        if picture.width % multiple or picture.height % multiple:
            raise RequestError(
                f"Picture {number} of edit_image cannot be taken as it is: its sides are no multiples of {multiple}.",
                got=f"{picture.width} x {picture.height}",
                mend="resize it, or leave out edit_image_auto_resize=False",
            )


@hookimpl
def condition(ctx: Context) -> Condition | None:
    """Prompt and negative prompt are encoded with the pictures; `zero_cond_t`, if given, overrules the checkpoint."""
    request = ctx.request
    if not request.edit_references:
        return None
    template = "edit_plus" if isinstance(request.edit_image, list) else "edit"
    seen = [reference.seen for reference in request.edit_references]

    def encode(prompt: str) -> Tokens:
        return ctx.encode_prompt(prompt, template, seen)

    options = None if request.zero_cond_t is None else TransformerOptions(zero_cond_t=request.zero_cond_t)
    return Condition(encode_prompt=encode, options=options)


@hookimpl
def latent_concat(ctx: Context) -> Sequence[ImageSegment]:
    """A segment a reference. With `edit_rope_interpolation` its positions are spread over the drawn picture's own,
    so that a small reference covers all of it; on an equal grid that changes nothing."""
    onto = NOISE if ctx.request.edit_rope_interpolation else None
    return [
        ImageSegment(
            name=f"edit/{number}", tokens=ctx.encode_picture(reference.encoded), rank=RANK, onto=onto
        )
        for number, reference in enumerate(ctx.request.edit_references, 1)
    ]
