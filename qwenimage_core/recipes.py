"""Named recipes: one published model each, with its files, the request that suits it, and how its weights compute.

The core owns the models that need no plugin; plugins bring theirs through the `recipes` hook. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from qwenimage_core.errors import ConflictError, RequestError
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.values import Recipe, TransformerOptions

_BASE = "Qwen/Qwen-Image"
_SHARDS = "transformer/diffusion_pytorch_model*.safetensors"
_PORTRAIT = "精致肖像，水下少女，蓝裙飘逸，发丝轻扬，光影透澈，气泡环绕，面容恬静，细节精致，梦幻唯美。"


def _recipe(name: str, summary: str, transformer: str, defaults: Mapping[str, Any], **more: Any) -> Recipe:
    pattern = more.pop("pattern", _SHARDS)
    return Recipe(
        name=name,
        summary=summary,
        models=(
            {"model_id": transformer, "origin_file_pattern": pattern},
            {"model_id": _BASE, "origin_file_pattern": "text_encoder/model*.safetensors"},
            {"model_id": _BASE, "origin_file_pattern": "vae/diffusion_pytorch_model.safetensors"},
        ),
        tokenizer={"model_id": _BASE, "origin_file_pattern": "tokenizer/"},
        defaults={"height": 1328, "width": 1328, **defaults},
        example={"prompt": _PORTRAIT, "seed": 0},
        **more,
    )


# Weights of Qwen were trained with the tanh form of GELU, those of DiffSynth-Studio with the sigmoid form.
_TANH, _SIGMOID = TransformerOptions(activation="gelu_tanh"), TransformerOptions(activation="quick_gelu")
_GUIDED = {"cfg_scale": 4.0, "num_inference_steps": 40}
_DISTILLED = {"cfg_scale": 1.0, "num_inference_steps": 15}

CORE_RECIPES = (
    _recipe("qwen-image", "text to image", _BASE, _GUIDED, options=_TANH),
    _recipe(
        "qwen-image-2512",
        "text to image, weights of December 2025",
        "Qwen/Qwen-Image-2512",
        _GUIDED,
        options=_TANH,
    ),
    _recipe(
        "qwen-image-distill-full",
        "text to image in 15 steps without guidance",
        "DiffSynth-Studio/Qwen-Image-Distill-Full",
        _DISTILLED,
        pattern="diffusion_pytorch_model*.safetensors",
        options=_SIGMOID,
        based_on="qwen-image",
    ),
    _recipe(
        "qwen-image-distill-lora",
        "text to image in 15 steps without guidance, as a LoRA",
        _BASE,
        _DISTILLED,
        loras=(
            {
                "model_id": "DiffSynth-Studio/Qwen-Image-Distill-LoRA",
                "origin_file_pattern": "model.safetensors",
            },
        ),
        options=_SIGMOID,
        based_on="qwen-image",
    ),
)


def all_recipes(registry: PluginRegistry) -> dict[str, tuple[str, Recipe]]:
    """Name -> (owner, recipe), the core's first. Raises ConflictError if two owners use one name."""
    registry.load_all()
    found = {recipe.name: ("qwenimage-core", recipe) for recipe in CORE_RECIPES}
    for plugin in registry.loaded:
        for recipe in plugin.call("recipes") or ():
            owner, _ = found.setdefault(recipe.name, (plugin.name, recipe))
            if owner != plugin.name:
                raise ConflictError(f"{owner} and {plugin.name} both own a recipe named {recipe.name!r}.")
    return found


def find_recipe(name: str, registry: PluginRegistry) -> Recipe:
    """The recipe of this name; RequestError with the nearest name there is."""
    recipes = all_recipes(registry)
    if name in recipes:
        return recipes[name][1]
    near = get_close_matches(name, recipes, n=1)
    raise RequestError(
        f"There is no recipe {name!r}.",
        expected=", ".join(recipes),
        mend=f"did you mean {near[0]!r}?"
        if near
        else "install the plugin that owns it; see `qwenimage recipes list`",
    )
