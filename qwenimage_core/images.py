"""Pictures in and out: bounded reading, and the way between pixels and tensors.

B batch, C image channels, H and W pixels.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image

MAX_PIXELS = (
    16384 * 16384 // 4
)  # 67 megapixels: larger than any picture the family takes, small enough to hold


def open_picture(source: Any) -> Any:
    """A PIL picture from a path; a PIL picture passes through. Either has 8 bits a channel afterwards (see
    `in_eight_bits`). ValueError says what cannot be read and why."""
    from PIL import Image, UnidentifiedImageError

    if source is None:
        return None
    if isinstance(source, Image.Image):
        return in_eight_bits(source)
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"a picture or the path of one is needed, not {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"there is no picture at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is ours
            with Image.open(path) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(
                        f"{path} has {picture.width} x {picture.height} pixels; at most {MAX_PIXELS} are read"
                    )
                picture.load()
                held = in_eight_bits(picture.copy())
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    held.filename = str(path)  # type: ignore[attr-defined]  # kept for the metadata of what is made from it
    return held


def in_eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey, as of depth maps, scaled to 8 bits: pillow's own conversion clips it to white. Other pictures pass
    through; ValueError for values of 32 bits, whose white nobody knows."""
    if picture.mode.startswith("I;16"):
        scaled = picture.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        scaled.info = picture.info  # its orientation
        return scaled
    if picture.mode in ("I", "F"):
        raise ValueError("its values have 32 bits, of which none is agreed to be white; save it with 8 or 16")
    return picture


def is_transparent(picture: Image.Image) -> bool:
    """Whether any pixel lets the background through. An alpha channel that is full everywhere does not count."""
    if not picture.has_transparency_data:
        return False
    return min(picture.convert("RGBA").getchannel("A").tobytes()) < 255


def to_tensor(picture: Image.Image, channels: int = 3) -> torch.Tensor:
    """(1, channels, H, W) float32 in [-1, 1] from a picture; 3 channels read RGB, 4 RGBA, 1 grey. 16-bit grey is
    scaled (see `in_eight_bits`)."""
    import numpy as np
    import torch

    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    pixels_HWC = np.array(in_eight_bits(picture).convert(mode), dtype=np.float32)
    x_CHW = torch.from_numpy(pixels_HWC.reshape(*pixels_HWC.shape[:2], channels)).permute(2, 0, 1)
    return x_CHW[None] * (2 / 255) - 1


def to_pictures(x_BCHW: torch.Tensor) -> list[Image.Image]:
    """Pictures from values in [-1, 1] (clamped), rounded to the nearest of 256 codes; 4 channels give RGBA."""
    import torch
    from PIL import Image

    codes_BHWC = ((x_BCHW.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(codes_HWC.cpu().numpy()) for codes_HWC in codes_BHWC]
