"""Named recipes: one published model each, with its files, the request that suits it, and how its weights compute.

The core owns the models that need no plugin; plugins bring theirs through the `recipes` hook. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from qwenimage_core.errors import ConflictError, RequestError
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.values import Recipe, TrainingForm, TransformerOptions

QWEN_IMAGE = "Qwen/Qwen-Image"
TRANSFORMER_FILES = "transformer/diffusion_pytorch_model*.safetensors"
TOKENIZER = {"model_id": QWEN_IMAGE, "origin_file_pattern": "tokenizer/"}
_PORTRAIT = "精致肖像，水下少女，蓝裙飘逸，发丝轻扬，光影透澈，气泡环绕，面容恬静，细节精致，梦幻唯美。"


def model_files(
    transformer: str = QWEN_IMAGE, *, pattern: str = TRANSFORMER_FILES, vae: str = QWEN_IMAGE
) -> tuple[Mapping[str, str], ...]:
    """Keywords of the ModelConfigs of one family member: its own transformer (and VAE), Qwen-Image's text encoder."""
    return (
        {"model_id": transformer, "origin_file_pattern": pattern},
        {"model_id": QWEN_IMAGE, "origin_file_pattern": "text_encoder/model*.safetensors"},
        {"model_id": vae, "origin_file_pattern": "vae/diffusion_pytorch_model.safetensors"},
    )


# Weights of Qwen were trained with the tanh form of GELU, those of DiffSynth-Studio with the sigmoid form.
TANH, SIGMOID = TransformerOptions(activation="gelu_tanh"), TransformerOptions(activation="quick_gelu")
_GUIDED = {"height": 1328, "width": 1328, "cfg_scale": 4.0, "num_inference_steps": 40}
_DISTILLED = {"height": 1328, "width": 1328, "cfg_scale": 1.0, "num_inference_steps": 15}
_EXAMPLE = {"prompt": _PORTRAIT, "seed": 0}
_BOTH = (TrainingForm("full"), TrainingForm("lora"))

CORE_RECIPES = (
    Recipe(
        name="qwen-image",
        summary="text to image",
        models=model_files(),
        tokenizer=TOKENIZER,
        defaults=_GUIDED,
        options=TANH,
        example=_EXAMPLE,
        training=_BOTH,
    ),
    Recipe(
        name="qwen-image-2512",
        summary="text to image, weights of December 2025",
        models=model_files("Qwen/Qwen-Image-2512"),
        tokenizer=TOKENIZER,
        defaults=_GUIDED,
        options=TANH,
        example=_EXAMPLE,
        based_on="qwen-image",
        training=_BOTH,
    ),
    Recipe(
        name="qwen-image-distill-full",
        summary="text to image in 15 steps without guidance",
        models=model_files(
            "DiffSynth-Studio/Qwen-Image-Distill-Full", pattern="diffusion_pytorch_model*.safetensors"
        ),
        tokenizer=TOKENIZER,
        defaults=_DISTILLED,
        options=SIGMOID,
        example=_EXAMPLE,
        based_on="qwen-image",
        training=_BOTH,
    ),
    Recipe(
        name="qwen-image-distill-lora",
        summary="text to image in 15 steps without guidance, as a LoRA",
        models=model_files(),
        tokenizer=TOKENIZER,
        loras=(
            {
                "model_id": "DiffSynth-Studio/Qwen-Image-Distill-LoRA",
                "origin_file_pattern": "model.safetensors",
            },
        ),
        defaults=_DISTILLED,
        options=SIGMOID,
        example=_EXAMPLE,
        based_on="qwen-image",
        training=(
            TrainingForm(
                "lora",
                {
                    "task": "direct_distill",
                    "data_file_keys": "image",
                    "extra_inputs": "seed,rand_device,num_inference_steps,cfg_scale",
                    "height": 1328,
                    "width": 1328,
                },
            ),
        ),
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
