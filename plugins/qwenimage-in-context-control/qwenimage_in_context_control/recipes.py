"""The published model of in-context control: a LoRA on Qwen-Image."""

from __future__ import annotations

from qwenimage_core.values import Recipe, TransformerOptions

TRIGGER = "Context_Control. "

_BASE = "Qwen/Qwen-Image"
_UNION = "DiffSynth-Studio/Qwen-Image-In-Context-Control-Union"
_NEGATIVE = (
    "网格化，规则的网格，模糊, 低分辨率, 低质量, 变形, 畸形, 错误的解剖学, "
    "变形的手, 变形的身体, 变形的脸, 变形的头发, 变形的眼睛, 变形的嘴巴"
)

RECIPES = (
    Recipe(
        name="in-context-control-union",
        summary="edges, depth, pose, line art, soft edges or normals as a picture beside the drawn one",
        models=(
            {"model_id": _BASE, "origin_file_pattern": "transformer/diffusion_pytorch_model*.safetensors"},
            {"model_id": _BASE, "origin_file_pattern": "text_encoder/model*.safetensors"},
            {"model_id": _BASE, "origin_file_pattern": "vae/diffusion_pytorch_model.safetensors"},
        ),
        tokenizer={"model_id": _BASE, "origin_file_pattern": "tokenizer/"},
        loras=({"model_id": _UNION, "origin_file_pattern": "model.safetensors"},),
        defaults={
            "cfg_scale": 4.0,
            "num_inference_steps": 30,
            "height": 1024,
            "width": 1024,
            "negative_prompt": _NEGATIVE,
        },
        options=TransformerOptions(activation="quick_gelu"),
        example={
            "prompt": TRIGGER
            + "一个穿着淡蓝色的漂亮女孩正在翩翩起舞，背景是梦幻的星空，光影交错，细节精致。",
            "context_image": "openpose.png",
            "seed": 1,
        },
        based_on="qwen-image",
    ),
)
