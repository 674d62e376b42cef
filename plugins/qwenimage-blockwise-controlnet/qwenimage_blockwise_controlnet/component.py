"""What a blockwise ControlNet's checkpoint looks like. No torch at import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qwenimage_core import ComponentSpec

if TYPE_CHECKING:
    from torch import nn

KIND = "blockwise_controlnet"
_BLOCK = "controlnet_blocks.*."


def _build(config: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    from qwenimage_blockwise_controlnet.model import BlockwiseControlNet

    blocks = {name.split(".")[1] for name in shapes if name.startswith("controlnet_blocks.")}
    width, channels = shapes["img_in.weight"]
    return BlockwiseControlNet(blocks=len(blocks), channels=channels, width=width)


CONTROLNET = ComponentSpec(
    name=KIND,
    signature=(
        "img_in.weight",
        f"{_BLOCK}x_rms.weight",
        f"{_BLOCK}y_rms.weight",
        f"{_BLOCK}input_proj.weight",
        f"{_BLOCK}output_proj.weight",
    ),
    build=_build,
    blocks=("controlnet_blocks.*",),
    denoises=True,
    many=True,
    published=("DiffSynth-Studio/Qwen-Image-Blockwise-ControlNet-Canny", "model.safetensors"),
)
