"""The tables of request fields in docs/variants are what the plugins' own models say, one for each plugin."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from qwenimage_core.recipes import all_recipes
from qwenimage_core.registry import PluginRegistry

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "variants").glob("*.md"))


SCRIPT = runpy.run_path(str(DOCS / "make_fields.py"))


def test_the_tables_are_what_the_script_makes() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        assert text == SCRIPT["with_tables"](text), f"{page.name}: python docs/make_fields.py"


def test_every_plugin_has_its_table_and_its_readme_is_linked() -> None:
    registry = PluginRegistry.discover()
    registry.load_all()
    owners = {plugin.name for plugin in registry.loaded if plugin.fields}
    tables = {
        owner: page for page in PAGES for _, owner, _ in SCRIPT["TABLE"].findall(page.read_text("utf-8"))
    }
    assert set(tables) == owners
    for owner, page in tables.items():
        text = page.read_text("utf-8")
        for field in registry.get(owner).fields:
            assert f"\n| `{field}` | " in text
        assert f"../../plugins/qwenimage-{owner}/README.md" in text
        assert f"qwenimage-core[{owner}]" in text


def test_a_recipe_on_a_page_exists() -> None:
    """Whatever a page opens by name."""
    recipes = all_recipes(PluginRegistry.discover())
    for page in PAGES:
        named = re.findall(r"from_recipe\(\"([^\"]+)\"|--recipe (\S+)", page.read_text("utf-8"))
        assert named, page
        assert {a or b for a, b in named} <= set(recipes), page
