"""What can only be told with the loaded ControlNets at hand. Reads their headers, never their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qwenimage_blockwise_controlnet.annotators import check_installed
from qwenimage_blockwise_controlnet.component import KIND
from qwenimage_core.errors import RequestError
from qwenimage_core.images import is_transparent

if TYPE_CHECKING:
    from qwenimage_blockwise_controlnet.fields import ControlNetInput
    from qwenimage_core.context import Context

MASK_ASPECT = 0.02
"""How far, as a part, a mask's aspect may be from the picture's: small masks are rounded."""


def check_input(ctx: Context, number: int, given: ControlNetInput) -> None:
    """Raises RequestError for an input (counted from 1) that cannot act as asked."""
    what = f"Input {number} of blockwise_controlnet_inputs"
    net = skeleton(ctx, what, given.controlnet_id)
    _check_base(ctx, given.controlnet_id, net)
    _check_mask(ctx, what, given, net)
    _check_sizes(ctx, what, given)
    _check_opaque(ctx, what, given)
    if given.processor_id is not None:
        check_installed(given.processor_id)


def skeleton(ctx: Context, what: str, index: int) -> Any:
    """The ControlNet of this number, as its headers make it."""
    loaded = ctx.components.get(KIND, ())
    if index >= len(loaded):
        raise RequestError(
            f"{what} names a ControlNet that is not loaded.",
            got=f"controlnet_id={index}",
            expected=f"0 to {len(loaded) - 1}: {len(loaded)} loaded" if loaded else "none is loaded",
            mend="give its files as one more ModelConfig in model_configs; they are counted in that order",
        )
    return loaded[index].skeleton


def takes_mask(ctx: Context, net: Any) -> bool:
    """Whether a ControlNet reads a mask beside the picture's latents."""
    return bool(net.channels != ctx.backbone.packed_channels)


def _check_base(ctx: Context, index: int, net: Any) -> None:
    blocks, packed = len(net.controlnet_blocks), ctx.backbone.packed_channels
    allowed = (packed, packed + ctx.backbone.patch_size**2)
    if (blocks, net.width) != (ctx.backbone.blocks, ctx.backbone.token_width) or net.channels not in allowed:
        raise RequestError(
            f"ControlNet {index} is for another base model.",
            got=f"{blocks} blocks of width {net.width}, {net.channels} input channels",
            expected=f"{ctx.backbone.blocks} blocks of width {ctx.backbone.token_width}, "
            f"{allowed[0]} input channels or, with a mask, {allowed[1]}",
        )


def _check_mask(ctx: Context, what: str, given: ControlNetInput, net: Any) -> None:
    reads = f"ControlNet {given.controlnet_id} has {net.channels} input channels"
    if takes_mask(ctx, net) and given.inpaint_mask is None:
        raise RequestError(
            f"{what} lacks inpaint_mask: {reads}, so it is an inpaint ControlNet.",
            mend="give inpaint_mask, white where the picture is repainted",
        )
    if not takes_mask(ctx, net) and given.inpaint_mask is not None:
        raise RequestError(
            f"{what} has inpaint_mask, which cannot act: {reads}, none of them for a mask.",
            mend="leave inpaint_mask out, or name an inpaint ControlNet by controlnet_id",
        )


def _check_opaque(ctx: Context, what: str, given: ControlNetInput) -> None:
    seen = {"inpaint_mask": given.inpaint_mask} | (
        {"image": given.image} if ctx.backbone.image_channels == 3 else {}
    )
    for name, picture in seen.items():
        if picture is not None and is_transparent(picture):
            raise RequestError(
                f"The {name} of {what[0].lower()}{what[1:]} is partly transparent, which this model cannot see.",
                got=f"a picture of mode {picture.mode}",
                expected="a picture without transparency",
                mend='put it on a background first, or drop the transparency with picture.convert("RGB")',
            )


def _check_sizes(ctx: Context, what: str, given: ControlNetInput) -> None:
    width, height = ctx.request.width, ctx.request.height
    if given.image.size != (width, height):
        other = abs(given.image.width / given.image.height * height / width - 1) > MASK_ASPECT
        raise RequestError(
            f"The image of {what[0].lower()}{what[1:]} has another {'aspect' if other else 'size'} than the output.",
            got="{} x {}".format(*given.image.size),
            expected=f"{width} x {height}",
            mend="crop it to that aspect, then resize it"
            if other
            else "resize it, or give its size as width and height",
        )
    mask = given.inpaint_mask
    if mask is not None and abs(mask.width / mask.height * height / width - 1) > MASK_ASPECT:
        raise RequestError(
            f"The inpaint_mask of {what[0].lower()}{what[1:]} has another aspect than the picture.",
            got=f"{mask.width} x {mask.height}",
            expected=f"{width} x {height}, or the same aspect",
        )
