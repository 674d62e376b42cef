"""Write docs/hooks.md from the specifications: `python docs/make_hooks.py`. A test holds the page to them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qwenimage_core import context, hooks, values

PAGE = Path(__file__).with_name("hooks.md")
SPEC_MARK = f"{hooks.PROJECT}_spec"

HEAD = """# Hooks

Made from `qwenimage_core/hooks.py`, `values.py` and `context.py` by `python docs/make_hooks.py`; do not edit.

{intro}

Hook API {version}.
"""


def reference() -> str:
    """The whole page."""
    found = [f for _, f in inspect.getmembers(hooks, inspect.isfunction) if hasattr(f, SPEC_MARK)]
    found.sort(key=lambda f: inspect.getsourcelines(f)[1])
    conditioning = [f for f in found if f.__name__ in hooks.CONDITIONING_HOOKS]
    supporting = [f for f in found if f not in conditioning]
    parts = [HEAD.format(intro=_doc(hooks).split("\n\n", 1)[1], version=".".join(map(str, hooks.HOOK_API)))]
    parts += [
        "## Conditioning hooks",
        *map(_hook, conditioning),
        "## Supporting hooks",
        *map(_hook, supporting),
    ]
    parts += [
        "## What hooks receive",
        _value(context.Context),
        "## What hooks give",
        *map(_value, _returned()),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _hook(spec: Callable[..., Any]) -> str:
    arguments = ", ".join(f"{p.name}: {p.annotation}" for p in inspect.signature(spec).parameters.values())
    returns = inspect.signature(spec).return_annotation
    return f"### `{spec.__name__}`\n\n```text\n{spec.__name__}({arguments}) -> {returns}\n```\n\n{_doc(spec)}"


def _returned() -> Iterator[type]:
    """The values that hooks return, in the order of their file."""
    for value in vars(values).values():
        if inspect.isclass(value) and value.__module__ == values.__name__:
            yield value


def _value(kind: type) -> str:
    rows = []
    if dataclasses.is_dataclass(kind):
        rows += [f"| `{f.name}` | `{_cell(str(f.type))}` | {_default(f)} |" for f in dataclasses.fields(kind)]
    table = "\n\n| field | type | default |\n|---|---|---|\n" + "\n".join(rows) if rows else ""
    methods = [
        f"- `{name}{_signature(m)}`: {_first(m)}"
        for name, m in vars(kind).items()
        if inspect.isfunction(m) and not name.startswith("_")
    ]
    return f"### `{kind.__name__}`\n\n{_doc(kind)}{table}" + ("\n\n" + "\n".join(methods) if methods else "")


def _signature(method: Callable[..., Any]) -> str:
    """As one calls it: without `self`, annotations unquoted."""
    return re.sub(r"\(self(, )?", "(", str(inspect.signature(method)).replace("'", ""))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{_cell(repr(field.default))}`"
    return "empty" if field.default_factory is not dataclasses.MISSING else "required"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _doc(thing: Any) -> str:
    return textwrap.dedent(inspect.getdoc(thing) or "")


def _first(method: Any) -> str:
    return re.sub(r"\s+", " ", _doc(method).split("\n\n")[0])


if __name__ == "__main__":
    PAGE.write_text(reference())
