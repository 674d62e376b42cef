"""What the tests of the repository itself share: its folders, its distributions and their modules."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Distribution:
    """One distribution of the repository."""

    folder: Path
    project: dict[str, Any]

    @property
    def name(self) -> str:
        return self.project["project"]["name"]

    @property
    def package(self) -> Path:
        return self.folder / self.name.replace("-", "_")

    def modules(self) -> list[Path]:
        """The shipped modules."""
        return sorted(self.package.rglob("*.py"))


def _distributions() -> list[Distribution]:
    files = [ROOT / "pyproject.toml", *sorted(ROOT.glob("[cp]*/qwenimage-*/pyproject.toml"))]
    return [Distribution(path.parent, tomllib.loads(path.read_text())) for path in files]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def distributions() -> list[Distribution]:
    """The core first, then those of contrib/ and plugins/."""
    return _distributions()


@pytest.fixture(scope="session")
def shipped(distributions: list[Distribution]) -> list[Path]:
    """Every module that a user installs."""
    modules = [module for distribution in distributions for module in distribution.modules()]
    assert modules, "no shipped module found: the folders have moved"
    return modules
