"""The README's two commands are what the project itself runs."""

from __future__ import annotations

import re
from pathlib import Path


def commands(root: Path) -> list[str]:
    """The commands that the README opens with, in its first two fenced blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (root / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [block.strip() for block in blocks[:2]]


def test_the_readme_opens_with_one_line_each(root: Path) -> None:
    draw, test = commands(root)
    assert "\n" not in draw + test
    assert draw.startswith("python3 -m pip install -c constraints.txt . ")
    assert " && qwenimage generate " in draw


def test_ci_runs_the_test_command(root: Path) -> None:
    """The script stops at the first failure, goes to the root of the clone and runs that line and no other."""
    lines = [line for line in (root / ".ci" / "run").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "set -euo pipefail"
    assert lines[2:] == [commands(root)[1]]
