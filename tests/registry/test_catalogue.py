"""The catalogue of extras says what the first-party plugins of this repository really bring."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from qwenimage_core.catalogue import EXTRAS, PEER_NAMES, extra_named
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.request import CoreRequest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def plugin_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    (target,) = project(folder)["entry-points"]["qwenimage.plugins"].values()
    monkeypatch.syspath_prepend(str(folder))
    return import_module(target)


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda path: path.name)
def test_fields_and_names_of_a_plugin_are_those_of_its_extra(install, monkeypatch, folder: Path) -> None:
    extra = extra_named(folder.name)
    assert extra is not None
    (name,) = project(folder)["entry-points"]["qwenimage.plugins"]
    assert (name, extra.distribution) == (extra.name, project(folder)["name"])
    registry = PluginRegistry.discover([plugin_module(folder, monkeypatch)], disable_all=True)
    (plugin,) = registry.loaded
    assert sorted(plugin.fields) == sorted(extra.fields)


def test_all_first_party_plugins_go_into_one_request(install, monkeypatch) -> None:
    """No field, validator or helper of one replaces another's."""
    modules = [plugin_module(folder, monkeypatch) for folder in PLUGINS]
    registry = PluginRegistry.discover(modules, disable_all=True)
    fields = [field for plugin in registry.loaded for field in plugin.fields]
    assert set(registry.request_model().model_fields) == {*CoreRequest.model_fields, *fields}


def test_every_extra_is_an_extra_of_the_core() -> None:
    declared = project(ROOT)["optional-dependencies"]
    assert {e.name: e.distribution for e in EXTRAS} == {
        name: requirements[0].split(">")[0] for name, requirements in declared.items() if name != "all"
    }


def test_names_of_the_peers_lead_to_fields_that_exist() -> None:
    fields = {*CoreRequest.model_fields, *(f for e in EXTRAS for f in e.fields)}
    assert set(PEER_NAMES.values()) <= fields
    assert not set(PEER_NAMES) & fields
