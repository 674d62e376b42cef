"""From pictures to one LoRA: embed them, run the networks, join what comes out, add the bias.

N pictures, X width of an embedding, T text tokens of width W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwenimage_core.adapters.files import load_lora
from qwenimage_core.adapters.weights import LoraWeights, LowRank
from qwenimage_core.errors import RequestError
from qwenimage_core.loading.sources import locate
from qwenimage_i2l.components import DINOV3, SIGLIP2, network_kind
from qwenimage_i2l.encoders import embed_dinov3, embed_siglip2
from qwenimage_i2l.pictures import COARSE_SIDE, FULL_SIDE, cropped

if TYPE_CHECKING:
    from PIL import Image

    from qwenimage_core import ModelConfig

TEXT_SIDES = {"coarse": COARSE_SIDE, "fine": FULL_SIDE}
"""Which networks read the text encoder, and the side of the picture that it then sees."""

TEMPLATE = "edit"
"""Prompt template in which the text encoder sees a picture; the prompt itself is empty."""


@torch.no_grad()
def make_lora(
    pictures: Sequence[Image.Image],
    networks: Sequence[str],
    *,
    component: Callable[[str], Any],
    read: Callable[[Image.Image], Tensor],
    bias: LoraWeights | None = None,
) -> LoraWeights:
    """The LoRA of pictures, of rank 4 x pictures x networks (and the bias's own).

    Its change of a weight is the mean over pictures of the sum over networks, plus the bias. `component` gives a module
    by kind: each is asked for once, in an order that lets the one before go. `read` is the text encoder: a square
    picture to (1, T, W).
    """
    squares = [cropped(picture, FULL_SIDE) for picture in pictures]
    texts = {
        network: [read(cropped(square, TEXT_SIDES[network])) for square in squares]
        if TEXT_SIDES[network] == FULL_SIDE
        else [read(cropped(picture, TEXT_SIDES[network])) for picture in pictures]
        for network in networks
        if network in TEXT_SIDES
    }
    x_N1X = embed(squares, component)
    made: list[Mapping[str, LowRank]] = []
    for network in networks:
        module = component(network_kind(network))
        read_texts = texts.get(network, [None] * len(pictures))
        made += [module(x_1X, text_1TW) for x_1X, text_1TW in zip(x_N1X, read_texts, strict=True)]
    layers = joined(made, scale=1 / len(pictures))
    if bias is not None:
        layers = joined([layers, bias_layers(bias, layers)])
    mode = "+".join([*networks, "bias"] if bias is not None else networks)
    metadata = {"i2l_mode": mode, "i2l_pictures": str(len(pictures))}
    return LoraWeights(layers, metadata=metadata, source="the LoRA of i2l_images")


def embed(squares: Sequence[Image.Image], component: Callable[[str], Any]) -> list[Tensor]:
    """A (1, X) embedding a picture: SigLIP2's beside DINOv3's."""
    siglip2 = component(SIGLIP2)
    first = [embed_siglip2(siglip2, square) for square in squares]
    dinov3 = component(DINOV3)
    second = [embed_dinov3(dinov3, square) for square in squares]
    return [torch.cat(pair, dim=1) for pair in zip(first, second, strict=True)]


def joined(loras: Sequence[Mapping[str, LowRank]], scale: float = 1.0) -> dict[str, LowRank]:
    """One LoRA whose change is the sum of those of `loras`, times `scale`: ranks add up. All have the same layers."""
    return {
        name: LowRank(
            torch.cat([lora[name].down_RI for lora in loras]) * scale,
            torch.cat([lora[name].up_OR for lora in loras], dim=1),
        )
        for name in loras[0]
    }


def bias_layers(bias: LoraWeights, like: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The layers of the bias, scale 1, in the dtype of `like`; RequestError if it is a LoRA of other layers."""
    layers = {name: change for name, change in bias.modules.items() if isinstance(change, LowRank)}
    shapes = {name: layer.shape for name, layer in layers.items()}
    expected = {name: layer.shape for name, layer in like.items()}
    if len(layers) < len(bias.modules) or shapes != expected:
        odd = sorted(name for name in {*bias.modules, *expected} if shapes.get(name) != expected.get(name))
        raise RequestError(
            "The bias of i2L is a LoRA of other layers than the one it is added to.",
            got=f"{bias.source}: {len(bias.modules)} layers; different: {', '.join(odd[:3])}",
            expected=f"the same {len(expected)} layers, of the same shapes",
            mend="give Qwen-Image-i2L-Bias.safetensors",
        )
    return {
        name: LowRank(
            (layers[name].down_RI.to(layer.down_RI) * layers[name].scale), layers[name].up_OR.to(layer.up_OR)
        )
        for name, layer in like.items()
    }


def read_bias(config: ModelConfig) -> LoraWeights:
    """The bias from its file, downloaded where needed."""
    found = locate(config)
    if len(found) != 1:
        raise RequestError("The bias of i2L is one file.", got=", ".join(Path(f).name for f in found[:6]))
    return load_lora(found[0])
