"""SigLIP2 and DINOv3, as transformers has them, from a picture to one vector.

Constants of the published models are built in; sizes follow from the tensors' shapes. Numbers of heads cannot be read
from shapes: they are the published ones unless a config.json beside the weights says otherwise.

H and W pixels of a square picture; D width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL import Image

Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]

DINOV3_SIDE = 224
DINOV3_MEAN, DINOV3_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build_siglip2(config: Config | None, shapes: Shapes) -> nn.Module:
    """The vision tower with its pooling head. Shapes are those of `SiglipVisionModel`."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    width, channels, patch, _ = shapes["embeddings.patch_embedding.weight"]
    positions = shapes["embeddings.position_embedding.weight"][0]
    inferred = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": math.isqrt(positions) * patch,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, "encoder.layers"),
        "num_attention_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    model = SiglipVisionModel(SiglipVisionConfig(**_stated(config, inferred)))
    del model.embeddings.position_ids  # a buffer that no file fills: `embed_siglip2` sets it
    return model


def build_dinov3(config: Config | None, shapes: Shapes) -> nn.Module:
    """Shapes are those of `DINOv3ViTModel`."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    width, channels, patch, _ = shapes["embeddings.patch_embeddings.weight"]
    layer = "model.layer.0"
    gated = f"{layer}.mlp.gate_proj.weight" in shapes
    inferred = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": DINOV3_SIDE,
        "intermediate_size": shapes[f"{layer}.mlp.up_proj.weight"][0],
        "num_hidden_layers": _count(shapes, "model.layer"),
        "num_attention_heads": 32,
        "num_register_tokens": shapes["embeddings.register_tokens"][1],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "mlp_bias": f"{layer}.mlp.up_proj.bias" in shapes,
        **{
            f"{long}_bias": f"{layer}.attention.{short}_proj.bias" in shapes
            for long, short in (("query", "q"), ("key", "k"), ("value", "v"), ("proj", "o"))
        },
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
    }
    model = DINOv3ViTModel(DINOv3ViTConfig(**_stated(config, inferred)))
    del model.rope_embeddings.inv_freq  # a buffer that no file fills: `embed_dinov3` sets it
    return model


def embed_siglip2(model: Any, picture: Image.Image) -> Tensor:
    """(1, D): the pooled embedding of a square picture, whose codes are resized before they become numbers."""
    weight = model.embeddings.patch_embedding.weight
    side = model.config.image_size
    codes_13HW = F.interpolate(_codes(picture), (side, side), mode="bilinear", antialias=True)
    x_13HW = (codes_13HW.float() - 127.5) / 127.5
    positions = model.embeddings.position_embedding.num_embeddings
    model.embeddings.position_ids = torch.arange(positions, device=weight.device)[None]
    return model(x_13HW.to(weight)).pooler_output


def embed_dinov3(model: Any, picture: Image.Image) -> Tensor:
    """(1, D): the class token of a square picture, whose codes become numbers before they are resized. The rotary
    frequencies are float32 whatever the model's dtype."""
    weight = model.embeddings.patch_embeddings.weight
    side = model.config.image_size
    # times the reciprocal, as the published processor has it: a division rounds otherwise
    x_13HW = F.interpolate(_codes(picture) * (1 / 255), (side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (DINOV3_MEAN, DINOV3_STD))
    x_13HW = (x_13HW - mean) / std
    rope = model.rope_embeddings
    exponents = torch.arange(0, 1, 4 / rope.head_dim, dtype=torch.float32, device=weight.device)
    rope.inv_freq = 1 / rope.base**exponents
    return model(x_13HW.to(weight)).pooler_output


def _codes(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) of bytes."""
    import numpy

    return torch.from_numpy(numpy.array(picture.convert("RGB"))).permute(2, 0, 1)[None].contiguous()


def _stated(config: Config | None, inferred: Config) -> Config:
    """What a config.json of such an encoder (alone, or as part of a whole SigLIP) says, over what shapes say."""
    found = (config or {}).get("vision_config", config or {})
    return {**inferred, **found} if "hidden_size" in found else inferred


def _count(shapes: Shapes, layers: str) -> int:
    return len({match[1] for name in shapes if (match := re.match(rf"{re.escape(layers)}\.(\d+)\.", name))})
