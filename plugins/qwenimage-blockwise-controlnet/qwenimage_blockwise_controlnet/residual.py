"""From a ControlNetInput to a residual: the control latents once, then a delta a block.

B pictures, N noise tokens, C packed channels, D transformer width, h and w latent pixels, P latent pixels a token.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from qwenimage_blockwise_controlnet.annotators import annotate
from qwenimage_blockwise_controlnet.component import KIND
from qwenimage_core.errors import RequestError
from qwenimage_core.images import to_tensor
from qwenimage_core.layout import NOISE, Grid
from qwenimage_core.values import Residual, Tokens

if TYPE_CHECKING:
    from PIL import Image

    from qwenimage_blockwise_controlnet.fields import ControlNetInput
    from qwenimage_blockwise_controlnet.model import BlockwiseControlNet
    from qwenimage_core.context import Context
    from qwenimage_core.layout import Layout

WINDOW_TOLERANCE = 1e-4


def check_target(layout: Layout) -> None:
    """A control picture belongs to one picture, not to several layers at once."""
    noise = layout[NOISE]
    if noise.grid is not None and noise.grid.frames > 1:
        raise RequestError(
            f"blockwise-controlnet guides one picture; {noise.owner} draws several at once, and the control fits none.",
            got=f"a target of {noise.grid.frames} layers",
            mend=f"leave out blockwise_controlnet_inputs, or have {noise.owner} draw one (layer_num=0, for layers)",
        )


def residual(ctx: Context, number: int, given: ControlNetInput) -> Residual:
    """The residual of an input (counted from 1) in the steps of its window."""
    steps = len(ctx.sigmas) - 1
    acting = active_steps(steps, given.start, given.end)
    if not acting:
        raise RequestError(
            f"Input {number} of blockwise_controlnet_inputs acts in none of the {steps} steps.",
            got=f"start={given.start:g}, end={given.end:g}",
            expected="a window that holds one of " + ", ".join(f"{p:.3g}" for p in progress(steps)[:8]),
            mend="widen the window, or take more steps",
        )
    control = Control(ctx, given)
    return Residual(
        name=f"controlnet {number} (id {given.controlnet_id}, scale {given.scale:g})",
        delta=control.delta,
        inputs=(Tokens(control.grid.tokens, control.tokens, control.grid),),
        steps=None if len(acting) == steps else acting,
    )


def progress(steps: int) -> list[float]:
    """Of each step: 1 at the first, 0 at the last (0 too where there is only one)."""
    return [(steps - 1 - i) / max(steps - 1, 1) for i in range(steps)]


def active_steps(steps: int, start: float, end: float) -> tuple[int, ...]:
    """Steps whose progress lies within end..start, bounds included."""
    low, high = end - WINDOW_TOLERANCE, start + WINDOW_TOLERANCE
    return tuple(i for i, p in enumerate(progress(steps)) if low <= p <= high)


class Control:
    """One input at work: its net, its control tokens, its deltas."""

    def __init__(self, ctx: Context, given: ControlNetInput) -> None:
        self.ctx, self.given = ctx, given
        multiple = ctx.backbone.size_multiple
        self.grid = Grid(height=given.image.height // multiple, width=given.image.width // multiple)

    @cached_property
    def net(self) -> BlockwiseControlNet:
        found: Any = self.ctx.component(KIND, self.given.controlnet_id)
        return found

    def tokens(self) -> torch.Tensor:
        """(1, N, D): what the net makes of the picture, and of the mask where it reads one."""
        given = self.given
        picture = annotate(given.image, given.processor_id) if given.processor_id else given.image
        if given.inpaint_mask is None:
            x_1NC = self.ctx.encode_picture(picture).value
        else:
            x_1NC = self.ctx.encode_picture(blackened(picture, given.inpaint_mask)).value
            patch = self.ctx.backbone.patch_size
            kept_11hw = keep_mask(given.inpaint_mask, patch * self.grid.height, patch * self.grid.width)
            # packed as latents are, as one channel more: (1, 1, h, w) -> (1, P, H, W) -> (1, N, P)
            kept_1NP = F.pixel_unshuffle(kept_11hw, patch).flatten(2).transpose(1, 2)
            x_1NC = torch.cat([x_1NC, kept_1NP.to(x_1NC)], dim=2)
        return self.net.control(x_1NC.to(self.net.img_in.bias))

    def delta(self, block: int, step: int, tokens_BND: torch.Tensor, y_1ND: torch.Tensor) -> torch.Tensor:
        return self.given.scale * self.net.controlnet_blocks[block](tokens_BND, y_1ND)


def blackened(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture, black (and transparent, if it has an alpha) where the mask, resized bicubically to it, is above
    mid-grey: what is to be repainted."""
    from PIL import Image

    picture = picture if picture.mode == "RGBA" else picture.convert("RGB")
    on_HW = to_tensor(mask.convert("RGB").resize(picture.size))[0].mean(dim=0) > 0
    hole = Image.fromarray(on_HW.to(torch.uint8).mul(255).numpy())
    return Image.composite(Image.new(picture.mode, picture.size), picture, hole)


def keep_mask(mask: Image.Image, height: int, width: int) -> torch.Tensor:
    """(1, 1, h, w) in [0, 1], 1 where the picture stays: the mask's mean over colours, by nearest pixel, reversed."""
    m_11HW = (to_tensor(mask.convert("RGB")) + 1).mean(dim=1, keepdim=True) / 2
    return 1 - F.interpolate(m_11HW, size=(height, width), mode="nearest")
