"""docs/architecture.md says who imports whom; the code does as it says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "qwenimage_core"


def imported_modules(node: ast.AST) -> Iterator[str]:
    """Modules that the code below a node imports, without what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module == PACKAGE:
            yield from (f"{PACKAGE}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            yield child.module or ""
        yield from imported_modules(child)


@pytest.fixture(scope="module")
def documented(root: Path) -> list[str]:
    """The parts of the core, from top to bottom."""
    page = (root / "docs" / "architecture.md").read_text()
    found = re.search(r"## Who imports whom.*?```text\n(.*?)```", page, re.DOTALL)
    assert found
    return [line.split()[0] for line in found[1].splitlines()]


def part(path: Path, package: Path) -> str:
    """The module or sub-package directly below the core that a file belongs to."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def test_every_part_of_the_core_is_listed_once(root: Path, documented: list[str]) -> None:
    package = root / PACKAGE
    parts = {part(path, package) for path in package.rglob("*.py")} - {"__init__", "__main__"}
    assert sorted(documented) == sorted(parts)


def test_parts_import_only_what_is_below_them(root: Path, documented: list[str]) -> None:
    package = root / PACKAGE
    upward = []
    for path in package.rglob("*.py"):
        own = part(path, package)
        if own in ("__init__", "__main__"):
            continue
        for module in imported_modules(ast.parse(path.read_text())):
            other = (*module.split("."), "")[1] if module.startswith(f"{PACKAGE}.") else own
            if other in documented and documented.index(other) < documented.index(own):
                upward.append(f"{path}: {module}")
    assert upward == []
