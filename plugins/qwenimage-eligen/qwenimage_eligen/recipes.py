"""The published models of EliGen: three LoRAs on Qwen-Image."""

from __future__ import annotations

from typing import Any

from qwenimage_core.values import Recipe, TransformerOptions

_BASE = "Qwen/Qwen-Image"
_NEGATIVE = (
    "网格化，规则的网格，模糊, 低分辨率, 低质量, 变形, 畸形, 错误的解剖学, 变形的手, 变形的身体, 变形的脸, 变形的头发, "
    "变形的眼睛, 变形的嘴巴"
)


def _recipe(
    name: str, summary: str, model_id: str, defaults: dict[str, Any], example: dict[str, Any]
) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        models=(
            {"model_id": _BASE, "origin_file_pattern": "transformer/diffusion_pytorch_model*.safetensors"},
            {"model_id": _BASE, "origin_file_pattern": "text_encoder/model*.safetensors"},
            {"model_id": _BASE, "origin_file_pattern": "vae/diffusion_pytorch_model.safetensors"},
        ),
        tokenizer={"model_id": _BASE, "origin_file_pattern": "tokenizer/"},
        loras=({"model_id": model_id, "origin_file_pattern": "model.safetensors"},),
        defaults={"cfg_scale": 4.0, **defaults},
        options=TransformerOptions(activation="quick_gelu"),
        example=example,
        based_on="qwen-image",
    )


RECIPES = (
    _recipe(
        "eligen",
        "entities with prompts and areas of their own",
        "DiffSynth-Studio/Qwen-Image-EliGen",
        {"num_inference_steps": 30, "height": 1024, "width": 1024},
        {
            "prompt": "a woman sitting at the top of a cliff by moonlight, looking towards the sea",
            "eligen_entity_prompts": ["cliff", "sea", "moon"],
            "eligen_entity_masks": ["cliff.png", "sea.png", "moon.png"],
            "seed": 0,
        },
    ),
    _recipe(
        "eligen-v2",
        "EliGen trained on self-generated pictures",
        "DiffSynth-Studio/Qwen-Image-EliGen-V2",
        {"num_inference_steps": 40, "height": 1024, "width": 1024, "negative_prompt": _NEGATIVE},
        {
            "prompt": "a samurai girl with a sword glowing with red flame",
            "eligen_entity_prompts": ["flowing hair", "sword glowing with red flame"],
            "eligen_entity_masks": ["hair.png", "sword.png"],
            "seed": 0,
        },
    ),
    _recipe(
        "eligen-poster",
        "EliGen for posters: texts and figures in their places",
        "DiffSynth-Studio/Qwen-Image-EliGen-Poster",
        {"num_inference_steps": 40, "height": 784, "width": 1280, "negative_prompt": _NEGATIVE},
        {
            "prompt": "一张以柔粉紫为背景的海报，左侧有大号粉紫色文字，右侧有一只小兔子在拆礼物",
            "eligen_entity_prompts": ["粉紫色文字“Qwen-Image EliGen-Poster”", "一只小兔子在拆礼物"],
            "eligen_entity_masks": ["title.png", "rabbit.png"],
            "seed": 42,
        },
    ),
)
