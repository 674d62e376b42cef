"""Annotators: pictures to the maps that ControlNets are trained on. Canny is our own; the others come with an extra.

`canny` gives what OpenCV's does (Sobel of 3 x 3, the sum of absolute derivatives as strength, the strongest of the
three colours, four directions, hysteresis over eight neighbours).
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qwenimage_core.errors import RequestError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

# Name -> class of controlnet_aux.
DETECTORS = {
    "depth": "MidasDetector",
    "softedge": "HEDdetector",
    "lineart": "LineartDetector",
    "lineart_anime": "LineartAnimeDetector",
    "openpose": "OpenposeDetector",
    "normal": "NormalBaeDetector",
}
KNOWN = ("canny", *DETECTORS)
PACKAGE = "controlnet_aux"
WEIGHTS = "lllyasviel/Annotators"
TAN_22 = 0.4142135623730950488


def check_installed(name: str) -> None:
    """RequestError unless this annotator can run here."""
    if name in DETECTORS and find_spec(PACKAGE) is None:
        raise RequestError(
            f"The annotator {name} needs controlnet-aux.",
            mend='pip install "qwenimage-blockwise-controlnet[annotators]", or give a finished map as image',
        )


def annotate(picture: Image.Image, name: str) -> Image.Image:
    """The map of a picture, RGB, of the same size. `name` is one of `KNOWN`."""
    check_installed(name)
    if name == "canny":
        return canny(picture)
    detector: Any = getattr(import_module(PACKAGE), DETECTORS[name]).from_pretrained(WEIGHTS)
    side = min(picture.size)
    options = {"include_hand": True, "include_face": True} if name == "openpose" else {}
    found = detector(picture.convert("RGB"), detect_resolution=side, image_resolution=side, **options)
    return found.convert("RGB").resize(picture.size)


def canny(picture: Image.Image, low: int = 100, high: int = 200) -> Image.Image:
    """Edges, white on black, RGB. An edge begins where the strength is above `high` and goes on above `low`."""
    import numpy as np
    import torch
    from PIL import Image

    pixels_HW3 = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.int32))
    dx_HW, dy_HW = _derivatives(pixels_HW3.permute(2, 0, 1))
    ridge_HW = _ridges(dx_HW, dy_HW, low)
    edges_HW = _connected(ridge_HW & (dx_HW.abs() + dy_HW.abs() > high), ridge_HW)
    return Image.fromarray(edges_HW.to(torch.uint8).mul(255).numpy()).convert("RGB")


def _derivatives(x_CHW: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel derivatives along columns and rows of the colour where they are strongest, the border repeated."""
    import torch
    import torch.nn.functional as F

    x = F.pad(x_CHW[None].float(), (1, 1, 1, 1), mode="replicate")[0]
    smooth_rows = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    smooth_columns = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    dx_CHW = (smooth_rows[:, :, 2:] - smooth_rows[:, :, :-2]).int()
    dy_CHW = (smooth_columns[:, 2:] - smooth_columns[:, :-2]).int()
    strongest_1HW = (dx_CHW.abs() + dy_CHW.abs()).argmax(dim=0, keepdim=True)
    return torch.take_along_dim(dx_CHW, strongest_1HW, 0)[0], torch.take_along_dim(dy_CHW, strongest_1HW, 0)[
        0
    ]


def _ridges(dx_HW: Tensor, dy_HW: Tensor, low: int) -> Tensor:
    """Where the strength is above `low` and no neighbour across the edge is stronger."""
    import torch
    import torch.nn.functional as F

    strength = dx_HW.abs() + dy_HW.abs()
    padded = F.pad(strength, (1, 1, 1, 1))
    H, W = strength.shape

    def neighbour(down: int, right: int) -> Tensor:
        return padded[1 + down : 1 + down + H, 1 + right : 1 + right + W]

    x, y = dx_HW.abs().double(), dy_HW.abs().double()
    flat, steep = y < x * TAN_22, y > x * (TAN_22 + 2)  # tan 67.5 = tan 22.5 + 2
    same_sign = (dx_HW ^ dy_HW) >= 0
    falling = (strength > neighbour(-1, -1)) & (strength > neighbour(1, 1))
    rising = (strength > neighbour(-1, 1)) & (strength > neighbour(1, -1))
    across = torch.where(same_sign, falling, rising)
    across = torch.where(steep, (strength > neighbour(-1, 0)) & (strength >= neighbour(1, 0)), across)
    across = torch.where(flat, (strength > neighbour(0, -1)) & (strength >= neighbour(0, 1)), across)
    return across & (strength > low)


def _connected(seeds_HW: Tensor, ridge_HW: Tensor) -> Tensor:
    """The parts of `ridge` that touch a seed, through eight neighbours."""
    import torch.nn.functional as F

    found = seeds_HW
    while True:
        wider = (F.max_pool2d(found[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0) & ridge_HW
        if bool((wider == found).all()):
            return found
        found = wider
