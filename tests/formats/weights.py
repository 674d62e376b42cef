"""The weights of the tiny text encoder in text_encoder.gguf: the same wherever they are made."""

from __future__ import annotations

from typing import Any

import torch

from qwenimage_core.testing.checkpoints import text_encoder_config, text_encoder_shapes

CONFIG: dict[str, Any] = text_encoder_config(width=64, heads=4, layers=2)


def text_encoder_weights() -> dict[str, torch.Tensor]:
    """Language model and head, by their published names."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in sorted(text_encoder_shapes(CONFIG).items()):
        if not name.startswith("visual."):
            tensor = torch.randn(shape, generator=draw) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
            found[name] = tensor + (name.endswith("norm.weight"))
    return found
