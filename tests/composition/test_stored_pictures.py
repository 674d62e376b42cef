"""Plugins against pictures that DiffSynth-Studio drew on the same weights (tests/parity/remake_plugin_pictures.py).

All seven plugins are there in every run, so that those which are not asked for must leave it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from PIL import Image

from qwenimage_core import QwenImagePipeline
from qwenimage_core.testing import write_tiny_checkpoint
from qwenimage_core.testing.checkpoints import Variant

from ..cases import assert_pictures_equal
from ..plugin_cases import LIGHTNING, LIGHTNING_FILE, PICTURES, SEED_OF_WEIGHTS, STORED, write_lightning
from .conftest import PLUGINS
from .models import CONTROLNETS, open_pipe, write_controlnets

Draw = Callable[..., list[Image.Image]]


@pytest.fixture(scope="module")
def draw(tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """Our pictures of a stored case, one a layer, with some fields changed."""
    models = tmp_path_factory.mktemp("stored")

    @cache
    def pipe(variant: Variant) -> QwenImagePipeline:
        folder = write_tiny_checkpoint(models / variant, variant=variant, seed=SEED_OF_WEIGHTS)
        write_controlnets(folder)
        opened = open_pipe(folder, PLUGINS, CONTROLNETS)
        opened.prompts.positions = "flat"  # as the peer under transformers 5
        return opened

    def drawn(name: str, **changed: Any) -> list[Image.Image]:
        variant, fields = STORED[name].request()
        if STORED[name].table is LIGHTNING:
            file = models / LIGHTNING_FILE.format(fields.pop("num_inference_steps"))
            fields["lightning"] = write_lightning(file)
        fields |= changed
        if "inputs" in fields:
            fields["blockwise_controlnet_inputs"] = fields.pop("inputs")
        images = pipe(variant)(**fields)
        return images if isinstance(images, list) else [images]

    return drawn


def of_the_peer(name: str) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(PICTURES.glob(f"{name}-[0-9].png"))]


def assert_all_equal(ours: list[Image.Image], peers: list[Image.Image]) -> None:
    assert peers and len(ours) == len(peers), (len(ours), len(peers))
    for one, other in zip(ours, peers, strict=True):
        assert_pictures_equal(one, other)


@pytest.mark.parametrize("name", STORED)
def test_pictures_equal_the_peer(name: str, draw: Draw) -> None:
    assert_all_equal(draw(name), of_the_peer(name))


@pytest.mark.parametrize("name", STORED)
def test_what_the_plugin_is_given_shows(name: str, draw: Draw) -> None:
    """Otherwise the pictures would be equal whatever the plugin did."""
    with pytest.raises(AssertionError):
        assert_all_equal(draw(name, **STORED[name].changed), of_the_peer(name))


def test_every_stored_picture_is_compared() -> None:
    assert {path.name.rpartition("-")[0] for path in PICTURES.glob("*.png")} == set(STORED)


def test_stored_pictures_stay_small() -> None:
    assert {path.name for path in PICTURES.glob("*.png") if path.stat().st_size > 16_000} == set()
