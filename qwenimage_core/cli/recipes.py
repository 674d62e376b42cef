"""`recipes list|show`: the published models by name, from the core and the installed plugins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from qwenimage_core.cli.report import columns
from qwenimage_core.cli.session import Json, PluginFiles
from qwenimage_core.recipes import all_recipes, find_recipe
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.values import Recipe

app = typer.Typer(help="See the published models that can be run by name.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="a recipe's name", show_default=False)]


@app.command("list")
def list_recipes(plugin: PluginFiles = None, as_json: Json = False) -> None:
    """List every recipe with the package that owns it."""
    recipes = all_recipes(PluginRegistry.discover(plugin or ()))
    if as_json:
        rows = [{"name": r.name, "owner": o, "summary": r.summary} for o, r in recipes.values()]
        print(json.dumps({"recipes": rows}, ensure_ascii=False))
        return
    found = [(recipe.name, owner, recipe.summary) for owner, recipe in recipes.values()]
    print(columns(("recipe", "owner", "what it does"), *found))


@app.command()
def show(name: Name, plugin: PluginFiles = None, as_json: Json = False) -> None:
    """Show the files, defaults and example request of one recipe."""
    recipe = find_recipe(name, PluginRegistry.discover(plugin or ()))
    print(json.dumps(asdict(recipe), ensure_ascii=False) if as_json else "\n".join(_lines(recipe)))


def _lines(recipe: Recipe) -> list[str]:
    options = {k: v for k, v in asdict(recipe.options).items() if v is not None}
    files = {"weights": recipe.models, "lora": recipe.loras}
    files |= {
        "tokenizer": (recipe.tokenizer,) if recipe.tokenizer else (),
        "processor": (recipe.processor,) if recipe.processor else (),
    }
    based = f", on {recipe.based_on}" if recipe.based_on else ""
    return [
        f"{recipe.name}: {recipe.summary}{based}",
        *(f"  {kind:<11}{_value(m)}" for kind, ms in files.items() for m in ms),
        *(f"  {'option':<11}{k} = {v}" for k, v in options.items()),
        *(f"  {'given':<11}{k} = {_value(v)}" for k, v in recipe.given.items()),
        *(f"  {'default':<11}{k} = {v}" for k, v in recipe.defaults.items()),
        *(f"  {'example':<11}{k} = {v}" for k, v in recipe.example.items()),
        *(f"  {'low memory':<11}{k} = {v}" for k, v in recipe.low_memory.items()),
        *(
            f"  {'train':<11}{form.mode}"
            + (": " if form.arguments else "")
            + ", ".join(f"{k} = {_value(v)}" for k, v in form.arguments.items())
            for form in recipe.training
        ),
    ]


def _value(value: Any) -> Any:
    """Text as it stands, and files to fetch as the hub names them."""
    if isinstance(value, Mapping) and "model_id" in value:
        return f"{value['model_id']}: {value['origin_file_pattern']}"
    return value
