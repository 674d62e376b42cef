"""The published models of i2L on Qwen-Image: style, and coarse + fine + bias."""

from __future__ import annotations

from typing import Any

from qwenimage_core.recipes import SIGMOID, TOKENIZER, model_files
from qwenimage_core.values import Recipe
from qwenimage_i2l.components import BIAS_FILE, DINOV3, PUBLISHED, SIGLIP2, network_kind


def _recipe(name: str, summary: str, networks: tuple[str, ...], **more: Any) -> Recipe:
    own = (PUBLISHED[kind] for kind in (SIGLIP2, DINOV3, *map(network_kind, networks)))
    return Recipe(
        name=name,
        summary=summary,
        models=(
            *model_files(),
            *({"model_id": model_id, "origin_file_pattern": pattern} for model_id, pattern in own),
        ),
        tokenizer=TOKENIZER,
        processor={"model_id": "Qwen/Qwen-Image-Edit", "origin_file_pattern": "processor/"},
        options=SIGMOID,
        based_on="qwen-image",
        **more,
    )


_REQUEST = {"height": 1024, "width": 1024, "num_inference_steps": 50, "cfg_scale": 4.0}

RECIPES = (
    _recipe(
        "i2l-style",
        "draw in the style of some pictures",
        ("style",),
        defaults={**_REQUEST, "i2l_mode": "style"},
        example={"prompt": "a cat", "i2l_images": [f"style-{i}.jpg" for i in range(5)], "seed": 0},
    ),
    _recipe(
        "i2l-coarse-fine-bias",
        "draw what some pictures show",
        ("coarse", "fine"),
        defaults={**_REQUEST, "i2l_mode": "coarse+fine+bias"},
        given={"i2l_bias": BIAS_FILE},
        example={"prompt": "bowl", "i2l_images": [f"bowl-{i}.jpg" for i in range(6)], "seed": 1},
    ),
)
