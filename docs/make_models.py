"""Write docs/models.md from the recipes of all installed packages: `python docs/make_models.py`. A test holds the page
to them, and runs its commands at tiny size."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwenimage_core.recipes import all_recipes
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.values import Recipe

PAGE = Path(__file__).with_name("models.md")
CORE = "qwenimage-core"
NONE = "-"

HEAD = """# The family

Made from the recipes of the core and its plugins by `python docs/make_models.py`; do not edit.

A recipe is a published model by name: its files, the settings it is run with, the plugin that knows it. Files are
fetched from ModelScope on first use, or from Hugging Face with `QWENIMAGE_DOWNLOAD_SOURCE=huggingface`.
`qwenimage recipes list` prints the names, `qwenimage recipes show NAME` everything about one. In Python:
`QwenImagePipeline.from_recipe(NAME)`.

What each variant is for, and what it does to a plan: [text to image](variants/text-to-image.md),
[edit](variants/edit.md), [layered](variants/layered.md), [EliGen](variants/eligen.md),
[blockwise ControlNet](variants/blockwise-controlnet.md), [in-context control](variants/in-context-control.md),
[i2L](variants/i2l.md), [Lightning](variants/lightning.md).
"""
LINEAGE = """## Lineage

An arrow leads from a model to one that was made from it, or that runs on it (a LoRA, a ControlNet)."""
MODELS = """## Models

The last column has what is a model's own. Beside it, all use the text encoder and the tokenizer of `Qwen/Qwen-Image`,
and its VAE but for the layered ones, which have that of `Qwen/Qwen-Image-Layered`."""
COMMANDS = """## Commands

Names of pictures stand for your own. Every command takes `-o FILE` and the other options of
`qwenimage generate --help`. Pictures that a model needs at the drawn size (layers, ControlNets) have the size that
`--width` and `--height` give, by default the recipe's.

The low-memory form keeps weights on disk, and in eight bits while they are in memory (`qwenimage recipes show NAME`):
its picture differs a little."""
TRAINING = """## Training

With `pip install "qwenimage-core[train]"`; a dash where no training of that kind has been published. Data and the other
options are those of `qwenimage train --help`. Validation draws the example of the table above with the trained LoRA
(or with full weights: `--full FILE`), and puts what training began from beside it."""


def page() -> str:
    """The whole page."""
    registry = PluginRegistry.discover()
    owned = all_recipes(registry)
    owners = {field: plugin.name for plugin in registry.loaded for field in plugin.fields}
    recipes = [recipe for _, recipe in owned.values()]
    models = [
        (
            f"`{r.name}`",
            f"`{owner if owner == CORE else f'qwenimage-{owner}'}`",
            _code(install(r, owner, owners)),
            r.summary,
            ", ".join(f"`{model_id}`" for model_id in weights(r)),
        )
        for owner, r in owned.values()
    ]
    commands = [(f"`{r.name}`", _code(generate(r)), _code(low_memory(r))) for r in recipes]
    trained = [(f"`{r.name}`", *map(_code, training(r))) for r in recipes]
    return "\n\n".join(
        (
            HEAD.strip(),
            LINEAGE,
            lineage(recipes),
            MODELS,
            _table(("recipe", "package", "install", "what it does", "weights"), models),
            COMMANDS,
            _table(("recipe", "generate", "with little memory"), commands),
            TRAINING,
            _table(("recipe", "full", "LoRA", "validate"), trained) + "\n",
        )
    )


def lineage(recipes: list[Recipe]) -> str:
    """Who is based on whom, as a diagram."""
    arrows = [f"    {r.based_on} --> {r.name}" for r in recipes if r.based_on]
    return "\n".join(("```mermaid", "graph LR", *arrows, "```"))


def weights(recipe: Recipe) -> tuple[str, ...]:
    """Ids of the repositories with the model's own weights, in the order of loading."""
    given = [value for value in recipe.given.values() if isinstance(value, Mapping) and "model_id" in value]
    text_encoder = [m for m in recipe.models if m["origin_file_pattern"].startswith("text_encoder/")]
    shared_vae = {
        "model_id": "Qwen/Qwen-Image",
        "origin_file_pattern": "vae/diffusion_pytorch_model.safetensors",
    }
    own = [m for m in (*recipe.models, *recipe.loras, *given) if m not in text_encoder and m != shared_vae]
    return tuple(dict.fromkeys(m["model_id"] for m in own))


def generate(recipe: Recipe, *options: str) -> str:
    """The command that draws the recipe's example."""
    example = dict(recipe.example)
    words = ["qwenimage", "generate", "--recipe", recipe.name, *options, example.pop("prompt")]
    for field, value in example.items():
        words += _option(field, value)
    return " ".join(map(_quoted, words))


def low_memory(recipe: Recipe) -> str:
    """The same in the recipe's low-memory form."""
    return generate(recipe, "--low-memory")


def _quoted(word: str) -> str:
    """For a shell; in double quotes where single ones would have to be broken up."""
    plain = "'" in word and not set('"$`\\!') & set(word)
    return f'"{word}"' if plain else shlex.quote(word)


def training(recipe: Recipe) -> tuple[str | None, str | None, str | None]:
    """The commands that train all weights, that train a LoRA, and that look at what came out; None where there is no
    such form."""
    modes = {form.mode for form in recipe.training}
    full, lora = (
        f"qwenimage train --recipe {recipe.name} --mode {mode}" if mode in modes else None
        for mode in ("full", "lora")
    )
    last = "--lora models/epoch-4.safetensors" if lora else "--full models/epoch-1.safetensors"
    return full, lora, f"qwenimage validate --recipe {recipe.name} {last}" if modes else None


def _option(field: str, value: Any) -> Iterator[str]:
    """A field of a request as options: a list repeats it, a model in it is key=value."""
    for one in value if isinstance(value, list) else [value]:
        yield "--" + field.replace("_", "-")
        yield ",".join(f"{k}={v}" for k, v in one.items()) if isinstance(one, Mapping) else str(one)


def install(recipe: Recipe, owner: str, owners: Mapping[str, str]) -> str:
    """The line that installs what the recipe and its example need: its owner and the owners of fields it gives."""
    fields = {*recipe.example, *recipe.given}
    extras = sorted({owner, *(owners[f] for f in fields if f in owners)} - {CORE})
    return (
        'pip install "qwenimage-core[{}]"'.format(",".join(extras))
        if extras
        else "pip install qwenimage-core"
    )


def _code(command: str | None) -> str:
    return NONE if command is None else f"`{command}`"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
