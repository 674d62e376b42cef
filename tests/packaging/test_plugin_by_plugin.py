"""The check that `nox -s build` makes of each plugin's wheel, on the core alone (tests/conftest.py hides the rest)."""

from __future__ import annotations

from typing import Any

import pytest

from qwenimage_core.catalogue import EXTRAS, extra_named, known_fields

from .installed import seen
from .plugin_by_plugin import wrong


def test_the_core_alone_refuses_every_plugin_field_with_the_line_that_helps() -> None:
    found = seen()
    assert set(found["refused"]) == set(known_fields())
    assert wrong(found, None) == []


def test_a_plugin_that_is_missing_is_noticed() -> None:
    edit = extra_named("edit")
    assert edit and any("plugins []" in line for line in wrong(seen(), edit))


@pytest.mark.parametrize(
    "change",
    [
        {"plugins": ["edit"]},
        {"fields": ["edit_image"]},
        {"refused": {}},
        {"refused": dict.fromkeys(known_fields(), "no such field")},
    ],
)
def test_whatever_is_more_or_less_is_noticed(change: dict[str, Any]) -> None:
    assert wrong({**seen(), **change}, None)


def test_every_plugin_of_the_catalogue_has_fields() -> None:
    assert sum(bool(extra.fields) for extra in EXTRAS) == 7
