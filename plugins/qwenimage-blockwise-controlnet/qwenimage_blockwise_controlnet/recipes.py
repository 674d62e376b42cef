"""The published blockwise ControlNets."""

from __future__ import annotations

from typing import Any

from qwenimage_core.recipes import SIGMOID, TOKENIZER, model_files
from qwenimage_core.values import Recipe, TrainingForm

_INPAINT = "DiffSynth-Studio/Qwen-Image-Blockwise-ControlNet-Inpaint"
_CANNY = "DiffSynth-Studio/Qwen-Image-Blockwise-ControlNet-Canny"
_DEPTH = "DiffSynth-Studio/Qwen-Image-Blockwise-ControlNet-Depth"


def _trained(inpaint: bool) -> tuple[TrainingForm, ...]:
    """The ControlNet itself, or a LoRA on the transformer beside it."""
    inputs = "blockwise_controlnet_image" + (",blockwise_controlnet_inpaint_mask" if inpaint else "")
    rows = {"data_file_keys": f"image,{inputs}", "extra_inputs": inputs}
    full = {
        "dataset_repeat": 400,
        "learning_rate": 1e-3,
        "trainable_models": "blockwise_controlnet",
        "remove_prefix_in_ckpt": "pipe.blockwise_controlnet.models.0.",
    }
    return TrainingForm("full", {**rows, **full}), TrainingForm("lora", rows)


def _recipe(name: str, summary: str, nets: tuple[str, ...], steps: int, example: dict[str, Any]) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        models=(
            *model_files(),
            *({"model_id": net, "origin_file_pattern": "model.safetensors"} for net in nets),
        ),
        tokenizer=TOKENIZER,
        defaults={"cfg_scale": 4.0, "num_inference_steps": steps, "height": 1328, "width": 1328},
        options=SIGMOID,
        example=example,
        based_on="qwen-image",
        training=_trained("inpaint" in name) if len(nets) == 1 else (),
    )


_PUPPY = "一只小狗，毛发光洁柔顺，眼神灵动，背景是樱花纷飞的春日庭院，唯美温馨。"

RECIPES = (
    _recipe(
        "blockwise-controlnet-canny",
        "edges guide",
        (_CANNY,),
        30,
        {"prompt": _PUPPY, "blockwise_controlnet_inputs": [{"image": "edges.png"}], "seed": 0},
    ),
    _recipe(
        "blockwise-controlnet-depth",
        "depth guides",
        (_DEPTH,),
        30,
        {
            "prompt": "精致肖像，水下少女，蓝裙飘逸，发丝轻扬，光影透澈，气泡环绕，面容恬静，细节精致，梦幻唯美。",
            "blockwise_controlnet_inputs": [{"image": "depth.png"}],
            "seed": 0,
        },
    ),
    _recipe(
        "blockwise-controlnet-inpaint",
        "repaints the part of a picture under a mask",
        (_INPAINT,),
        40,
        {
            "prompt": "a cat with sunglasses",
            "input_image": "cat.png",
            "inpaint_mask": "mask.png",
            "blockwise_controlnet_inputs": [{"image": "cat.png", "inpaint_mask": "mask.png"}],
            "seed": 0,
        },
    ),
    _recipe(
        "blockwise-controlnet-inpaint-canny",
        "repaints a part of a picture along given edges: two ControlNets at once",
        (_INPAINT, _CANNY),
        40,
        {
            "prompt": _PUPPY,
            "input_image": "garden.png",
            "inpaint_mask": "mask.png",
            "blockwise_controlnet_inputs": [
                {"controlnet_id": 0, "image": "garden.png", "inpaint_mask": "mask.png"},
                {"controlnet_id": 1, "image": "edges.png"},
            ],
            "seed": 0,
        },
    ),
)
