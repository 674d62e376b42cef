"""The published models of EliGen: three LoRAs on Qwen-Image."""

from __future__ import annotations

from typing import Any

from qwenimage_core.recipes import SIGMOID, TOKENIZER, model_files
from qwenimage_core.values import Recipe, TrainingForm

_V2 = "DiffSynth-Studio/Qwen-Image-EliGen-V2"
_ROWS = {
    "data_file_keys": "image,eligen_entity_masks",
    "extra_inputs": "eligen_entity_masks,eligen_entity_prompts",
}
_NEGATIVE = (
    "网格化，规则的网格，模糊, 低分辨率, 低质量, 变形, 畸形, 错误的解剖学, 变形的手, 变形的身体, 变形的脸, 变形的头发, "
    "变形的眼睛, 变形的嘴巴"
)


def _recipe(
    name: str,
    summary: str,
    model_id: str,
    defaults: dict[str, Any],
    example: dict[str, Any],
    based_on: str = "qwen-image",
    **training: Any,
) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        models=model_files(),
        tokenizer=TOKENIZER,
        loras=({"model_id": model_id, "origin_file_pattern": "model.safetensors"},),
        defaults={"cfg_scale": 4.0, **defaults},
        options=SIGMOID,
        example=example,
        based_on=based_on,
        training=(TrainingForm("lora", {**_ROWS, **training}),),
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
        _V2,
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
        based_on="eligen-v2",
        lora_checkpoint={"model_id": _V2, "origin_file_pattern": "model.safetensors"},
    ),
)
