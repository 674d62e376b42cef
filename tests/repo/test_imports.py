"""Who may import what: no peers, nothing undeclared, nothing heavy at import, plugins on the public API only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PEERS = {"diffusers", "diffsynth", "einops", "torchvision"}
HEAVY = ("torch", "transformers", "modelscope", "accelerate", "peft", "numpy")

LIST_HEAVY = f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
RUN_CLI = """
import sys
from qwenimage_core.cli.main import main
sys.argv[0] = "qwenimage"
assert main() == 0
print()
"""


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """The absolute module names that a file imports anywhere in it, with their lines; `from a import b` gives `a`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


def names_from_core(path: Path) -> Iterator[tuple[int, str]]:
    """Every dotted name of the core that a file uses by import: `from qwenimage_core.x import y` gives both parts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "qwenimage_core":
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "qwenimage_core")


def run(code: str, *arguments: str, cwd: Path) -> str:
    """Run code in an interpreter of its own, away from the checkout; the last line that it prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1] if done.stdout else ""


def test_shipped_code_imports_no_peer(shipped: list[Path]) -> None:
    found = [f"{p}:{line} {m}" for p in shipped for line, m in imported(p) if m.split(".")[0] in PEERS]
    assert found == []


def test_shipped_code_imports_only_what_it_declares(distributions) -> None:
    """Each import is the standard library, a declared dependency, or what a declared dependency itself requires."""
    provided_by = packages_distributions()
    strangers = []
    for distribution in distributions:
        declared = {canonicalize_name(Requirement(r).name) for r in _requirements(distribution.project)}
        if distribution.name != "qwenimage-core":
            declared |= {
                canonicalize_name(Requirement(r).name) for r in _requirements(distributions[0].project)
            }
        reached = declared | {
            name for d in declared if not d.startswith("qwenimage") for name in _hard_requirements(d)
        }
        own = {distribution.package.name, "qwenimage_core"}
        for path in distribution.modules():
            for line, module in imported(path):
                top = module.split(".")[0]
                # what is not installed here, as an extra's, is known by its own name
                providers = {canonicalize_name(name) for name in provided_by.get(top, [top])}
                if top not in own | set(sys.stdlib_module_names) and not providers & reached:
                    strangers.append(f"{path}:{line} {module}")
    assert strangers == []


def _requirements(project: dict) -> list[str]:
    extras = project["project"].get("optional-dependencies", {}).values()
    return [*project["project"].get("dependencies", []), *(r for extra in extras for r in extra)]


def _hard_requirements(distribution: str) -> set[str]:
    try:
        found = [Requirement(line) for line in requires(distribution) or []]
    except PackageNotFoundError:
        return set()  # of an extra that is not installed here: what it would bring is not imported either
    return {canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate({"extra": ""})}


def test_importing_the_core_imports_nothing_heavy(tmp_path: Path) -> None:
    assert run(f"import sys, qwenimage_core; {LIST_HEAVY}", cwd=tmp_path) == ""


def test_importing_a_plugin_imports_nothing_heavy(distributions, tmp_path: Path) -> None:
    """A plugin's own module is light: models are imported where they are built."""
    for distribution in distributions:
        entry_points = distribution.project["project"].get("entry-points", {}).get("qwenimage.plugins", {})
        for name, target in entry_points.items():
            module = target.split(":")[0]
            assert run(f"import sys, {module}; {LIST_HEAVY}", cwd=tmp_path) == "", name


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["plugins", "list"]], ids=" ".join)
def test_the_command_line_answers_without_heavy_imports(arguments: list[str], tmp_path: Path) -> None:
    assert run(RUN_CLI + LIST_HEAVY, *arguments, cwd=tmp_path) == ""


def test_plugins_use_the_public_api_only(root: Path, distributions) -> None:
    """docs/public-api.md lists what is public; a name is public if it or a module above it is listed there."""
    page = (root / "docs" / "public-api.md").read_text()
    public = set(re.findall(r"^\| `(qwenimage_core[\w.]*)`", page, re.MULTILINE))
    assert public, "docs/public-api.md lists no module"
    strangers = []
    for distribution in distributions[1:]:
        for path in distribution.modules():
            for line, name in names_from_core(path):
                private = any(part.startswith("_") for part in name.split("."))
                if private or not _listed(name, public):
                    strangers.append(f"{path}:{line} {name}")
    assert strangers == []


def _listed(name: str, public: set[str]) -> bool:
    """Whether a name is listed itself, or is a direct member of a listed module."""
    return name in public or name.rpartition(".")[0] in public
