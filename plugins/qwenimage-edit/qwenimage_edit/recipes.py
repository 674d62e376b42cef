"""The published models that edit."""

from __future__ import annotations

from typing import Any

from qwenimage_core.recipes import SIGMOID, TANH, TOKENIZER, model_files
from qwenimage_core.values import Recipe, TrainingForm, TransformerOptions

_EDIT = "Qwen/Qwen-Image-Edit"
_LOWRES = "DiffSynth-Studio/Qwen-Image-Edit-Lowres-Fix"
_ROWS = {"data_file_keys": "image,edit_image", "extra_inputs": "edit_image"}


def _trained(**more: Any) -> tuple[TrainingForm, ...]:
    return TrainingForm("full", {**_ROWS, **more}), TrainingForm("lora", {**_ROWS, **more})


def _recipe(name: str, summary: str, transformer: str, example: dict[str, Any], **more: Any) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        models=model_files(transformer),
        tokenizer=TOKENIZER,
        processor={"model_id": _EDIT, "origin_file_pattern": "processor/"},
        defaults={"cfg_scale": 4.0, "num_inference_steps": 40, **more.pop("defaults")},
        options=more.pop("options", TANH),
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
        based_on="qwen-image",
        training=_trained(),
    ),
    _recipe(
        "qwen-image-edit-2509",
        "one to three reference pictures, as a list",
        "Qwen/Qwen-Image-Edit-2509",
        _TOGETHER,
        defaults={"height": 1328, "width": 1024},
        based_on="qwen-image-edit",
        training=_trained(),
    ),
    _recipe(
        "qwen-image-edit-2511",
        "as 2509, with references at time zero",
        "Qwen/Qwen-Image-Edit-2511",
        _TOGETHER,
        defaults={"height": 1152, "width": 896},
        # its config.json says so too; this holds where the transformer comes without one
        options=TransformerOptions(activation="gelu_tanh", zero_cond_t=True),
        based_on="qwen-image-edit-2509",
        training=_trained(zero_cond_t=True),
    ),
    _recipe(
        "qwen-image-edit-lowres-fix",
        "edit a picture of low resolution, or of another aspect",
        _EDIT,
        {"prompt": "将裙子变成粉色", "edit_image": "small-portrait.png"},
        defaults={
            "height": 1024,
            "width": 768,
            "edit_rope_interpolation": True,
            "edit_image_auto_resize": False,
        },
        loras=({"model_id": _LOWRES, "origin_file_pattern": "model.safetensors"},),
        options=SIGMOID,
        based_on="qwen-image-edit",
    ),
)
