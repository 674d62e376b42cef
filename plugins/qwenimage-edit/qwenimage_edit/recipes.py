"""The published models that edit."""

from __future__ import annotations

from typing import Any

from qwenimage_core.values import Recipe, TransformerOptions

_BASE = "Qwen/Qwen-Image"
_EDIT = "Qwen/Qwen-Image-Edit"
_LOWRES = "DiffSynth-Studio/Qwen-Image-Edit-Lowres-Fix"
_TANH, _SIGMOID = TransformerOptions(activation="gelu_tanh"), TransformerOptions(activation="quick_gelu")


def _recipe(name: str, summary: str, transformer: str, example: dict[str, Any], **more: Any) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        models=(
            {
                "model_id": transformer,
                "origin_file_pattern": "transformer/diffusion_pytorch_model*.safetensors",
            },
            {"model_id": _BASE, "origin_file_pattern": "text_encoder/model*.safetensors"},
            {"model_id": _BASE, "origin_file_pattern": "vae/diffusion_pytorch_model.safetensors"},
        ),
        tokenizer={"model_id": _BASE, "origin_file_pattern": "tokenizer/"},
        processor={"model_id": _EDIT, "origin_file_pattern": "processor/"},
        defaults={"cfg_scale": 4.0, "num_inference_steps": 40, **more.pop("defaults")},
        options=more.pop("options", _TANH),
        example={"seed": 1, **example},
        **more,
    )


_TOGETHER = {"prompt": "生成这两个人的合影", "edit_image": ["girl.png", "old-man.png"]}

RECIPES = (
    _recipe(
        "qwen-image-edit",
        "change one picture by instruction",
        _EDIT,
        {"prompt": "将裙子改为粉色", "edit_image": "portrait.png"},
        defaults={"height": 1328, "width": 1024},
    ),
    _recipe(
        "qwen-image-edit-2509",
        "one to three reference pictures, as a list",
        "Qwen/Qwen-Image-Edit-2509",
        _TOGETHER,
        defaults={"height": 1328, "width": 1024},
    ),
    _recipe(
        "qwen-image-edit-2511",
        "as 2509, with references at time zero",
        "Qwen/Qwen-Image-Edit-2511",
        _TOGETHER,
        defaults={"height": 1152, "width": 896},
        # its config.json says so too; this holds where the transformer comes without one
        options=TransformerOptions(activation="gelu_tanh", zero_cond_t=True),
    ),
    _recipe(
        "qwen-image-edit-lowres-fix",
        "edit a picture of low resolution, or of another aspect",
        _EDIT,
        {
            "prompt": "将裙子变成粉色",
            "edit_image": "small-portrait.png",
        },
        defaults={
            "height": 1024,
            "width": 768,
            "edit_rope_interpolation": True,
            "edit_image_auto_resize": False,
        },
        loras=(
            {
                "model_id": _LOWRES,
                "origin_file_pattern": "model.safetensors",
            },
        ),
        options=_SIGMOID,
        based_on="qwen-image-edit",
    ),
)
