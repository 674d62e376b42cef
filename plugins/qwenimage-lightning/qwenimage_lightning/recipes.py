"""The published Lightning LoRAs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qwenimage_core.recipes import QWEN_IMAGE, TANH, TOKENIZER, model_files
from qwenimage_core.values import Recipe

_EDIT = "Qwen/Qwen-Image-Edit"
_LIGHTNING = "lightx2v/Qwen-Image-Lightning"
_PORTRAIT = "精致肖像，水下少女，蓝裙飘逸，发丝轻扬，光影透澈，气泡环绕，面容恬静，细节精致，梦幻唯美。"


def _recipe(name: str, base: str, repository: str, file: str, steps: int, example: dict[str, Any]) -> Recipe:
    edit = "-Edit" in base
    height, width = (1152, 896) if edit else (1328, 1328)
    return Recipe(
        name=name,
        summary=f"{base.removeprefix('Qwen/')} in {steps} steps without guidance",
        models=model_files(base),
        tokenizer=TOKENIZER,
        processor={"model_id": _EDIT, "origin_file_pattern": "processor/"} if edit else None,
        defaults={"cfg_scale": 1.0, "num_inference_steps": steps, "height": height, "width": width},
        given={"lightning": {"model_id": repository, "origin_file_pattern": file}},
        options=replace(TANH, zero_cond_t=True) if base.endswith("2511") else TANH,
        example=example,
        based_on=base.removeprefix("Qwen/").lower(),
    )


_DRAW = {"prompt": _PORTRAIT, "seed": 42}
_CHANGE = {"prompt": "将裙子改为粉色", "edit_image": "portrait.png", "seed": 42}
_MERGE = {"prompt": "生成这两个人的合影", "edit_image": ["one.png", "other.png"], "seed": 1}

RECIPES = (
    _recipe(
        "qwen-image-lightning-4steps",
        QWEN_IMAGE,
        _LIGHTNING,
        "Qwen-Image-Lightning-4steps-V2.0-bf16.safetensors",
        4,
        _DRAW,
    ),
    _recipe(
        "qwen-image-lightning-8steps",
        QWEN_IMAGE,
        _LIGHTNING,
        "Qwen-Image-Lightning-8steps-V2.0-bf16.safetensors",
        8,
        _DRAW,
    ),
    _recipe(
        "qwen-image-2512-lightning",
        "Qwen/Qwen-Image-2512",
        "lightx2v/Qwen-Image-2512-Lightning",
        "Qwen-Image-2512-Lightning-4steps-V1.0-bf16.safetensors",
        4,
        _DRAW,
    ),
    _recipe(
        "qwen-image-edit-lightning-4steps",
        _EDIT,
        _LIGHTNING,
        "Qwen-Image-Edit-Lightning-4steps-V1.0-bf16.safetensors",
        4,
        _CHANGE,
    ),
    _recipe(
        "qwen-image-edit-lightning-8steps",
        _EDIT,
        _LIGHTNING,
        "Qwen-Image-Edit-Lightning-8steps-V1.0-bf16.safetensors",
        8,
        _CHANGE,
    ),
    _recipe(
        "qwen-image-edit-2509-lightning-4steps",
        "Qwen/Qwen-Image-Edit-2509",
        _LIGHTNING,
        "Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors",
        4,
        _MERGE,
    ),
    _recipe(
        "qwen-image-edit-2509-lightning-8steps",
        "Qwen/Qwen-Image-Edit-2509",
        _LIGHTNING,
        "Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-8steps-V1.0-bf16.safetensors",
        8,
        _MERGE,
    ),
    _recipe(
        "qwen-image-edit-2511-lightning",
        "Qwen/Qwen-Image-Edit-2511",
        "lightx2v/Qwen-Image-Edit-2511-Lightning",
        "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
        4,
        _MERGE,
    ),
)
