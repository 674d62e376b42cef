"""The shape of the repository: what may stand at the top, and how long files and functions may be."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

TOP_LEVEL = {
    *("qwenimage_core", "plugins", "contrib", "docs", "tests"),
    *("pyproject.toml", "noxfile.py", "constraints.txt"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"),
}
MOST_LINES_A_FILE = 400
MOST_LINES_A_FUNCTION = 70


def test_nothing_else_stands_at_the_top(root: Path) -> None:
    """Dot files aside, a new entry at the top is a decision to write into this list."""
    tracked = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()}
    assert {entry for entry in top if not entry.startswith(".")} <= TOP_LEVEL


def test_shipped_files_stay_short(shipped: list[Path]) -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in shipped}
    assert {path: n for path, n in lengths.items() if n >= MOST_LINES_A_FILE} == {}


def test_shipped_functions_stay_short(shipped: list[Path]) -> None:
    long = {}
    for path in shipped:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length >= MOST_LINES_A_FUNCTION:
                    long[f"{path}:{node.lineno} {node.name}"] = length
    assert long == {}


def test_every_shipped_module_says_what_it_is_for(shipped: list[Path]) -> None:
    """A module with code in it opens with a docstring."""
    bare = [str(path) for path in shipped if path.read_text().strip() and not _docstring(path)]
    assert bare == []


def _docstring(path: Path) -> str | None:
    return ast.get_docstring(ast.parse(path.read_text()))
