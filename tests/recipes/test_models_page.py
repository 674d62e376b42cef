"""Every command of docs/models.md runs, at tiny size on the tiny hub, and every recipe is in its tables."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from qwenimage_core.cli.main import main
from qwenimage_core.picture_files import read_metadata
from qwenimage_core.recipes import all_recipes
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.values import Recipe

from .examples import assert_drawn, expected_pictures, tiny_request, write_pictures

DOCS = Path(__file__).parents[2] / "docs"
RECIPES = {recipe.name: recipe for _, recipe in all_recipes(PluginRegistry.discover()).values()}


def table(heading: str) -> Iterator[list[str]]:
    """The rows below a heading of the page, cell by cell."""
    section = (DOCS / "models.md").read_text("utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    for line in rows[2:]:
        yield [cell.strip().strip("`") for cell in line.strip("|").split(" | ")]


COMMANDS = {name: commands for name, *commands in table("Commands")}


def test_every_recipe_has_its_row_in_every_table() -> None:
    for heading in ("Models", "Commands", "Training"):
        assert [name for name, *_ in table(heading)] == list(RECIPES), heading
    for name, full, lora, validate in table("Training"):
        modes = {form.mode for form in RECIPES[name].training}
        assert (full != "-", lora != "-") == ("full" in modes, "lora" in modes)
        assert (validate != "-") == bool(modes)


def run_tiny(command: str, recipe: Recipe, folder: Path) -> Path:
    """Run a command of the page with tiny pictures and at tiny size; the pattern of what it wrote."""
    write_pictures(recipe, folder)
    program, *words = shlex.split(command)
    assert program == "qwenimage"
    for field, value in tiny_request(recipe).items():
        words += [
            "--" + field.replace("_", "-"),
            str(value).lower() if isinstance(value, bool) else str(value),
        ]
    assert main([*words, "-o", str(folder / "drawn.png")]) == 0
    return folder / "drawn.png"


def drawn(target: Path, recipe: Recipe) -> list[Path]:
    """The files that were written: numbered, if there are several."""
    number = len(expected_pictures(recipe))
    several = [target.with_stem(f"{target.stem}-{n}") for n in range(1, number + 1)]
    return several if number > 1 else [target]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_of_a_row_draw(name: str, offline: Path, tmp_path: Path) -> None:
    recipe, (generate, low_memory) = RECIPES[name], COMMANDS[name]
    found = []
    for command, low in ((generate, False), (low_memory, True)):
        assert ("--low-memory" in shlex.split(command)) == low
        folder = tmp_path / ("low" if low else "usual")
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            paths = drawn(run_tiny(command, recipe, folder), recipe)
        assert_drawn([Image.open(path) for path in paths], recipe)
        for path in paths:
            record = read_metadata(path)
            assert (record.model.source, record.model.low_memory) == (f"recipe:{name}", low)
        found.append([Image.open(path).tobytes() for path in paths])
    assert found[0] != found[1], "eight bits are coarser"
