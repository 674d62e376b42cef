"""The published models of layers. They share a VAE of their own, with alpha."""

from __future__ import annotations

from typing import Any

from qwenimage_core.recipes import SIGMOID, TANH, TOKENIZER, model_files
from qwenimage_core.values import Recipe, TrainingForm

_LAYERED = "Qwen/Qwen-Image-Layered"
_CONTROL = "DiffSynth-Studio/Qwen-Image-Layered-Control"
_CONTROL_V2 = "DiffSynth-Studio/Qwen-Image-Layered-Control-V2"
_ROWS = {"data_file_keys": "image,layer_input_image", "extra_inputs": "layer_num,layer_input_image"}
_BOTH = (TrainingForm("full", _ROWS), TrainingForm("lora", _ROWS))
_MASKED = {
    "data_file_keys": "image,layer_input_image,context_image",
    "extra_inputs": "layer_num,layer_input_image,context_image",
    "lora_rank": 64,
}


def _recipe(name: str, summary: str, transformer: str, defaults: dict[str, Any], **more: Any) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        models=model_files(transformer, vae=_LAYERED),
        tokenizer=TOKENIZER,
        defaults={"cfg_scale": 4.0, **defaults},
        **more,
    )


RECIPES = (
    _recipe(
        "qwen-image-layered",
        "take a picture apart into layers with transparency",
        _LAYERED,
        {"num_inference_steps": 50, "height": 480, "width": 864},
        options=TANH,
        example={
            "prompt": "A cheerful child with brown hair is waving under a bright blue sky filled with confetti and "
            'balloons. The word "HELLO!" is displayed in bold red letters above the child.',
            "layer_input_image": "picture.png",
            "layer_num": 3,
            "seed": 1,
        },
        based_on="qwen-image",
        training=_BOTH,
    ),
    _recipe(
        "qwen-image-layered-control",
        "take the one element out of a picture that the prompt names",
        _CONTROL,
        {"num_inference_steps": 30, "height": 1024, "width": 1024},
        options=SIGMOID,
        example={
            "prompt": "A cartoon skeleton character wearing a purple hat and holding a gift box",
            "layer_input_image": "trick-or-treat.png",
            "layer_num": 0,
            "seed": 0,
        },
        based_on="qwen-image-layered",
        training=_BOTH,
    ),
    _recipe(
        "qwen-image-layered-control-v2",
        "as Layered-Control; with qwenimage-in-context-control also the element under a brush mask",
        _CONTROL,
        {"num_inference_steps": 10, "height": 1024, "width": 1024},
        loras=({"model_id": _CONTROL_V2, "origin_file_pattern": "model.safetensors"},),
        options=SIGMOID,
        example={"prompt": "Text 'APRIL'", "layer_input_image": "poster.png", "layer_num": 0, "seed": 0},
        based_on="qwen-image-layered-control",
        training=(TrainingForm("lora", _MASKED),),
    ),
)
