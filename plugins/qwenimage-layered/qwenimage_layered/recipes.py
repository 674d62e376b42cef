"""The published models of layers. They share a VAE of their own, with alpha."""

from __future__ import annotations

from typing import Any

from qwenimage_core.values import Recipe, TransformerOptions

_BASE = "Qwen/Qwen-Image"
_LAYERED = "Qwen/Qwen-Image-Layered"
_CONTROL = "DiffSynth-Studio/Qwen-Image-Layered-Control"
_CONTROL_V2 = "DiffSynth-Studio/Qwen-Image-Layered-Control-V2"


def _recipe(name: str, summary: str, transformer: str, defaults: dict[str, Any], **more: Any) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        models=(
            {
                "model_id": transformer,
                "origin_file_pattern": "transformer/diffusion_pytorch_model*.safetensors",
            },
            {"model_id": _BASE, "origin_file_pattern": "text_encoder/model*.safetensors"},
            {"model_id": _LAYERED, "origin_file_pattern": "vae/diffusion_pytorch_model.safetensors"},
        ),
        tokenizer={"model_id": _BASE, "origin_file_pattern": "tokenizer/"},
        defaults={"cfg_scale": 4.0, **defaults},
        **more,
    )


RECIPES = (
    _recipe(
        "qwen-image-layered",
        "take a picture apart into layers with transparency",
        _LAYERED,
        {"num_inference_steps": 50, "height": 480, "width": 864},
        options=TransformerOptions(activation="gelu_tanh"),
        example={
            "prompt": "A cheerful child with brown hair is waving under a bright blue sky filled with confetti and "
            'balloons. The word "HELLO!" is displayed in bold red letters above the child.',
            "layer_input_image": "picture.png",
            "layer_num": 3,
            "seed": 1,
        },
    ),
    _recipe(
        "qwen-image-layered-control",
        "take the one element out of a picture that the prompt names",
        _CONTROL,
        {"num_inference_steps": 30, "height": 1024, "width": 1024},
        options=TransformerOptions(activation="quick_gelu"),
        example={
            "prompt": "A cartoon skeleton character wearing a purple hat and holding a gift box",
            "layer_input_image": "trick-or-treat.png",
            "layer_num": 0,
            "seed": 0,
        },
    ),
    _recipe(
        "qwen-image-layered-control-v2",
        "as Layered-Control; with qwenimage-in-context-control also the element under a brush mask",
        _CONTROL,
        {"num_inference_steps": 10, "height": 1024, "width": 1024},
        loras=({"model_id": _CONTROL_V2, "origin_file_pattern": "model.safetensors"},),
        options=TransformerOptions(activation="quick_gelu"),
        example={"prompt": "Text 'APRIL'", "layer_input_image": "poster.png", "layer_num": 0, "seed": 0},
        based_on="qwen-image-layered-control",
    ),
)
