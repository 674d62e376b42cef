"""The published model of in-context control: a LoRA on Qwen-Image."""

from __future__ import annotations

from qwenimage_core.recipes import SIGMOID, TOKENIZER, model_files
from qwenimage_core.values import Recipe, TrainingForm

TRIGGER = "Context_Control. "

_UNION = {
    "model_id": "DiffSynth-Studio/Qwen-Image-In-Context-Control-Union",
    "origin_file_pattern": "model.safetensors",
}
_TRAINED = TrainingForm(
    "lora",
    {
        "data_file_keys": "image,context_image",
        "extra_inputs": "context_image",
        "lora_rank": 64,
        "lora_checkpoint": _UNION,
    },
)
_NEGATIVE = (
    "网格化，规则的网格，模糊, 低分辨率, 低质量, 变形, 畸形, 错误的解剖学, "
    "变形的手, 变形的身体, 变形的脸, 变形的头发, 变形的眼睛, 变形的嘴巴"
)

RECIPES = (
    Recipe(
        name="in-context-control-union",
        summary="edges, depth, pose, line art, soft edges or normals as a picture beside the drawn one",
        models=model_files(),
        tokenizer=TOKENIZER,
        loras=(_UNION,),
        defaults={
            "cfg_scale": 4.0,
            "num_inference_steps": 30,
            "height": 1024,
            "width": 1024,
            "negative_prompt": _NEGATIVE,
        },
        options=SIGMOID,
        example={
            "prompt": TRIGGER
            + "一个穿着淡蓝色的漂亮女孩正在翩翩起舞，背景是梦幻的星空，光影交错，细节精致。",
            "context_image": "openpose.png",
            "seed": 1,
        },
        based_on="qwen-image",
        training=(_TRAINED,),
    ),
)
