"""Write the tables of request fields in docs/variants from the plugins' own models: `python docs/make_fields.py`.

A table stands between `<!-- fields OWNER -->` and `<!-- end of fields -->`; OWNER is a plugin. A test holds them equal.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from qwenimage_core.registry import PluginRegistry

PAGES = Path(__file__).with_name("variants")
TABLE = re.compile(r"(<!-- fields (\S+) -->\n).*?(<!-- end of fields -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with its tables as the plugins' models have them."""
    return TABLE.sub(lambda found: found[1] + _table(found[2]) + found[3], page)


def _table(owner: str) -> str:
    registry = PluginRegistry.discover()
    registry.load_all()
    model = registry.request_model()
    fields = {name: model.model_fields[name] for name in registry.get(owner).fields}
    rows = [f"| `{name}` | {_default(f)} | {_cell(f.description or '')} |" for name, f in fields.items()]
    return "\n".join(("| field | default | meaning |", "|---|---|---|", *rows)) + "\n"


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    return "none" if value is None else f"`{_cell(repr(value))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for page in PAGES.glob("*.md"):
        page.write_text(with_tables(page.read_text("utf-8")), "utf-8")
