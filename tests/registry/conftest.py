"""Throw-away plugins: installed distributions that exist only as a folder on sys.path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwenimage_core import discovery

Install = Callable[..., Path]

PLUGIN = """
from pydantic import Field
from qwenimage_core.hooks import hookimpl
from qwenimage_core.request import FieldsModel

HOOK_API = ">=1.0,<2"

class Fields(FieldsModel):
    {field}: int | None = Field(None, description="how much")

@hookimpl
def request_fields():
    return Fields

@hookimpl
def condition(ctx):
    return None
"""


def install_into(
    folder: Path, distribution: str, entry_points: dict[str, str], version: str = "0.1.0"
) -> None:
    """What pip leaves behind for a distribution: its metadata and its entry points."""
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    lines = [f"{name} = {target}" for name, target in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[qwenimage.plugins]", *lines]) + "\n")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(name, code, ...): a distribution `qwenimage-NAME` with one module `plugin_NAME` and one entry point."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    for variable in (discovery.ALLOW, discovery.DISABLE):
        monkeypatch.delenv(variable, raising=False)
    before = set(sys.modules)

    def install(
        name: str, code: str | None = None, *, distribution: str | None = None, version: str = "0.1.0"
    ) -> Path:
        distribution = distribution or f"qwenimage-{name}"
        module = "plugin_" + distribution.replace("-", "_")
        path = site / f"{module}.py"
        path.write_text(PLUGIN.format(field=f"{name.replace('-', '_')}_amount") if code is None else code)
        install_into(site, distribution, {name: module}, version)
        discovery.refresh()
        return path

    discovery.refresh()
    yield install
    for name in set(sys.modules) - before:
        if name.startswith(("plugin_", "_qwenimage_plugin_")):
            del sys.modules[name]
    monkeypatch.undo()
    discovery.refresh()
