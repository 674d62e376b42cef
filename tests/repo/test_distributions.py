"""The distributions agree with each other, with the extras and with the constraints file."""

from __future__ import annotations

import re
from importlib.metadata import distribution as installed
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PLUGIN_EXTRAS = [
    "edit",
    "layered",
    "eligen",
    "blockwise-controlnet",
    "in-context-control",
    "i2l",
    "lightning",
]


def core_version(root: Path) -> str:
    found = re.search(r'__version__ = "([^"]+)"', (root / "qwenimage_core" / "version.py").read_text())
    assert found
    return found[1]


def test_all_distributions_have_one_version(root: Path, distributions) -> None:
    versions = {d.name: d.project["project"].get("version", core_version(root)) for d in distributions}
    assert set(versions.values()) == {core_version(root)}, versions


def test_the_changelog_names_the_version(root: Path) -> None:
    assert f"## {core_version(root)}" in (root / "CHANGELOG.md").read_text()


def test_an_extra_a_plugin(root: Path, distributions) -> None:
    """Every extra names one distribution, in a range that takes today's version; `all` is those that exist today."""
    extras = distributions[0].project["project"]["optional-dependencies"]
    expected = {extra: f"qwenimage-{extra}" for extra in PLUGIN_EXTRAS} | {"tiny": "qwenimage-tiny"}
    expected["train"] = "qwenimage-training"
    named = {extra: Requirement(line) for extra, [line] in extras.items() if extra != "all"}
    assert {extra: r.name for extra, r in named.items()} == expected
    assert all(SpecifierSet(str(r.specifier)).contains(core_version(root)) for r in named.values())

    exist = {d.name for d in distributions}
    [everything] = extras["all"]
    assert Requirement(everything).extras == {
        e for e, name in expected.items() if name in exist and e != "train"
    }


def test_every_plugin_needs_this_core(distributions) -> None:
    for distribution in distributions[1:]:
        needs = [Requirement(line) for line in distribution.project["project"]["dependencies"]]
        assert any(r.name == "qwenimage-core" and r.specifier for r in needs), distribution.name


def test_every_dependency_has_an_upper_bound(distributions) -> None:
    """An unbounded dependency breaks an install on the day of its next major release."""
    open_ended = [
        f"{distribution.name}: {line}"
        for distribution in distributions
        for line in distribution.project["project"].get("dependencies", [])
        if not re.search(r"<|==|~=", line)
    ]
    assert open_ended == []


def test_constraints_pin_everything_that_is_installed_for_us(root: Path, distributions) -> None:
    """What our distributions and tools pull in, found by following the metadata of this environment, is pinned."""
    pins = constraints(root)
    unpinned = {name for name in closure(roots(distributions)) if name not in pins}
    assert unpinned == set()


def test_constraints_lie_within_the_declared_bounds(root: Path, distributions) -> None:
    pins = constraints(root)
    outside = [
        line
        for distribution in distributions
        for line in distribution.project["project"].get("dependencies", [])
        if not line.startswith("qwenimage")
        and not Requirement(line).specifier.contains(pins[canonicalize_name(Requirement(line).name)])
    ]
    assert outside == []


def constraints(root: Path) -> dict[str, Version]:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {
        canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)
    }


def roots(distributions) -> list[Requirement]:
    tools = ["nox", "pytest", "pytest-xdist", "hypothesis"]
    declared = [line for d in distributions for line in d.project["project"].get("dependencies", [])]
    return [Requirement(line) for line in [*declared, *tools] if not line.startswith("qwenimage")]


def closure(requirements: list[Requirement]) -> set[str]:
    """The names of all distributions that the requirements need here, themselves included."""
    done: set[tuple[str, frozenset[str]]] = set()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in done:
            continue
        done.add(key)
        for line in installed(requirement.name).requires or []:
            needed = Requirement(line)
            environments = [{**default_environment(), "extra": extra} for extra in (*requirement.extras, "")]
            if needed.marker is None or any(needed.marker.evaluate(e) for e in environments):
                todo.append(needed)
    return {name for name, _ in done}
